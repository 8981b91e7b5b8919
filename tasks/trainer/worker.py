"""One training, as every worker runs it: load, train from the last whole checkpoint on, save the adapter."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, TrainerControl, TrainerState
from trl import DPOConfig

from cluster.errors import InputError
from tasks.trainer.batches import dataset
from tasks.trainer.checkpoints import Marks, newest_checkpoint
from tasks.trainer.pair_trainer import PairTrainer, Parts, Recipe

REFERENCE = "reference"
"""Name of the adapter that is loaded where the reference has one and has to speak."""

Log = Callable[[dict[str, float], int], None]


@dataclass(frozen=True)
class Plan:
    """One training run; paths are seen by every worker."""

    model: Path
    start: Path
    reference: Path | None
    lessons: Path
    target: Path
    checkpoints: Path
    arguments: dict[str, Any]
    lora: dict[str, Any]
    batch_size: int
    use_gpu: bool
    recipe: Recipe = field(default=Recipe())


def train(plan: Plan, num_workers: int, log: Log) -> dict[str, float]:
    """Train, save the adapter to `plan.target` and return log-likelihoods before and after, nats a response.

    A run that finds whole checkpoints continues from the last of them.

    Raises:
        InputError: the pairs or the adapters don't fit.
        TrainingError: a loss or a weight is not finite.
    """
    trainer = trainer_of(plan, num_workers, log)
    before = trainer.measured()
    trainer.resume(newest_checkpoint(plan.checkpoints))
    after = trainer.measured()
    if trainer.is_world_process_zero():
        trainer.accelerator.unwrap_model(trainer.model).save_pretrained(plan.target, selected_adapters=["default"])
    facts = {"steps": float(trainer.state.global_step), "num_pairs_trained": float(len(trainer.train_dataset))}
    told = {
        f"{name}_{when}": value for when, of in (("before", before), ("after", after)) for name, value in of.items()
    }
    return told | facts | {"loss": float(_last_loss(trainer.state))}


def trainer_of(plan: Plan, num_workers: int, log: Log) -> PairTrainer:
    """The trainer of a plan, with its start in place and every pair's reference known."""
    if not plan.use_gpu:
        torch.set_num_threads(os.cpu_count() or 1)
    tokenizer = AutoTokenizer.from_pretrained(plan.model, local_files_only=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    pairs = dataset(plan.lessons, tokenizer, plan.arguments["max_length"])
    dtype = "auto" if plan.use_gpu else torch.float32
    model = AutoModelForCausalLM.from_pretrained(plan.model, dtype=dtype, local_files_only=True)
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", **plan.lora)
    trainer = PairTrainer(
        model, Parts(tokenizer, lora, [Marks(), _Metrics(log)]), _arguments(plan, num_workers), pairs, plan.recipe
    )
    adapted = trainer.accelerator.unwrap_model(trainer.model)
    _start_from(plan.start, adapted)
    trainer.complete_references(_speaking(adapted, plan.reference))
    return trainer


def _start_from(adapter: Path, model: PeftModel) -> None:
    """Give the model the weights of an adapter.

    Raises:
        InputError: they are of another shape than the model's.
    """
    weights = load_peft_weights(str(adapter))
    own = {name: tuple(part.shape) for name, part in get_peft_model_state_dict(model).items()}
    given = {name: tuple(part.shape) for name, part in weights.items()}
    odd = sorted(name for name in own.keys() | given.keys() if own.get(name) != given.get(name))
    if odd:
        raise InputError(
            f"adapter {adapter} was trained on another base model or with another training.lora: {len(odd)} of its "
            f"matrices don't fit, such as {odd[0]} (found {given.get(odd[0])}, expected {own.get(odd[0])})"
        )
    set_peft_model_state_dict(model, weights, adapter_name="default")


@contextmanager
def _speaking(model: PeftModel, reference: Path | None) -> Iterator[None]:
    """The model as the reference for the block: with its adapter, or with none."""
    if reference is None:
        with model.disable_adapter():
            yield
        return
    model.load_adapter(str(reference), adapter_name=REFERENCE, is_trainable=False)
    model.set_adapter(REFERENCE)
    try:
        yield
    finally:
        model.set_adapter("default")
        model.delete_adapter(REFERENCE)


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
        logging_nan_inf_filter=False,
        disable_tqdm=num_workers > 0,
        report_to="none",
        **plan.arguments,
    )


def _last_loss(state: TrainerState) -> float:
    return next((entry["loss"] for entry in reversed(state.log_history) if "loss" in entry), float("nan"))


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
