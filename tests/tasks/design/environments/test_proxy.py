from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr

from tasks.design.environments.base import centred
from tasks.design.environments.linear import Linear
from tasks.design.environments.proxy import attach_proxy, length_proxy
from tasks.design.environments.table import FromTable


@pytest.fixture(params=["linear", "ragged table"])
def world(request, make_table):
    environment = Linear(num_prompts=20, dim=4) if request.param == "linear" else FromTable(dim=4)
    return environment.draw(np.random.default_rng(0), make_table(ragged=True))


def within(world, values):
    return centred(values, world.pool.valid)[world.pool.valid]


@pytest.mark.parametrize("correlation", [-1.0, -0.4, 0.0, 0.3, 0.9, 1.0])
def test_the_correlation_within_prompts_is_exact(world, correlation):
    scores = attach_proxy(world, correlation, np.random.default_rng(1)).pool.scores
    signal, proxy = within(world, world.utilities), within(world, scores)

    assert signal @ proxy / np.linalg.norm(signal) / np.linalg.norm(proxy) == pytest.approx(correlation, abs=1e-12)
    assert np.linalg.norm(proxy) == pytest.approx(np.linalg.norm(signal))
    np.testing.assert_allclose(scores[~world.pool.valid], 0)


def test_nothing_else_of_the_world_changes(world):
    proxied = attach_proxy(world, 0.5, np.random.default_rng(2))

    assert proxied.utilities is world.utilities
    assert proxied.draws is world.draws
    assert proxied.target is world.target
    assert proxied.pool.features is world.pool.features


def test_noise_is_the_seeds(world):
    one, same, other = (attach_proxy(world, 0.5, np.random.default_rng(seed)).pool.scores for seed in (3, 3, 4))

    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_noise_knows_nothing_of_the_features():
    world = Linear(num_prompts=3000, dim=2).draw(np.random.default_rng(5))
    scores = attach_proxy(world, 0.0, np.random.default_rng(6)).pool.scores

    for column in range(2):
        found = np.corrcoef(within(world, scores), within(world, world.pool.features[:, :, column]))[0, 1]
        assert abs(found) < 4 / np.sqrt(scores.size)


@pytest.mark.parametrize("correlation", [1.01, -2.0, np.nan])
def test_no_correlation_is_beyond_one(world, correlation):
    with pytest.raises(ValueError, match="pass a number from -1 to 1"):
        attach_proxy(world, correlation, np.random.default_rng(0))


def test_a_single_pair_has_no_room_for_noise():
    world = Linear(num_prompts=1, num_responses=2, dim=2).draw(np.random.default_rng(0))

    with pytest.raises(ValueError, match="2 responses to 1 prompts leave noise no room"):
        attach_proxy(world, 0.5, np.random.default_rng(0))
    assert attach_proxy(world, -1.0, np.random.default_rng(0)).pool.scores is not None


def test_equal_utilities_have_no_proxy():
    world = Linear(num_prompts=2, dim=2).draw(np.random.default_rng(0))

    with pytest.raises(ValueError, match="nothing can correlate with them"):
        attach_proxy(replace(world, utilities=np.ones((2, 8))), 0.5, np.random.default_rng(0))


def test_length_in_disguise_ranks_by_length(make_table):
    world = length_proxy(FromTable(dim=4).draw(np.random.default_rng(0), make_table(ragged=True)))
    pool = world.pool

    for scores, lengths, valid in zip(pool.scores, pool.lengths, pool.valid, strict=True):
        assert spearmanr(scores[valid], lengths[valid]).statistic == pytest.approx(1)
    assert np.linalg.norm(within(world, pool.scores)) == pytest.approx(np.linalg.norm(within(world, world.utilities)))


def test_length_in_disguise_needs_lengths():
    with pytest.raises(ValueError, match="needs the lengths of the responses, the pool has none"):
        length_proxy(Linear(num_prompts=2, dim=2).draw(np.random.default_rng(0)))
