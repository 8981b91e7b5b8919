import numpy as np
import pytest

from tasks.design.rounding import check_budget, round_design, take_in_order

MASK = np.ones((2, 3), dtype=bool)


def test_the_largest_weights_are_taken_best_first():
    weights = np.array([[0.1, 0.9, 0.5], [1.0, 0.0, 0.6]])
    assert round_design(weights, np.zeros((2, 3)), mask=MASK, budget=4, cap=None).tolist() == [3, 1, 5, 2]


def test_equal_weights_go_by_score_and_equal_scores_by_index():
    weights = np.array([[1.0, 1.0 - 1e-13, 1.0], [1.0, 0.2, 0.2]])
    scores = np.array([[2.0, 5.0, 2.0], [3.0, 1.0, 1.0]])
    assert round_design(weights, scores, mask=MASK, budget=5, cap=None).tolist() == [1, 3, 0, 2, 4]


def test_a_full_prompt_is_passed_over():
    weights = np.array([[0.9, 0.8, 0.7], [0.1, 0.0, 0.0]])
    assert round_design(weights, np.zeros((2, 3)), mask=MASK, budget=3, cap=2).tolist() == [0, 1, 3]


def test_a_pair_that_is_not_valid_is_never_taken_even_at_full_weight():
    mask = np.array([[True, False, True], [False, True, True]])
    taken = round_design(np.where(mask, 0.1, 1.0), np.zeros((2, 3)), mask=mask, budget=4, cap=None)
    assert sorted(taken.tolist()) == [0, 2, 4, 5]


def test_taking_in_order_agrees_with_a_plain_loop():
    rng = np.random.default_rng(0)
    for _ in range(50):
        order, cap = rng.permutation(40)[:33], int(rng.integers(1, 6))
        counts, expected = np.zeros(8, dtype=int), []
        for index in order:
            if counts[index // 5] < cap and len(expected) < 20:
                counts[index // 5] += 1
                expected.append(index)
        assert take_in_order(order, 5, budget=20, cap=cap).tolist() == expected


def test_a_budget_that_cannot_be_met_is_refused_with_its_numbers():
    mask = np.ones((80, 6), dtype=bool)
    check_budget(mask, 480, cap=None)
    check_budget(mask, 160, cap=2)
    remedy = r"lower selection\.budget or raise generation\.num_responses"
    with pytest.raises(ValueError, match=rf"budget 600 exceeds the 480 pairs of the pool: {remedy}"):
        check_budget(mask, 600, cap=2)
    with pytest.raises(
        ValueError, match=r"budget 161 exceeds the 160 pairs that a cap of 2 per prompt leaves of .* 480"
    ):
        check_budget(mask, 161, cap=2)
    with pytest.raises(ValueError, match="budget 0 selects nothing"):
        check_budget(mask, 0, cap=None)
