"""What the lineages of a comparison measured round by round: rows of seeds, with gaps, and their means."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from flows.comparison.evidence import COSTS, Evidence, LineageFacts, RoundFacts
from tasks.design.arrays import FloatArray
from tasks.design.statistics import LEVEL

Quantity = Callable[[RoundFacts], float]


@dataclass(frozen=True, eq=False)
class Points:
    """Means over the seeds that are there, one entry a round; NaN where none is.

    Attributes:
        mean: over seeds.
        low: lower end of its 95 % interval; NaN with fewer than two seeds.
        high: upper end.
        there: which seeds (rows) are in each mean, (n, R) bool.
    """

    mean: FloatArray
    low: FloatArray
    high: FloatArray
    there: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]

    def joined(self, number: int) -> bool:
        """Whether this round and the next one are means of the same seeds, so that a line may join them."""
        return bool(self.there[:, number].any() and (self.there[:, number] == self.there[:, number + 1]).all())

    def whole(self, number: int) -> bool:
        """Whether all seeds are in the mean of a round."""
        return bool(self.there[:, number].all())


def of(evidence: Evidence, selector: str, budget: int) -> list[LineageFacts]:
    """The lineages of a selector at a budget, one a seed: of two the first by name, as in the judgement."""
    here = [one for one in evidence.lineages if (one.selector, one.budget) == (selector, budget)]
    by_seed = {one.seed: one for one in sorted(here, key=lambda one: one.lineage, reverse=True)}
    return [by_seed[seed] for seed in sorted(by_seed)]


def measure(name: str) -> Quantity:
    """A measure of a round's evaluation; NaN where it was not measured."""
    return lambda facts: float(facts.measures.get(name, np.nan))


def matrix(evidence: Evidence, lineages: list[LineageFacts], quantity: Quantity) -> FloatArray:
    """A quantity of each lineage (rows) after each round (columns); NaN for rounds that are not there."""
    rounds = [[one.round(number) for number in range(evidence.num_rounds)] for one in lineages]
    rows = [[np.nan if facts is None else quantity(facts) for facts in row] for row in rounds]
    return np.array(rows, dtype=np.float64).reshape(len(lineages), evidence.num_rounds)


def spent(values: FloatArray) -> FloatArray:
    """What was spent by the end of each round; unknown from the first gap on."""
    found: FloatArray = np.cumsum(values, axis=1)
    return found


def points(values: FloatArray) -> Points:
    """Means of each column of (n, R) over the rows that have it."""
    there = np.isfinite(values)
    ends = np.array([_interval(column[kept]) for column, kept in zip(values.T, there.T, strict=True)]).reshape(-1, 3)
    return Points(ends[:, 0], ends[:, 1], ends[:, 2], there)


def mean_of(values: FloatArray) -> float:
    """Mean of the finite entries; NaN if there are none."""
    kept = values[np.isfinite(values)]
    return float(kept.mean()) if kept.size else float("nan")


def mean_seconds(lineages: list[LineageFacts]) -> dict[str, float]:
    """Seconds of each stage that a lineage took, its finished rounds together, mean over lineages."""
    totals = {name: [sum(facts.seconds.get(name, 0.0) for facts in one.rounds) for one in lineages] for name in COSTS}
    return {name: float(np.mean(values)) for name, values in totals.items()}


def square(
    values: Mapping[tuple[str, str, int], float | None], names: Sequence[str], budget: int, *, complement: bool
) -> FloatArray:
    """Values by (A, B, budget) as a matrix of A by B, NaN where there is none; its diagonal has none either.

    Where only (B, A) is given, (A, B) is the same, or with `complement` one minus it.
    """
    found = np.full((len(names), len(names)), np.nan)
    for row, column in np.ndindex(found.shape):
        value, turned = (values.get((names[a], names[b], budget)) for a, b in ((row, column), (column, row)))
        if row == column or (value is None and turned is None):
            continue
        mirrored = value if turned is None else 1 - turned if complement else turned
        found[row, column] = mirrored if value is None else value
    return found


def _interval(values: FloatArray) -> tuple[float, float, float]:
    """Mean and the ends of Student's 95 % interval."""
    if not len(values):
        return (float("nan"),) * 3
    mean = float(values.mean())
    if len(values) == 1:
        return mean, float("nan"), float("nan")
    reach = float(stdtrit(len(values) - 1, 1 - LEVEL / 2) * values.std(ddof=1) / np.sqrt(len(values)))
    return mean, mean - reach, mean + reach
