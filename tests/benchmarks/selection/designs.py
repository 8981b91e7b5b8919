"""Whole designs: time to a certified gap, against other algorithms and other solvers, and what rounding costs."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from measuring import Finding, peer, take_turns
from selection.peers import PairProblem, frank_wolfe, inverse_root_of, multiplicative, multiplicative_simplex
from selection.problems import Matrix, flat_pairs, make_pool, pair_rows, size_of

from tasks.design.capped import Problem, bounded_design
from tasks.design.criterion import Criterion
from tasks.design.limits import limits_of
from tasks.design.measures import symmetric_root
from tasks.design.pool import Pool
from tasks.design.search import Design, Effort
from tasks.design.selectors.designs import DDesign, TraceDesign, VDesign, pool_information
from tasks.design.simplex import simplex_design

AnyDesign = DDesign | TraceDesign | VDesign
TOLERANCE = 1e-3
LARGE = (7143, 8, 256)
PATIENCE = 6  # times as long as ours, after which the multiplicative rule is stopped


def capped_speed(repeats: int, *, selector: AnyDesign, passes: int) -> Iterator[Finding]:
    """A bounded design to a certified gap, against Frank-Wolfe on pairs and the multiplicative rule."""
    pool = make_pool(LARGE)
    limits = limits_of(pool, 5000, cap=3)
    work = f"{selector.kind} to a gap of 1e-3, {size_of(pool)}, budget 5,000, cap 3"

    def ours() -> Design:
        return bounded_design(Problem(selector.criterion(pool), limits), Effort(tolerance=TOLERANCE))

    rows = pair_rows(pool)
    problem = PairProblem(rows=rows, limits=limits, ridge=selector.ridge, target=_target(selector, pool))
    theirs, mine = take_turns(
        lambda: frank_wolfe(problem, tolerance=TOLERANCE, max_seconds=np.inf), ours, repeats=repeats
    )
    design = mine.value
    said = f"Frank-Wolfe on pairs: {theirs}, {theirs.value.passes} passes"
    told = f"{mine}, {design.passes} passes"
    ratio = theirs.seconds / mine.seconds if design.converged else 0.0
    yield Finding(workload=work, ours=told, peer=said, number=ratio, low=4)
    yield Finding(workload="passes over all pairs", number=design.passes, high=passes)
    apart = abs(design.objective - theirs.value.objective) / (abs(design.objective) if _is_trace(selector) else 256)
    yield Finding(workload="objectives apart, relative", number=apart, high=TOLERANCE)

    (slow,) = take_turns(
        lambda: multiplicative(
            Problem(selector.criterion(pool), limits), tolerance=TOLERANCE, max_seconds=PATIENCE * mine.seconds
        ),
        repeats=1,
    )
    ended = "" if slow.value.gap <= TOLERANCE else f", stopped at a gap of {slow.value.gap:.1e}"
    said = f"multiplicative rule: {slow}, {slow.value.passes} passes{ended}"
    yield Finding(workload=work, ours=told, peer=said, number=slow.seconds / mine.seconds, low=4)


def conic_speed(repeats: int, *, selector: AnyDesign) -> Iterator[Finding]:
    """A bounded design against a conic solver."""
    cvxpy = peer("cvxpy")
    peer("clarabel")
    pool = make_pool((72, 8, 12))
    limits = limits_of(pool, 120, cap=3)
    pairs = PairProblem(rows=pair_rows(pool), limits=limits, ridge=selector.ridge, target=_target(selector, pool))
    theirs, mine = take_turns(
        lambda: _conic_weights(cvxpy, pairs),
        lambda: bounded_design(Problem(selector.criterion(pool), limits), Effort(tolerance=TOLERANCE)),
        repeats=repeats,
    )
    design = mine.value
    yield Finding(
        workload=f"{selector.kind} to a gap of 1e-3, {size_of(pool)}, budget 120, cap 3",
        ours=f"{mine}, {design.passes} passes",
        peer=f"cvxpy {cvxpy.__version__} and Clarabel: {theirs}",
        number=theirs.seconds / mine.seconds,
        low=50,
    )
    objective = pairs.evaluate((pairs.rows * theirs.value[:, None]).T @ pairs.rows)[0]
    apart = abs(design.objective - objective) / (design.objective - design.lower_bound)
    yield Finding(workload="objectives apart, over the certified gap", number=apart, high=1)


def _conic_weights(cvxpy: Any, problem: PairProblem) -> Matrix:
    """The weights that the solver finds, clipped to the box."""
    rows, limits = problem.rows, problem.limits
    dim = rows.shape[1]
    weights = cvxpy.Variable(len(rows), nonneg=True)
    products = np.einsum("ei,ej->ije", rows, rows).reshape(dim * dim, -1)  # the quickest of the ways to state M
    information = cvxpy.reshape(products @ weights, (dim, dim), order="C") + problem.ridge * np.eye(dim)
    per_prompt = cvxpy.reshape(weights, limits.mask.shape, order="C")
    allowed = [weights <= 1, cvxpy.sum(weights) == limits.budget, cvxpy.sum(per_prompt, axis=1) <= limits.cap]
    measure = -cvxpy.log_det(information) if problem.target is None else cvxpy.matrix_frac(problem.target, information)
    cvxpy.Problem(cvxpy.Minimize(measure), allowed).solve(solver="CLARABEL")
    found: Matrix = np.clip(weights.value, 0, 1)
    return found


def simplex_against_away_steps(repeats: int) -> Iterator[Finding]:
    """D-optimality on the simplex against Frank-Wolfe with away steps from accbpg."""
    accbpg = peer("accbpg")
    criterion, rows, work = _simplex_problem()
    columns = np.ascontiguousarray(rows.T)

    def search() -> Any:
        np.random.seed(0)  # noqa: NPY002 (accbpg starts from a random design)
        return accbpg.D_opt_FW_away(columns, accbpg.D_opt_KYinit(columns), TOLERANCE, 100_000, verbose=False)

    yield from _simplex_finding(criterion, search, (work, "accbpg, away steps", 10), repeats)


def simplex_against_multiplicative(repeats: int) -> Iterator[Finding]:
    """D-optimality on the simplex against the multiplicative rule."""
    criterion, rows, work = _simplex_problem()
    yield from _simplex_finding(
        criterion,
        lambda: multiplicative_simplex(rows, tolerance=TOLERANCE),
        (work, "multiplicative rule, numpy", 40),
        repeats,
    )


def _simplex_problem() -> tuple[Criterion, Matrix, str]:
    """The criterion, and its pairs turned so that the uniform design has M = I and no determinant overflows."""
    pool = make_pool((714, 8, 64))
    criterion = DDesign(ridge=1e-12).criterion(pool)
    rows = pair_rows(pool) @ inverse_root_of(pool_information(pool))
    return criterion, rows, f"D-optimal design on the simplex to a gap of 1e-3, {size_of(pool)}"


def _simplex_finding(
    criterion: Criterion, theirs: Callable[[], Any], words: tuple[str, str, float], repeats: int
) -> Iterator[Finding]:
    other, mine = take_turns(theirs, lambda: simplex_design(criterion, Effort(tolerance=TOLERANCE)), repeats=repeats)
    work, name, least = words
    yield Finding(
        workload=work,
        ours=f"{mine}, {mine.value.passes} passes",
        peer=f"{name}: {other}",
        number=other.seconds / mine.seconds if mine.value.converged else 0.0,
        low=least,
    )


def rounding(repeats: int, *, selector: AnyDesign, least: float) -> Iterator[Finding]:
    """How close whole pairs come to the relaxed design, and what one pass without a design reaches."""
    pool = make_pool(LARGE)
    selection = selector(pool, 5000, np.random.default_rng(0))
    criterion, limits, proof = selector.criterion(pool), limits_of(pool, 5000, cap=3), selection.certificate
    assert proof is not None
    gains = criterion.gains(
        criterion.expand(criterion.information(np.full(pool.pair_mask.shape, 5000 / pool.num_pairs)))
    )
    one_shot = limits.take(np.argsort(-gains.ravel(), kind="stable"))
    reached = [
        criterion.expand(criterion.added_information(pairs)).efficiency(proof.relaxed_objective)
        for pairs in (flat_pairs(pool, selection), one_shot)
    ]
    yield Finding(
        workload=f"efficiency of {selector.kind}, {size_of(pool)}, budget 5,000, cap 3",
        ours=f"{reached[0]:.4f} of the relaxed design, {proof.efficiency:.4f} proven",
        peer=f"best gradients at the uniform design: {reached[1]:.4f}",
        number=reached[0],
        low=least,
    )
    most = float(np.bincount(selection.prompt).max())
    yield Finding(workload="most pairs of one prompt", number=most, high=3)


def _target(selector: AnyDesign, pool: Pool) -> Matrix | None:
    if isinstance(selector, DDesign):
        return None
    return symmetric_root(pool.policy_fisher if isinstance(selector, TraceDesign) else pool_information(pool))


def _is_trace(selector: AnyDesign) -> bool:
    return not isinstance(selector, DDesign)
