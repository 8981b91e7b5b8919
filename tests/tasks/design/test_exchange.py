from itertools import combinations

import numpy as np
import pytest

from tasks.design.capped import BoundedProblem, bounded_design
from tasks.design.criterion import trace_criterion
from tasks.design.exchange import exchange_pairs
from tasks.design.pool import Pool
from tasks.design.rounding import round_design, take_in_order


def objective(problem, pairs):
    whole = np.zeros(problem.criterion.mask.shape)
    whole.flat[pairs] = 1
    return problem.criterion.objective(whole)


def problem_of(pool, budget, cap=None):
    return BoundedProblem(criterion=trace_criterion(pool, ridge=1e-3), budget=budget, cap=cap)


@pytest.mark.parametrize("cap", [None, 1, 2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_exchanges_keep_budget_cap_and_validity_and_lower_a_random_selection_far(make_pool, seed, cap):
    pool = make_pool((40, 5, 4), masked=True, seed=seed, decay=1.0)
    problem = problem_of(pool, 24, cap)
    order = np.random.default_rng(seed).permutation(np.flatnonzero(pool.pair_mask))
    drawn = take_in_order(order, 10, budget=24, cap=cap)
    polished = exchange_pairs(problem, drawn, goal=0.0)
    assert len(set(polished.tolist())) == 24
    assert pool.pair_mask.ravel()[polished].all()
    assert cap is None or np.bincount(polished // 10).max() <= cap
    assert objective(problem, polished) < 0.6 * objective(problem, drawn)


def test_exchanges_never_undo_the_rounded_design(make_pool):
    for seed in range(6):
        pool = make_pool((12, 4, 5), seed=seed, decay=1.0)
        problem = problem_of(pool, 9)
        design = bounded_design(problem)
        rounded = round_design(design.weights, design.scores, mask=pool.pair_mask, budget=9, cap=None)
        polished = exchange_pairs(problem, rounded, goal=0.0)
        assert design.lower_bound <= objective(problem, polished) <= objective(problem, rounded)


def test_a_selection_that_meets_the_goal_is_left_alone(make_pool):
    problem = problem_of(make_pool(), 9)
    drawn = np.arange(9)
    assert exchange_pairs(problem, drawn, goal=objective(problem, drawn)) is drawn


def test_exchanges_end_near_the_best_of_all_selections(make_pool):
    for seed in range(5):
        problem = problem_of(make_pool((4, 3, 2), seed=seed), 4)
        best = min(objective(problem, list(subset)) for subset in combinations(range(12), 4))
        assert objective(problem, exchange_pairs(problem, np.arange(4), goal=0.0)) <= 1.05 * best


@pytest.mark.parametrize("copies", [10, 300])
def test_copies_of_two_directions_end_up_shared_evenly(copies):
    features = np.zeros((2 * copies, 2, 2))
    features[:copies, 0, 0] = features[copies:, 0, 1] = 1.0
    ones = np.ones((2 * copies, 2), dtype=bool)
    pool = Pool(features=features, valid=ones, rewards=np.zeros((2 * copies, 2)), beta=1.0)
    polished = exchange_pairs(problem_of(pool, copies), np.arange(copies), goal=0.0)
    assert abs((polished < copies).sum() - copies / 2) <= 0.02 * copies
