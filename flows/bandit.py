"""The bandit study's config, its cells, and their results: every objective from both sources with every T."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

import tasks.objectives
from cluster.shards import Report
from cluster.storage import atomic_path, digest_of, digest_of_file
from flows.filing import Name
from tasks.design.arrays import FloatArray
from tasks.objectives.contrastive import Dpo, Hinge, Ipo
from tasks.objectives.likelihood import BestOfN, Rwr, SftChosen
from tasks.tables import check

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.objectives.bandit import Bandit, Records

Source = Literal["offline", "on_policy"]
SOURCES: tuple[Source, ...] = get_args(Source)

AnyContrastive = Dpo | Ipo | Hinge
AnyLikelihood = SftChosen | BestOfN | Rwr

MEASURES = ("reward", "entropy", "best_mass", "forward_kl", "reverse_kl", "chosen_logp", "rejected_logp")
"""Fields of `tasks.objectives.bandit.Records`."""

RESULTS = pa.schema(
    [
        pa.field("world", pa.string(), nullable=False),
        pa.field("method", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("negative", pa.bool_(), nullable=False),
        pa.field("inner_steps", pa.int32(), nullable=False),
        pa.field("seed", pa.int32(), nullable=False),
        pa.field("epoch", pa.int32(), nullable=False),
        pa.field("num_steps", pa.int32(), nullable=False),
        pa.field("num_queries", pa.int32(), nullable=False),
        *(pa.field(name, pa.float64(), nullable=False) for name in MEASURES),
    ]
)
"""One row a cell, seed and epoch; epoch 0 is before training. `world`: name of the reward in the config.

`num_queries`: rewards asked for by then; offline all of them are asked for before training.
"""


class PeakedReward(BaseModel):
    """exp(-((a - peak) / width)^2) of action a."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    peak: float = Field(ge=0, description="best action")
    width: PositiveFloat


class ReferenceConfig(BaseModel):
    """The reference policy, tanh of a Cauchy variable in equal bins, and the fit of the first policy to it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_actions: int = Field(100, ge=2)
    loc: float = -0.7
    scale: PositiveFloat = 0.4
    fit_steps: int = Field(100, ge=0, description="of Adam, on KL(pi || reference)")
    fit_learning_rate: PositiveFloat = Field(
        0.1, description="logits alone need more than the 0.01 that the authors give their network"
    )


class Method(BaseModel):
    """An objective and its temperature."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    objective: Annotated[AnyContrastive | AnyLikelihood, Field(discriminator="kind")]
    beta: PositiveFloat = Field(0.05, description="of contrastive objectives; IPO's target is 1 / (2 beta)")

    @property
    def contrastive(self) -> bool:
        """Whether the objective is one of the margin."""
        return isinstance(self.objective, AnyContrastive)

    @property
    def negative(self) -> bool:
        """Whether rejected actions are pushed down: by the margin, or by a likelihood term of their own."""
        return isinstance(self.objective, AnyContrastive) or self.objective.negative > 0


_METHODS = {
    "dpo": Method(objective=Dpo()),
    "ipo": Method(objective=Ipo()),
    "sft": Method(objective=SftChosen()),
    "sft-negative": Method(objective=SftChosen(negative=0.2)),
    "best-of-n": Method(objective=BestOfN()),
    "best-of-n-negative": Method(objective=BestOfN(negative=0.2)),
    "rwr": Method(objective=Rwr(temperature=0.1)),
    "rwr-negative": Method(objective=Rwr(temperature=0.1, negative=0.2)),
}

_REWARDS = {
    "r4": PeakedReward(peak=70, width=10),
    "r5": PeakedReward(peak=20, width=10),
    "r8": PeakedReward(peak=70, width=20),
    "r9": PeakedReward(peak=70, width=30),
}
"""Under the names of the authors' code; all but r5 have their peak where the reference has little mass."""


