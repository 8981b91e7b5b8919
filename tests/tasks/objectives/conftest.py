"""What the tests of objectives in a trainer share: pairs as token ids, and plans to train on them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster.adapters import fresh_adapter
from cluster.models import LoraShape, Policy
from tasks.stages import ADAPTER
from tasks.tables import LESSONS, Table
from tasks.trainer.pair_trainer import Recipe
from tasks.trainer.worker import Plan

GOOD, BAD = ("good", "happy nice", "love", "great fine good"), ("bad", "sad", "hate awful dull", "awful")
LORA = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0}

Row = dict[str, Any]
LessonRows = Callable[..., list[Row]]
MakePlan = Callable[..., Plan]


@pytest.fixture(scope="session")
def lesson_rows(tiny_model: Path) -> LessonRows:
    """Rows of LESSONS: responses of unlike lengths to prompts of unlike lengths, each ended as a model ends it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)

    def make(number: int, **columns: Sequence[Any]) -> list[Row]:
        def tokens(text: str) -> list[int]:
            return [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]

        rows = [
            {
                "pair_id": f"pair-{i}",
                "prompt_id": f"prompt-{i}",
                "messages": [{"role": "user", "content": f"warm or cold {'very ' * (i % 3)}{i}:"}],
                "chosen": f"{i}-a",
                "rejected": f"{i}-b",
                "chosen_token_ids": tokens(GOOD[i % 4]),
                "rejected_token_ids": tokens(BAD[i // 4 % 4]),
                "weight": 1.0,
            }
            for i in range(number)
        ]
        return [row | {name: values[i] for name, values in columns.items()} for i, row in enumerate(rows)]

    return make


@pytest.fixture
def make_plan(tiny_model: Path, tmp_path: Path, write_table: Callable[..., Table]) -> MakePlan:
    """A plan in a folder of its own; `arguments` are the trainer's."""

    def make(name: str, rows: Sequence[Row], recipe: Recipe, *, batch: int = 4, **arguments: Any) -> Plan:
        defaults = {
            "beta": 0.2,
            "max_length": 96,
            "save_steps": 50,
            "learning_rate": 1e-3,
            "num_train_epochs": 1,
            "per_device_train_batch_size": batch,
            "warmup_steps": 0,
            "weight_decay": 0.0,
            "seed": 0,
        }
        base = Policy(digest="base", model=tiny_model)
        return Plan(
            model=tiny_model,
            start=fresh_adapter(base, LoraShape(**LORA), 0, tmp_path / "cache"),
            reference=None,
            lessons=write_table(rows, LESSONS).path,
            target=tmp_path / name / ADAPTER,
            checkpoints=tmp_path / name / ".checkpoints",
            arguments=defaults | arguments,
            lora=LORA,
            batch_size=batch,
            use_gpu=False,
            recipe=recipe,
        )

    return make
