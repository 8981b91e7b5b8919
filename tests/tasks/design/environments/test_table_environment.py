from dataclasses import replace

import numpy as np
import pytest

from tasks.design.environments.base import centred
from tasks.design.environments.table import FromTable


def draw(table, seed=0, **fields):
    return FromTable(**{"dim": 4, **fields}).draw(np.random.default_rng(seed), table)


def test_pool_and_deployment_part_the_table(make_table):
    table = make_table()
    world = draw(table)

    assert world.utilities.shape == world.target.utilities.shape == (10, 6)
    rows = np.concatenate([world.utilities, world.target.utilities])
    np.testing.assert_array_equal(rows[np.lexsort(rows.T)], table.utilities[np.lexsort(table.utilities.T)])
    assert draw(table, num_prompts=3).pool.num_prompts == 3


def test_lengths_go_with_their_responses(make_table):
    table = make_table()
    world = draw(replace(table, lengths=table.utilities + 100))

    np.testing.assert_array_equal(world.pool.lengths, world.utilities + 100)


@pytest.mark.parametrize("ragged", [False, True])
def test_all_components_keep_every_distance_up_to_one_scale(make_table, ragged):
    table = make_table(ragged=ragged)
    world = draw(table, dim=9, num_prompts=19)
    left = np.flatnonzero((table.utilities == world.target.utilities[0]).all(axis=1))
    valid = table.valid[left]
    before = np.linalg.norm(centred(table.features[left], valid), axis=2)[valid]
    after = np.linalg.norm(world.target.features, axis=2)[valid]

    np.testing.assert_allclose(after / before, after[0] / before[0])


@pytest.mark.parametrize("ragged", [False, True])
def test_the_mean_squared_norm_of_the_pool_is_one(make_table, ragged):
    pool = draw(make_table(ragged=ragged)).pool

    assert np.square(pool.features).sum(axis=2)[pool.valid].mean() == pytest.approx(1)
    np.testing.assert_allclose(centred(pool.features, pool.valid), pool.features, atol=1e-12)
    moment = np.einsum("pkd,pke->de", pool.features, pool.features)
    np.testing.assert_allclose(moment, np.diag(np.diag(moment)), atol=1e-9 * moment.max())
    assert (np.diff(np.diag(moment)) <= 0).all()


def test_the_map_is_the_pools_alone(make_table):
    table = make_table()
    world = draw(table)
    judged = np.isin(table.utilities[:, 0], world.target.utilities[:, 0])
    changed = replace(table, features=np.where(judged[:, None, None], 1000 * table.features, table.features))

    np.testing.assert_array_equal(draw(changed).pool.features, world.pool.features)
    np.testing.assert_allclose(draw(changed).target.features, 1000 * world.target.features)


def test_padding_is_no_response(make_table):
    table = make_table(ragged=True)
    world = draw(table)
    pool, target = world.pool, world.target

    assert pool.num_pairs == (pool.valid.sum(axis=1) * (pool.valid.sum(axis=1) - 1) // 2).sum()
    np.testing.assert_allclose(np.where(pool.valid, np.exp(pool.log_probs), 0).sum(axis=1), 1)
    np.testing.assert_allclose(np.exp(target.log_reference).sum(axis=1), 1)
    assert np.isinf(target.log_reference).sum() == (~table.valid).sum() - (~pool.valid).sum()
    assert np.isfinite(target.divergence(target.policy(np.ones(4))))
    assert np.isfinite(target.utility_at(np.ones(4), 0.2))


def test_another_seed_is_another_split(make_table):
    table = make_table()

    np.testing.assert_array_equal(draw(table, 1).utilities, draw(table, 1).utilities)
    assert not np.array_equal(draw(table, 1).utilities, draw(table, 2).utilities)


def test_without_a_table_nothing_can_be_drawn():
    with pytest.raises(ValueError, match="needs a table of utilities, it was given none"):
        FromTable().draw(np.random.default_rng(0))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dim": 10}, "dim is 10, the table has 9 features"),
        ({"num_prompts": 20}, "asks for 20 prompts, the table has 20"),
    ],
)
def test_a_table_that_is_too_small_is_refused(make_table, fields, message):
    with pytest.raises(ValueError, match=message):
        draw(make_table(), **fields)


def test_features_that_are_all_alike_are_refused(make_table):
    table = make_table()

    with pytest.raises(ValueError, match="no pair of responses can be told apart"):
        draw(replace(table, features=np.ones_like(table.features)))


def test_a_table_says_what_is_wrong_with_it(make_table):
    table = make_table()
    with pytest.raises(ValueError, match="1 prompts, row 3 first, have fewer than 2 responses"):
        replace(table, valid=table.valid & ((np.arange(20) != 3)[:, None] | (np.arange(6) < 1)))
    with pytest.raises(ValueError, match="pass \\(P, K, D\\), and \\(P, K\\) three times"):
        replace(table, lengths=table.lengths[:-1])
