from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from tasks.design.pool import Pool
from tasks.design.selectors.margins import Apl, Entropy, MaxMargin, MinMargin, prompt_entropy

BY_MARGIN = [MaxMargin(), MinMargin(), Apl(oversampling=2.0)]
ALL = [*BY_MARGIN, Entropy()]
REWARDS = np.array([[0.0, 1.0, 8.0], [0.0, 2.0, 5.0]])  # margins 1 8 7 and 2 5 3


def pool_of(rewards, *, log_probs=None, valid=None):
    rewards = np.asarray(rewards, dtype=np.float64)
    valid = np.ones(rewards.shape, dtype=bool) if valid is None else np.asarray(valid, dtype=bool)
    features = np.zeros((*rewards.shape, 1))
    return Pool(features=features, valid=valid, rewards=rewards, beta=0.5, log_probs=log_probs)


def random_pool(seed=0, shape=(12, 5), *, masked=True):
    rng = np.random.default_rng(seed)
    valid = rng.random(shape) < (0.75 if masked else 2.0)
    return pool_of(rng.standard_normal(shape), log_probs=-50 * rng.random(shape), valid=valid)


def select(selector, pool, budget, seed=0):
    return selector(pool, budget, np.random.default_rng(seed))


def pairs_of(selection):
    return list(zip(selection.prompt.tolist(), selection.first.tolist(), selection.second.tolist(), strict=True))


def softmax_log_prob(theta, features):
    logits = features @ theta
    return logits - np.log(np.exp(logits).sum())


def dpo_loss(theta, *, features, beta, winner, loser):
    margin = beta * (softmax_log_prob(theta, features)[winner] - softmax_log_prob(theta, features)[loser])
    return np.log(1 + np.exp(-margin))  # a uniform reference cancels


def gradient(function, theta):
    steps = theta + 1e-30j * np.eye(len(theta))
    return np.array([function(step).imag / 1e-30 for step in steps])


def test_the_most_certain_pairs_come_in_order():
    selection = select(MaxMargin(), pool_of(REWARDS), 4)
    assert pairs_of(selection) == [(0, 0, 2), (0, 1, 2), (1, 0, 2), (1, 1, 2)]
    assert selection.scores.tolist() == [8, 7, 5, 3]
    assert selection.notes == ()


def test_the_least_certain_pairs_come_in_order():
    selection = select(MinMargin(), pool_of(REWARDS), 4)
    assert pairs_of(selection) == [(0, 0, 1), (1, 0, 1), (1, 1, 2), (1, 0, 2)]
    assert selection.scores.tolist() == [-1, -2, -3, -5]


def test_a_cap_makes_room_for_other_prompts():
    assert pairs_of(select(MaxMargin(max_pairs_per_prompt=1), pool_of(REWARDS), 2)) == [(0, 0, 2), (1, 0, 2)]
    assert pairs_of(select(MinMargin(max_pairs_per_prompt=1), pool_of(REWARDS), 2)) == [(0, 0, 1), (1, 0, 1)]


def test_masked_responses_form_no_pair():
    valid = [[True, True, False], [True, True, True]]
    assert pairs_of(select(MaxMargin(), pool_of(REWARDS, valid=valid), 2)) == [(1, 0, 2), (1, 1, 2)]


@pytest.mark.parametrize("kind", ["sharp", "w_sharp"])
def test_the_smallest_margin_ranks_as_the_scores_of_sharp_do(kind):
    rng = np.random.default_rng(3)
    theta, features, beta = rng.standard_normal(3), rng.standard_normal((4, 5, 3)), 0.9
    rewards = beta * np.array([softmax_log_prob(theta, each) for each in features])
    pool = pool_of(rewards)
    scores, margins = [], []
    for prompt, first, second in zip(*pool.pairs(np.arange(pool.num_pairs)), strict=True):
        loss = partial(dpo_loss, features=features[prompt], beta=beta)
        one = np.linalg.norm(gradient(partial(loss, winner=first, loser=second), theta))
        other = np.linalg.norm(gradient(partial(loss, winner=second, loser=first), theta))
        margin = rewards[prompt, first] - rewards[prompt, second]
        chance = 0.5 if kind == "sharp" else 1 / (1 + np.exp(-margin))
        mean = chance * one + (1 - chance) * other
        scores.append(mean / np.sqrt(chance * (one - mean) ** 2 + (1 - chance) * (other - mean) ** 2))
        margins.append(abs(margin))
    closed_form = 1 / np.tanh(np.array(margins) / 2) if kind == "sharp" else 1 / np.sinh(np.array(margins) / 2)
    np.testing.assert_allclose(scores, closed_form, rtol=1e-9)
    expected = zip(*(part.tolist() for part in pool.pairs(np.argsort(scores)[::-1])), strict=True)
    assert pairs_of(select(MinMargin(kind=kind), pool, pool.num_pairs)) == list(expected)


