"""Textbook optimal design: a distribution over the pairs, any of which may be labelled as often as it likes.

Structured column generation: only an active set of pairs has weight. Between two passes over all pairs, which certify
the design and name new columns, its weights follow the multiplicative rule w <- w s^p / norm, which never raises the
measure (Yu 2010, "Monotonic convergence of a general algorithm for computing optimal designs"), accelerated by
extrapolation (SQUAREM: Varadhan and Roland 2008).
"""

from dataclasses import dataclass
from functools import cached_property, partial
from logging import getLogger

import numpy as np

from tasks.design.arrays import Array, FloatArray, IntArray, Precision, gram, to_like
from tasks.design.criterion import Criterion
from tasks.design.kernels import squared_lengths
from tasks.design.measures import Expansion
from tasks.design.search import Design, Effort, in_two_precisions

logger = getLogger(__name__)

_COLUMNS_PER_DIM = 4
_NEW_WEIGHT = 0.3  # of the mean weight: a weight that is too small holds the gap up for long, one too large decays soon
_LEAST_WEIGHT = 1e-9
_PATIENCE = 20
_SHARE_OF_GAP = 0.2
_SHARE_OF_TOLERANCE = 0.5
_LONGEST = 1e3
_SHORTEST = 1.05
_TINY = 1e-300


def simplex_design(criterion: Criterion, effort: Effort | None = None, *, start: FloatArray | None = None) -> Design:
    """Minimise the criterion over w >= 0 on the valid pairs with sum w = 1, until the gap is at most the tolerance.

    Large pools are searched in float32; what is returned is always evaluated in float64.

    Args:
        criterion: what is minimised; with sum w = 1 its prior and ridge are in units of one label.
        effort: when to stop.
        start: weights of few pairs to start from, such as those of a round before, (P, m), at least one of a valid
            pair positive; None: the pairs of highest score at the uniform design.

    Raises:
        ValueError: no pair is valid.
    """
    if not criterion.mask.any():
        raise ValueError("no pair is valid: a design needs one or more")
    effort = effort or Effort()
    weights, passes = (_first_columns(criterion), 1) if start is None else (_normalised(start * criterion.mask), 0)
    return in_two_precisions(partial(_generate_columns, criterion), criterion, weights, effort, passes=passes)


def _first_columns(criterion: Criterion) -> FloatArray:
    """Equal weights of the pairs that score highest at the uniform design, (P, m)."""
    rough = criterion.rough_precision
    uniform = _normalised(criterion.mask.astype(np.float64))
    scores = criterion.gains(criterion.expand(criterion.information(uniform, rough)), rough)
    if not scores.any():
        return uniform
    weights, best = np.zeros(scores.size), _highest(scores, _COLUMNS_PER_DIM * criterion.space.dim)
    weights[best] = scores.ravel()[best] > 0
    return _normalised(weights).reshape(scores.shape)


def _generate_columns(
    criterion: Criterion, weights: FloatArray, effort: Effort, precision: Precision, passes: int
) -> Design:
    exhausted = False
    while True:
        expansion = criterion.expand(criterion.information(weights))
        scores = criterion.gains(expansion, precision)
        passes += 1
        gap = _gap(weights, scores)
        relative = expansion.relative(gap)
        logger.info("pass %d: relative gap %.2e, objective %.6g", passes, relative, expansion.objective)
        converged = relative <= effort.tolerance
        if converged or exhausted or effort.spent(passes):
            break
        target = max(_SHARE_OF_TOLERANCE * effort.tolerance, _SHARE_OF_GAP * relative)
        weights, exhausted = _improve(criterion, weights, scores, target=target, effort=effort)
    return Design(
        weights=weights,
        scores=scores,
        objective=expansion.objective,
        gap=relative,
        lower_bound=expansion.lower_bound(gap),
        passes=passes,
        converged=converged,
    )


def _improve(
    criterion: Criterion, weights: FloatArray, scores: FloatArray, *, target: float, effort: Effort
) -> tuple[FloatArray, bool]:
    """Take in the best columns, settle the weights of all to the relative gap `target`, drop those without.

    Returns:
        weights (P, m), and whether they fall short of the target.
    """
    flat = weights.ravel()
    pairs = np.union1d(np.flatnonzero(flat), _entering(criterion, weights, scores))
    first = np.where(flat[pairs] > 0, flat[pairs], _NEW_WEIGHT / len(pairs))
    point = _settle(_Columns.of(criterion, pairs), _normalised(first), target=target, effort=effort)
    improved = np.zeros(flat.shape)
    improved[pairs] = np.where(point.weights > _LEAST_WEIGHT / len(pairs), point.weights, 0.0)
    return _normalised(improved).reshape(weights.shape), point.gap > target


