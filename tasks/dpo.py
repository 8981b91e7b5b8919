"""Direct preference optimisation of a LoRA adapter: what runs on every training worker.

Imported only there; it needs torch, transformers, peft and trl.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, load_peft_weights, set_peft_model_state_dict
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, TrainerControl, TrainerState
from trl import DPOConfig, DPOTrainer

from cluster.rendering import is_chat
from tasks.tables import PREFERENCES, read
from tasks.weighted_dpo import WEIGHT, WeightCollator, WeightedDPOTrainer, weights_of

COMPLETE = "complete"
"""Marker in a checkpoint's folder that was written whole: a kill in mid-write leaves a folder without it."""

REFERENCE = "ref"
"""Name of the adapter that TRL takes as the reference."""

Log = Callable[[dict[str, float], int], None]


@dataclass(frozen=True)
class Plan:
    """One training run; paths are seen by every worker."""

    model: Path
    start: Path
    reference: Path | None
    preferences: tuple[Path, ...]
    target: Path
    checkpoints: Path
    arguments: dict[str, Any]
    lora: dict[str, Any]
    batch_size: int
    use_gpu: bool


def train(plan: Plan, num_workers: int, log: Log) -> dict[str, float]:
    """Train, save the adapter to `plan.target` and return log-likelihoods before and after, nats a response.

    A run that finds whole checkpoints continues from the last of them.
    """
    trainer = trainer_of(plan, num_workers, log)
    before = _likelihoods(trainer, "before")
    trainer.train(resume_from_checkpoint=last_checkpoint(plan.checkpoints))
    after = _likelihoods(trainer, "after")
    if trainer.is_world_process_zero():
        trainer.accelerator.unwrap_model(trainer.model).save_pretrained(plan.target, selected_adapters=["default"])
    return before | after | {"steps": float(trainer.state.global_step), "loss": float(_last_loss(trainer.state))}


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written whole."""
    whole = [marker.parent for marker in folder.glob(f"checkpoint-*/{COMPLETE}")]
    return str(max(whole, key=lambda path: int(path.name.rsplit("-", 1)[1]))) if whole else None


def dataset(preferences: tuple[Path, ...]) -> Dataset:
    """Labels in TRL's explicit-prompt form: conversations where the prompts are, else plain text.

    They have a column of weights where these differ.
    """
    rows = pa.concat_tables([read(path, PREFERENCES) for path in preferences]).to_pylist()
    examples, weights = Dataset.from_list([_example(row) for row in rows]), weights_of(rows)
    return examples if weights is None else examples.add_column(WEIGHT, weights)


def _example(row: dict[str, Any]) -> dict[str, Any]:
    if not is_chat(row["messages"]):
        return {"prompt": row["messages"][0]["content"], "chosen": row["chosen_text"], "rejected": row["rejected_text"]}
    answers = {side: [{"role": "assistant", "content": row[f"{side}_text"]}] for side in ("chosen", "rejected")}
    return {"prompt": row["messages"], **answers}


def trainer_of(plan: Plan, num_workers: int, log: Log) -> DPOTrainer:
    """The trainer of a plan, with its start and its reference in place: TRL's own, but for labels of unlike weights."""
    if not plan.use_gpu:
        torch.set_num_threads(os.cpu_count() or 1)
    tokenizer = AutoTokenizer.from_pretrained(plan.model, local_files_only=True)
    dtype = "auto" if plan.use_gpu else torch.float32
    model = AutoModelForCausalLM.from_pretrained(plan.model, dtype=dtype, local_files_only=True)
    examples = dataset(plan.preferences)
    weighted = WEIGHT in examples.column_names
    trainer = (WeightedDPOTrainer if weighted else DPOTrainer)(
        model,
        args=_arguments(plan, num_workers),
        train_dataset=examples,
        eval_dataset=examples,
        processing_class=tokenizer,
        peft_config=LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", **plan.lora),
        callbacks=[_Checkpoints(), _Metrics(log)],
    )
    if weighted:
        trainer.data_collator = WeightCollator(trainer.data_collator)
    _place_adapters(trainer.accelerator.unwrap_model(trainer.model), plan)
    return trainer


def _place_adapters(model: PeftModel, plan: Plan) -> None:
    """Start from the adapter `plan.start`, and hold the reference fixed.

    TRL takes the adapter of that name as the reference where there is one, and the bare base model where there is none.
    """
    set_peft_model_state_dict(model, load_peft_weights(str(plan.start)), adapter_name="default")
    if plan.reference is not None:
        model.load_adapter(str(plan.reference), adapter_name=REFERENCE, is_trainable=False)
        model.set_adapter("default")


def _arguments(plan: Plan, num_workers: int) -> DPOConfig:
    workers = max(1, num_workers)
    micro = plan.arguments["per_device_train_batch_size"]
    return DPOConfig(
        output_dir=str(plan.checkpoints),
        gradient_accumulation_steps=max(1, plan.batch_size // (micro * workers)),
        per_device_eval_batch_size=micro,
        use_cpu=not plan.use_gpu,
        bf16=plan.use_gpu,
        gradient_checkpointing=plan.use_gpu,
        save_strategy="steps",
        save_total_limit=2,
        logging_steps=1,
        disable_tqdm=num_workers > 0,
        report_to="none",
        **plan.arguments,
    )


def _likelihoods(trainer: DPOTrainer, when: str) -> dict[str, float]:
    found = trainer.evaluate()
    names = ("logps/chosen", "logps/rejected", "rewards/margins", "rewards/accuracies")
    return {f"{name}_{when}": float(found[f"eval_{name}"]) for name in names}


def _last_loss(state: TrainerState) -> float:
    return next((entry["loss"] for entry in reversed(state.log_history) if "loss" in entry), float("nan"))


class _Checkpoints(TrainerCallback):  # type: ignore[misc]
    """Marks a checkpoint when all of it is on disk.

    The reference is taken out of it: with a folder of another adapter beside the trained one, transformers would load
    that alone and go on from the weights of the start.
    """

    def on_save(self, args: DPOConfig, state: TrainerState, control: TrainerControl, **_: Any) -> None:  # noqa: ARG002
        if state.is_world_process_zero:
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            shutil.rmtree(checkpoint / REFERENCE, ignore_errors=True)
            (checkpoint / COMPLETE).touch()


class _Metrics(TrainerCallback):  # type: ignore[misc]
    """Passes on what the trainer logs while it trains."""

    def __init__(self, log: Log) -> None:
        self._log = log

    def on_log(
        self,
        args: DPOConfig,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if state.is_world_process_zero and logs and "loss" in logs:
            self._log({f"train/{name}": float(value) for name, value in logs.items()}, state.global_step)