def test_the_smallest_margins_are_the_largest_reversed():
    pool = random_pool()
    least = pairs_of(select(MinMargin(), pool, pool.num_pairs))
    assert least == pairs_of(select(MaxMargin(kind="pmc"), pool, pool.num_pairs, seed=1))[::-1]


def test_entropy_is_minus_the_mean_log_prob_of_valid_responses():
    log_probs = np.array([[-1.0, -3.0, -99.0], [-20.0, -30.0, -40.0], [-7.0, -7.0, -7.0]])
    valid = [[True, True, False], [True, True, True], [False, False, False]]
    assert prompt_entropy(pool_of(np.zeros((3, 3)), log_probs=log_probs, valid=valid)).tolist() == [2.0, 30.0, 0.0]


@pytest.mark.parametrize("seed", range(5))
def test_prompts_of_highest_entropy_come_first_and_come_again_in_that_order(seed):
    log_probs = np.array([[-1.0] * 3, [-9.0] * 3, [-5.0] * 3])
    pool = pool_of(np.zeros((3, 3)), log_probs=log_probs)
    selection = select(Entropy(), pool, 8, seed)
    assert selection.prompt.tolist() == [1, 2, 0, 1, 2, 0, 1, 2]
    assert selection.scores.tolist() == [9, 5, 1, 9, 5, 1, 9, 5]
    assert len(set(pairs_of(selection))) == 8
    assert select(Entropy(), pool, 2, seed).prompt.tolist() == [1, 2]


def test_entropy_draws_the_pairs_of_a_prompt_evenly():
    pool = pool_of(np.zeros((2, 3)), log_probs=np.array([[-9.0] * 3, [-1.0] * 3]))
    rng = np.random.default_rng(0)
    second = [int(Entropy()(pool, 1, rng).second[0]) for _ in range(900)]
    assert np.mean(second) == pytest.approx(5 / 3, abs=4 * np.sqrt(2 / 9 / 900))


def test_entropy_passes_over_prompts_that_are_full():
    pool = pool_of(np.zeros((2, 3)), log_probs=np.array([[-9.0] * 3, [-1.0] * 3]), valid=[[1, 1, 0], [1, 1, 1]])
    assert select(Entropy(), pool, 3).prompt.tolist() == [0, 1, 1]
    assert select(Entropy(max_pairs_per_prompt=1), pool, 2).prompt.tolist() == [0, 1]


def test_the_hybrid_takes_the_most_certain_pairs_of_the_prompts_of_highest_entropy():
    rewards = np.array([[0.0, 1.0, 3.0], [0.0, 50.0, 90.0], [0.0, 5.0, 6.0], [0.0, 70.0, 80.0]])
    log_probs = -np.array([[9.0] * 3, [2.0] * 3, [8.0] * 3, [1.0] * 3])
    pool = pool_of(rewards, log_probs=log_probs)
    few = select(Apl(oversampling=3.0), pool, 2)  # six pairs: prompts 0 and 2
    assert pairs_of(few) == [(2, 0, 2), (2, 0, 1)]
    assert few.scores.tolist() == [6, 5]
    assert few.notes == ()
    assert pairs_of(select(Apl(oversampling=3.5), pool, 2)) == [(1, 0, 2), (1, 0, 1)]  # a seventh: prompt 1 too


def test_the_hybrid_keeps_prompts_enough_for_the_cap():
    rewards = np.array([[0.0, 1.0, 3.0], [0.0, 5.0, 9.0], [0.0, 7.0, 8.0]])
    log_probs = -np.array([[9.0] * 3, [2.0] * 3, [8.0] * 3])
    capped = Apl(oversampling=1.0, max_pairs_per_prompt=1)
    assert pairs_of(select(capped, pool_of(rewards, log_probs=log_probs), 2)) == [(2, 0, 2), (0, 0, 2)]