def _entering(criterion: Criterion, weights: FloatArray, scores: FloatArray) -> IntArray:
    """Flat indices of the best pairs among those that should have weight and have none."""
    best = _highest(scores, _COLUMNS_PER_DIM * criterion.space.dim)
    missing = (weights.ravel()[best] == 0) & (scores.ravel()[best] > (weights * scores).sum())
    entering: IntArray = best[missing]
    return entering


def _settle(columns: "_Columns", weights: FloatArray, *, target: float, effort: Effort) -> "_Point":
    """Weigh the active set to a relative gap of at most `target`, or until rounding hides all progress."""
    point = columns.at(weights)
    least, stalled = point.objective, 0
    while point.gap > target and stalled < _PATIENCE and not effort.out_of_time:
        point = _accelerated(columns, point)
        stalled = 0 if point.objective < least else stalled + 1
        least = min(least, point.objective)
    return point


@dataclass(frozen=True, eq=False)
class _Point:
    weights: FloatArray
    expansion: Expansion
    scores: FloatArray

    @property
    def objective(self) -> float:
        return self.expansion.objective

    @property
    def gap(self) -> float:
        return self.expansion.relative(_gap(self.weights, self.scores))


@dataclass(frozen=True, eq=False)
class _Columns:
    """The active set: its pair vectors, (n, dim)."""

    criterion: Criterion
    rows: Array

    @classmethod
    def of(cls, criterion: Criterion, pairs: IntArray) -> "_Columns":
        rows = criterion.space.rows(pairs)
        return cls(criterion, rows * to_like(np.sqrt(criterion.curvature.ravel()[pairs])[:, None], rows))

    def at(self, weights: FloatArray) -> _Point:
        weighted = self.rows * to_like(np.sqrt(weights)[:, None], self.rows)
        expansion = self.criterion.expand(self.criterion.prior + gram(weighted))
        return _Point(weights, expansion, squared_lengths(self.rows, expansion.gradient_root))

    def after(self, point: _Point) -> FloatArray:
        """The weights that the multiplicative rule leads to."""
        return _normalised(point.weights * point.scores**self.criterion.measure.power)


def _accelerated(columns: _Columns, point: _Point) -> _Point:
    """Two multiplicative steps, and further along the path through them while that beats the first."""
    middle = columns.at(columns.after(point))
    path = _Path(point.weights, middle.weights, columns.after(middle))
    length = path.length
    while length > _SHORTEST:
        ahead = columns.at(path.at(length))
        if ahead.objective <= middle.objective:
            return ahead
        length = (1 + length) / 2
    return columns.at(path.third)


@dataclass(frozen=True, eq=False)
class _Path:
    """The parabola in log weights through three designs; its point 0 is the first, point 1 the third."""

    first: FloatArray
    second: FloatArray
    third: FloatArray

    @cached_property
    def _terms(self) -> FloatArray:
        first, second, third = np.log(np.maximum([self.first, self.second, self.third], _TINY))
        return np.stack([first, second - first, third - 2 * second + first])

    @property
    def length(self) -> float:
        """How far to follow it: the ratio of slope and bend in the Fisher metric of the weights."""
        slope, bend = np.square(self._terms[1:]) @ self.second
        return float(np.clip(np.sqrt(slope / max(bend, _TINY)), 1.0, _LONGEST))

    def at(self, length: float) -> FloatArray:
        logs = np.array([1.0, 2 * length, length**2]) @ self._terms
        return _normalised(np.exp(logs - logs.max()))


def _gap(weights: FloatArray, scores: FloatArray) -> float:
    """max_e s_e - sum_e w_e s_e, at least 0."""
    return max(0.0, float(scores.max() - (weights * scores).sum()))


def _highest(scores: FloatArray, count: int) -> IntArray:
    """Flat indices of the `count` highest scores, or of all."""
    count = min(count, scores.size)
    highest: IntArray = np.argpartition(-scores, count - 1, axis=None)[:count]
    return highest


def _normalised(weights: FloatArray) -> FloatArray:
    scaled: FloatArray = weights / weights.sum()
    return scaled
