"""Other ways to the same designs and picks, over the matrix of all pairs, written plainly in numpy."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh, solve_triangular

from tasks.design.capped import Problem
from tasks.design.limits import Limits

Matrix = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, kw_only=True)
class Reached:
    """Where a search ended."""

    objective: float
    gap: float
    passes: int
    weights: Matrix


def scores_of(rows: Matrix, root: Matrix) -> Matrix:
    """|T' a|^2 of every row."""
    mapped = rows @ root
    scores: Matrix = np.einsum("ij,ij->i", mapped, mapped)
    return scores


def information_of(rows: Matrix, weights: Matrix) -> Matrix:
    """sum_e w_e a_e a_e'."""
    held = np.flatnonzero(weights)
    scaled = rows[held] * np.sqrt(weights[held])[:, None] if len(held) < len(rows) else rows * np.sqrt(weights)[:, None]
    information: Matrix = scaled.T @ scaled
    return information


def inverse_root_of(information: Matrix) -> Matrix:
    """R with R R' = M^-1."""
    lower = np.linalg.cholesky(information)
    root: Matrix = solve_triangular(lower, np.eye(len(lower)), lower=True).T
    return root


@dataclass(frozen=True, kw_only=True, eq=False)
class PairProblem:
    """A bounded design over a matrix of pairs.

    Attributes:
        rows: a_e, (n, dim).
        limits: what is allowed.
        ridge: multiple of the identity added to M.
        target: H^(1/2) of tr(H M^-1); None: -log det M.
    """

    rows: Matrix
    limits: Limits
    ridge: float
    target: Matrix | None

    def evaluate(self, information: Matrix) -> tuple[float, Matrix, Matrix]:
        """The measure, R with R R' = M^-1, and the root of the gradient."""
        root = inverse_root_of(information + self.ridge * np.eye(len(information)))
        if self.target is None:
            return 2 * float(np.log(np.diag(root)).sum()), root, root
        gradient = root @ (root.T @ self.target)
        return float((gradient * self.target).sum()), root, gradient

    def vertex(self, scores: Matrix) -> Matrix:
        """Weights of the best vertex."""
        return self.limits.best_vertex(scores.reshape(self.limits.mask.shape)).ravel()

    def relative(self, gap: float, objective: float) -> float:
        """The gap in the unit of the tolerance."""
        return gap / (self.rows.shape[1] if self.target is None else objective)

    def slope(self, root: Matrix, direction: Matrix) -> tuple[Matrix, Matrix]:
        """Eigenvalues of R' D R, and what each of them weighs in the measure."""
        values, vectors = eigh(root.T @ direction @ root)
        if self.target is None:
            return values, np.ones(len(values))
        return values, np.square(vectors.T @ (root.T @ self.target)).sum(axis=1)


def frank_wolfe(problem: PairProblem, *, tolerance: float, max_seconds: float) -> Reached:
    """Frank-Wolfe with exact line search from the vertex that the gradient at the uniform design points to."""
    rows, begun = problem.rows, time.process_time()
    uniform = np.full(len(rows), problem.limits.budget / len(rows))
    weights = problem.vertex(scores_of(rows, problem.evaluate(information_of(rows, uniform))[2]))
    held, passes = information_of(rows, weights), 1
    while True:
        objective, root, gradient = problem.evaluate(held)
        scores = scores_of(rows, gradient)
        passes += 1
        vertex = problem.vertex(scores)
        gap = problem.relative(float((vertex - weights) @ scores), objective)
        if gap <= tolerance or time.process_time() - begun > max_seconds:
            return Reached(objective=objective, gap=gap, passes=passes, weights=weights)
        direction = information_of(rows, vertex) - held
        step = _best_step(*problem.slope(root, direction), power=1 if problem.target is None else 2)
        weights += step * (vertex - weights)
        held += step * direction


def _best_step(values: Matrix, mass: Matrix, *, power: int) -> float:
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        grows = (mass * values / (1 + middle * values) ** power).sum() > 0
        low, high = (middle, high) if grows else (low, middle)
    return (low + high) / 2


