from dataclasses import replace

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import digamma, entr, expit
from scipy.stats import norm

from tasks.design.posterior import laplace_posterior
from tasks.design.selectors.bandits import Baits, DeltaUcb, DoubleReversedThompson, Infomax, MaxMinLcb, Thompson
from tasks.design.selectors.posteriors import Bald, BalPm, NearTie, label_information

DETERMINISTIC = [Bald(), NearTie(), DeltaUcb(width=0.7), Infomax(width=0.7), MaxMinLcb(width=0.7)]
BOUNDED = [DeltaUcb, Infomax, MaxMinLcb]
SAMPLED = [Thompson(), DoubleReversedThompson(), Baits()]
ALL = [Bald(), NearTie(), BalPm(num_neighbours=3), *SAMPLED, *(kind() for kind in BOUNDED)]


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


@pytest.mark.parametrize("seed", range(3))
def test_bald_takes_the_largest_variances_of_the_pool(labelled, seed, moments):
    pool = labelled(seed=seed)
    _, _, variances = moments(pool)
    every = [(p, i, j) for p in usable(pool) for i in responses_of(pool, p) for j in responses_of(pool, p) if i < j]
    expected = sorted(every, key=lambda pair: -variances[pair])
    selection = select(Bald(), pool, 9)
    assert triples(selection) == expected[:9]
    np.testing.assert_allclose(selection.scores, [variances[pair] for pair in expected[:9]], rtol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_near_tie_takes_the_signs_most_likely_to_be_wrong(labelled, seed, moments):
    pool = labelled(seed=seed)
    rewards, _, variances = moments(pool)

    def wrong(pair):
        prompt, i, j = pair
        gap = rewards[prompt, i] - rewards[prompt, j]
        return norm(gap, np.sqrt(variances[pair])).cdf(0) if gap > 0 else norm(gap, np.sqrt(variances[pair])).sf(0)

    every = [(p, i, j) for p in usable(pool) for i in responses_of(pool, p) for j in responses_of(pool, p) if i < j]
    expected = sorted(every, key=wrong, reverse=True)[:9]
    selection = select(NearTie(), pool, 9)
    assert triples(selection) == expected
    np.testing.assert_allclose(selection.scores, [wrong(pair) for pair in expected], rtol=1e-6)


def test_near_tie_is_random_before_any_label_and_says_so(make_pool):
    pool = make_pool((10, 5, 3))
    one, other = (select(NearTie(), pool, 10, seed) for seed in (1, 2))
    assert triples(one) != triples(other)
    assert "100 pairs score 0.5" in one.notes[0]


def test_equal_responses_are_no_near_tie(labelled):
    pool = labelled(masked=False)
    features = pool.features.copy()
    features[0] = features[0, 0]
    selection = select(NearTie(), replace(pool, features=features), pool.num_pairs - 10)
    assert 0 not in selection.prompt


@pytest.mark.parametrize("selector", ALL, ids=ids)
@pytest.mark.parametrize("cap", [None, 1, 2])
def test_budgets_masks_offers_and_caps_are_kept(labelled, selector, cap):
    pool = labelled((12, 5, 3))
    offered = np.random.default_rng(1).random(pool.pair_mask.shape) < 0.7
    pool = replace(pool, offered=offered)
    counts = pool.pair_mask.sum(axis=1)
    most = int(counts.sum() if cap is None else np.minimum(counts, cap).sum())
    for budget in (1, 5, most):
        selection = select(replace(selector, max_pairs_per_prompt=cap), pool, budget)
        assert len(set(triples(selection))) == len(selection) == budget
        assert cap is None or np.bincount(selection.prompt).max() <= cap
        taken = np.zeros((12, 5, 5), dtype=bool)
        taken[selection.prompt, selection.first, selection.second] = True
        first, second = np.triu_indices(5, 1)
        assert taken[:, first, second][pool.pair_mask].sum() == budget
        assert np.isfinite(selection.scores).all()


@pytest.mark.parametrize("selector", ALL, ids=ids)
def test_costs_are_kept_and_spent(labelled, selector):
    pool = labelled((12, 5, 3))
    pool = replace(pool, costs=np.random.default_rng(0).uniform(0.5, 2.0, pool.pair_mask.shape))
    selection = select(selector, pool, 20)
    first, second = np.triu_indices(5, 1)
    prices = np.zeros((12, 5, 5))
    prices[:, first, second] = pool.costs
    spent = prices[selection.prompt, selection.first, selection.second].sum()
    assert 19 < spent <= 20


@pytest.mark.parametrize("selector", ALL, ids=ids)
def test_the_seed_decides(labelled, selector):
    pool = labelled((12, 5, 3))
    assert triples(select(selector, pool, 8, 3)) == triples(select(selector, pool, 8, 3))


@pytest.mark.parametrize("selector", DETERMINISTIC, ids=ids)
def test_what_the_responses_of_a_prompt_share_changes_no_choice(labelled, selector):
    pool = labelled((12, 5, 3), masked=False)
    shifted = replace(pool, features=pool.features + np.random.default_rng(0).standard_normal((12, 1, 3)))
    assert triples(select(selector, pool, 30)) == triples(select(selector, shifted, 30))


@pytest.mark.parametrize("selector", DETERMINISTIC, ids=ids)
def test_the_order_of_the_responses_changes_no_choice(labelled, selector):
    pool = labelled((12, 5, 3))
    order = np.array([3, 0, 4, 1, 2])
    turned = replace(pool, features=pool.features[:, order], valid=pool.valid[:, order])
    budget = len(usable(pool))
    chosen = {(p, frozenset((i, j))) for p, i, j in triples(select(selector, pool, budget))}
    back = {(p, frozenset((order[i], order[j]))) for p, i, j in triples(select(selector, turned, budget))}
    assert chosen == back


@pytest.mark.parametrize("mean", [0.0, 0.5, -3.0])
@pytest.mark.parametrize(("deviation", "tolerance"), [(0.0, 1e-9), (0.1, 1e-9), (1.0, 1e-6), (3.0, 1e-4)])
def test_the_information_of_a_label_is_the_integral(mean, deviation, tolerance):
    def entropy(p):
        return entr(p) + entr(1 - p)

    def expectation(values):
        return quad(lambda x: values(expit(mean + deviation * x)) * norm.pdf(x), -12, 12, epsabs=1e-12)[0]

    expected = entropy(expectation(lambda p: p)) - expectation(entropy)
    found = label_information(np.array([[mean]]), np.array([[deviation]]))
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


def test_the_information_of_a_label_is_between_nothing_and_one_bit():
    means, deviations = np.meshgrid([0.0, 1.0, -50.0, 1e3], [0.0, 1e-9, 1.0, 1e2, 1e9])
    found = label_information(means, deviations)
    assert (found >= 0).all()
    assert (found <= np.log(2) + 1e-12).all()
    assert found[0].max() < 1e-12


def greedy(pool, selector, budget):
    """BAL-PM by loops over all pairs of the pool."""
    posterior = laplace_posterior(pool, ridge=selector.ridge)
    information = label_information(posterior.logits, posterior.logit_deviations)
    prompts = usable(pool)
    middle = {p: pool.features[p][pool.valid[p]].mean(axis=0) for p in prompts}
    apart = {p: {q: np.linalg.norm(middle[p] - middle[q]) for q in prompts} for p in prompts}
    reach = {p: sorted(apart[p].values())[min(selector.num_neighbours, len(prompts) - 1)] for p in prompts}
    chosen = []
    for _ in range(budget):

        def gain(pair):
            prompt = pair // 10
            crowd = sum(apart[prompt][taken // 10] <= reach[prompt] * (1 + 1e-12) for taken in chosen)
            return information.flat[pair] + selector.prompt_weight * (np.log(reach[prompt]) - digamma(crowd + 1))

        chosen.append(max((e for e in np.flatnonzero(pool.pair_mask) if e not in chosen), key=gain))
    return [tuple(map(int, pool.pairs(pair))) for pair in chosen]


@pytest.mark.parametrize("weight", [0.0, 0.01, 0.3])
@pytest.mark.parametrize("num_neighbours", [1, 3, 50])
def test_bal_pm_is_the_greedy_rule(labelled, weight, num_neighbours):
    pool = labelled((9, 5, 3), seed=3)
    selector = BalPm(prompt_weight=weight, num_neighbours=num_neighbours)
    assert triples(select(selector, pool, 14)) == greedy(pool, selector, 14)


def test_bal_pm_leaves_a_crowd_of_like_prompts_as_its_weight_grows(make_pool):
    pool = make_pool((40, 4, 3))
    middle = np.where(np.arange(40) < 30, 0.01, 10.0)[:, None, None] * make_pool((40, 1, 3), seed=1).features
    pool = replace(pool, features=pool.features - pool.features.mean(axis=1, keepdims=True) + middle)
    indifferent, spread = (select(BalPm(prompt_weight=w, num_neighbours=3), pool, 20).prompt for w in (0.0, 1.0))
    assert (indifferent < 30).sum() > 10
    assert (spread < 30).sum() < 5


@pytest.mark.parametrize("selector", ALL, ids=ids)
def test_a_pool_of_equal_responses_still_gives_its_budget(make_pool, selector):
    pool = make_pool((6, 4, 3))
    selection = select(selector, replace(pool, features=np.zeros_like(pool.features)), 10)
    assert len(set(triples(selection))) == 10


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        *((type(selector), "ridge", value) for selector in ALL for value in (0.0, np.inf, np.nan)),
        *((kind, "width", value) for kind in BOUNDED for value in (-1.0, np.nan)),
        (Thompson, "num_draws", 1),
        (DoubleReversedThompson, "num_draws", 0),
        (BalPm, "prompt_weight", -0.1),
        (BalPm, "num_neighbours", 0),
        *((type(selector), "max_pairs_per_prompt", 0) for selector in ALL),
    ],
)
def test_numbers_without_meaning_are_refused(kind, name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        kind(**{name: value})
