from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from scipy.optimize import LinearConstraint, minimize

from tasks.design import capped, criterion
from tasks.design.capped import Problem, bounded_design
from tasks.design.criterion import trace_criterion
from tasks.design.limits import limits_of
from tasks.design.pool import Pool
from tasks.design.search import Effort


def problem_of(pool, budget, *, cap=None, ridge=1e-3):
    return Problem(trace_criterion(pool, ridge=ridge), limits_of(pool, budget, cap=cap))


def solve(problem, tolerance=1e-3, max_passes=200):
    return bounded_design(problem, Effort(tolerance=tolerance, max_passes=max_passes))


def orthogonal_pool(lengths, importance):
    """One pair per prompt, a_i = lengths_i e_i, H = diag(importance)."""
    dim = len(lengths)
    features = np.zeros((dim, 2, dim))
    features[np.arange(dim), 0, np.arange(dim)] = 2 * lengths  # beta = 1 and sigma' = 1/4
    ones = np.ones((dim, 2), dtype=bool)
    return Pool(features=features, valid=ones, rewards=np.zeros((dim, 2)), beta=1.0, fisher=np.diag(importance))


def test_orthogonal_pairs_share_the_budget_by_root_importance_over_length():
    lengths, importance = np.array([1.0, 2.0, 0.5, 1.5]), np.array([1.0, 3.0, 0.2, 2.0])
    ratios = np.sqrt(importance) / lengths
    budget = 2
    design = solve(problem_of(orthogonal_pool(lengths, importance), budget, ridge=1e-12), 1e-10)
    assert design.objective == pytest.approx(ratios.sum() ** 2 / budget, rel=1e-8)
    np.testing.assert_allclose(design.weights[:, 0], budget * ratios / ratios.sum(), atol=1e-4)


def test_orthogonal_pairs_that_want_more_than_one_label_are_capped_and_leave_the_rest_to_the_others():
    lengths, importance = np.array([1.0, 1.0, 1.0, 1.0]), np.array([100.0, 4.0, 1.0, 1.0])
    design = solve(problem_of(orthogonal_pool(lengths, importance), 3, ridge=1e-12), 1e-9)
    np.testing.assert_allclose(design.weights[:, 0], [1.0, 1.0, 0.5, 0.5], atol=1e-3)
    assert design.objective == pytest.approx(100 + 4 + 2 + 2, rel=1e-7)


@pytest.mark.parametrize(("num_responses", "budget"), [(3, 2), (4, 3), (6, 5), (6, 14)])
def test_one_hot_responses_of_a_uniform_policy_are_compared_evenly(num_responses, budget):
    population = np.eye(num_responses) / num_responses - 1 / num_responses**2
    ones = np.ones((1, num_responses), dtype=bool)
    features, rewards = np.eye(num_responses)[None], np.zeros((1, num_responses))
    pool = Pool(features=features, valid=ones, rewards=rewards, beta=0.5, fisher=population)
    design = solve(problem_of(pool, budget, ridge=1e-9), 1e-7, 2000)
    expected = 4 / 0.5**2 / budget * (num_responses - 1) ** 2 / (2 * num_responses)
    assert design.objective == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(design.weights, budget / design.weights.size, atol=5e-3)


@pytest.mark.parametrize("cap", [None, 3])
@pytest.mark.parametrize("seed", range(4))
def test_a_general_solver_agrees_within_the_certified_gap(make_pool, seed, cap):
    pool = make_pool((5, 4, 4), seed=seed, decay=1.0)
    problem = problem_of(pool, 9, cap=cap, ridge=1e-2)
    criterion, shape = problem.criterion, pool.pair_mask.shape
    prompts = np.kron(np.eye(5), np.ones((1, 6)))
    limits = [LinearConstraint(np.ones((1, 30)), 9, 9)]
    if cap is not None:
        limits.append(LinearConstraint(prompts, -np.inf, cap))
    peer = minimize(
        lambda w: criterion.objective(w.reshape(shape)),
        np.full(30, 0.3),
        jac=lambda w: -criterion.gains(criterion.expand(criterion.information(w.reshape(shape)))).ravel(),
        method="SLSQP",
        bounds=[(0, 1)] * 30,
        constraints=limits,
        options={"maxiter": 500, "ftol": 1e-12},
    )
    design = solve(problem, 1e-4, 1000)
    assert peer.success
    assert design.converged
    assert design.lower_bound <= peer.fun * (1 + 1e-9)
    assert peer.fun <= design.objective * (1 + 1e-9)
    assert design.objective - design.lower_bound <= 1e-4 * design.objective


@pytest.mark.parametrize("cap", [None, 2])
def test_the_lower_bound_never_passes_the_optimum_on_the_way_to_it(make_pool, cap):
    problem = problem_of(make_pool((20, 5, 6), seed=3, decay=1.0), 24, cap=cap)
    best = solve(problem, 1e-5, 3000)
    assert best.converged
    stages = [solve(problem, 1e-12, passes) for passes in range(2, 27)]
    objectives = [stage.objective for stage in stages]
    for passes, stage in enumerate(stages, start=2):
        assert stage.passes == passes
        assert stage.objective * (1 - stage.gap) <= stage.lower_bound <= best.objective <= stage.objective * (1 + 1e-5)
    assert (np.diff(objectives) < 0).all()
    assert stages[0].lower_bound < 0.9 * best.objective < 0.99 * stages[-1].lower_bound


