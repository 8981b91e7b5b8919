"""What is solved here, solved by others too: general convex and linear solvers, and the count of all selections."""

from dataclasses import replace
from itertools import combinations

import cvxpy
import numpy as np
import pytest
from scipy.optimize import linprog

from tasks.design.capped import Problem, bounded_design
from tasks.design.limits import Limits, limits_of
from tasks.design.pool import Labels
from tasks.design.search import Effort
from tasks.design.selectors import SELECTORS
from tasks.design.simplex import simplex_design

RIDGE = 1e-2
DESIGNS = ["trace_design", "d_design", "a_design", "v_design"]
every_design = pytest.mark.parametrize("kind", DESIGNS)


def slow_fisher(kind, pool, vectors):
    """H by its definition; None: the measure has none."""
    ones = [np.cov(rows[valid], rowvar=False) for rows, valid in zip(pool.features, pool.valid, strict=True)]
    return {
        "trace_design": np.mean([cov for cov, valid in zip(ones, pool.valid, strict=True) if valid.sum() > 1], axis=0),
        "d_design": None,
        "a_design": np.eye(pool.dim),
        "v_design": vectors.T @ vectors / pool.num_pairs,
    }[kind]


def slow_prior(pool):
    if pool.labels is None:
        return np.zeros((pool.dim, pool.dim))
    terms = zip(pool.labels.differences, pool.labels.margins, strict=True)
    return sum(pool.beta**2 / (2 + np.exp(z) + np.exp(-z)) * np.outer(g, g) for g, z in terms)


def slow_objective(kind, pool, vectors, subsets):
    """The measure of every subset of pairs, (n,)."""
    matrices = RIDGE * np.eye(pool.dim) + slow_prior(pool) + np.swapaxes(vectors[subsets], 1, 2) @ vectors[subsets]
    if kind == "d_design":
        return -np.linalg.slogdet(matrices)[1]
    return np.trace(slow_fisher(kind, pool, vectors) @ np.linalg.inv(matrices), axis1=1, axis2=2)


def linear_limits(limits, weights):
    """The same limits, in the words of a general solver."""
    mask, constraints = limits.mask.ravel(), [weights >= 0, weights <= limits.mask.ravel()]
    per_prompt = np.kron(np.eye(len(limits.mask)), np.ones(limits.mask.shape[1]))
    if limits.costs is None:
        constraints.append(cvxpy.sum(weights) == limits.budget)
        constraints.append(per_prompt @ weights >= np.minimum(per_prompt @ mask, limits.floor))
    else:
        constraints.append(limits.costs.ravel() @ weights <= limits.budget)
    return constraints + ([] if limits.cap is None else [per_prompt @ weights <= limits.cap])


def peer_optimum(kind, pool, vectors, constrain):
    weights = cvxpy.Variable(len(vectors))
    matrix = RIDGE * np.eye(pool.dim) + slow_prior(pool) + vectors.T @ cvxpy.diag(weights) @ vectors
    if kind == "d_design":
        measure = -cvxpy.log_det(matrix)
    else:
        measure = cvxpy.matrix_frac(np.linalg.cholesky(slow_fisher(kind, pool, vectors)), matrix)
    problem = cvxpy.Problem(cvxpy.Minimize(measure), constrain(weights))
    problem.solve(solver=cvxpy.CLARABEL)
    assert problem.status == cvxpy.OPTIMAL
    return problem.value


def assert_agrees(design, optimum, kind, dim, *, tolerance):
    """The peer lies between bound and objective, up to its own accuracy, and they within the tolerance."""
    unit = dim if kind == "d_design" else design.objective
    assert design.converged
    assert design.lower_bound <= optimum + 1e-6 * unit
    assert optimum <= design.objective + 1e-6 * unit
    assert design.objective - design.lower_bound <= 1.001 * tolerance * unit


LIMITS = {
    "a budget": {"budget": 9},
    "a tight budget": {"budget": 2},
    "a cap": {"budget": 9, "cap": 2},
    "one pair a prompt": {"budget": 5, "cap": 1, "floor": 1},
    "least and most": {"budget": 9, "cap": 3, "floor": 1},
}


