from dataclasses import replace

import numpy as np
import pytest

from tasks.design.fisher import exact_fisher, fisher_of, fitted_fisher
from tasks.design.pool import Pool
from tasks.design.selectors.designs import TraceDesign


def log_linear(pool, theta, *, shift=0.0):
    """The pool with log-probabilities that are linear in the features, up to a constant of each prompt."""
    offsets = shift * np.random.default_rng(1).standard_normal((pool.num_prompts, 1))
    return replace(pool, log_probs=pool.features @ theta + offsets)


@pytest.mark.parametrize("masked", [False, True])
def test_the_fisher_of_a_log_linear_policy_is_its_covariance(make_pool, masked):
    pool, theta = make_pool((40, 5, 3), masked=masked), np.array([1.0, -2.0, 0.5])
    covariances = []
    for features, valid in zip(pool.features, pool.valid, strict=True):
        rows = features[valid]
        if len(rows) > 1:
            weights = np.exp(rows @ theta)
            covariances.append(np.cov(rows.T, aweights=weights / weights.sum(), ddof=0))
    found = fitted_fisher(log_linear(pool, theta, shift=100.0), ridge=1e-12)
    np.testing.assert_allclose(found, np.mean(covariances, axis=0), rtol=1e-6, atol=1e-9)


def test_an_even_policy_has_the_population_covariance_of_its_responses(make_pool):
    pool = make_pool((30, 4, 3))
    even = fitted_fisher(replace(pool, log_probs=np.zeros((30, 4))))
    np.testing.assert_allclose(even, pool.policy_fisher * 3 / 4, rtol=1e-10)


def test_two_responses_have_half_the_mean_product_of_their_difference(make_pool):
    pool = make_pool((30, 2, 3))
    differences = pool.features[:, 0] - pool.features[:, 1]
    np.testing.assert_allclose(fisher_of(pool.features, pool.valid), differences.T @ differences / 60, rtol=1e-12)


def test_the_exact_fisher_is_the_mean_covariance_under_the_policy(make_pool):
    features, rng = make_pool((7, 5, 3)).features, np.random.default_rng(2)
    shares = rng.dirichlet(np.ones(5), size=7)
    shares[3] = [0.5, 0.5, 0, 0, 0]
    with np.errstate(divide="ignore"):
        found = exact_fisher(features, np.log(shares))
    covariances = [np.cov(rows.T, aweights=row, ddof=0) for rows, row in zip(features, shares, strict=True)]
    np.testing.assert_allclose(found, np.mean(covariances, axis=0), rtol=1e-10)


def test_responses_that_are_all_alike_have_none(make_pool):
    pool = replace(make_pool((4, 3, 2)), features=np.ones((4, 3, 2)), log_probs=np.zeros((4, 3)))
    assert not fitted_fisher(pool).any()


def test_a_design_aims_at_what_the_fitted_policy_writes():
    """Both directions vary as much, but the policy hardly ever writes responses that differ in the second."""
    features = np.zeros((40, 3, 2))
    features[:20, 0, 0] = features[20:, 0, 1] = 1.0
    log_probs = np.zeros((40, 3))
    log_probs[20:, 0] = -30.0
    log_probs[:20, 0] = 0.7
    ones = np.ones((40, 3), dtype=bool)
    pool = Pool(features=features, valid=ones, rewards=np.zeros((40, 3)), beta=1.0, log_probs=log_probs)
    sampled, fitted = (TraceDesign(fisher=fisher)(pool, 20, None) for fisher in ("sampled", "fitted"))
    assert (sampled.prompt < 20).sum() == pytest.approx(10, abs=1)
    assert (fitted.prompt < 20).sum() >= 18


def test_a_fit_without_log_probs_is_refused(make_pool):
    with pytest.raises(ValueError, match="fisher 'fitted' needs the log_probs of the responses"):
        TraceDesign(fisher="fitted")(make_pool(), 3, None)
