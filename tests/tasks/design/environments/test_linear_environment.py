from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse.csgraph import connected_components

from tasks.design.environments.base import centred
from tasks.design.environments.linear import NUM_TARGET_PROMPTS, Linear
from tasks.design.fisher import exact_fisher, fisher_of


def draw(seed=0, **fields):
    return Linear(**fields).draw(np.random.default_rng(seed))


def fitted(features, utilities):
    """The linear part of utilities about their prompts' means, by least squares, and those utilities."""
    valid = np.ones(utilities.shape, dtype=bool)
    rows, values = centred(features, valid).reshape(-1, features.shape[2]), centred(utilities, valid).ravel()
    return rows @ np.linalg.lstsq(rows, values, rcond=None)[0], values


@pytest.mark.parametrize(
    "fields", [{}, {"anisotropy": 1.5, "prompt_spread": 1.0}, {"target_share": 0.2}, {"duplicates": 0.8}, {"fit": 0.4}]
)
def test_a_world_has_the_scales_asked_for(fields):
    world = draw(num_prompts=1000, reward_scale=1.7, beta=0.3, **fields)
    pool, valid = world.pool, world.pool.valid

    assert pool.features.shape == (1000, 8, 32)
    assert pool.beta == 0.3
    assert np.square(centred(pool.features, valid)).sum(axis=2).mean() == pytest.approx(1)
    spread = np.sqrt(np.square(centred(world.utilities, valid)).mean())
    assert spread == pytest.approx(1.7, rel=1e-9 if "fit" not in fields else 0.08)
    assert not pool.rewards.any()
    np.testing.assert_allclose(pool.log_probs, -np.log(8))
    assert world.target.features.shape == (NUM_TARGET_PROMPTS, 8, 32)
    np.testing.assert_allclose(world.target.log_reference, -np.log(8))


def test_the_second_half_of_the_features_is_the_first_times_the_context():
    features = draw(dim=8).pool.features
    contexts = features[:, :, 4:] / features[:, :, :4]

    np.testing.assert_allclose(contexts, np.broadcast_to(contexts[:, :1], contexts.shape), rtol=1e-9)


def test_a_well_specified_utility_is_linear_in_pool_and_deployment_alike():
    world = draw()
    features = np.concatenate([world.pool.features, world.target.features])
    part, values = fitted(features, np.concatenate([world.utilities, world.target.utilities]))

    np.testing.assert_allclose(part, values, atol=1e-10)


@pytest.mark.parametrize("residual", ["independent", "quadratic"])
@pytest.mark.parametrize("fit", [0.3, 0.7])
def test_the_degree_of_misfit_is_the_one_asked_for(fit, residual):
    world = draw(fit=fit, residual=residual, num_prompts=3000, num_responses=8, dim=8)
    for features, utilities in (
        (world.pool.features, world.utilities),
        (world.target.features, world.target.utilities),
    ):
        part, values = fitted(features, utilities)

        assert np.corrcoef(part, values)[0, 1] == pytest.approx(fit, abs=4 / np.sqrt(values.size) + 0.02)


def test_anisotropy_is_the_exponent_of_the_variances():
    features = draw(dim=8, num_prompts=4000, anisotropy=2.0).pool.features
    variances = features[:, :, :4].var(axis=(0, 1))

    np.testing.assert_allclose(variances[0] / variances, np.arange(1, 5) ** 2, rtol=0.1)


def test_prompt_spread_is_the_deviation_of_the_log_of_the_scale():
    valid = np.ones((4000, 8), dtype=bool)
    logs = [
        np.log(
            np.square(centred(draw(num_prompts=4000, prompt_spread=spread).pool.features[:, :, :16], valid)).sum((1, 2))
        )
        for spread in (0.0, 0.8)
    ]

    assert np.sqrt(logs[1].var() - logs[0].var()) / 2 == pytest.approx(0.8, rel=0.05)


def neighbours(world):
    """Which prompts are near copies of which, (P, P)."""
    flat = world.pool.features.reshape(world.pool.num_prompts, -1)
    apart = np.linalg.norm(flat[:, None] - flat[None], axis=2)
    return apart < 0.2 * np.linalg.norm(flat, axis=1)


def test_duplicates_are_near_copies_of_three_prompts_of_twice_the_norm():
    world = draw(duplicates=0.8, num_prompts=150)
    close = neighbours(world)
    near = close.sum(axis=1) > 1

    assert near.sum() == 120
    assert connected_components(close)[0] == 3 + 30
    norms = np.square(centred(world.pool.features, world.pool.valid)[:, :, :16]).sum(axis=2).mean(axis=1)
    assert norms[near].mean() / norms[~near].mean() == pytest.approx(4, rel=0.3)


def test_all_prompts_may_be_duplicates():
    assert connected_components(neighbours(draw(duplicates=1.0)))[0] == 3


