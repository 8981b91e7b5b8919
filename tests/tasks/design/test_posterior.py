from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit

from tasks.design.kernels import pair_slots
from tasks.design.pool import Labels, Pool
from tasks.design.posterior import laplace_posterior


@pytest.fixture
def labelled(make_pool):
    """A pool with labels from a logistic model over its features."""

    def build(shape=(6, 4, 3), *, num_labels=40, scale=1.0, **options) -> Pool:
        pool = make_pool(shape, **options)
        rng = np.random.default_rng(7)
        differences = scale * rng.standard_normal((num_labels, pool.dim))
        logits = differences @ np.linspace(2, -1, pool.dim)
        signs = np.where(rng.random(num_labels) < expit(logits), 1.0, -1.0)
        return replace(pool, labels=Labels(differences=signs[:, None] * differences, margins=np.zeros(num_labels)))

    return build


def loss(weights, pool, ridge):
    logits = pool.beta * pool.labels.differences @ weights
    return np.logaddexp(0, -logits).sum() + ridge * weights @ weights / 2


def gradient(weights, pool, ridge):
    rows = pool.beta * pool.labels.differences
    return ridge * weights - rows.T @ expit(-rows @ weights)


def centred(pool, prompt):
    return pool.valid[prompt, :, None] * (
        pool.features[prompt] - pool.features[prompt][pool.valid[prompt]].mean(axis=0)
    )


@pytest.mark.parametrize("ridge", [0.01, 1.0, 30.0])
def test_the_mean_is_the_ridge_logistic_regression_of_the_labels(labelled, ridge):
    pool = labelled()
    found = minimize(loss, np.zeros(3), args=(pool, ridge), jac=gradient, method="BFGS", options={"gtol": 1e-9})
    posterior = laplace_posterior(pool, ridge=ridge)
    np.testing.assert_allclose(posterior.mean, found.x, atol=1e-7)
    assert np.abs(gradient(posterior.mean, pool, ridge)).max() < 1e-9


@pytest.mark.parametrize("scale", [1e-6, 1e-2, 1e2, 1e6])
@pytest.mark.parametrize("ridge", [1e-6, 1.0, 1e6])
def test_the_gradient_vanishes_at_any_scale(labelled, scale, ridge):
    pool = labelled((6, 4, 5), num_labels=30, scale=scale)
    posterior = laplace_posterior(pool, ridge=ridge)
    assert np.linalg.norm(posterior.inverse_root.T @ gradient(posterior.mean, pool, ridge)) < 1e-9


def test_labels_that_a_plane_separates_have_a_finite_fit(make_pool):
    differences = np.abs(np.random.default_rng(0).standard_normal((50, 3))) * 1e3
    pool = replace(make_pool(), labels=Labels(differences=differences, margins=np.zeros(50)))
    posterior = laplace_posterior(pool, ridge=1e-8)
    assert np.isfinite(posterior.mean).all()
    assert np.linalg.norm(posterior.inverse_root.T @ gradient(posterior.mean, pool, 1e-8)) < 1e-9


def test_the_precision_is_the_hessian_of_the_loss(labelled):
    pool, ridge, step = labelled(), 0.3, 1e-5
    posterior = laplace_posterior(pool, ridge=ridge)
    nudges = step * np.eye(3)
    hessian = [
        (gradient(posterior.mean + nudge, pool, ridge) - gradient(posterior.mean - nudge, pool, ridge)) / (2 * step)
        for nudge in nudges
    ]
    covariance = posterior.inverse_root @ posterior.inverse_root.T
    np.testing.assert_allclose(covariance @ np.array(hessian), np.eye(3), atol=1e-8)


def test_without_labels_the_posterior_is_the_prior(make_pool):
    none = Labels(differences=np.zeros((0, 3)), margins=np.zeros(0))
    for pool in (make_pool(), replace(make_pool(), labels=none)):
        posterior = laplace_posterior(pool, ridge=4.0)
        np.testing.assert_array_equal(posterior.mean, 0)
        np.testing.assert_allclose(posterior.inverse_root @ posterior.inverse_root.T, np.eye(3) / 4)
        assert not posterior.rewards.any()
        assert not posterior.logits.any()


