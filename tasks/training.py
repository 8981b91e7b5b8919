"""Training: DPO of a LoRA adapter on the labels, in Ray Train."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from cluster.adapters import fresh_adapter
from cluster.models import LoraShape, Policy
from cluster.settings import TrainSettings
from cluster.storage import StageKey
from cluster.tracking import Tracker
from tasks.stages import ADAPTER, Publish, RoundContext, run_stage, stage_task
from tasks.tables import Table

if TYPE_CHECKING:
    from tasks.dpo import Plan


class OptimizerConfig(BaseModel):
    """How the loss is descended."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    learning_rate: PositiveFloat = 1e-5
    num_epochs: PositiveFloat = 1.0
    batch_size: PositiveInt = Field(8, description="pairs of one step, over all workers")
    micro_batch_size: PositiveInt = Field(4, description="pairs in one worker's memory at a time")
    warmup_steps: NonNegativeInt = 0
    weight_decay: NonNegativeFloat = 0.0

    @model_validator(mode="after")
    def _whole_steps(self) -> "OptimizerConfig":
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of micro_batch_size {self.micro_batch_size}: "
                "a step takes whole micro-batches, change one of them"
            )
        return self


class TrainingConfig(BaseModel):
    """What the policy learns from, against which reference, from which start."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    beta: PositiveFloat = Field(0.1, description="inverse temperature of DPO: strength of the pull to the reference")
    reference: Literal["base", "previous"] = Field("base", description="policy of round 0, or of the round before")
    start: Literal["base", "previous"] = Field("previous", description="adapter that training starts from")
    data: Literal["round", "lineage"] = Field("lineage", description="labels of this round, or of all rounds so far")
    max_length: PositiveInt = Field(512, description="tokens of prompt and response together at most")
    save_steps: PositiveInt = Field(50, description="steps between checkpoints: what a killed training repeats at most")
    lora: LoraShape = LoraShape()
    optimizer: OptimizerConfig = OptimizerConfig()


@dataclass(frozen=True)
class Lessons:
    """What one training starts from and learns from."""

    base: Policy
    start: Policy
    reference: Policy
    preferences: Sequence[Table]


@stage_task("train policy")
def train_policy(lessons: Lessons, config: TrainingConfig, here: RoundContext) -> Table:
    """Train an adapter; its folder is `adapter` in the stage's. Log-likelihoods are sums over a response, nats."""
    policies = (lessons.base, lessons.start, lessons.reference)
    inputs = [*(policy.digest for policy in policies), *(table.digest for table in lessons.preferences)]
    seed = here.seed_of("training")

    def work(folder: Path) -> dict[str, Any]:
        started = time.perf_counter()
        measures = _run(_plan(lessons, config, folder, here), here)
        return measures | {"model_seconds": time.perf_counter() - started, "num_labels": _rows(lessons)}

    facts = config.model_dump(exclude={"save_steps"}) | {"seed": seed, "adapter_seed": here.seed}
    key = StageKey("adapter", facts, inputs)
    table = run_stage(key, work, here, publish=Publish("training"))
    here.tracker.log_folder(here.run, here.store.stage(key).path / ADAPTER, artifact_path=ADAPTER)
    return table


def trained_policy(base: Policy, trained: Table) -> Policy:
    """The policy that a training stage made."""
    return Policy(digest=trained.digest, model=base.model, adapter=trained.path / ADAPTER)


def _rows(lessons: Lessons) -> int:
    return sum(table.rows for table in lessons.preferences)


def _plan(lessons: Lessons, config: TrainingConfig, folder: Path, here: RoundContext) -> "Plan":
    from tasks.dpo import Plan

    optimizer = config.optimizer
    fresh = fresh_adapter(lessons.base, config.lora, here.seed, here.settings.cache)
    return Plan(
        model=lessons.base.model,
        start=lessons.start.adapter or fresh,
        reference=lessons.reference.adapter,
        preferences=tuple(table.path for table in lessons.preferences),
        target=folder / ADAPTER,
        checkpoints=folder / ".checkpoints",
        arguments={
            "beta": config.beta,
            "max_length": config.max_length,
            "save_steps": config.save_steps,
            "learning_rate": optimizer.learning_rate,
            "num_train_epochs": optimizer.num_epochs,
            "per_device_train_batch_size": optimizer.micro_batch_size,
            "warmup_steps": optimizer.warmup_steps,
            "weight_decay": optimizer.weight_decay,
            "seed": here.seed_of("training"),
        },
        lora=config.lora.model_dump(),
        batch_size=optimizer.batch_size,
        use_gpu=here.settings.train.use_gpu,
    )


def _run(plan: "Plan", here: RoundContext) -> dict[str, float]:
    """Train under Ray Train: in this process without workers, else on that many."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    hardware: TrainSettings = here.settings.train
    trainer = TorchTrainer(
        train_on_worker,
        train_loop_config={"plan": plan, "num_workers": hardware.num_workers, "tracker": here.tracker, "run": here.run},
        scaling_config=ScalingConfig(num_workers=hardware.num_workers, use_gpu=hardware.use_gpu),
        run_config=RunConfig(name=f"{here.label}-{time.time_ns()}", storage_path=str(plan.checkpoints.parent / ".ray")),
    )
    measures: dict[str, float] = trainer.fit().return_value
    return measures


def train_on_worker(config: dict[str, Any]) -> dict[str, float]:
    """The training function of every worker; the first one streams metrics to MLflow."""
    from tasks.dpo import train

    tracker: Tracker = config["tracker"]

    def log(metrics: dict[str, float], step: int) -> None:
        tracker.log_metrics(config["run"], metrics, step=step)

    return train(config["plan"], config["num_workers"], log)