def multiplicative(problem: Problem, *, tolerance: float, max_seconds: float) -> Reached:
    """The multiplicative rule within caps, w <- projection of w s^p (Yu 2010), over this repository's own passes."""
    criterion, limits, begun = problem.criterion, problem.limits, time.process_time()
    weights, passes = limits.mask * (limits.budget / limits.mask.sum()), 0
    while True:
        expansion = criterion.expand(criterion.information(weights))
        scores = criterion.gains(expansion)
        passes += 1
        gap = expansion.relative(limits.slack(scores, weights))
        if gap <= tolerance or time.process_time() - begun > max_seconds:
            return Reached(objective=expansion.objective, gap=gap, passes=passes, weights=weights)
        weights = _within_caps(weights * scores**criterion.measure.power, limits)


def _within_caps(wanted: Matrix, limits: Limits) -> Matrix:
    """The weights that maximise sum q log w within the limits: min(1, q / max(nu, mu_prompt)), nu and mu bisected."""
    cap = limits.mask.shape[1] if limits.cap is None else limits.cap
    total = wanted.sum(axis=1)
    low, high = np.full(len(wanted), -80.0), np.log(np.maximum(total, 1e-300) / cap) + 1e-9
    for _ in range(45):
        middle = (low + high) / 2
        over = np.minimum(1, wanted / np.exp(middle)[:, None]).sum(axis=1) > cap
        low, high = np.where(over, middle, low), np.where(over, high, middle)
    floor = np.where((wanted > 0).sum(axis=1) > cap, np.exp(high), 0.0)[:, None]
    below, above = -80.0, float(np.log(total.sum() / limits.budget)) + 1e-9
    for _ in range(60):
        price = (below + above) / 2
        over_all = np.minimum(1, wanted / np.maximum(np.exp(price), floor)).sum() > limits.budget
        below, above = (price, above) if over_all else (below, price)
    shares: Matrix = np.minimum(1, wanted / np.maximum(np.exp(above), floor))
    return shares


def multiplicative_simplex(rows: Matrix, *, tolerance: float) -> Reached:
    """The multiplicative rule for D-optimality on the simplex (Titterington 1976)."""
    dim, passes = rows.shape[1], 0
    weights = np.full(len(rows), 1 / len(rows))
    while True:
        root = inverse_root_of(information_of(rows, weights))
        scores = scores_of(rows, root)
        passes += 1
        gap = float(scores.max()) / dim - 1
        if gap <= tolerance:
            return Reached(objective=2 * float(np.log(np.diag(root)).sum()), gap=gap, passes=passes, weights=weights)
        weights = weights * scores / dim


def greedy_naive(rows: Matrix, *, ridge: float, picks: int) -> list[int]:
    """The pair of largest |a|_(V^-1), `picks` times; every pick scores all pairs anew."""
    inverse, chosen = np.eye(rows.shape[1]) / ridge, []
    free = np.ones(len(rows), dtype=bool)
    for _ in range(picks):
        best = int(np.where(free, np.einsum("ij,ij->i", rows @ inverse, rows), -1).argmax())
        image = inverse @ rows[best]
        inverse -= np.outer(image, image) / (1 + rows[best] @ image)
        free[best] = False
        chosen.append(best)
    return chosen


def greedy_downdated(rows: Matrix, *, ridge: float, picks: int) -> list[int]:
    """The same, the scores being brought up to date by the formula of Sherman and Morrison."""
    inverse, chosen = np.eye(rows.shape[1]) / ridge, []
    scores = np.einsum("ij,ij->i", rows, rows) / ridge
    for _ in range(picks):
        best = int(scores.argmax())
        image = inverse @ rows[best]
        scale = 1 + float(rows[best] @ image)
        inverse -= np.outer(image, image) / scale
        overlap = rows @ image
        scores -= overlap * overlap / scale
        chosen.append(best)
        scores[chosen] = -1
    return chosen
