"""The trainer with weights of 1 against TRL's own on the same pairs, in float64: losses, gradients, logged metrics."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer

from tasks.objectives import AnyObjective, Dpo, Hinge, Ipo, Robust, SftChosen
from tasks.trainer.batches import dataset
from tasks.trainer.pair_trainer import PairTrainer, Parts, Recipe

TOLERANCE = 1e-6  # of numbers up to 1, relative above: TRL keeps log-probabilities in float32
TIMES = ("runtime", "per_second", "time", "flos")

LessonRows = Callable[..., list[dict[str, Any]]]
MakePlan = Callable[..., Any]


class Tokenised(DPOTrainer):
    """TRL's trainer, given tokens in place of texts, which would be cut into others."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset


class Gradients(TrainerCallback):
    """Keeps the gradient of every step."""

    def __init__(self) -> None:
        self.found: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, *_: Any, model: Any, **__: Any) -> None:
        parts = model.named_parameters()
        self.found.append({name: part.grad.clone() for name, part in parts if part.grad is not None})


def arguments(folder: Path, shape: tuple[int, int, int], **more: Any) -> DPOConfig:
    micro, accumulation, steps = shape
    return DPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        learning_rate=1e-3,
        max_steps=steps,
        beta=0.2,
        max_length=96,
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        disable_tqdm=True,
        seed=3,
        **more,
    )


def logged(trainer: DPOTrainer) -> list[dict[str, float]]:
    trainer.train()
    return [
        {name: value for name, value in entry.items() if not any(time in name for time in TIMES)}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("objective", "theirs", "shape"),
    [
        (Dpo(), {"loss_type": ["sigmoid"]}, (1, 1, 50)),
        (Dpo(), {"loss_type": ["sigmoid"]}, (8, 1, 50)),
        (Dpo(), {"loss_type": ["sigmoid"]}, (1, 4, 50)),
        (Dpo(), {"loss_type": ["sigmoid"]}, (8, 2, 50)),
        (Ipo(), {"loss_type": ["ipo"]}, (8, 1, 10)),
        (Hinge(), {"loss_type": ["hinge"]}, (2, 2, 10)),
        (Robust(flip_rate=0.2), {"loss_type": ["robust"], "label_smoothing": 0.2}, (8, 1, 10)),
        (SftChosen(), {"loss_type": ["sft"]}, (2, 2, 10)),
    ],
)
def test_weights_of_1_give_trls_losses_gradients_and_metrics(
    tiny_model: Path,
    tmp_path: Path,
    lesson_rows: LessonRows,
    make_plan: MakePlan,
    objective: AnyObjective,
    theirs: dict[str, Any],
    shape: tuple[int, int, int],
) -> None:
    """`shape`: pairs in memory at a time, how often they are accumulated, and steps."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    recipe = Recipe(objective=objective, group_by_length=False)
    pairs = dataset(make_plan("run", lesson_rows(16), recipe).lessons, tokenizer, 96)
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=4, lora_alpha=8)
    watch = Gradients(), Gradients()

    def model() -> Any:
        return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)

    trl = Tokenised(
        model(),
        args=arguments(tmp_path / "trl", shape, **theirs),
        train_dataset=pairs.remove_columns(["ref_chosen_logps", "ref_rejected_logps"]),
        processing_class=tokenizer,
        peft_config=lora,
        callbacks=[watch[0]],
    )
    own = PairTrainer(model(), Parts(tokenizer, lora, [watch[1]]), arguments(tmp_path / "own", shape), pairs, recipe)
    own.complete_references(own.model.disable_adapter())

    expected, found = logged(trl), logged(own)
    assert len(expected) == len(found) == shape[2]
    assert expected[0]["loss"] != pytest.approx(expected[-1]["loss"], abs=1e-2)
    for step, (one, other) in enumerate(zip(expected, found, strict=True)):
        assert other == pytest.approx(one, rel=TOLERANCE, abs=TOLERANCE), step
    for step, (one, other) in enumerate(zip(watch[0].found, watch[1].found, strict=True)):
        assert one.keys() == other.keys()
        assert any(gradient.abs().max() > 1e-4 for gradient in one.values())
        for name, gradient in one.items():
            torch.testing.assert_close(other[name], gradient, rtol=0, atol=TOLERANCE, msg=f"{step} {name}")