@pytest.mark.parametrize("masked", [False, True])
def test_rewards_and_deviations_are_those_of_the_materialised_features(labelled, masked):
    pool = labelled((5, 6, 3), masked=masked, seed=2)
    posterior = laplace_posterior(pool, ridge=0.5)
    covariance = posterior.inverse_root @ posterior.inverse_root.T
    for prompt in np.flatnonzero(pool.valid.any(axis=1)):
        features = pool.beta * centred(pool, prompt)
        np.testing.assert_allclose(posterior.rewards[prompt], features @ posterior.mean, atol=1e-12)
        variances = np.diag(features @ covariance @ features.T)
        np.testing.assert_allclose(posterior.deviations[prompt], np.sqrt(variances), atol=1e-12)
    assert not posterior.rewards[~pool.valid].any()
    assert not posterior.deviations[~pool.valid].any()


def test_logits_and_their_deviations_are_those_of_the_materialised_pairs(labelled):
    pool = labelled((5, 6, 3), masked=True, seed=2)
    posterior = laplace_posterior(pool, ridge=0.5)
    covariance = posterior.inverse_root @ posterior.inverse_root.T
    first, second = pair_slots(6)
    differences = pool.beta * (pool.features[:, first] - pool.features[:, second])
    mask = pool.pair_mask
    np.testing.assert_allclose(posterior.logits[mask], (differences @ posterior.mean)[mask], atol=1e-12)
    deviations = np.sqrt(np.einsum("pmi,ij,pmj->pm", differences, covariance, differences))
    np.testing.assert_allclose(posterior.logit_deviations[mask], deviations[mask], rtol=1e-9)


def test_draws_have_the_mean_and_the_covariance_of_the_posterior(labelled):
    pool, count = labelled((3, 4, 3), masked=True, seed=1), 40_000
    posterior = laplace_posterior(pool, ridge=0.5)
    draws = posterior.draws(count, np.random.default_rng(0))
    assert draws.shape == (count, 3, 4)
    assert np.abs(draws.mean(axis=0) - posterior.rewards).max() < 5 * posterior.deviations.max() / np.sqrt(count)
    covariance = posterior.inverse_root @ posterior.inverse_root.T
    for prompt in range(3):
        features = pool.beta * centred(pool, prompt)
        expected = features @ covariance @ features.T
        error = np.abs(np.cov(draws[:, prompt], rowvar=False) - expected).max()
        assert error < 8 * expected.max() / np.sqrt(count)


def test_prompts_have_draws_of_their_own(make_pool):
    pool = make_pool((2, 3, 2))
    twins = replace(pool, features=np.repeat(pool.features[:1], 2, axis=0))
    draws = laplace_posterior(twins, ridge=1.0).draws(4000, np.random.default_rng(0))
    correlation = np.corrcoef(draws[:, 0, 0], draws[:, 1, 0])[0, 1]
    assert abs(correlation) < 0.08


def test_what_the_responses_of_a_prompt_share_changes_nothing(labelled):
    pool = labelled()
    shifted = replace(pool, features=pool.features + 5 * np.random.default_rng(0).standard_normal((6, 1, 3)))
    one, other = (laplace_posterior(each, ridge=1.0) for each in (pool, shifted))
    np.testing.assert_allclose(one.rewards, other.rewards, atol=1e-12)
    np.testing.assert_allclose(one.deviations, other.deviations, atol=1e-12)


def test_pools_larger_than_a_chunk_and_in_single_precision_come_out_whole(labelled):
    pool = labelled((1500, 4, 3))
    single = replace(pool, features=pool.features.astype(np.float32))
    one, other = (laplace_posterior(each, ridge=1.0) for each in (pool, single))
    np.testing.assert_allclose(one.rewards, other.rewards, atol=1e-5)
    np.testing.assert_allclose(one.deviations, other.deviations, atol=1e-5)
    assert one.rewards.dtype == other.rewards.dtype == np.float64
    assert other.draws(3, np.random.default_rng(0)).shape == (3, 1500, 4)


def test_features_may_live_in_another_library(labelled):
    torch = pytest.importorskip("torch")
    pool = labelled(masked=True)
    one, other = (
        laplace_posterior(each, ridge=1.0) for each in (pool, replace(pool, features=torch.tensor(pool.features)))
    )
    np.testing.assert_allclose(one.deviations, other.deviations, atol=1e-12)
    np.testing.assert_allclose(one.logit_deviations, other.logit_deviations, atol=1e-7)
    rewards = [each.draws(2, np.random.default_rng(3)) for each in (one, other)]
    np.testing.assert_allclose(*rewards, atol=1e-12)