@pytest.mark.parametrize("cap", [None, 3, 1])
def test_the_design_stays_within_its_limits_and_off_invalid_pairs(make_pool, cap):
    pool = make_pool((30, 5, 4), masked=True)
    design = solve(problem_of(pool, 17, cap=cap), 1e-3)
    assert design.weights.sum() == pytest.approx(17)
    assert (design.weights >= 0).all()
    assert (design.weights <= 1 + 1e-12).all()
    assert not design.weights[~pool.pair_mask].any()
    assert design.weights.sum(axis=1).max() <= (10 if cap is None else cap) + 1e-9


@pytest.mark.parametrize("cap", [None, 1, 2, 3])
@pytest.mark.parametrize("budget", [1, 2, 3])
def test_the_best_vertex_is_the_best_of_all_vertices(make_pool, budget, cap):
    valid = np.array([[True, True, True], [True, True, False], [True, True, True]])
    pool = replace(make_pool((3, 3, 2)), valid=valid)
    problem = problem_of(pool, budget, cap=cap)
    scores = np.random.default_rng(budget).random(pool.pair_mask.shape)
    allowed = [
        np.reshape(bits, (3, 3))
        for bits in product([0, 1], repeat=9)
        if sum(bits) == budget and not (np.reshape(bits, (3, 3)) * ~pool.pair_mask).any()
    ]
    best = max((v * scores).sum() for v in allowed if cap is None or v.sum(axis=1).max() <= cap)
    vertex = problem.limits.best_vertex(scores)
    assert vertex.sum() == budget
    assert (vertex * scores).sum() == pytest.approx(best)


def test_optimal_weights_are_one_above_a_threshold_score_and_zero_below(make_pool):
    design = solve(problem_of(make_pool((60, 5, 3), decay=1.0), 150), 1e-7, 5000)
    fractional = (design.weights > 1e-3) & (design.weights < 1 - 1e-3)
    threshold = np.median(design.scores[fractional])
    assert 0 < fractional.sum() <= 30
    assert design.scores[design.weights >= 1 - 1e-3].min() > 0.98 * threshold
    assert design.scores[design.weights <= 1e-3].max() < 1.02 * threshold


def test_single_precision_steps_reach_a_design_certified_in_double_precision(make_pool, monkeypatch):
    problem = problem_of(make_pool((80, 5, 6), decay=1.0), 60, cap=2)
    double = solve(problem, 1e-3)
    monkeypatch.setattr(criterion, "_LARGE_POOL", 1)
    single = solve(problem, 1e-3)
    assert single.converged
    assert single.scores.dtype == np.float64
    assert single.objective == pytest.approx(double.objective, rel=2e-3)
    assert single.objective == pytest.approx(problem.criterion.objective(single.weights), rel=1e-12)
    assert single.lower_bound <= double.objective
    assert double.lower_bound <= single.objective


def test_a_limit_of_passes_leaves_an_honest_certificate(make_pool):
    design = solve(problem_of(make_pool((40, 6, 8), decay=1.5), 30), 1e-6, 3)
    assert design.passes == 3
    assert not design.converged
    assert design.gap > 1e-6


def test_conjugate_directions_take_about_half_the_steps_of_plain_ones(make_pool, monkeypatch):
    problem = problem_of(make_pool((200, 6, 12), decay=1.0), 150, cap=2)
    conjugate = solve(problem, 1e-4, 2000)
    monkeypatch.setattr(capped, "_conjugate_target", lambda _point, vertex, _last, **_: vertex)
    plain = solve(problem, 1e-4, 2000)
    assert conjugate.converged
    assert plain.converged
    assert conjugate.passes < 0.6 * plain.passes


def test_the_limit_counts_the_passes_of_both_precisions(make_pool, monkeypatch):
    monkeypatch.setattr(criterion, "_LARGE_POOL", 1)
    design = solve(problem_of(make_pool((80, 5, 6), decay=1.0), 60), 1e-4, 4)
    assert design.passes == 4


def test_seconds_that_ran_out_leave_an_honest_certificate(make_pool):
    problem = problem_of(make_pool((40, 6, 8), decay=1.5), 30)
    design = bounded_design(problem, Effort(tolerance=1e-9, max_seconds=0.0))
    assert design.passes == 2
    assert not design.converged
    assert design.lower_bound < solve(problem, 1e-6, 3000).objective < design.objective


def test_the_design_of_a_round_before_is_a_head_start(make_pool):
    pool = make_pool((200, 6, 12), decay=1.0)
    before = solve(problem_of(pool, 150, cap=2), 1e-4, 2000)
    rng = np.random.default_rng(0)
    drifted = replace(pool, features=pool.features + 0.01 * rng.standard_normal(pool.features.shape))
    problem = problem_of(drifted, 150, cap=2)
    cold = solve(problem, 1e-3)
    warm = bounded_design(problem, Effort(tolerance=1e-3), start=before.weights)
    assert warm.converged
    assert warm.passes < cold.passes / 2
    assert warm.lower_bound <= cold.objective