@pytest.fixture
def pools(make_pool):
    """A plain pool, and one with holes, pairs not offered and labels already held."""
    plain, rng = make_pool((5, 4, 4), seed=1, decay=0.5), np.random.default_rng(1)
    valid = np.ones((5, 4), dtype=bool)
    valid[1, 2] = valid[4, 0] = False
    held = Labels(differences=rng.standard_normal((6, 4)) * [2, 1, 0.3, 0], margins=rng.standard_normal(6))
    holed = replace(plain, valid=valid, offered=rng.random((5, 6)) < 0.8, labels=held)
    return {"plain": plain, "holed": holed}


def offered_vectors(pool, pair_vectors):
    return pair_vectors(pool) * pool.pair_mask.reshape(-1, 1)


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
@pytest.mark.parametrize("which", ["plain", "holed"])
@every_design
def test_a_convex_solver_agrees_within_the_certified_gap(pools, pair_vectors, kind, which, limits):
    pool, tolerance = pools[which], 1e-4
    vectors = offered_vectors(pool, pair_vectors)
    problem = Problem(SELECTORS[kind](ridge=RIDGE).criterion(pool), Limits(mask=pool.pair_mask, **limits))
    design = bounded_design(problem, Effort(tolerance=tolerance, max_passes=20_000))
    optimum = peer_optimum(kind, pool, vectors, lambda weights: linear_limits(problem.limits, weights))
    assert_agrees(design, optimum, kind, pool.dim, tolerance=tolerance)


@pytest.mark.parametrize("cap", [None, 2])
@pytest.mark.parametrize("which", ["plain", "holed"])
@every_design
def test_a_convex_solver_agrees_where_pairs_have_prices(pools, pair_vectors, kind, which, cap):
    costs = np.random.default_rng(2).uniform(0.3, 3.0, (5, 6))
    pool, tolerance = replace(pools[which], costs=costs), 1e-4
    vectors = offered_vectors(pool, pair_vectors)
    problem = Problem(SELECTORS[kind](ridge=RIDGE).criterion(pool), limits_of(pool, 8, cap=cap))
    design = bounded_design(problem, Effort(tolerance=tolerance, max_passes=20_000))
    optimum = peer_optimum(kind, pool, vectors, lambda weights: linear_limits(problem.limits, weights))
    assert_agrees(design, optimum, kind, pool.dim, tolerance=tolerance)
    assert (design.weights * costs).sum() <= 8 * (1 + 1e-9)


@pytest.mark.parametrize("which", ["plain", "holed"])
@every_design
def test_a_convex_solver_agrees_on_distributions_over_pairs(pools, pair_vectors, kind, which):
    pool, tolerance = pools[which], 1e-5
    vectors, criterion = offered_vectors(pool, pair_vectors), SELECTORS[kind](ridge=RIDGE).criterion(pool)
    mask = pool.pair_mask.ravel()
    optimum = peer_optimum(kind, pool, vectors, lambda w: [w >= 0, cvxpy.sum(w) == 1, w[~mask] == 0])
    design = simplex_design(criterion, Effort(tolerance=tolerance))
    assert_agrees(design, optimum, kind, pool.dim, tolerance=tolerance)
    even = pool.pair_mask / mask.sum()
    for passes in (1, 2, 3):
        rough = simplex_design(criterion, Effort(tolerance=1e-12, max_passes=passes), start=even)
        assert rough.lower_bound <= optimum * (1 + 1e-6)
        assert optimum <= rough.objective * (1 + 1e-6)


def efficiency(kind, best, reached, dim=2):
    """Share of the labels with which the best would do as well, labels alone counting."""
    return np.exp((best - reached) / dim) if kind == "d_design" else best / reached


INTEGER_LIMITS = {
    "a budget": {},
    "a cap": {"max_pairs_per_prompt": 2},
    "least and most": {"max_pairs_per_prompt": 3, "min_pairs_per_prompt": 1},
    "as many of each": {"max_pairs_per_prompt": 1, "min_pairs_per_prompt": 1},
}


