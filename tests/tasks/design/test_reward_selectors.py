from dataclasses import replace

import numpy as np
import pytest

from tasks.design.pool import Pool
from tasks.design.selectors.baselines import FirstTwo
from tasks.design.selectors.rewards import BestRandom, BestSecond, BestWorst, QuantileGap, TopGap

LAYERED = [BestWorst(), BestSecond(), BestRandom(), QuantileGap()]
ALL = [*LAYERED, TopGap()]
SCORES = np.array([[3.0, 0.0, 7.0, 6.0]])  # gaps of 01 02 03 12 13 23: 3 4 3 7 6 1


def pool_of(scores, *, valid=None):
    scores = np.asarray(scores, dtype=np.float64)
    valid = np.ones(scores.shape, dtype=bool) if valid is None else np.asarray(valid, dtype=bool)
    features = np.zeros((*scores.shape, 1))
    return Pool(features=features, valid=valid, rewards=np.zeros(scores.shape), beta=0.5, scores=scores)


def random_pool(seed=0, shape=(12, 5), *, masked=True):
    rng = np.random.default_rng(seed)
    valid = rng.random(shape) < (0.75 if masked else 2.0)
    return pool_of(rng.permutation(shape[0] * shape[1]).reshape(shape) ** 2, valid=valid)


def select(selector, pool, budget, seed=0):
    return selector(pool, budget, np.random.default_rng(seed))


def pairs_of(selection):
    return list(zip(selection.prompt.tolist(), selection.first.tolist(), selection.second.tolist(), strict=True))


def slots_of(selection):
    return list(zip(selection.first.tolist(), selection.second.tolist(), strict=True))


def test_best_against_worst_goes_on_by_falling_gap():
    selection = select(BestWorst(), pool_of(SCORES), 3)
    assert slots_of(selection) == [(1, 2), (1, 3), (0, 2)]
    assert selection.scores.tolist() == [7, 6, 4]


def test_best_against_second_goes_on_down_the_places():
    selection = select(BestSecond(), pool_of(SCORES), 6)
    assert slots_of(selection) == [(2, 3), (0, 2), (1, 2), (0, 3), (1, 3), (0, 1)]


def test_best_against_a_random_other_goes_on_with_the_best():
    orders = [slots_of(select(BestRandom(), pool_of(SCORES), 6, seed)) for seed in range(20)]
    assert all({*order[:3]} == {(0, 2), (1, 2), (2, 3)} for order in orders)
    assert all({*order[3:5]} == {(0, 3), (1, 3)} for order in orders)
    assert {order[0] for order in orders} == {(0, 2), (1, 2), (2, 3)}


@pytest.mark.parametrize(
    ("quantile", "expected"),
    [(1.0, [(1, 2)]), (0.9, [(1, 2)]), (0.8, [(1, 3)]), (0.5, [(0, 1), (0, 3)]), (0.0, [(2, 3)])],
)
def test_the_pair_at_a_quantile_of_the_gaps_is_taken(quantile, expected):
    for seed in range(4):
        assert slots_of(select(QuantileGap(quantile=quantile), pool_of(SCORES), 1, seed))[0] in expected


def test_a_quantile_counts_whole_places():
    scores = np.array([[0.0, 1.0, 3.0, 7.0, 15.0]])  # ten gaps, 15 14 12 ...
    assert select(QuantileGap(quantile=0.9), pool_of(scores), 1).scores.tolist() == [14]
    assert select(QuantileGap(quantile=0.95), pool_of(scores), 1).scores.tolist() == [15]


def test_a_quantile_goes_on_with_the_nearest_places():
    selection = select(QuantileGap(quantile=0.8), pool_of(SCORES), 3)
    assert selection.scores[0] == 6
    assert sorted(selection.scores.tolist()) == [4, 6, 7]


