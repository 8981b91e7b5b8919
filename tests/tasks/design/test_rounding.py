import numpy as np
import pytest

from tasks.design.capped import Problem
from tasks.design.criterion import log_det_criterion, trace_criterion
from tasks.design.limits import Limits
from tasks.design.rounding import order_by_gain, round_design
from tasks.design.search import Design

MASK = np.ones((2, 3), dtype=bool)


@pytest.fixture
def rounded(make_pool):
    """Round these weights and scores within the limits."""

    def build(weights, scores=None, *, mask=MASK, budget, cap=None, costs=None):
        scores = np.zeros(weights.shape) if scores is None else scores
        found = {"objective": 1.0, "gap": 0.0, "lower_bound": 1.0, "passes": 1, "converged": True}
        limits = Limits(mask=mask, budget=budget, cap=cap, costs=costs)
        problem = Problem(trace_criterion(make_pool((2, 3, 1)), ridge=1e-3), limits)
        return round_design(Design(weights=weights, scores=scores, **found), problem).tolist()

    return build


def test_the_largest_weights_are_taken_best_first(rounded):
    assert rounded(np.array([[0.1, 0.9, 0.5], [1.0, 0.0, 0.6]]), budget=4) == [3, 1, 5, 2]


def test_equal_weights_go_by_score_and_equal_scores_by_index(rounded):
    weights = np.array([[1.0, 1.0 - 1e-13, 1.0], [1.0, 0.2, 0.2]])
    scores = np.array([[2.0, 5.0, 2.0], [3.0, 1.0, 1.0]])
    assert rounded(weights, scores, budget=5) == [1, 3, 0, 2, 4]


def test_among_equal_weights_the_score_for_the_money_decides(rounded):
    scores = np.array([[2.0, 5.0, 2.0], [3.0, 1.0, 1.0]])
    costs = np.array([[1.0, 5.0, 1.0], [2.0, 1.0, 1.0]])
    assert rounded(np.ones((2, 3)), scores, budget=4, costs=costs) == [0, 2, 3]


def test_a_full_prompt_is_passed_over(rounded):
    assert rounded(np.array([[0.9, 0.8, 0.7], [0.1, 0.0, 0.0]]), budget=3, cap=2) == [0, 1, 3]


def test_a_pair_that_is_not_valid_is_never_taken_even_at_full_weight(rounded):
    mask = np.array([[True, False, True], [False, True, True]])
    assert sorted(rounded(np.where(mask, 0.1, 1.0), mask=mask, budget=4)) == [0, 2, 4, 5]


@pytest.mark.parametrize("criterion_of", [trace_criterion, log_det_criterion])
def test_each_of_the_first_pairs_adds_most_to_those_before_it(make_pool, criterion_of):
    criterion = criterion_of(make_pool((10, 4, 5), decay=1.0), ridge=1e-2)
    chosen = np.random.default_rng(0).choice(60, 30, replace=False)
    order = order_by_gain(criterion, chosen)
    assert sorted(order) == sorted(chosen)
    for place in range(9):
        held = criterion.prior + criterion.added_information(order[:place])
        reached = {
            pair: criterion.expand(held + criterion.added_information(np.array([pair]))).objective
            for pair in order[place:]
        }
        assert reached[order[place]] <= min(reached.values()) + 1e-5 * abs(min(reached.values()))


def test_the_order_of_a_pair_or_none(make_pool):
    criterion = trace_criterion(make_pool(), ridge=1e-2)
    assert order_by_gain(criterion, np.array([7])).tolist() == [7]
    assert order_by_gain(criterion, np.zeros(0, dtype=np.intp)).tolist() == []
