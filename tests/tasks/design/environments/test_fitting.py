import numpy as np
import pytest
from scipy.optimize import check_grad, minimize
from scipy.special import expit

from tasks.design.environments.fitting import fit_counts, fit_policy
from tasks.design.kernels import PairSpace, pair_slots


def problem(seed=0, n=60, dim=5, scale=1.0):
    rng = np.random.default_rng(seed)
    differences = scale * rng.standard_normal((n, dim))
    return differences, rng.random(n) < expit(differences @ rng.standard_normal(dim))


def loss(theta, differences, preferred, *, beta, ridge, weights):
    signs = np.where(preferred, 1, -1)
    data = weights @ np.logaddexp(0, -signs * (beta * differences @ theta))
    return data + ridge / 2 * beta**2 * theta @ theta


def slope(theta, differences, preferred, *, beta, ridge, weights):
    wrong = expit(beta * differences @ theta) - preferred
    return beta * differences.T @ (weights * wrong) + ridge * beta**2 * theta


@pytest.mark.parametrize("beta", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("ridge", [1e-3, 1.0])
def test_the_loss_is_level_at_the_fit(beta, ridge):
    differences, preferred = problem()
    weights = np.random.default_rng(1).random(60) * 3
    law = {"beta": beta, "ridge": ridge, "weights": weights}

    theta = fit_policy(differences, preferred, **law)

    assert check_grad(
        lambda at: loss(at, differences, preferred, **law), lambda at: slope(at, differences, preferred, **law), theta
    ) == pytest.approx(0, abs=1e-4)
    np.testing.assert_allclose(slope(theta, differences, preferred, **law), 0, atol=1e-6 * beta)


def test_another_minimiser_finds_the_same_policy():
    differences, preferred = problem(seed=2)
    law = {"beta": 0.5, "ridge": 0.1, "weights": np.ones(60)}
    found = minimize(
        loss_of := lambda at: loss(at, differences, preferred, **law), np.zeros(5), method="BFGS", tol=1e-9
    )

    theta = fit_policy(differences, preferred, beta=0.5, ridge=0.1)

    np.testing.assert_allclose(theta, found.x, atol=1e-4)
    assert loss_of(theta) <= found.fun + 1e-12


@pytest.mark.parametrize("seed", range(5))
def test_separable_labels_are_fitted_too(seed):
    differences, _ = problem(seed=seed, scale=3)
    preferred = differences[:, 0] > 0
    law = {"beta": 1.0, "ridge": 0.1, "weights": np.ones(60)}

    theta = fit_policy(differences, preferred, beta=1.0, ridge=0.1)

    np.testing.assert_allclose(slope(theta, differences, preferred, **law), 0, atol=1e-6)


def test_weight_two_is_a_label_repeated_and_weight_zero_one_left_out():
    differences, preferred = problem(seed=3)
    weights = np.where(np.arange(60) < 20, 2.0, np.where(np.arange(60) < 40, 1.0, 0.0))
    kept = np.r_[0:20, 0:40]

    weighted = fit_policy(differences, preferred, beta=0.7, ridge=0.5, weights=weights)
    repeated = fit_policy(differences[kept], preferred[kept], beta=0.7, ridge=0.5)

    np.testing.assert_allclose(weighted, repeated, rtol=1e-6)


def test_a_chance_is_a_label_each_way_that_shares_its_weight():
    differences, preferred = problem(seed=6)
    random = np.random.default_rng(7)
    chances, weights = random.random(60), 2 * random.random(60)
    doubled = np.concatenate([differences, differences]), np.repeat([True, False], 60)

    soft = fit_policy(differences, chances, beta=0.7, ridge=0.5, weights=weights)
    hard = fit_policy(
        *doubled, beta=0.7, ridge=0.5, weights=np.concatenate([weights * chances, weights * (1 - chances)])
    )

    np.testing.assert_allclose(soft, hard, rtol=1e-9)
    np.testing.assert_array_equal(
        fit_policy(differences, preferred.astype(float), beta=0.7, ridge=0.5),
        fit_policy(differences, preferred, beta=0.7, ridge=0.5),
    )


def test_beta_scales_the_parameter_alone():
    differences, preferred = problem(seed=4)

    np.testing.assert_allclose(
        0.1 * fit_policy(differences, preferred, beta=0.1, ridge=1.0),
        fit_policy(differences, preferred, beta=1.0, ridge=1.0),
    )


def test_turning_a_pair_and_its_label_round_changes_nothing():
    differences, preferred = problem(seed=5)

    np.testing.assert_allclose(
        fit_policy(-differences, ~preferred, beta=1.0, ridge=1.0),
        fit_policy(differences, preferred, beta=1.0, ridge=1.0),
    )


def test_no_labels_leave_the_reference():
    theta = fit_policy(np.zeros((0, 3)), np.zeros(0, dtype=bool), beta=1.0, ridge=1.0)

    np.testing.assert_array_equal(theta, np.zeros(3))


@pytest.mark.parametrize("most", [1, 9])
@pytest.mark.parametrize("shape", [(4, 5, 3), (1, 12, 12), (30, 2, 4)])
def test_labels_counted_by_pair_are_fitted_as_one_by_one(shape, most):
    rng = np.random.default_rng(6)
    features, valid = rng.standard_normal(shape), rng.random(shape[:2]) < 0.9
    first, second = pair_slots(shape[1])
    offered = (valid[:, first] & valid[:, second]).astype(float)
    wins, losses = (offered * rng.integers(0, most + 1, offered.shape) for _ in range(2))
    rows = (features[:, first] - features[:, second]).reshape(-1, shape[2])
    counts = np.concatenate([wins.ravel(), losses.ravel()])

    one_by_one = fit_policy(
        np.concatenate([rows, rows]), np.arange(len(counts)) < len(rows), beta=0.5, ridge=0.01, weights=counts
    )

    counted = fit_counts(PairSpace.of(features, valid), wins, losses, beta=0.5, ridge=0.01)
    np.testing.assert_allclose(counted, one_by_one, rtol=1e-6, atol=1e-9)


def test_no_counts_leave_the_reference():
    space = PairSpace.of(np.ones((2, 3, 4)), np.ones((2, 3), dtype=bool))

    np.testing.assert_array_equal(fit_counts(space, np.zeros((2, 3)), np.zeros((2, 3)), beta=1.0, ridge=1.0), 0)
