"""Bounded optimal design: every pair is labelled at most once, within the limits of budget, prompts and costs.

Minimise a convex Phi(w) over the relaxed selections by conjugate Frank-Wolfe (Mitradjieva and Lindberg 2013) with exact
line search. The linear subproblem is exact, so that its gap certifies the result at every iterate.
"""

from dataclasses import dataclass
from functools import partial
from logging import getLogger

import numpy as np

from tasks.design.arrays import Array, FloatArray, Precision, namespace
from tasks.design.criterion import Criterion
from tasks.design.limits import Limits
from tasks.design.measures import Expansion
from tasks.design.search import Design, Effort, in_two_precisions

logger = getLogger(__name__)

_MAX_CONJUGATE_SHARE = 0.99


@dataclass(frozen=True, eq=False)
class Problem:
    """What is minimised, and over which designs."""

    criterion: Criterion
    limits: Limits


@dataclass(frozen=True, eq=False)
class _Point:
    weights: FloatArray
    information: Array

    def towards(self, other: "_Point", share: float) -> "_Point":
        weights = (1 - share) * self.weights + share * other.weights
        return _Point(weights, (1 - share) * self.information + share * other.information)


def bounded_design(problem: Problem, effort: Effort | None = None, *, start: FloatArray | None = None) -> Design:
    """Minimise the criterion within the limits until the gap is at most the tolerance.

    Large pools are searched in float32. What is returned is always evaluated, and where the rougher arithmetic fell
    short also improved, in float64.

    Args:
        problem: what is minimised, within which limits.
        effort: when to stop.
        start: a design allowed to start from, (P, m), such as that of a round before; None: `best_start`.
    """
    effort = effort or Effort()
    weights, passes = start, 0
    if weights is None:
        weights, passes = best_start(problem), 1
    return in_two_precisions(partial(descend, problem), problem.criterion, weights, effort, passes=passes)


def best_start(problem: Problem) -> FloatArray:
    """Return the vertex that the gradient at the uniform design points to, (P, m).

    Uniform to about: every pair counts with the mean curvature, which spares a pass.
    """
    criterion, limits = problem.criterion, problem.limits
    curvature = float(criterion.curvature.sum()) * limits.budget / int(limits.mask.sum()) ** 2
    uniform = criterion.prior + curvature * criterion.space.scatter(criterion.space.valid.sum(axis=1) * 1.0)
    return limits.best_vertex(criterion.gains(criterion.expand(uniform), criterion.rough_precision))


def descend(
    problem: Problem,
    weights: FloatArray,
    effort: Effort,
    precision: Precision = np.float64,
    passes: int = 0,
) -> Design:
    """Conjugate Frank-Wolfe from a design allowed, with exact line search; gradient passes run in `precision`.

    Stops when the gap is at most the tolerance, when the effort is spent, `passes` being those already made, or when
    rounding leaves no step that helps. At least one pass is made.
    """
    criterion, limits = problem.criterion, problem.limits
    point, target = _Point(weights, criterion.information(weights)), None
    while True:
        expansion = criterion.expand(point.information)
        scores = criterion.gains(expansion, precision)
        passes += 1
        vertex = limits.best_vertex(scores)
        gap = max(0.0, float(((vertex - point.weights) * scores).sum()))
        converged = expansion.relative(gap) <= effort.tolerance
        logger.info("pass %d: relative gap %.2e, objective %.6g", passes, expansion.relative(gap), expansion.objective)
        if converged or effort.spent(passes):
            break
        target = _conjugate_target(
            point, _Point(vertex, criterion.information(vertex, precision)), target, expansion=expansion
        )
        step = expansion.best_step(target.information - point.information)
        if step == 0:
            break
        point = point.towards(target, step)
    return Design(
        weights=point.weights,
        scores=scores,
        objective=expansion.objective,
        gap=expansion.relative(gap),
        lower_bound=expansion.lower_bound(gap),
        passes=passes,
        converged=converged,
    )


def _conjugate_target(point: _Point, vertex: _Point, last: _Point | None, *, expansion: Expansion) -> _Point:
    """Blend the last target into the vertex, so that new and last direction are conjugate under the Hessian."""
    if last is None:
        return vertex
    old = expansion.curve(last.information - point.information)
    new = expansion.curve(vertex.information - point.information)
    xp = namespace(old)
    overlap, slack = float(xp.sum(old * new)), float(xp.sum(old * (new - old)))
    share = min(overlap / slack, _MAX_CONJUGATE_SHARE) if overlap * slack > 0 else 0.0
    return vertex.towards(last, share)
