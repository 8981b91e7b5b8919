"""Training: an adapter learns from the labels, in Ray Train."""

import shutil
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

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
from cluster.errors import InputError
from cluster.models import LoraShape, Policy
from cluster.settings import TrainSettings
from cluster.storage import StageKey
from cluster.threads import TORCH
from cluster.tracking import Tracker
from tasks.lessons import Data, Lessons, Syllabus, Taught, WeightsConfig, taught
from tasks.objectives import AnyObjective
from tasks.objectives.contrastive import Dpo
from tasks.objectives.exploration import AnyExploration
from tasks.progress import run_logger
from tasks.schedulers import All, AnyScheduler, identity_of
from tasks.stages import ADAPTER, Publish, RoundContext, run_stage, stage_task
from tasks.tables import LESSONS, Table, part_path, write_arrow

if TYPE_CHECKING:
    from tasks.trainer.worker import Plan


class OptimizerConfig(BaseModel):
    """How the loss is descended."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    learning_rate: PositiveFloat = 1e-5
    num_epochs: PositiveFloat = 1.0
    num_steps: PositiveInt | None = Field(
        None, description="gradient steps on the labels of a round (T), in place of num_epochs"
    )
    batch_size: PositiveInt = Field(8, description="pairs of one step, over all workers")
    micro_batch_size: PositiveInt = Field(4, description="pairs in one worker's memory at a time")
    group_by_length: bool = Field(True, description="pairs of a step share micro-batches with those of like length")
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
    """What the policy learns from, by which loss, against which reference, from which start."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    objective: Annotated[AnyObjective, Field(discriminator="kind")] = Dpo()
    beta: PositiveFloat = Field(0.1, description="inverse temperature of DPO: strength of the pull to the reference")
    exploration: Annotated[AnyExploration, Field(discriminator="kind")] | None = Field(
        None, description="term for a response of the reference's own to each of the round's prompts (xpo, selm)"
    )
    weights: WeightsConfig = WeightsConfig()
    scheduler: Annotated[AnyScheduler, Field(discriminator="kind")] = Field(
        All(), description="which pairs of each step's batch are trained on"
    )
    reference: Literal["base", "previous"] = Field("base", description="policy of round 0, or of the round before")
    start: Literal["base", "previous"] = Field("previous", description="adapter that training starts from")
    data: Data = Field(
        "lineage", description="labels of this round, of all rounds, or of the last round of each prompt (newest)"
    )
    min_reward_gap: NonNegativeFloat | None = Field(
        None, description="pairs whose scores by features.proxy differ by no more are left out"
    )
    max_length: PositiveInt = Field(512, description="tokens of prompt and response together at most")
    save_steps: PositiveInt = Field(50, description="steps between checkpoints: what a killed training repeats at most")
    lora: LoraShape = LoraShape()
    optimizer: OptimizerConfig = OptimizerConfig()

    @model_validator(mode="after")
    def _keeps_of_a_batch(self) -> "TrainingConfig":
        if not isinstance(self.scheduler, All) and self.scheduler.num_kept > self.optimizer.batch_size:
            raise ValueError(
                f"scheduler.num_kept {self.scheduler.num_kept} exceeds the {self.optimizer.batch_size} pairs of a "
                "step: lower it, or raise optimizer.batch_size"
            )
        return self

    @property
    def reads_rewards(self) -> bool:
        """Whether pairs have to have rewards, which are the scores of the round's proxy."""
        asking = (self.weights.utility, self.min_reward_gap)
        return "rewards" in self.objective.needs or any(one is not None for one in asking)

    @property
    def syllabus(self) -> Syllabus:
        """Which pairs teach, and how much each weighs."""
        return Syllabus(
            objective=self.objective,
            weights=self.weights,
            min_reward_gap=self.min_reward_gap,
            newest=self.data == "newest",
        )


def check_training(config: TrainingConfig, num_workers: int) -> None:
    """See that a scheduler can serve on so many workers; 0 trains in this process.

    Raises:
        InputError: the pairs it keeps can't be spread over workers and micro-batches, or its encoder is missing.
    """
    identity_of(config.scheduler)
    if isinstance(config.scheduler, All):
        return
    kept, workers, optimizer = config.scheduler.num_kept, max(1, num_workers), config.optimizer
    batches = optimizer.batch_size // optimizer.micro_batch_size
    if kept < max(batches, workers) or kept % workers:
        raise InputError(
            f"training.scheduler.num_kept {kept} can't be spread over the {batches} micro-batches of a step on "
            f"{workers} workers: expected a multiple of {workers}, {max(batches, workers)} or more; raise it, or raise "
            "training.optimizer.micro_batch_size"
        )