@pytest.mark.parametrize("cap", [None, 1, 2])
@pytest.mark.parametrize("oversampling", [1.0, 1.7, 8.0])
def test_the_hybrid_always_spends_the_budget(cap, oversampling):
    pool = random_pool(seed=2)
    per_prompt = pool.pair_mask.sum(axis=1)
    most = int(np.minimum(per_prompt, cap or per_prompt.max()).sum())
    for budget in (1, most // 2, most):
        selection = select(Apl(oversampling=oversampling, max_pairs_per_prompt=cap), pool, budget)
        assert len(set(pairs_of(selection))) == budget
        assert cap is None or np.bincount(selection.prompt).max() <= cap


def test_the_hybrid_counts_prices_and_goes_on_where_money_is_left():
    rewards, log_probs = np.array([[0.0, 1.0], [0.0, 2.0], [0.0, 3.0]]), -np.array([[9.0] * 2, [8.0] * 2, [1.0] * 2])
    pool = replace(pool_of(rewards, log_probs=log_probs), costs=np.array([[2.0], [4.0], [1.0]]))
    assert select(Apl(oversampling=1.0), pool, 3).prompt.tolist() == [0, 2]  # 1 is kept, and too dear
    assert select(Apl(oversampling=1.0), pool, 4).prompt.tolist() == [1]


@pytest.mark.parametrize("selector", BY_MARGIN)
def test_without_margins_the_choice_is_random_and_says_so(selector):
    log_probs = -np.arange(24.0).reshape(6, 4)
    pool = pool_of(np.zeros((6, 4)), log_probs=log_probs)
    selection = select(selector, pool, 6)
    held = 12 if isinstance(selector, Apl) else 36
    assert selection.notes == (f"all {held} pairs score {selection.scores[0]:.6g}: the choice among them was random",)
    assert {tuple(pairs_of(select(selector, pool, 6, seed))) for seed in range(5)} > {tuple(pairs_of(selection))}


def test_a_filter_that_tells_no_prompts_apart_says_so():
    pool = pool_of(random_pool(masked=False).rewards, log_probs=np.full((12, 5), -3.0))
    note = "all 120 pairs score 3: the choice among them was random"
    assert select(Entropy(), pool, 4).notes == (note,)
    assert select(Apl(oversampling=2.0), pool, 10).notes == (f"filter by entropy: {note}",)
    drawn = {tuple(sorted(set(select(Entropy(), pool, 4, seed).prompt.tolist()))) for seed in range(6)}
    assert len(drawn) > 1


def test_a_filter_that_leaves_out_no_prompt_says_so():
    (note,) = select(Apl(), random_pool(masked=False), 20).notes
    assert note == "the filter by entropy left out no prompt: the pool has too few pairs for the oversampling"


@pytest.mark.parametrize("selector", BY_MARGIN)
def test_neither_side_nor_level_of_the_margins_matters(selector):
    pool = random_pool(masked=False)
    turned = pool_of(pool.rewards[:, ::-1], log_probs=pool.log_probs[:, ::-1])
    raised = replace(pool, rewards=pool.rewards + np.arange(12)[:, None])
    chosen = pairs_of(select(selector, pool, 15))
    assert chosen == [(prompt, 4 - b, 4 - a) for prompt, a, b in pairs_of(select(selector, turned, 15))]
    assert chosen == pairs_of(select(selector, raised, 15))


@pytest.mark.parametrize("selector", ALL)
def test_a_seed_fixes_the_choice(selector):
    pool = pool_of(np.round(random_pool().rewards), log_probs=np.round(random_pool().log_probs, -1))
    once, again = (pairs_of(select(selector, pool, 20, seed=4)) for _ in range(2))
    assert once == again


@pytest.mark.parametrize("selector", [Entropy(), Apl()])
def test_a_pool_without_log_probs_is_refused(selector):
    with pytest.raises(ValueError, match=f"{type(selector).__name__} needs the log_probs of the responses"):
        select(selector, pool_of(REWARDS), 1)


@pytest.mark.parametrize("oversampling", [0.5, np.nan, np.inf])
def test_an_oversampling_that_can_not_fill_the_budget_is_refused(oversampling):
    with pytest.raises(ValueError, match=f"oversampling is {oversampling}"):
        Apl(oversampling=oversampling)
