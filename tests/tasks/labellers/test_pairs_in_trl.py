"""Exports load in TRL as they are: a step of DPO on preferences, a step of KTO on unpaired responses."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.data_utils import unpair_preference_dataset

from tasks.labellers.formats import FORMATS, write_answers
from tasks.labellers.formats.parts import Holding
from tasks.labellers.ledger import Entry

pytestmark = pytest.mark.labels

PROMPTS: dict[str, list[list[dict[str, str | None]]]] = {
    "plain": [[{"role": None, "content": f"say {word}"}] for word in ("good", "bad", "nice", "warm")],
    "chat": [
        [{"role": "system", "content": "be kind"}, {"role": "user", "content": word}]
        for word in ("good", "bad", "nice", "warm")
    ],
}
TRAINERS = {"preference": (DPOTrainer, DPOConfig), "unpaired": (KTOTrainer, KTOConfig)}

Exported = Callable[[str, str, str], Dataset]


@pytest.fixture
def exported(tmp_path: Path, make_entry: Callable[..., Entry]) -> Exported:
    """Export four decided pairs, a tie and an abstention, and load the file as a user of TRL does."""

    def load(form: str, kind: str, ending: str) -> Dataset:
        prompts = PROMPTS[kind]
        decided = [
            make_entry(prompt, [f"happy {number}", ""], choice="first" if number % 2 else "second")
            for number, prompt in enumerate(prompts)
        ]
        others = [make_entry(prompts[0], [choice, "dull"], choice=choice) for choice in ("tie", "abstain")]
        path = tmp_path / f"{form}{ending}"
        write_answers(path, FORMATS[form], Holding(entries=[*decided, *others]))
        name = "parquet" if ending == ".parquet" else "json"
        return load_dataset(name, data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))

    return load


def losses(form: str, data: Dataset, model: Path, folder: Path) -> Sequence[float]:
    trainer, config = TRAINERS[form]
    arguments: dict[str, Any] = {"bf16": False, "use_cpu": True, "report_to": "none", "disable_tqdm": True}
    training = trainer(
        model=AutoModelForCausalLM.from_pretrained(model),
        args=config(
            output_dir=str(folder),
            per_device_train_batch_size=4,
            max_steps=1,
            max_length=96,
            logging_steps=1,
            save_strategy="no",
            gradient_checkpointing=False,
            **arguments,
        ),
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    training.train()
    return [entry["loss"] for entry in training.state.log_history if "loss" in entry]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", PROMPTS)
@pytest.mark.parametrize("form", TRAINERS)
def test_a_trainer_of_trl_takes_a_step_on_an_export(
    exported: Exported, tiny_model: Path, tmp_path: Path, form: str, kind: str
) -> None:
    data = exported(form, kind, ".jsonl")
    assert len(data) == {"preference": 4, "unpaired": 8}[form]
    (loss,) = losses(form, data, tiny_model, tmp_path / "run")
    assert loss == pytest.approx({"preference": 0.693, "unpaired": 0.5}[form], abs=0.01)


@pytest.mark.parametrize("kind", PROMPTS)
def test_unpaired_responses_are_what_trl_makes_of_the_pairs(exported: Exported, kind: str) -> None:
    ours = exported("unpaired", kind, ".jsonl")
    theirs = unpair_preference_dataset(exported("preference", kind, ".jsonl"))
    assert ours.to_list() == theirs.select_columns(ours.column_names).to_list()


@pytest.mark.parametrize("form", TRAINERS)
@pytest.mark.parametrize("kind", PROMPTS)
def test_parquet_and_jsonl_hold_the_same(exported: Exported, form: str, kind: str) -> None:
    assert exported(form, kind, ".parquet").to_list() == exported(form, kind, ".jsonl").to_list()