@pytest.mark.parametrize("selector", LAYERED)
def test_every_prompt_gives_a_pair_before_any_gives_another(selector):
    pool = random_pool(masked=False)
    few, many = select(selector, pool, 7), select(selector, pool, 30)
    assert len(set(few.prompt.tolist())) == 7
    assert set(many.prompt[:12].tolist()) == set(many.prompt[12:24].tolist()) == set(range(12))
    assert len({tuple(select(selector, pool, 7, seed).prompt.tolist()) for seed in range(5)}) == 5
    assert len(set(pairs_of(many))) == 30


@pytest.mark.parametrize("selector", LAYERED)
def test_a_masked_best_or_worst_is_passed_over(selector):
    valid = [[True, False, False, True]]
    assert slots_of(select(selector, pool_of(SCORES, valid=valid), 1)) == [(0, 3)]
    assert slots_of(select(BestSecond(), pool_of(SCORES, valid=[[True, True, False, True]]), 1)) == [(0, 3)]


@pytest.mark.parametrize("selector", ALL)
def test_a_cap_holds_and_the_budget_is_spent(selector):
    pool = random_pool(seed=5)
    per_prompt = pool.pair_mask.sum(axis=1)
    budget = int(np.minimum(per_prompt, 2).sum())
    selection = select(replace(selector, max_pairs_per_prompt=2), pool, budget)
    np.testing.assert_array_equal(np.bincount(selection.prompt, minlength=12), np.minimum(per_prompt, 2))


@pytest.mark.parametrize("selector", [*ALL, TopGap(share=1.0)])
def test_pairs_of_equal_scores_come_last_within_their_prompt(selector):
    pool = pool_of([[5.0, 5.0, 1.0, 1.0], [2.0, 2.0, 2.0, 9.0]])
    for seed in range(5):
        selection = select(selector, pool, 12, seed)
        equal = [selection.scores[selection.prompt == prompt] == 0 for prompt in range(2)]
        assert equal[0].tolist() == [False] * 4 + [True] * 2
        assert equal[1].tolist() == [False] * 3 + [True] * 3


def test_the_largest_gaps_are_drawn_at_random():
    pool = random_pool(masked=False)
    gaps = np.sort(np.abs(pool.differences_of(pool.scores)).ravel())[::-1]
    draws = [select(TopGap(share=0.25), pool, 10, seed) for seed in range(60)]
    assert min(draw.scores.min() for draw in draws) >= gaps[29]
    assert len({pair for draw in draws for pair in pairs_of(draw)}) >= 29
    assert np.mean([draw.scores.mean() for draw in draws]) == pytest.approx(gaps[:30].mean(), rel=0.05)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.1])
def test_a_budget_above_the_share_takes_the_largest_gaps(share):
    pool = random_pool(masked=False)
    gaps = np.sort(np.abs(pool.differences_of(pool.scores)).ravel())[::-1]
    selection = select(TopGap(share=share), pool, 20)
    np.testing.assert_array_equal(np.sort(selection.scores)[::-1], gaps[:20])
    np.testing.assert_array_equal(selection.scores[12:], gaps[12:20])


@pytest.mark.parametrize("selector", ALL)
@pytest.mark.parametrize("budget", [5, 20])
def test_the_twin_takes_as_many_pairs_of_each_prompt_but_others(selector, budget):
    pool = random_pool(seed=1)
    twin = replace(selector, random_twin=True)
    rule, control = select(selector, pool, budget), select(twin, pool, budget)
    assert control.prompt.tolist() == rule.prompt.tolist()
    assert len(set(pairs_of(control))) == budget
    assert pool.valid[control.prompt, control.first].all()
    assert pool.valid[control.prompt, control.second].all()
    assert set(pairs_of(control)) != set(pairs_of(rule))


def test_the_twin_draws_the_pairs_of_a_prompt_evenly():
    rng, twin = np.random.default_rng(0), BestWorst(random_twin=True)
    drawn = [slots_of(twin(pool_of(SCORES), 2, rng)) for _ in range(600)]
    counts = [sum(pair in slots for slots in drawn) for pair in slots_of(select(BestWorst(), pool_of(SCORES), 6))]
    assert np.abs(np.array(counts) - 200).max() < 4 * np.sqrt(600 / 3 * 2 / 3)


