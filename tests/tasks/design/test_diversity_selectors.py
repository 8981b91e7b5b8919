from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.design.pool import Labels, Pool
from tasks.design.selectors.diversity import Badge, KCenter, KMeans, predicted_slopes

ALL = [Badge, KCenter, KMeans]


def select(selector, pool, budget, seed=0):
    return selector(pool, budget, np.random.default_rng(seed))


def ordered_pairs(selection):
    return list(zip(selection.prompt.tolist(), selection.first.tolist(), selection.second.tolist(), strict=True))


def differences(pool, selection):
    return pool.features[selection.prompt, selection.first] - pool.features[selection.prompt, selection.second]


@st.composite
def requests(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = draw(st.tuples(st.integers(1, 7), st.integers(2, 6), st.integers(1, 4)))
    features = rng.standard_normal(shape) * draw(st.sampled_from([0.0, 1e-8, 1.0, 1e8]))
    if draw(st.booleans()):
        features = np.round(features)
    valid = rng.random(shape[:2]) < draw(st.sampled_from([0.5, 0.8, 1.0]))
    valid[0, :2] = True
    rewards = rng.standard_normal(shape[:2]) * draw(st.sampled_from([0.0, 1.0, 1e4]))
    pool = Pool(features=features.astype(draw(st.sampled_from(["f4", "f8"]))), valid=valid, rewards=rewards, beta=0.1)
    cap = draw(st.none() | st.integers(1, 4))
    per_prompt = pool.pair_mask.sum(axis=1)
    most = pool.num_pairs if cap is None else int(np.minimum(per_prompt, cap).sum())
    return pool, draw(st.integers(1, most)), cap


@pytest.mark.parametrize("kind", ALL)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(request=requests())
def test_the_exact_budget_is_spent_on_distinct_valid_pairs_within_the_cap(kind, request):
    pool, budget, cap = request
    selection = select(kind(max_pairs_per_prompt=cap), pool, budget)
    assert len(selection) == budget == len(set(ordered_pairs(selection)))
    assert (selection.first < selection.second).all()
    assert pool.valid[selection.prompt, selection.first].all()
    assert pool.valid[selection.prompt, selection.second].all()
    assert cap is None or np.bincount(selection.prompt).max() <= cap
    if selection.scores is not None:
        assert selection.scores.shape == (budget,)
        assert (np.isfinite(selection.scores) & (selection.scores >= 0)).all()


@pytest.mark.parametrize("kind", ALL)
def test_costs_are_paid_from_the_budget_until_nothing_fits(make_pool, kind):
    costs = np.random.default_rng(1).uniform(0.5, 4.0, (30, 6))
    pool = replace(make_pool((30, 4, 3)), costs=costs)
    selection = select(kind(max_pairs_per_prompt=2), pool, 25)
    slots = {pair: slot for slot, pair in enumerate(zip(*np.triu_indices(4, 1), strict=True))}
    paid = [costs[p, slots[a, b]] for p, a, b in ordered_pairs(selection)]
    assert 25 - costs.min() - 1 < sum(paid) <= 25
    assert np.bincount(selection.prompt).max() <= 2


@pytest.mark.parametrize("kind", ALL)
def test_the_choice_follows_the_seed_alone(make_pool, kind):
    pool = make_pool((20, 5, 4), masked=True)
    assert ordered_pairs(select(kind(), pool, 15)) == ordered_pairs(select(kind(), pool, 15))
    others = {tuple(ordered_pairs(select(kind(), pool, 15, seed))) for seed in range(4)}
    assert len(others) == (1 if kind is KCenter else 4)


def test_kinds_are_the_names_in_a_config():
    assert [kind().kind for kind in ALL] == ["badge", "k_center", "k_means"]


@pytest.mark.parametrize("kind", ALL)
def test_features_that_are_all_alike_are_noted(kind):
    pool = Pool(features=np.ones((4, 3, 2)), valid=np.ones((4, 3), dtype=bool), rewards=np.zeros((4, 3)), beta=0.1)
    assert "the last 7 of 7 were drawn at random" in select(kind(max_pairs_per_prompt=2), pool, 7).notes[0]


@pytest.mark.parametrize("kind", ALL)
def test_a_budget_beyond_the_pool_is_refused(make_pool, kind):
    with pytest.raises(ValueError, match="budget 37 exceeds the 36 pairs"):
        select(kind(), make_pool(), 37)


@pytest.mark.parametrize("kind", ALL)
def test_distinct_groups_get_a_pair_each(kind):
    rng = np.random.default_rng(2)
    ends = np.repeat(10 * np.eye(5), 8, axis=0) * rng.choice([-1, 1], (40, 1))
    features = np.stack([ends, np.zeros((40, 5))], axis=1) + 0.01 * rng.standard_normal((40, 2, 5))
    pool = Pool(features=features, valid=np.ones((40, 2), dtype=bool), rewards=np.tile([1.0, 0.0], (40, 1)), beta=0.1)
    if kind is Badge:
        pool = replace(pool, rewards=np.sign(ends.sum(axis=1))[:, None] * [1, 0])  # the predicted labels undo the signs
    assert set(select(kind(), pool, 5).prompt // 8) == set(range(5))


def gradients(pool, selection):
    margins = pool.rewards[selection.prompt, selection.first] - pool.rewards[selection.prompt, selection.second]
    return (np.sign(margins) / (1 + np.exp(np.abs(margins))))[:, None] * differences(pool, selection)


def test_badge_starts_at_the_longest_gradient_and_scores_squared_distances(make_pool):
    pool = make_pool((30, 4, 6), margin=2.0)
    selection = select(Badge(), pool, 12)
    found, everything = gradients(pool, selection), gradients(pool, select(Badge(), pool, pool.num_pairs))
    assert selection.scores[0] == pytest.approx(np.square(found[0]).sum())
    assert selection.scores[0] == pytest.approx(np.square(everything).sum(axis=1).max())
    for place in range(1, 12):
        assert selection.scores[place] == pytest.approx(np.square(found[:place] - found[place]).sum(axis=1).min())


def test_badge_takes_at_most_one_of_the_pairs_whose_label_is_certain(make_pool):
    pool = make_pool((20, 2, 4), margin=0.0)
    rewards = pool.rewards.copy()
    rewards[:10, 0] = 50.0
    for seed in range(10):
        assert (select(Badge(), replace(pool, rewards=rewards), 10, seed).prompt < 10).sum() <= 1


def test_badge_sees_the_same_gradient_whichever_response_is_stored_first(make_pool):
    pool = make_pool((20, 2, 4))
    mirrored = replace(pool, features=pool.features[:, ::-1].copy(), rewards=pool.rewards[:, ::-1].copy())
    assert ordered_pairs(select(Badge(), pool, 12)) == ordered_pairs(select(Badge(), mirrored, 12))


def test_slopes_are_those_of_the_predicted_label():
    np.testing.assert_allclose(predicted_slopes(np.array([0.0, 2.0, -2.0])), [0.5, 0.1192029, -0.1192029], rtol=1e-6)
    assert not predicted_slopes(np.array([1e8, -1e8])).any()


def test_k_center_starts_from_the_labels_held(make_pool):
    pool = make_pool((20, 3, 4))
    longest = differences(pool, select(KCenter(), pool, 1))
    held = Labels(differences=-longest, margins=np.zeros(1))
    fresh, informed = select(KCenter(), pool, 6), select(KCenter(), replace(pool, labels=held), 5)
    assert ordered_pairs(informed) == ordered_pairs(fresh)[1:]
    np.testing.assert_allclose(informed.scores, fresh.scores[1:], rtol=1e-9)


def test_distances_of_k_center_never_rise(make_pool):
    pool = make_pool((40, 4, 3))
    scores = select(KCenter(), pool, 60).scores
    assert (np.diff(scores[1:]) <= 0).all()


@pytest.mark.parametrize("kind", [Badge, KCenter])
def test_permuting_responses_permutes_the_selection(make_pool, kind):
    pool = make_pool((20, 4, 5), masked=True)
    order = np.random.default_rng(1).permutation(4)
    permuted = replace(
        pool, features=pool.features[:, order], valid=pool.valid[:, order], rewards=pool.rewards[:, order]
    )
    budget = 12 if kind is KCenter else 1  # the draws of badge follow the order of the pairs
    original, found = select(kind(), pool, budget), select(kind(), permuted, budget)
    assert [(p, *sorted((order[a], order[b]))) for p, a, b in ordered_pairs(found)] == ordered_pairs(original)


def test_k_means_has_no_scores_and_refuses_no_iterations(make_pool):
    assert select(KMeans(), make_pool(), 5).scores is None
    with pytest.raises(ValueError, match="num_iterations is 0"):
        KMeans(num_iterations=0)


def test_k_means_picks_lie_nearer_to_all_pairs_than_random_ones(make_pool):
    pool = make_pool((60, 4, 3), decay=0.5)

    def inertia(prompt, first, second):
        centres = pool.features[prompt, first] - pool.features[prompt, second]
        a, b = np.triu_indices(4, 1)
        rows = (pool.features[:, a] - pool.features[:, b]).reshape(-1, 3)
        folded = (rows**2).sum(1)[:, None] + (centres**2).sum(1) - 2 * np.abs(rows @ centres.T)
        return folded.min(axis=1).sum()

    found = select(KMeans(), pool, 20)
    rng = np.random.default_rng(3)
    uniform = [inertia(*pool.pairs(rng.choice(pool.num_pairs, 20, replace=False))) for _ in range(20)]
    assert inertia(found.prompt, found.first, found.second) < 0.8 * min(uniform)
