from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit

from tasks.design.pool import Labels
from tasks.design.posterior import laplace_posterior
from tasks.design.selectors.bandits import Baits, DeltaUcb, DoubleReversedThompson, Infomax, MaxMinLcb, Thompson

BOUNDED = [DeltaUcb, Infomax, MaxMinLcb]
SAMPLED = [Thompson(), DoubleReversedThompson(), Baits()]
LAYERED = [*SAMPLED, *(kind() for kind in BOUNDED)]


def select(selector, pool, budget, seed=0):
    return selector(pool, budget, np.random.default_rng(seed))


def triples(selection):
    return list(zip(selection.prompt.tolist(), selection.first.tolist(), selection.second.tolist(), strict=True))


def ids(selector):
    return selector.kind


def responses_of(pool, prompt):
    return np.flatnonzero(pool.valid[prompt]).tolist()


def usable(pool):
    """Prompts that have pairs."""
    return np.flatnonzero(pool.pair_mask.any(axis=1)).tolist()


def named_by(rule, pool, prompt, bounds):
    """The pair that a rule over bounds names in one prompt, by loops over ordered pairs."""
    lower, upper = bounds
    arms = responses_of(pool, prompt)
    if rule is MaxMinLcb:
        worst = {i: min((lower[prompt, i] - upper[prompt, j], j) for j in arms if j != i) for i in arms}
        leader = max(arms, key=lambda i: worst[i][0])
        return frozenset((leader, worst[leader][1]))
    value = {
        DeltaUcb: lambda i, j: upper[prompt, i] - lower[prompt, j],
        Infomax: lambda i, j: expit(upper[prompt, i] - lower[prompt, j]) - expit(lower[prompt, i] - upper[prompt, j]),
    }[rule]
    return frozenset(max(((i, j) for i in arms for j in arms if i != j), key=lambda pair: value(*pair)))


@pytest.mark.parametrize("rule", BOUNDED)
@pytest.mark.parametrize("width", [0.01, 0.3, 1.0, 3.0])
@pytest.mark.parametrize("seed", range(3))
def test_rules_over_bounds_name_the_pair_of_the_formula(labelled, rule, width, seed, moments):
    pool = labelled(seed=seed)
    rewards, deviations, _ = moments(pool)
    bounds = (rewards - width * deviations, rewards + width * deviations)
    prompts = usable(pool)
    selection = select(rule(width=width), pool, len(prompts))
    assert sorted(selection.prompt.tolist()) == prompts
    for prompt, *pair in triples(selection):
        assert frozenset(pair) == named_by(rule, pool, prompt, bounds)


def test_pairs_that_max_min_lcb_does_not_name_follow_by_their_lower_bound(labelled, moments):
    pool = labelled((1, 6, 3), masked=False)
    rewards, deviations, _ = moments(pool)
    lower, upper = rewards - deviations, rewards + deviations
    named, *rest = (frozenset(pair) for _, *pair in triples(select(MaxMinLcb(), pool, 15)))
    assert named == named_by(MaxMinLcb, pool, 0, (lower, upper))

    def bound(pair):
        i, j = pair
        return max(lower[0, i] - upper[0, j], lower[0, j] - upper[0, i])

    assert rest == sorted(rest, key=bound, reverse=True)


def test_infomax_and_delta_ucb_differ_where_the_gap_is_settled(make_pool):
    features = np.array([[[4.0, 0.0], [-4.0, 0.0], [0.0, 1.0], [0.0, -1.0]]])
    labels = Labels(differences=np.tile([[2.0, 0.0]], (200, 1)), margins=np.zeros(200))
    pool = replace(make_pool((1, 4, 2)), features=features, labels=labels)
    assert triples(select(DeltaUcb(), pool, 1)) == [(0, 0, 1)]
    assert triples(select(Infomax(), pool, 1)) == [(0, 2, 3)]


def replay(draws, prompt, arms, worst_second):
    """Pairs in the order in which double Thompson sampling finds them, and the first response left over."""
    found, first = [], None
    for draw in draws:
        best = max(arms, key=lambda arm: draw[prompt, arm])
        second = min(arms, key=lambda arm: draw[prompt, arm]) if worst_second else best
        if first is None:
            first = best
        elif second != first:
            found.append(frozenset((first, second)))
            first = None
    return list(dict.fromkeys(found)), first