@pytest.mark.parametrize("twin", [False, True])
def test_prices_are_kept_within_the_budget(twin):
    costs = np.linspace(0.5, 3.0, 120).reshape(12, 10)
    pool = replace(random_pool(), costs=costs)
    price = {pair: costs.flat[index] for index, pair in enumerate(zip(*pool.pairs(np.arange(120)), strict=True))}
    for seed in range(10):
        spent = sum(price[pair] for pair in pairs_of(select(BestWorst(random_twin=twin), pool, 9, seed)))
        assert 6 < spent <= 9


@pytest.mark.parametrize("selector", ALL)
def test_what_all_scores_of_a_prompt_share_does_not_matter(selector):
    pool = random_pool(seed=3)
    raised = replace(pool, scores=pool.scores + 100 * np.arange(12)[:, None])
    assert pairs_of(select(selector, pool, 20)) == pairs_of(select(selector, raised, 20))


@pytest.mark.parametrize("selector", [BestWorst(), BestSecond(), QuantileGap(), TopGap()])
def test_the_side_of_a_response_does_not_matter(selector):
    scores = np.random.default_rng(3).standard_normal((12, 5))  # no two gaps are equal
    mirrored = pairs_of(select(selector, pool_of(scores[:, ::-1]), 12))
    assert pairs_of(select(selector, pool_of(scores), 12)) == [(prompt, 4 - b, 4 - a) for prompt, a, b in mirrored]


@pytest.mark.parametrize("selector", ALL)
def test_a_seed_fixes_the_choice(selector):
    pool = pool_of(np.round(random_pool().scores, -3))
    twin = replace(selector, random_twin=True)
    assert pairs_of(select(selector, pool, 20, seed=4)) == pairs_of(select(selector, pool, 20, seed=4))
    assert pairs_of(select(twin, pool, 20, seed=4)) == pairs_of(select(twin, pool, 20, seed=4))


@pytest.mark.parametrize("selector", ALL)
def test_without_any_gap_the_choice_is_random_and_says_so(selector):
    pool = pool_of(np.ones((6, 4)))
    assert select(selector, pool, 4).notes == ("all 36 pairs score 0: the choice among them was random",)
    assert len({tuple(pairs_of(select(selector, pool, 4, seed))) for seed in range(5)}) == 5
    assert select(selector, random_pool(), 4).notes == ()


@pytest.mark.parametrize("selector", ALL)
def test_a_pool_without_scores_is_refused(selector):
    with pytest.raises(ValueError, match=f"{type(selector).__name__} needs the scores of the responses"):
        select(selector, replace(pool_of(SCORES), scores=None), 1)


@pytest.mark.parametrize("value", [-0.1, 1.1, np.nan])
def test_parts_of_the_whole_are_checked(value):
    with pytest.raises(ValueError, match=f"share is {value}"):
        TopGap(share=value)
    with pytest.raises(ValueError, match=f"quantile is {value}"):
        QuantileGap(quantile=value)


def test_logged_order_takes_first_pairs_layer_by_layer():
    valid = [[True, True, True], [False, True, True], [False, False, True], [True, False, True]]
    pool = pool_of(np.zeros((4, 3)), valid=valid)
    expected = [(0, 0, 1), (1, 1, 2), (3, 0, 2), (0, 0, 2), (0, 1, 2)]
    for budget in (2, 3, 5):
        assert pairs_of(select(FirstTwo(), pool, budget, seed=budget)) == expected[:budget]
    assert pairs_of(select(FirstTwo(max_pairs_per_prompt=1), pool, 3)) == expected[:3]
    with pytest.raises(ValueError, match="budget 6 exceeds the 5 pairs"):
        select(FirstTwo(), pool, 6)
