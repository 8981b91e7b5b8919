from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit

from tasks.design.pool import Labels
from tasks.design.posterior import laplace_posterior
from tasks.design.selectors.designs import VDesign
from tasks.design.selectors.greedy import ActiveDpo, Adpo, AdpoOffline, Apo, Bait, compact, fit_outcomes

EVERY = [ActiveDpo(), ActiveDpo(normalise="pair"), Apo(), Apo(update_within_batch=True), Adpo(), AdpoOffline(), Bait()]
NAMES = ["active_dpo", "active_dpo_of_pairs", "apo", "apo_one_by_one", "adpo", "adpo_offline", "bait"]


@pytest.fixture
def held_pool(make_pool):
    """A pool with proxy scores and labels held."""

    def build(shape=(6, 4, 3), *, num_labels=5, seed=0, **options):
        rng = np.random.default_rng(seed + 100)
        labels = Labels(
            differences=rng.standard_normal((num_labels, shape[2])), margins=rng.standard_normal(num_labels)
        )
        return replace(make_pool(shape, seed=seed, **options), labels=labels, scores=rng.standard_normal(shape[:2]))

    return build


def select(selector, pool, budget):
    return selector(pool, budget, np.random.default_rng(0))


def flat(pool, selection):
    slots = {pair: slot for slot, pair in enumerate(zip(*np.triu_indices(pool.valid.shape[1], 1), strict=True))}
    ends = zip(selection.first, selection.second, strict=True)
    return [int(p) * len(slots) + slots[pair] for p, pair in zip(selection.prompt, ends, strict=True)]


def naive(vectors, mask, budget, held):
    """Largest a' V^-1 a, with V inverted anew for every pick."""
    matrix, chosen = held.copy(), []
    for _ in range(budget):
        scores = np.einsum("ij,jk,ik->i", vectors, np.linalg.inv(matrix), vectors)
        scores[~mask.ravel()] = -1
        scores[chosen] = -1
        chosen.append(int(np.flatnonzero(scores >= scores.max() * (1 - 1e-9))[0]))
        matrix += np.outer(vectors[chosen[-1]], vectors[chosen[-1]])
    return chosen


def differences(pool):
    return pool.space.rows(np.arange(pool.pair_mask.size))


