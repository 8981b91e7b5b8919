from itertools import product

import numpy as np
import pytest

from tasks.design.limits import Limits, ranks_within

MASK = np.ones((80, 6), dtype=bool)


def test_taking_in_order_agrees_with_a_plain_loop():
    rng = np.random.default_rng(0)
    for _ in range(50):
        order, cap = rng.permutation(40)[:33], int(rng.integers(1, 6))
        mask = np.isin(np.arange(40), order).reshape(8, 5)
        budget = min(20, int(np.minimum(mask.sum(axis=1), cap).sum()))
        counts, expected = np.zeros(8, dtype=int), []
        for index in order:
            if counts[index // 5] < cap and len(expected) < budget:
                counts[index // 5] += 1
                expected.append(index)
        assert Limits(mask=mask, budget=budget, cap=cap).take(order).tolist() == expected


def test_floors_are_met_before_the_best_of_the_rest():
    limits = Limits(mask=np.ones((3, 3), dtype=bool), budget=5, cap=2, floor=1)
    assert limits.take(np.array([0, 1, 2, 3, 4, 5, 6, 7, 8])).tolist() == [0, 1, 3, 4, 6]
    exact = Limits(mask=np.ones((3, 3), dtype=bool), budget=6, cap=2, floor=2)
    assert exact.take(np.arange(9)).tolist() == [0, 1, 3, 4, 6, 7]


def test_a_budget_of_money_buys_what_it_can_in_order():
    costs = np.array([[3.0, 1.0, 2.0], [1.0, 5.0, 0.5]])
    limits = Limits(mask=np.ones((2, 3), dtype=bool), budget=6, costs=costs)
    assert limits.take(np.arange(6)).tolist() == [0, 1, 2]
    assert limits.take(np.array([4, 0, 1, 3, 2, 5])).tolist() == [4, 1]
    capped = Limits(mask=np.ones((2, 3), dtype=bool), budget=6, cap=1, costs=costs)
    assert capped.take(np.arange(6)).tolist() == [0, 3]


def vertices(mask, costs, budget):
    whole = np.array(list(product([0, 1], repeat=mask.size)))
    return whole[((whole * costs.ravel()).sum(axis=1) == budget) & ~(whole * ~mask.ravel()).any(axis=1)]


@pytest.mark.parametrize(("cap", "floor"), [(None, 0), (1, 0), (2, 0), (None, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("seed", range(4))
def test_the_best_vertex_is_the_best_of_all_vertices(seed, cap, floor):
    mask = np.array([[True, True, True], [True, True, False], [True, True, True]])
    least, most = int(np.minimum(mask.sum(axis=1), floor).sum()), 6 if cap == 2 else 3 if cap == 1 else 8
    rng = np.random.default_rng(seed)
    for budget in range(max(1, least), most + 1):
        scores = rng.random(mask.shape)
        counts = vertices(mask, np.ones(9), budget).reshape(-1, 3, 3).sum(axis=2)
        allowed = vertices(mask, np.ones(9), budget)[
            (counts <= (3 if cap is None else cap)).all(axis=1)
            & (counts >= np.minimum(mask.sum(axis=1), floor)).all(axis=1)
        ]
        vertex = Limits(mask=mask, budget=budget, cap=cap, floor=floor).best_vertex(scores)
        assert set(np.unique(vertex)) <= {0.0, 1.0}
        assert vertex.sum() == budget
        assert (vertex * scores).sum() == pytest.approx((allowed @ scores.ravel()).max())


def test_equal_scores_still_make_a_vertex_of_valid_pairs():
    mask = np.random.default_rng(1).random((9, 5)) < 0.6
    for scores in (np.zeros((9, 5)), np.ones((9, 5))):
        vertex = Limits(mask=mask, budget=11, cap=2, floor=1).best_vertex(scores)
        assert vertex.sum() == 11
        assert not vertex[~mask].any()
        assert vertex.sum(axis=1).max() <= 2


@pytest.mark.parametrize("cap", [None, 1])
def test_money_is_spent_to_the_last_part_of_a_pair(cap):
    rng = np.random.default_rng(2)
    costs, scores = rng.uniform(0.5, 3, (6, 3)), rng.random((6, 3))
    vertex = Limits(mask=np.ones((6, 3), dtype=bool), budget=4, cap=cap, costs=costs).best_vertex(scores)
    assert (vertex * costs).sum() == pytest.approx(4)
    assert ((vertex > 1e-9) & (vertex < 1 - 1e-9)).sum() <= 2
    assert cap is None or vertex.sum(axis=1).max() <= cap + 1e-9


def test_money_enough_for_everything_buys_everything():
    costs = np.full((2, 3), 2.0)
    vertex = Limits(mask=np.ones((2, 3), dtype=bool), budget=12, costs=costs).best_vertex(np.ones((2, 3)))
    assert vertex.tolist() == np.ones((2, 3)).tolist()


def test_a_budget_that_cannot_be_met_is_refused_with_its_numbers():
    assert Limits(mask=MASK, budget=480).budget == 480
    assert Limits(mask=MASK, budget=160, cap=2).cap == 2
    remedy = r"lower selection\.budget or raise generation\.num_responses"
    with pytest.raises(ValueError, match=rf"budget 600 exceeds the 480 pairs of the pool: {remedy}"):
        Limits(mask=MASK, budget=600, cap=2)
    found = "the 160 pairs that a cap of 2 per prompt leaves of the pool's 480"
    with pytest.raises(ValueError, match=f"budget 161 exceeds {found}"):
        Limits(mask=MASK, budget=161, cap=2)
    with pytest.raises(ValueError, match="budget 0 selects nothing"):
        Limits(mask=MASK, budget=0)
    with pytest.raises(ValueError, match="budget 79 is below the 80 pairs that min_pairs_per_prompt 1 asks for"):
        Limits(mask=MASK, budget=79, floor=1)
    with pytest.raises(ValueError, match=r"budget 2 buys no pair, the cheapest costs 2\.5"):
        Limits(mask=MASK, budget=2, costs=np.full(MASK.shape, 2.5))
    with pytest.raises(ValueError, match="exclude each other"):
        Limits(mask=MASK, budget=100, floor=1, costs=np.ones(MASK.shape))


def test_ranks_count_what_stands_before_in_the_same_group():
    assert ranks_within(np.array([3, 1, 3, 3, 0, 1])).tolist() == [0, 0, 1, 2, 0, 1]
    assert ranks_within(np.zeros(0, dtype=np.intp)).tolist() == []
