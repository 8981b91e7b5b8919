from itertools import combinations

import numpy as np
import pytest

from tasks.design.capped import Problem, bounded_design
from tasks.design.criterion import log_det_criterion, trace_criterion
from tasks.design.exchange import exchange_pairs
from tasks.design.limits import limits_of
from tasks.design.pool import Pool
from tasks.design.rounding import round_design
from tasks.design.search import Effort


def objective(problem, pairs):
    whole = np.zeros(problem.limits.mask.shape)
    whole.flat[pairs] = 1
    return problem.criterion.objective(whole)


def problem_of(pool, budget, cap=None, *, floor=0, criterion_of=trace_criterion):
    return Problem(criterion_of(pool, ridge=1e-3), limits_of(pool, budget, cap=cap, floor=floor))


def exchanged(problem, chosen, goal=-np.inf):
    return exchange_pairs(problem, chosen, goal=goal, effort=Effort())


@pytest.mark.parametrize(("cap", "floor"), [(None, 0), (1, 0), (2, 0), (4, 0), (2, 1)])
@pytest.mark.parametrize("seed", range(3))
def test_exchanges_keep_the_limits_and_lower_a_random_selection_far(make_pool, seed, cap, floor):
    pool = make_pool((40, 5, 4), masked=True, seed=seed, decay=1.0)
    problem = problem_of(pool, 24 if floor == 0 else 44, cap, floor=floor)
    drawn = problem.limits.take(np.random.default_rng(seed).permutation(np.flatnonzero(pool.pair_mask)))
    polished = exchanged(problem, drawn)
    counts = np.bincount(polished // 10, minlength=40)
    assert len(set(polished.tolist())) == len(drawn)
    assert pool.pair_mask.ravel()[polished].all()
    assert cap is None or counts.max() <= cap
    assert (counts >= np.minimum(pool.pair_mask.sum(axis=1), floor)).all()
    assert objective(problem, polished) < (0.6 if floor == 0 else 0.85) * objective(problem, drawn)


@pytest.mark.parametrize("criterion_of", [trace_criterion, log_det_criterion])
def test_exchanges_never_undo_the_rounded_design(make_pool, criterion_of):
    for seed in range(6):
        problem = problem_of(make_pool((12, 4, 5), seed=seed, decay=1.0), 9, criterion_of=criterion_of)
        design = bounded_design(problem)
        rounded = round_design(design, problem)
        polished = exchanged(problem, rounded)
        assert design.lower_bound <= objective(problem, polished) <= objective(problem, rounded)


def test_a_selection_that_meets_the_goal_is_left_alone(make_pool):
    problem = problem_of(make_pool(), 9)
    drawn = np.arange(9)
    assert exchanged(problem, drawn, objective(problem, drawn)) is drawn


def test_without_time_nothing_is_exchanged(make_pool):
    problem, drawn = problem_of(make_pool(), 9), np.arange(9)
    assert exchange_pairs(problem, drawn, goal=-np.inf, effort=Effort(max_seconds=0.0)) is drawn


@pytest.mark.parametrize("criterion_of", [trace_criterion, log_det_criterion])
def test_exchanges_end_near_the_best_of_all_selections(make_pool, criterion_of):
    for seed in range(5):
        problem = problem_of(make_pool((4, 3, 2), seed=seed), 4, criterion_of=criterion_of)
        best = min(objective(problem, list(subset)) for subset in combinations(range(12), 4))
        found = problem.criterion.expand(problem.criterion.added_information(exchanged(problem, np.arange(4))))
        assert found.efficiency(best) >= 0.95


@pytest.mark.parametrize("copies", [10, 300])
def test_copies_of_two_directions_end_up_shared_evenly(copies):
    features = np.zeros((2 * copies, 2, 2))
    features[:copies, 0, 0] = features[copies:, 0, 1] = 1.0
    ones = np.ones((2 * copies, 2), dtype=bool)
    pool = Pool(features=features, valid=ones, rewards=np.zeros((2 * copies, 2)), beta=1.0)
    polished = exchanged(problem_of(pool, copies), np.arange(copies))
    assert abs((polished < copies).sum() - copies / 2) <= 0.02 * copies