@pytest.mark.parametrize("limits", INTEGER_LIMITS.values(), ids=INTEGER_LIMITS)
@pytest.mark.parametrize("seed", range(6))
@every_design
def test_the_best_of_all_selections_lies_between_the_bound_and_a_selection_close_to_it(
    make_pool, pair_vectors, kind, seed, limits
):
    pool, budget = make_pool((4, 3, 2), seed=seed), 4 if limits.get("max_pairs_per_prompt") == 1 else 5
    vectors, subsets = pair_vectors(pool), np.array(list(combinations(range(12), budget)))
    counts = (subsets[:, :, None] // 3 == np.arange(4)).sum(axis=1)
    least, most = limits.get("min_pairs_per_prompt", 0), limits.get("max_pairs_per_prompt", 3)
    allowed = subsets[((counts >= least) & (counts <= most)).all(axis=1)]
    best = slow_objective(kind, pool, vectors, allowed).min()
    selection = SELECTORS[kind](ridge=RIDGE, **limits)(pool, budget, np.random.default_rng(0))
    slots = 3 * selection.prompt + selection.first + selection.second - 1
    reached = slow_objective(kind, pool, vectors, np.sort(slots)[None])[0]
    found = selection.certificate
    assert np.sort(slots).tolist() in allowed.tolist()
    assert found.objective == pytest.approx(reached, rel=1e-9)
    assert found.lower_bound <= best + 1e-9
    assert best <= found.objective + 1e-9
    assert efficiency(kind, best, reached) >= 0.95
    assert found.efficiency == pytest.approx(efficiency(kind, found.lower_bound, found.objective))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("kind_of_limit", ["counts", "costs", "capped costs"])
def test_the_best_vertex_is_worth_what_linear_programming_finds(kind_of_limit, ties):
    rng, compared = np.random.default_rng(3), 0
    for _ in range(60):
        shape = (int(rng.integers(1, 7)), int(rng.choice([1, 3, 6, 10])))
        mask, cap = rng.random(shape) < 0.8, int(rng.integers(1, 5))
        scores = rng.integers(0, 4, shape).astype(float) if ties else rng.random(shape)
        costs = None
        if kind_of_limit != "counts":
            costs = rng.integers(1, 4, shape).astype(float) if ties else rng.uniform(0.3, 3.0, shape)
        cap = None if kind_of_limit == "costs" else cap
        floor = int(rng.integers(0, cap + 1)) if kind_of_limit == "counts" else 0
        per_prompt = mask.sum(axis=1)
        most = np.minimum(per_prompt, cap or shape[1]).sum()
        budget = int(rng.integers(max(1, np.minimum(per_prompt, floor).sum()), max(most, 1) + 1))
        if not mask.any() or (costs is not None and costs[mask].min() > budget):
            continue
        limits = Limits(mask=mask, budget=budget, cap=cap, floor=floor, costs=costs)
        vertex, rows = limits.best_vertex(scores), np.kron(np.eye(shape[0]), np.ones(shape[1]))
        price = np.ones(shape) if costs is None else costs
        optimum = -linprog(
            -scores.ravel(),
            A_ub=np.vstack([rows, -rows, price.reshape(1, -1)]),
            b_ub=np.concatenate([np.full(shape[0], cap or shape[1]), -np.minimum(per_prompt, floor), [budget]]),
            A_eq=np.ones((1, mask.size)) if costs is None else None,
            b_eq=[budget] if costs is None else None,
            bounds=[(0, float(there)) for there in mask.ravel()],
        ).fun
        assert (vertex * scores).sum() == pytest.approx(optimum, rel=1e-9, abs=1e-9)
        assert vertex.min() >= 0
        assert (vertex <= mask).all()
        assert (vertex * price).sum() <= budget * (1 + 1e-12)
        counts = vertex.sum(axis=1)
        assert (counts <= (cap or shape[1]) + 1e-12).all()
        assert (counts >= np.minimum(per_prompt, floor)).all()
        compared += 1
    assert compared > 40


def test_money_for_a_part_of_the_pair_of_best_value_buys_that_part():
    costs = np.array([[0.40320091244041495, 1.2689890042825964, 2.858356712299948]])
    limits = Limits(mask=np.ones((1, 3), dtype=bool), budget=1, costs=costs)
    vertex = limits.best_vertex(np.array([[0.0, 1.0, 2.0]]))
    np.testing.assert_allclose(vertex, [[0, 1 / costs[0, 1], 0]], atol=1e-9)


@pytest.mark.parametrize("seed", [1, 2, 4])
def test_a_least_number_of_pairs_that_is_met_anyway_costs_next_to_nothing(make_pool, seed):
    """With more dimensions than labels three pairs among three responses waste one, wherever the floor lies."""
    pool = make_pool((2, 3, 20), seed=seed)
    free, floored = (
        SELECTORS["trace_design"](min_pairs_per_prompt=floor)(pool, 4, np.random.default_rng(0)) for floor in (0, 1)
    )
    assert np.bincount(free.prompt).tolist() == [2, 2]
    assert floored.certificate.objective <= 1.1 * free.certificate.objective
