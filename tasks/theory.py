"""The theory's numbers, world by world: gaps of policies trained on labels drawn from each design, and the limit.

A world is kept as one file, named by all that decides it, so that a study that was interrupted, or is asked for more,
computes what is missing and nothing else.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.storage import digest_of
from tasks.design.arrays import FloatArray
from tasks.design.asymptotics import DESIGNS, Limit
from tasks.design.environments.fitting import fit_counts
from tasks.design.environments.linear import Linear
from tasks.design.environments.tabular import Tabular
from tasks.design.environments.world import World
from tasks.tables import write_part

GAPS = pa.schema(
    [
        pa.field("design", pa.string(), nullable=False),
        pa.field("num_labels", pa.int32(), nullable=False),
        pa.field("ridge", pa.float64(), nullable=False),
        pa.field("draw", pa.int32(), nullable=False),
        pa.field("gap", pa.float64(), nullable=False),
        pa.field("predicted", pa.float64(), nullable=False),
        pa.field("untrained", pa.float64(), nullable=False),
    ]
)
"""One row a policy. `gap`: J(pi*) - J(pi); `predicted`: n times its mean as n grows, of the design; `untrained`: the
gap of the reference."""

WellSpecified = Linear | Tabular
"""Environments whose utility can lie in the span of the features."""

_WORLD, _LABELS = range(2)
"""Streams of a seed's random numbers."""


@dataclass(frozen=True, kw_only=True)
class Course:
    """What is drawn and trained in every world.

    Attributes:
        num_labels: sizes n of a set of labels.
        draws: sets of each size that every design draws.
        ridges: of the fit of the policy, in units of one label; each is fitted to the same labels.
        code: that of the sources, see `tasks.referee.code`.
    """

    num_labels: tuple[int, ...]
    draws: int
    ridges: tuple[float, ...]
    code: str


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One world of an environment.

    Attributes:
        environment: what the world is drawn from.
        seed: decides world, pairs and labels.
        course: what is drawn and trained.
    """

    environment: WellSpecified
    seed: int
    course: Course

    def path(self, folder: Path) -> Path:
        """Where its outcome lies once it is there."""
        setting = [asdict(self.environment), self.seed, asdict(self.course)]
        return folder / f"{digest_of(setting)}.parquet"


def run_trial(trial: Trial, folder: Path) -> None:
    """Measure every design in the trial's world, and write the outcome.

    Raises:
        ValueError: the theory does not hold in the world, see `Limit.of`.
    """
    world = trial.environment.draw(np.random.default_rng([_WORLD, trial.seed]))
    write_part(trial.path(folder), list(_rows(trial, world)), GAPS)


def _rows(trial: Trial, world: World) -> Iterator[dict[str, Any]]:
    limit, course = Limit.of(world), trial.course
    untrained = limit.target.regret(limit.target.log_reference, beta=world.pool.beta)
    for place, name in enumerate(DESIGNS):
        design = limit.designs[name]
        known = {"design": name, "predicted": limit.predicted(design), "untrained": untrained}
        for size in course.num_labels:
            for draw in range(course.draws):
                rng = np.random.default_rng([_LABELS, trial.seed, place, size, draw])
                wins, losses = draw_labels(world, design, size, rng)
                for ridge in course.ridges:
                    theta = fit_counts(world.pool.space, wins, losses, beta=world.pool.beta, ridge=ridge)
                    gap = limit.target.regret(limit.target.policy(theta), beta=world.pool.beta)
                    yield {**known, "num_labels": size, "ridge": ridge, "draw": draw, "gap": gap}


def draw_labels(world: World, design: FloatArray, size: int, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """Draw pairs from a design (P, m) with repetition, and a label for each: how many prefer either side, (P, m) each.

    Args:
        world: whose labels are drawn anew, whatever its own `draws` say.
        design: probabilities of the pair slots.
        size: labels.
        rng: source of pairs and labels.
    """
    counts = rng.multinomial(size, design.ravel() / design.sum()).reshape(design.shape)
    wins = rng.binomial(counts, world.chances)
    return wins.astype(np.float64), (counts - wins).astype(np.float64)
