"""The theory study's config, and its results: n x gap of policies trained on labels drawn from four designs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from cluster.errors import InputError
from cluster.shards import Report
from cluster.storage import digest_of
from flows.filing import Name
from tasks.design.arrays import FloatArray
from tasks.design.asymptotics import DESIGNS, Limit
from tasks.design.environments.linear import Linear
from tasks.design.environments.tabular import Tabular
from tasks.referee import code
from tasks.tables import check
from tasks.theory import GAPS, Course, Trial, WellSpecified, run_trial

RESULTS = pa.schema(
    [pa.field("world", pa.string(), nullable=False), pa.field("seed", pa.int32(), nullable=False), *GAPS]
)
"""One row a policy, world by world as `GAPS` has it; `world`: name in the config."""

AnyWellSpecified = Annotated[WellSpecified, Field(discriminator="kind")]

_WORLDS: dict[str, WellSpecified] = {
    "tabular": Tabular(num_responses=100, reference_spread=1.5, reward_scale=0.5),
    "linear": Linear(num_prompts=50, num_responses=10, dim=32, reference_spread=1.5, reward_scale=0.5),
}


class TheoryConfig(BaseModel):
    """Every world x design x n x ridge, over seeds and draws."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seeds: int = Field(24, ge=2, description="worlds of each environment; every design sees all of them")
    draws: int = Field(24, ge=2, description="sets of labels that each design draws in a world, for every n")
    num_labels: tuple[PositiveInt, ...] = Field(
        (30, 100, 300, 1000, 3000, 10000, 30000), min_length=1, description="n, rising"
    )
    small: PositiveInt = Field(300, description="n up to this count as small budgets")
    ridges: tuple[PositiveFloat, ...] = Field(
        (0.001, 1.0), min_length=1, description="of the fit, in units of one label; the theory has none"
    )
    close: PositiveFloat = Field(0.25, description="share of labels more than the oracle needs that counts as close")
    agreement: PositiveFloat = Field(0.1, description="relative error of the prediction that counts as none")
    worlds: dict[Name, AnyWellSpecified] = Field(_WORLDS, min_length=1)

    @model_validator(mode="after")
    def _rises(self) -> "TheoryConfig":
        for name, values in (("num_labels", self.num_labels), ("ridges", self.ridges)):
            if list(values) != sorted(set(values)):
                raise ValueError(f"{name} {list(values)} does not rise: sort it, each value once")
        return self

    @property
    def course(self) -> Course:
        """What is drawn and trained in every world."""
        return Course(num_labels=self.num_labels, draws=self.draws, ridges=self.ridges, code=code())

    @property
    def digest(self) -> str:
        """SHA-256 of all that decides the results."""
        return digest_of([self.model_dump(mode="json"), code()])


@dataclass(frozen=True, eq=False)
class Gaps:
    """What was measured in the worlds of one environment with one ridge.

    Attributes:
        name: of the environment in the config.
        ridge: of the fit.
        num_labels: n, (N,).
        values: gaps by design, (N, seeds, draws) each.
        predicted: limits of n x gap by design, (seeds,) each.
        untrained: gap of the reference, (seeds,).
    """

    name: str
    ridge: float
    num_labels: FloatArray
    values: Mapping[str, FloatArray]
    predicted: Mapping[str, FloatArray]
    untrained: FloatArray

    @property
    def scaled(self) -> dict[str, FloatArray]:
        """n x gap, means over draws, by design, (seeds, N)."""
        return {name: values.mean(axis=2).T * self.num_labels for name, values in self.values.items()}


def results(config: TheoryConfig, folder: Path, report: Report) -> tuple[pa.Table, bool]:
    """The results, and whether all were found finished in the folder; what is computed is kept there, world by world.

    Raises:
        InputError: the theory does not hold in the worlds of an environment.
    """
    planned = list(_planned(config))
    missing = [entry for entry in planned if not entry[1].path(folder).exists()]
    _check_worlds(config)
    for number, (_, trial) in enumerate(missing, start=1):
        run_trial(trial, folder)
        report(number, len(missing), 0.0)
    return pa.concat_tables([_read(name, trial, folder) for name, trial in planned]), not missing


def gaps(config: TheoryConfig, found: pa.Table) -> list[Gaps]:
    """The results by environment, then by ridge; rows lie as `results` gives them."""
    sizes = (len(config.worlds), config.seeds, len(DESIGNS), len(config.num_labels), config.draws, len(config.ridges))
    values, predicted, untrained = (
        found[column].to_numpy().reshape(sizes) for column in ("gap", "predicted", "untrained")
    )
    return [
        Gaps(
            name=name,
            ridge=ridge,
            num_labels=np.array(config.num_labels, dtype=np.float64),
            values={name: values[world, :, at, :, :, place].swapaxes(0, 1) for at, name in enumerate(DESIGNS)},
            predicted={name: predicted[world, :, at, 0, 0, 0] for at, name in enumerate(DESIGNS)},
            untrained=untrained[world, :, 0, 0, 0, 0],
        )
        for world, name in enumerate(config.worlds)
        for place, ridge in enumerate(config.ridges)
    ]


def _planned(config: TheoryConfig) -> Iterator[tuple[str, Trial]]:
    course = config.course
    for name, environment in config.worlds.items():
        for seed in range(config.seeds):
            yield name, Trial(environment=environment, seed=seed, course=course)


def _check_worlds(config: TheoryConfig) -> None:
    for name, environment in config.worlds.items():
        try:
            Limit.of(environment.draw(np.random.default_rng(0)))
        except ValueError as error:
            raise InputError(f"worlds.{name}: {error}") from error


def _read(name: str, trial: Trial, folder: Path) -> pa.Table:
    path = trial.path(folder)
    rows = check(pq.read_table(path), GAPS, str(path))
    named = [pa.array([name] * rows.num_rows), pa.array([trial.seed] * rows.num_rows, pa.int32())]
    return pa.Table.from_arrays([*named, *rows.columns], schema=RESULTS)
