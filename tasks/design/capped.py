"""Bounded optimal design: every pair is labelled at most once, a prompt at most `cap` times.

Minimise Phi(w) = tr(H M(w)^-1) over 0 <= w_e <= 1, sum_e w_e = budget, sum_{e in prompt} w_e <= cap, by conjugate
Frank-Wolfe (Mitradjieva and Lindberg 2013). The linear subproblem is exact (a laminar matroid: the best `cap` pairs of
each prompt, then the best `budget` of those), so that its gap certifies the result at every iterate.
"""

from dataclasses import dataclass, replace

import numpy as np

from tasks.design.criterion import Expansion, TraceCriterion
from tasks.design.kernels import FloatArray
from tasks.design.rounding import check_budget

_SINGLE_TOLERANCE = 1e-4
_MAX_CONJUGATE_SHARE = 0.99


@dataclass(frozen=True, eq=False, kw_only=True)
class BoundedProblem:
    """A criterion and the designs allowed: `budget` pairs in all, at most `cap` of one prompt (None: no limit).

    Raises:
        ValueError: no design is allowed, see `check_budget`.
    """

    criterion: TraceCriterion
    budget: int
    cap: int | None = None

    def __post_init__(self) -> None:
        check_budget(self.criterion.mask, self.budget, cap=self.cap)

    def best_vertex(self, scores: FloatArray) -> FloatArray:
        """Zeros and ones (P, m) that maximise sum_e v_e s_e among the designs allowed."""
        ranked = np.where(self.criterion.mask, -scores, np.inf)
        index = np.arange(ranked.size)
        if self.cap is not None and self.cap < ranked.shape[1]:
            slots = np.argpartition(ranked, self.cap - 1, axis=1)[:, : self.cap]
            index = (slots + index[:: ranked.shape[1], None]).ravel()
        best = index[np.argpartition(ranked.ravel()[index], self.budget - 1)[: self.budget]]
        vertex = np.zeros(ranked.size)
        vertex[best] = 1.0
        return vertex.reshape(ranked.shape)


@dataclass(frozen=True, eq=False, kw_only=True)
class Design:
    """A relaxed design and what is known about it.

    Attributes:
        weights: w_e, (P, m).
        scores: s_e = -dPhi/dw_e at the design, (P, m).
        objective: Phi(w).
        gap: Frank-Wolfe gap G = max_v sum_e (v_e - w_e) s_e over the designs v allowed.
        iterations: steps taken.
        converged: the gap is at most the tolerance times the objective.
    """

    weights: FloatArray
    scores: FloatArray
    objective: float
    gap: float
    iterations: int
    converged: bool

    @property
    def lower_bound(self) -> float:
        """Phi^2 / (Phi + G): no design allowed has a smaller objective; never below the plain Phi - G.

        By Cauchy-Schwarz Phi(w)^2 <= Phi(v) tr(H M(w)^-1 M(v) M(w)^-1), and the last factor is
        Phi(w) + sum_e (v_e - w_e) s_e <= Phi(w) + G, whatever prior and ridge both designs share.
        """
        return self.objective / (1 + self.gap / self.objective) if self.objective > 0 else 0.0


@dataclass(frozen=True, eq=False)
class _Point:
    weights: FloatArray
    information: FloatArray

    def towards(self, other: "_Point", share: float) -> "_Point":
        weights = (1 - share) * self.weights + share * other.weights
        return _Point(weights, (1 - share) * self.information + share * other.information)


def bounded_design(problem: BoundedProblem, *, tolerance: float = 1e-3, max_iterations: int = 200) -> Design:
    """Minimise the criterion until the gap is at most `tolerance` times the objective.

    Large pools take their first steps in float32. What is returned is always evaluated, and where the rougher
    arithmetic fell short also improved, in float64.
    """
    weights, spent, rough_dtype = start(problem), 0, problem.criterion.rough_dtype
    if rough_dtype is not np.float64 and tolerance >= _SINGLE_TOLERANCE:
        rough = descend(problem, weights, tolerance=tolerance, max_iterations=max_iterations, dtype=rough_dtype)
        weights, spent = rough.weights, rough.iterations
    fine = descend(problem, weights, tolerance=tolerance, max_iterations=max_iterations - spent)
    return replace(fine, iterations=spent + fine.iterations)


def start(problem: BoundedProblem) -> FloatArray:
    """Return the vertex that the gradient at the uniform design points to, (P, m)."""
    criterion = problem.criterion
    uniform = criterion.mask * (problem.budget / criterion.mask.sum())
    return problem.best_vertex(criterion.gains(criterion.expand(criterion.information(uniform))))


def descend(
    problem: BoundedProblem,
    weights: FloatArray,
    *,
    tolerance: float,
    max_iterations: int,
    dtype: type[np.floating] = np.float64,
) -> Design:
    """Conjugate Frank-Wolfe from a design allowed, with exact line search; gradient passes run in `dtype`.

    Stops when the gap is at most `tolerance` times the objective, after `max_iterations` steps, or when rounding
    leaves no step that helps.
    """
    criterion = problem.criterion
    point, target = _Point(weights, criterion.information(weights)), None
    for iterations in range(max_iterations + 1):
        expansion = criterion.expand(point.information)
        scores = criterion.gains(expansion, dtype)
        vertex = problem.best_vertex(scores)
        gap = max(0.0, float(((vertex - point.weights) * scores).sum()))
        converged = gap <= tolerance * expansion.objective
        if converged or iterations == max_iterations:
            break
        target = _conjugate_target(point, _Point(vertex, criterion.information(vertex)), target, expansion=expansion)
        step = expansion.best_step(target.information - point.information)
        if step == 0:
            break
        point = point.towards(target, step)
    return Design(
        weights=point.weights,
        scores=scores,
        objective=expansion.objective,
        gap=gap,
        iterations=iterations,
        converged=converged,
    )


def _conjugate_target(point: _Point, vertex: _Point, last: _Point | None, *, expansion: Expansion) -> _Point:
    """Blend the last target into the vertex, so that new and last direction are conjugate under the Hessian."""
    if last is None:
        return vertex
    old = expansion.curve(last.information - point.information)
    new = expansion.curve(vertex.information - point.information)
    overlap, slack = float((old * new).sum()), float((old * (new - old)).sum())
    share = min(overlap / slack, _MAX_CONJUGATE_SHARE) if overlap * slack > 0 else 0.0
    return vertex.towards(last, share)