class StudyConfig(BaseModel):
    """Every reward x method x source x T, over seeds; each cell asks for the same number of rewards."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seeds: int = Field(5, ge=2, description="every cell sees the same random numbers of a seed")
    reference: ReferenceConfig = ReferenceConfig()
    rewards: dict[Name, PeakedReward] = Field(_REWARDS, min_length=1)
    methods: dict[Name, Method] = Field(_METHODS, min_length=1)
    inner_steps: tuple[PositiveInt, ...] = Field((1, 5, 15, 50), min_length=1, description="T, steps on a batch")
    num_epochs: PositiveInt = Field(50, description="batches of a training")
    num_states: PositiveInt = Field(10, description="of a batch")
    num_draws: int = Field(10, ge=2, description="actions in each state")
    threshold: float = Field(0.0, ge=0, description="a pair whose reward gap is not above it teaches nothing")
    learning_rate: PositiveFloat = 0.01

    @model_validator(mode="after")
    def _peaks_are_actions(self) -> StudyConfig:
        for name, reward in self.rewards.items():
            if reward.peak > self.reference.num_actions - 1:
                raise ValueError(
                    f"rewards.{name}.peak {reward.peak:g} is no action: expected at most "
                    f"{self.reference.num_actions - 1}, or more reference.num_actions"
                )
        if len(set(self.inner_steps)) < len(self.inner_steps):
            raise ValueError(f"inner_steps {list(self.inner_steps)} has one twice: leave it out")
        return self

    @property
    def num_queries(self) -> int:
        """Rewards that each training asks for."""
        return self.num_epochs * self.num_states * self.num_draws

    @property
    def digest(self) -> str:
        """SHA-256 of all that decides the results: the config, and the sources of the objectives and the bandit."""
        folder = Path(tasks.objectives.__file__).parent
        code = {path.name: digest_of_file(path) for path in sorted(folder.glob("*.py"))}
        return digest_of([self.model_dump(mode="json"), code])


@dataclass(frozen=True)
class Cell:
    """Trainings that run together: one method, source and T, for all rewards and seeds."""

    method: str
    source: Source
    inner_steps: int


def cells(config: StudyConfig) -> list[Cell]:
    """All cells, in the order of the config."""
    return [Cell(*parts) for parts in product(config.methods, SOURCES, sorted(config.inner_steps))]


def results(config: StudyConfig, folder: Path, report: Report) -> tuple[pa.Table, bool]:
    """The results, and whether they were found finished in the folder; what is computed is kept there."""
    path = folder / f"{config.digest}.parquet"
    if path.exists():
        return check(pq.read_table(path), RESULTS, str(path)), True
    tables, planned = [], cells(config)
    for number, cell in enumerate(planned, start=1):
        tables.append(_rows(config, cell))
        report(number, len(planned), 0.0)
    found = pa.concat_tables(tables)
    with atomic_path(path) as temporary:
        pq.write_table(found, temporary)
    return found, False


def reference_of(config: StudyConfig) -> Tensor:
    """Probabilities of the reference's actions, (A,)."""
    from tasks.objectives.bandit import squashed_cauchy

    return squashed_cauchy(config.reference.num_actions, config.reference.loc, config.reference.scale)


def mass_at_peak(config: StudyConfig, reward: PeakedReward, radius: float = 10) -> float:
    """The reference's mass within `radius` actions of a reward's peak, over that of equally likely actions."""
    actions = np.arange(config.reference.num_actions)
    near = np.abs(actions - reward.peak) <= radius
    return float(reference_of(config).numpy()[near].sum() / near.mean())


def _rows(config: StudyConfig, cell: Cell) -> pa.Table:
    """A cell's results, by reward, seed and epoch."""
    from tasks.objectives.bandit import Course, fitted, train

    method, bandit = config.methods[cell.method], _bandit(config, on_policy=cell.source == "on_policy")
    course = Course(
        inner_steps=cell.inner_steps,
        learning_rate=config.learning_rate,
        beta=method.beta,
        threshold=config.threshold,
    )
    start = fitted(bandit.reference, config.reference.fit_steps, config.reference.fit_learning_rate)
    _, records = train(bandit, start, method.objective, course)
    return _table(config, cell, records)


def _bandit(config: StudyConfig, *, on_policy: bool) -> Bandit:
    """One policy a reward and seed; a seed's random numbers are the same for all rewards."""
    import torch

    from tasks.objectives.bandit import Bandit, peaked

    shape = (config.num_epochs, config.num_states, config.num_draws)
    drawn = torch.stack([torch.from_numpy(np.random.default_rng(seed).random(shape)) for seed in range(config.seeds)])
    rewards = [peaked(config.reference.num_actions, reward.peak, reward.width) for reward in config.rewards.values()]
    return Bandit(
        reference=reference_of(config),
        rewards=torch.stack(rewards).repeat_interleave(config.seeds, dim=0),
        uniforms=drawn.repeat(len(rewards), 1, 1, 1),
        on_policy=on_policy,
    )


def _table(config: StudyConfig, cell: Cell, records: Records) -> pa.Table:
    epochs = range(config.num_epochs + 1)
    places = list(product(config.rewards, range(config.seeds), epochs))
    measures = {name: vars(records)[name].T.flatten().numpy() for name in MEASURES}
    columns: dict[str, Any] = {
        "world": [world for world, _, _ in places],
        "method": [cell.method] * len(places),
        "source": [cell.source] * len(places),
        "negative": [config.methods[cell.method].negative] * len(places),
        "inner_steps": [cell.inner_steps] * len(places),
        "seed": [seed for _, seed, _ in places],
        "epoch": [epoch for *_, epoch in places],
        "num_steps": [epoch * cell.inner_steps for *_, epoch in places],
        "num_queries": [_asked(config, cell.source, epoch) for *_, epoch in places],
    }
    return pa.table(columns | measures, schema=RESULTS)


def _asked(config: StudyConfig, source: Source, epoch: int) -> int:
    return config.num_queries if source == "offline" else config.num_queries * epoch // config.num_epochs


def curves(config: StudyConfig, found: pa.Table, measure: str = "reward") -> dict[Cell, FloatArray]:
    """A measure of every cell, (rewards, seeds, 1 + epochs); rows lie as `results` wrote them."""
    shape = (len(config.rewards), config.seeds, config.num_epochs + 1)
    planned, values = cells(config), found[measure].to_numpy()
    return dict(zip(planned, values.reshape(len(planned), *shape), strict=True))