@pytest.mark.parametrize("selector", [Thompson(num_draws=9), DoubleReversedThompson(num_draws=9)], ids=ids)
@pytest.mark.parametrize("seed", range(4))
def test_double_sampling_gives_pairs_in_the_order_its_draws_find_them(labelled, selector, seed):
    pool = labelled(seed=seed)
    draws = laplace_posterior(pool, ridge=1.0).draws(9, np.random.default_rng(seed))
    selection = select(selector, pool, pool.num_pairs, seed)
    for prompt in usable(pool):
        arms = responses_of(pool, prompt)
        found, left_over = replay(draws, prompt, arms, selector.kind == "double_reversed_thompson")
        chosen = [frozenset(pair) for p, *pair in triples(selection) if p == prompt]
        assert chosen[: len(found)] == found
        rest = [left_over in pair for pair in chosen[len(found) :]]
        assert rest == sorted(rest, reverse=True)


@pytest.mark.parametrize("selector", [Thompson(num_draws=400), DoubleReversedThompson(num_draws=400)], ids=ids)
def test_double_sampling_names_pairs_as_often_as_independent_draws_do(labelled, selector):
    pool, repeats = labelled((1, 4, 3), masked=False), 1500
    parts = {name: np.repeat(getattr(pool, name), repeats, axis=0) for name in ("features", "valid", "rewards")}
    prompts = replace(pool, **parts)
    counts = Counter(tuple(pair) for _, *pair in triples(select(selector, prompts, repeats)))

    draws = laplace_posterior(pool, ridge=1.0).draws(400_000, np.random.default_rng(5))[:, 0]
    first, others = draws[::2].argmax(axis=1), draws[1::2]
    seconds = others.argmax(axis=1) if selector.kind == "thompson" else others.argmin(axis=1)
    chance = np.bincount(first, minlength=4) / len(first)
    answer = np.bincount(seconds, minlength=4) / len(seconds)
    for i in range(4):
        for j in range(i + 1, 4):
            rate = chance[i] * answer[j] / (1 - answer[i]) + chance[j] * answer[i] / (1 - answer[j])
            error = np.sqrt(rate * (1 - rate) / repeats)
            assert abs(counts[i, j] / repeats - rate) < 4.5 * error + 1e-3


def test_a_settled_winner_is_paired_at_random(labelled):
    pool = labelled((300, 4, 3), masked=False)
    features = np.zeros((300, 4, 3))
    features[:, 2, 0] = 1.0
    labels = Labels(differences=np.tile([[1.0, 0.0, 0.0]], (2000, 1)), margins=np.zeros(2000))
    settled = replace(pool, features=features, labels=labels)
    selection = select(Thompson(ridge=100.0), settled, 300)
    opponents = Counter(i if j == 2 else j for _, i, j in triples(selection))
    assert sorted(opponents) == [0, 1, 3]
    assert min(opponents.values()) > 60


@pytest.mark.parametrize("seed", range(4))
def test_baits_sets_the_winner_of_a_draw_against_the_most_uncertain(labelled, seed, moments):
    pool = labelled(seed=seed)
    _, _, variances = moments(pool)
    draw = laplace_posterior(pool, ridge=1.0).draws(1, np.random.default_rng(seed))[0]
    selection = select(Baits(), pool, pool.num_pairs, seed)
    for prompt in usable(pool):
        arms = responses_of(pool, prompt)
        first = max(arms, key=lambda arm: draw[prompt, arm])
        every = [(i, j) for i in arms for j in arms if i < j]
        expected = sorted(every, key=lambda pair: (first not in pair, -variances[(prompt, *pair)]))
        assert [tuple(pair) for p, *pair in triples(selection) if p == prompt] == expected


@pytest.mark.parametrize("selector", LAYERED, ids=ids)
def test_no_prompt_gives_a_second_pair_before_all_gave_one(labelled, selector):
    pool = labelled((30, 5, 3))
    most = pool.pair_mask.sum(axis=1)
    few = np.bincount(select(selector, pool, 11).prompt, minlength=30)
    assert few.max() == 1
    many = np.bincount(select(selector, pool, 50).prompt, minlength=30)
    assert (many >= np.minimum(most, many.max() - 1)).all()


@pytest.mark.parametrize("selector", LAYERED, ids=ids)
def test_before_any_label_draws_and_widths_still_choose(make_pool, selector):
    selection = select(selector, make_pool((10, 5, 3)), 10)
    assert selection.notes == ()
    assert len(selection) == 10


@pytest.mark.parametrize("selector", SAMPLED, ids=ids)
def test_another_seed_draws_other_pairs(labelled, selector):
    pool = labelled((12, 5, 3))
    one, other = (set(triples(select(selector, pool, len(usable(pool)), seed))) for seed in (1, 2))
    assert one != other
