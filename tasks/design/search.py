"""Searching for a relaxed design: when to stop, in which precision, and what is known in the end."""

from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Protocol

import numpy as np

from tasks.design.arrays import FloatArray, Precision
from tasks.design.criterion import Criterion

_SINGLE_TOLERANCE = 1e-4
_SINGLE_MARGIN = 0.97


@dataclass(frozen=True, kw_only=True)
class Effort:
    """When a search ends: at the tolerance, or where passes or time run out.

    Attributes:
        tolerance: relative gap that is small enough.
        max_passes: times that all pairs may be scored; the start and the last pass of each precision always are.
        max_seconds: wall time after which no pass starts.
        begun: reading of `time.perf_counter` that the seconds count from.
    """

    tolerance: float = 1e-3
    max_passes: int = 2000
    max_seconds: float = np.inf
    begun: float = field(default_factory=perf_counter)

    @property
    def nearly(self) -> "Effort":
        """The same for a search whose result is refined: a little more exact, with a pass to spare."""
        return replace(self, tolerance=_SINGLE_MARGIN * self.tolerance, max_passes=self.max_passes - 1)

    @property
    def out_of_time(self) -> bool:
        """Whether the seconds are used up."""
        return perf_counter() - self.begun > self.max_seconds

    def spent(self, passes: int) -> bool:
        """Whether no pass may follow after so many."""
        return passes >= self.max_passes or self.out_of_time


@dataclass(frozen=True, eq=False, kw_only=True)
class Design:
    """A relaxed design and what is known about it.

    Attributes:
        weights: w_e, (P, m).
        scores: s_e = -dPhi/dw_e at the design, (P, m).
        objective: Phi(w).
        gap: relative duality gap, see `Expansion.relative`.
        lower_bound: no design allowed has a smaller objective.
        passes: times that all pairs were scored.
        converged: the gap is at most the tolerance.
    """

    weights: FloatArray
    scores: FloatArray
    objective: float
    gap: float
    lower_bound: float
    passes: int
    converged: bool


class Search(Protocol):
    """Improves a design (P, m) until the effort is spent, `passes` being those already made."""

    def __call__(self, weights: FloatArray, effort: Effort, precision: Precision, passes: int) -> Design: ...  # noqa: D102


def in_two_precisions(
    search: Search, criterion: Criterion, start: FloatArray, effort: Effort, *, passes: int
) -> Design:
    """Search large pools in float32 first, where the tolerance allows; what is returned was always found in float64."""
    rough = criterion.rough_precision
    if rough is np.float64 or effort.tolerance < _SINGLE_TOLERANCE:
        return search(start, effort, np.float64, passes)
    found = search(start, effort.nearly, rough, passes)
    return search(found.weights, effort, np.float64, found.passes)