@stage_task("train policy")
def train_policy(lessons: Lessons, config: TrainingConfig, here: RoundContext) -> Table:
    """Train an adapter; its folder is `adapter` in the stage's, beside a table of what it was taught.

    Log-likelihoods are sums over a response, nats.

    Raises:
        InputError: the labels can't be used as the config asks, or a policy's adapter is missing.
        TrainingError: a loss or weight was not finite; the stage stays unfinished.
    """
    seed = here.seed_of("training")

    def work(folder: Path) -> dict[str, Any]:
        started = time.perf_counter()
        _require_adapters(lessons)
        learnt = taught(lessons, config.syllabus)
        write_arrow(part_path(folder, 0), learnt.rows, LESSONS)
        if not learnt.rows.num_rows:
            return _unchanged(lessons, config, folder, here) | learnt.measures
        measures = _run(_plan(lessons, config, folder, learnt, here), here)
        return {**learnt.measures, **measures, "model_seconds": time.perf_counter() - started}

    facts = config.model_dump(exclude={"save_steps", "scheduler"})
    facts |= {"scheduler": identity_of(config.scheduler), "seed": seed, "adapter_seed": here.seed}
    key = StageKey("adapter", facts, lessons.digests, version=2)
    table = run_stage(key, work, here, publish=Publish("training", parquet=True))
    here.tracker.log_folder(here.run, here.store.stage(key).path / ADAPTER, artifact_path=ADAPTER)
    return table


def _unchanged(lessons: Lessons, config: TrainingConfig, folder: Path, here: RoundContext) -> dict[str, Any]:
    """Hand on the policy that training would start from: a round in which nothing was preferred teaches nothing."""
    run_logger().warning("%s: no response was preferred to another, so the policy stays as it was", here.label)
    start = lessons.start.adapter or fresh_adapter(lessons.base, config.lora, here.seed, here.settings.cache)
    shutil.copytree(start, folder / ADAPTER, dirs_exist_ok=True)
    return {"steps": 0.0, "num_pairs_trained": 0.0}


def trained_policy(base: Policy, trained: Table) -> Policy:
    """The policy that a training stage made."""
    return Policy(digest=trained.digest, model=base.model, adapter=trained.path / ADAPTER)


def _require_adapters(lessons: Lessons) -> None:
    for role, policy in (("start", lessons.start), ("reference", lessons.reference)):
        if policy.adapter is not None and not policy.adapter.is_dir():
            raise InputError(
                f"the {role} policy {policy.name} is missing: its adapter {policy.adapter} does not exist. "
                "Run its round again, or restore the store"
            )


def _plan(lessons: Lessons, config: TrainingConfig, folder: Path, learnt: Taught, here: RoundContext) -> "Plan":
    from tasks.trainer.pair_trainer import Recipe
    from tasks.trainer.worker import Plan

    optimizer = config.optimizer
    fresh = fresh_adapter(lessons.base, config.lora, here.seed, here.settings.cache)
    return Plan(
        model=lessons.base.model,
        start=lessons.start.adapter or fresh,
        reference=lessons.reference.adapter,
        lessons=folder,
        target=folder / ADAPTER,
        checkpoints=folder / ".checkpoints",
        arguments={
            "beta": config.beta,
            "max_length": config.max_length,
            "save_steps": config.save_steps,
            "learning_rate": optimizer.learning_rate,
            "num_train_epochs": optimizer.num_epochs,
            "max_steps": optimizer.num_steps or -1,
            "per_device_train_batch_size": optimizer.micro_batch_size,
            "warmup_steps": optimizer.warmup_steps,
            "weight_decay": optimizer.weight_decay,
            "seed": here.seed_of("training"),
        },
        lora=config.lora.model_dump(),
        batch_size=optimizer.batch_size,
        use_gpu=here.settings.train.use_gpu,
        recipe=Recipe(
            objective=learnt.objective,
            exploration=config.exploration,
            scheduler=config.scheduler,
            normalise=config.weights.normalise,
            group_by_length=optimizer.group_by_length,
        ),
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
    with nullcontext() if hardware.num_workers else TORCH:
        measures: dict[str, float] = trainer.fit().return_value
    return measures


def train_on_worker(config: dict[str, Any]) -> dict[str, float]:
    """The training function of every worker; the first one streams metrics to MLflow."""
    from tasks.trainer.worker import train

    tracker: Tracker = config["tracker"]

    def log(metrics: dict[str, float], step: int) -> None:
        tracker.log_metrics(config["run"], metrics, step=step)

    return train(config["plan"], config["num_workers"], log)