def test_a_shift_aims_the_pool_at_the_deployment():
    world = draw(target_share=0.1)
    target, pool = world.target, world.pool

    np.testing.assert_array_equal(pool.fisher, fisher_of(target.features, np.ones((NUM_TARGET_PROMPTS, 8), dtype=bool)))
    assert draw().pool.fisher is None


def test_the_cluster_is_a_share_of_the_pool_and_all_of_the_deployment():
    world = draw(target_share=0.1)

    def second_half(features):
        contexts = np.square(features[:, 0, 16:] / features[:, 0, :16])
        return contexts[:, 8:].mean(axis=1) > contexts[:, :8].mean(axis=1)

    assert second_half(world.pool.features).sum() == pytest.approx(15, abs=2)
    assert second_half(world.target.features).mean() > 0.97
    sizes = [np.square(block).sum(axis=2).mean() for block in (world.pool.features, world.target.features)]
    assert sizes[1] / sizes[0] == pytest.approx(1, rel=0.15)


def test_a_quadratic_residual_is_one_function_of_the_features():
    world = draw(fit=0.5, residual="quadratic", dim=4)
    rows, columns = np.triu_indices(4)

    def curved(features):
        return np.concatenate([features, features[:, :, rows] * features[:, :, columns]], axis=2)

    features = np.concatenate([curved(world.pool.features), curved(world.target.features)])
    part, values = fitted(features, np.concatenate([world.utilities, world.target.utilities]))
    np.testing.assert_allclose(part, values, atol=1e-9)


def test_a_reference_of_the_family_is_as_uneven_as_asked_for():
    world = draw(reference_spread=1.5, num_prompts=1000)
    logs = centred(world.pool.log_probs, world.pool.valid)
    part, values = fitted(
        np.concatenate([world.pool.features, world.target.features]),
        np.concatenate([world.pool.log_probs, world.target.log_reference]),
    )

    assert np.sqrt(np.square(logs).mean()) == pytest.approx(1.5)
    np.testing.assert_allclose(part, values, atol=1e-10)
    for log_probs in (world.pool.log_probs, world.target.log_reference):
        np.testing.assert_allclose(np.exp(log_probs).sum(axis=1), 1)
    np.testing.assert_array_equal(world.pool.fisher, exact_fisher(world.pool.features, world.pool.log_probs))


def test_an_uneven_reference_changes_neither_features_nor_utilities_nor_labels():
    plain, uneven = draw(), draw(reference_spread=2.0)

    np.testing.assert_array_equal(plain.pool.features, uneven.pool.features)
    np.testing.assert_array_equal(plain.target.utilities, uneven.target.utilities)
    np.testing.assert_array_equal(plain.draws, uneven.draws)


def test_a_shift_aims_the_pool_at_the_deployment_under_its_reference():
    world = draw(target_share=0.1, reference_spread=1.0)

    np.testing.assert_array_equal(world.pool.fisher, exact_fisher(world.target.features, world.target.log_reference))


def test_a_seed_is_a_world():
    one, same, other = draw(3, fit=0.5), draw(3, fit=0.5), draw(4, fit=0.5)

    for name in ("utilities", "draws"):
        np.testing.assert_array_equal(getattr(one, name), getattr(same, name))
        assert (getattr(one, name) != getattr(other, name)).all()
    np.testing.assert_array_equal(one.pool.features, same.pool.features)
    np.testing.assert_array_equal(one.target.utilities, same.target.utilities)


def test_beta_and_flips_change_no_draw():
    plain, other = draw(), draw(beta=0.1, flip_rate=0.3)

    np.testing.assert_array_equal(plain.utilities, other.utilities)
    np.testing.assert_array_equal(plain.draws, other.draws)
    assert other.flip_rate == 0.3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dim": 7}, "dim is 7: pass an even number"),
        ({"num_prompts": 0}, "num_prompts is 0"),
        ({"num_responses": 1}, "num_responses is 1: pass a finite number, 2 or more"),
        ({"beta": 0.0}, "beta is 0.0: pass a finite number above 0"),
        ({"anisotropy": -1.0}, "anisotropy is -1.0"),
        ({"reference_spread": -1.0}, "reference_spread is -1.0"),
        ({"reward_scale": np.inf}, "reward_scale is inf"),
        ({"duplicates": 1.2}, "duplicates is 1.2: pass a share from 0 to 1"),
        ({"fit": 0.0}, "fit is 0.0: pass a correlation above 0"),
        ({"flip_rate": 0.5}, "flip_rate is 0.5"),
        ({"target_share": 0.0}, "target_share is 0.0"),
        ({"target_share": 0.4, "duplicates": 0.7}, "up to 0.3, which duplicates leave"),
    ],
)
def test_a_field_out_of_range_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        replace(Linear(), **fields)
