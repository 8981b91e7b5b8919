import numpy as np
import pytest

from tasks.design.environments.tabular import Tabular


def test_fisher_is_the_mean_laplacian_of_the_references():
    world = Tabular(num_prompts=2, num_responses=4).draw(np.random.default_rng(0))
    expected = np.zeros((8, 8))
    for prompt, shares in enumerate(np.exp(world.target.log_reference)):
        for a in range(4):
            for b in range(a):
                edge = np.zeros(8)
                edge[4 * prompt + a], edge[4 * prompt + b] = 1, -1
                expected += shares[a] * shares[b] * np.outer(edge, edge) / 2

    np.testing.assert_allclose(world.pool.fisher, expected, atol=1e-15)


def test_the_deployment_is_the_pool_under_a_reference_far_from_uniform():
    world = Tabular().draw(np.random.default_rng(1))

    assert world.pool.features.shape == (1, 60, 60)
    np.testing.assert_array_equal(world.pool.features[0], np.eye(60))
    np.testing.assert_array_equal(world.target.features, world.pool.features)
    np.testing.assert_array_equal(world.target.utilities, world.utilities)
    np.testing.assert_array_equal(world.pool.log_probs, world.target.log_reference)
    np.testing.assert_allclose(np.exp(world.pool.log_probs).sum(), 1)
    assert np.exp(world.pool.log_probs).max() > 10 / 60


def test_utilities_are_a_policy_of_the_family():
    world = Tabular(num_prompts=3, num_responses=5, beta=0.4).draw(np.random.default_rng(2))
    policy = world.target.policy(world.utilities.ravel() / 0.4)

    assert world.target.regret(policy, beta=0.4) == pytest.approx(0, abs=1e-14)


def test_a_uniform_reference_can_be_asked_for():
    world = Tabular(reference_spread=0.0).draw(np.random.default_rng(3))

    np.testing.assert_allclose(world.pool.log_probs, -np.log(60))


def test_the_same_seed_gives_the_same_table():
    one, same = (Tabular().draw(np.random.default_rng(4)) for _ in range(2))

    np.testing.assert_array_equal(one.utilities, same.utilities)
    np.testing.assert_array_equal(one.draws, same.draws)


def test_one_response_is_refused():
    with pytest.raises(ValueError, match="num_responses is 1: pass a finite number, 2 or more"):
        Tabular(num_responses=1)