@pytest.mark.parametrize("selector", EVERY, ids=NAMES)
@pytest.mark.parametrize(("shape", "cap"), [((7, 5, 3), None), ((7, 5, 3), 1), ((9, 2, 1), None), ((4, 3, 60), 2)])
def test_every_budget_is_met_with_distinct_valid_pairs_within_the_cap(held_pool, selector, shape, cap):
    pool = held_pool(shape, masked=True, seed=2)
    selector = replace(selector, max_pairs_per_prompt=cap)
    most = int(np.minimum(pool.pair_mask.sum(axis=1), cap or 99).sum())
    for budget in (1, most // 2, most):
        selection = select(selector, pool, budget)
        pairs = flat(pool, selection)
        assert len(set(pairs)) == budget == len(selection.scores)
        assert pool.pair_mask.ravel()[pairs].all()
        assert np.bincount(selection.prompt).max() <= (cap or 99)
        assert np.isfinite(selection.scores).all()
        assert (selection.scores >= 0).all()


@pytest.mark.parametrize("selector", EVERY, ids=NAMES)
@pytest.mark.parametrize("scale", [0.0, 1e-8, 1e8])
def test_features_of_any_size_are_coped_with(held_pool, selector, scale):
    pool = held_pool()
    pool = replace(pool, features=pool.features * scale)
    selection = select(selector, pool, 20)
    assert len(set(flat(pool, selection))) == 20
    assert np.isfinite(selection.scores).all()
    if scale == 0:
        assert flat(pool, selection) == list(range(20))
        assert selection.notes == ("no pair of the pool tells anything: the first ones were taken",)


def test_active_dpo_is_the_naive_greedy_over_unit_responses(held_pool):
    pool = held_pool((8, 4, 3), masked=True)
    norms = np.linalg.norm(pool.features, axis=2, keepdims=True)
    unit = replace(pool, features=pool.features / np.where(norms > 0, norms, 1))
    held = 0.1 * np.eye(3) + pool.labels.differences.T @ pool.labels.differences
    expected = naive(differences(unit), pool.pair_mask, 12, held)
    assert flat(pool, select(ActiveDpo(ridge=0.1), pool, 12)) == expected
    forgetful = naive(differences(unit), pool.pair_mask, 12, 0.1 * np.eye(3))
    assert flat(pool, select(ActiveDpo(ridge=0.1, count_held=False), pool, 12)) == forgetful != expected


def test_active_dpo_can_scale_pairs_and_labels_instead(held_pool):
    pool = held_pool((8, 4, 3), masked=True)
    rows = differences(pool)
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    held = pool.labels.differences / np.linalg.norm(pool.labels.differences, axis=1, keepdims=True)
    expected = naive(unit, pool.pair_mask, 12, 0.1 * np.eye(3) + held.T @ held)
    assert flat(pool, select(ActiveDpo(ridge=0.1, normalise="pair"), pool, 12)) == expected


def test_without_labels_the_first_pick_is_the_longest_and_among_unit_ones_a_tie(make_pool):
    pool = make_pool((6, 4, 3))
    longest = int(np.square(differences(pool)).sum(axis=1).argmax())
    assert flat(pool, select(ActiveDpo(normalise="none"), pool, 1)) == [longest]
    tie = select(ActiveDpo(normalise="pair", ridge=0.5), pool, 1)
    assert flat(pool, tie) == [0]
    np.testing.assert_allclose(tie.scores, 2.0, rtol=1e-12)


def test_equal_responses_are_chosen_last_even_where_pairs_are_scaled(make_pool):
    pool = make_pool((4, 3, 3))
    features = pool.features.copy()
    features[1, 1] = features[1, 0]
    selection = select(ActiveDpo(normalise="pair"), replace(pool, features=features), 12)
    assert flat(pool, selection)[-1] == 3
    assert selection.scores[-1] == 0 < selection.scores[-2]


def test_apo_takes_the_best_of_frozen_scores_or_goes_one_by_one(held_pool):
    pool = held_pool((8, 4, 3), masked=True)
    rows, held = differences(pool), 0.1 * np.eye(3) + pool.labels.differences.T @ pool.labels.differences
    scores = np.einsum("ij,jk,ik->i", rows, np.linalg.inv(held), rows) * pool.pair_mask.ravel()
    frozen = select(Apo(ridge=0.1), pool, 9)
    assert flat(pool, frozen) == np.argsort(-scores, kind="stable")[:9].tolist()
    np.testing.assert_allclose(frozen.scores, np.sort(scores)[::-1][:9], rtol=1e-9)
    one_by_one = select(Apo(ridge=0.1, update_within_batch=True), pool, 9)
    assert flat(pool, one_by_one) == naive(rows, pool.pair_mask, 9, held)


def test_adpo_weighs_by_the_uncertainty_of_the_fit_to_the_labels(held_pool):
    pool = held_pool((8, 4, 3), masked=True)
    theta = laplace_posterior(pool, ridge=0.1).mean

    def weighted(rows):
        mu = expit(pool.beta * rows @ theta)
        return pool.beta * np.sqrt(mu * (1 - mu))[:, None] * rows

    held = weighted(pool.labels.differences)
    expected = naive(weighted(differences(pool)), pool.pair_mask, 12, 0.1 * np.eye(3) + held.T @ held)
    assert flat(pool, select(Adpo(ridge=0.1), pool, 12)) == expected
    assert flat(pool, select(Adpo(ridge=0.1, alpha=0.0), pool, 12)) == expected


def test_without_labels_adpo_is_sequential_apo_under_the_ridge_in_its_units(make_pool):
    pool = make_pool((10, 4, 3))
    same = Apo(ridge=0.4 / pool.beta**2, update_within_batch=True)
    assert flat(pool, select(Adpo(ridge=0.1), pool, 15)) == flat(pool, select(same, pool, 15))


def test_confidence_draws_logits_to_zero_until_adpo_is_apo(held_pool):
    pool = replace(held_pool((10, 4, 3)), labels=None)
    same = flat(pool, select(Apo(ridge=0.4 / pool.beta**2, update_within_batch=True), pool, 15))
    pool = replace(pool, scores=20 * pool.scores)
    assert flat(pool, select(AdpoOffline(ridge=0.1), pool, 15)) != same
    assert flat(pool, select(AdpoOffline(ridge=0.1, alpha=1e9), pool, 15)) == same


def test_confidence_weighs_at_the_logit_closest_to_zero_within_its_interval(held_pool):
    pool = held_pool((8, 4, 3), num_labels=40)
    posterior = laplace_posterior(pool, ridge=0.1)
    drawn = np.maximum(np.abs(posterior.logits) - 0.5 * posterior.logit_deviations, 0.0).ravel()
    vectors = pool.beta * np.sqrt(expit(drawn) * expit(-drawn))[:, None] * differences(pool)
    matrix = np.linalg.inv(posterior.inverse_root @ posterior.inverse_root.T)
    expected = naive(vectors, pool.pair_mask, 12, matrix)
    assert flat(pool, select(Adpo(ridge=0.1, alpha=0.5), pool, 12)) == expected


@pytest.mark.parametrize("spread", [1.0, 30.0])
@pytest.mark.parametrize("ridge", [1e-4, 1.0])
def test_the_offline_fit_is_that_of_scipy_over_materialised_pairs(held_pool, spread, ridge):
    pool = held_pool((12, 4, 3), masked=True)
    pool = replace(pool, scores=spread * pool.scores)
    valid = pool.pair_mask.ravel()
    rows = pool.beta * differences(pool)[valid]
    outcomes = expit(pool.differences_of(pool.scores).ravel()[valid])

    def loss(theta):
        logits = rows @ theta
        value = (np.logaddexp(0, logits) - outcomes * logits).sum() + ridge * theta @ theta / 2
        return value, rows.T @ (expit(logits) - outcomes) + ridge * theta

    expected = minimize(loss, np.zeros(3), jac=True, method="BFGS", options={"gtol": 1e-9}).x
    np.testing.assert_allclose(fit_outcomes(pool, ridge=ridge), expected, rtol=1e-6, atol=1e-8)


def test_the_offline_fit_survives_outcomes_that_a_line_tells_apart(make_pool):
    pool = make_pool((20, 4, 2))
    pool = replace(pool, scores=1e6 * pool.features @ np.array([1.0, -2.0]))
    theta = fit_outcomes(pool, ridge=1e-6)
    assert np.isfinite(theta).all()
    assert theta[1] / theta[0] == pytest.approx(-2, rel=0.2)
    assert theta[0] > 10


def test_adpo_offline_weighs_by_that_fit_and_counts_held_labels(held_pool):
    pool = held_pool((8, 4, 3), masked=True)
    theta = fit_outcomes(pool, ridge=0.1)

    def weighted(rows):
        mu = expit(pool.beta * rows @ theta)
        return pool.beta * np.sqrt(mu * (1 - mu))[:, None] * rows

    held = weighted(pool.labels.differences)
    expected = naive(weighted(differences(pool)), pool.pair_mask, 12, 0.1 * np.eye(3) + held.T @ held)
    assert flat(pool, select(AdpoOffline(ridge=0.1), pool, 12)) == expected


def test_adpo_offline_asks_for_scores(make_pool):
    with pytest.raises(ValueError, match="AdpoOffline needs the scores"):
        select(AdpoOffline(), make_pool(), 3)


def test_bait_comes_close_to_the_relaxed_design_of_its_criterion(held_pool):
    pool = held_pool((15, 4, 3))
    design = select(VDesign(), pool, 20)
    vectors = pool.beta * np.sqrt(expit(pool.margins) * expit(-pool.margins)).reshape(-1, 1) * differences(pool)
    fisher, chosen = vectors.T @ vectors / len(vectors), flat(pool, select(Bait(), pool, 20))
    held = 1e-3 * np.eye(3) + pool.prior_information + vectors[chosen].T @ vectors[chosen]
    assert design.certificate.lower_bound / np.trace(fisher @ np.linalg.inv(held)) > 0.97


@pytest.mark.parametrize("selector", EVERY, ids=NAMES)
@pytest.mark.parametrize("num_labels", [0, 6])
def test_fewer_rows_than_numbers_a_row_are_rotated_and_pick_the_same(held_pool, selector, num_labels, monkeypatch):
    pool = held_pool((6, 3, 40), masked=True, num_labels=num_labels, seed=1)
    narrow = select(selector, pool, 9)
    monkeypatch.setattr("tasks.design.selectors.greedy.compact", lambda pool: pool)
    wide = select(selector, pool, 9)
    assert flat(pool, narrow) == flat(pool, wide)
    np.testing.assert_allclose(narrow.scores, wide.scores, rtol=1e-6)


def test_a_rotated_pool_has_a_dimension_a_row_and_the_same_inner_products(held_pool):
    pool = held_pool((5, 3, 50), masked=True)
    seen = compact(pool)
    assert seen.dim == int(np.maximum(pool.valid.sum(axis=1) - 1, 0).sum()) + 5
    valid = pool.pair_mask.ravel()
    before = np.concatenate([differences(pool)[valid], pool.labels.differences])
    after = np.concatenate([differences(seen)[valid], seen.labels.differences])
    np.testing.assert_allclose(after @ after.T, before @ before.T, atol=1e-11)


def test_a_pool_of_more_rows_than_numbers_a_row_stays_as_it_is(held_pool):
    pool = held_pool()
    assert compact(pool) is pool


@pytest.mark.parametrize("build", [ActiveDpo, Apo, Adpo, AdpoOffline, Bait])
def test_a_ridge_has_to_be_positive_and_finite(build):
    for ridge in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="ridge is"):
            build(ridge=ridge)


def test_confidence_has_to_be_finite_and_not_negative():
    for alpha in (-1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="alpha is"):
            Adpo(alpha=alpha)


def test_pairs_that_are_not_offered_are_not_chosen(held_pool):
    pool = held_pool()
    offered = np.random.default_rng(5).random(pool.pair_mask.shape) < 0.5
    pool = replace(pool, offered=offered)
    for selector in EVERY:
        assert offered.ravel()[flat(pool, select(selector, pool, 8))].all()
