from dataclasses import replace

import numpy as np
import pytest

from tasks.design.environments.linear import Linear
from tasks.design.environments.purchase import Purchase, best_parameter, without_misfit, without_noise
from tasks.design.environments.world import World

RIDGE = 2.0


def draw(**fields: float) -> World:
    return Linear(dim=4, num_prompts=20, num_responses=4, **fields).draw(np.random.default_rng(0))


def bought(world: World, index: np.ndarray, weights: np.ndarray | None = None) -> Purchase:
    return Purchase.of(world, index, np.ones(len(index)) if weights is None else weights, ridge=RIDGE)


@pytest.mark.parametrize("fields", [{}, {"fit": 0.5}, {"flip_rate": 0.2}, {"beta": 0.3}], ids=str)
def test_all_pairs_without_noise_teach_the_best_of_the_family(fields: dict[str, float]) -> None:
    world = draw(**fields)
    every = bought(world, np.flatnonzero(world.pool.pair_mask))

    np.testing.assert_allclose(
        without_noise(world, every, ridge=RIDGE), best_parameter(world, ridge=RIDGE), rtol=1e-6, atol=1e-9
    )


def test_padding_teaches_nothing() -> None:
    world = draw(fit=0.5)
    valid = world.pool.valid.copy()
    valid[::2, -1] = False
    padded = replace(world, pool=replace(world.pool, valid=valid))
    every = bought(padded, np.flatnonzero(padded.pool.pair_mask))

    best = best_parameter(padded, ridge=RIDGE)

    np.testing.assert_allclose(without_noise(padded, every, ridge=RIDGE), best, rtol=1e-6, atol=1e-9)
    assert not np.allclose(best, best_parameter(world, ridge=RIDGE), rtol=1e-3)


def test_labels_that_are_certain_have_no_noise() -> None:
    world = draw(fit=0.5)
    ranks = world.utilities.argsort(axis=1).argsort(axis=1)
    certain = replace(world, utilities=1000.0 * ranks)
    assert set(np.unique(certain.chances)) == {0.0, 1.0}

    some = bought(certain, np.arange(0, 120, 5), np.linspace(0.5, 2.0, 24))

    np.testing.assert_array_equal(without_noise(certain, some, ridge=RIDGE), some.theta)


def test_a_world_of_the_family_has_no_misfit() -> None:
    world, theta = draw(beta=0.5), np.array([1.0, -2.0, 0.5, 0.0])
    exact = replace(world, utilities=0.5 * world.pool.features @ theta)
    some = bought(exact, np.arange(0, 120, 5), np.linspace(0.5, 2.0, 24))

    ideal, asked = without_misfit(exact, some, theta, ridge=RIDGE), without_noise(exact, some, ridge=RIDGE)

    np.testing.assert_allclose(ideal, asked, rtol=1e-9)
    assert not np.allclose(asked, some.theta, rtol=0.01)


def test_what_a_selection_teaches_without_noise_is_the_mean_of_its_labels() -> None:
    world = draw(fit=0.5)
    index = np.arange(0, 120, 2)
    random = np.random.default_rng(1)
    drawn = [replace(world, draws=random.random(world.draws.shape)) for _ in range(400)]
    gradient = np.mean([one.labels(index) for one in drawn], axis=0) - world.chances.ravel()[index]
    assert np.abs(gradient).max() < 0.1, "labels are draws of the chances"

    thetas = [bought(one, index).theta for one in drawn]

    spread = np.std(thetas, axis=0) / np.sqrt(len(thetas))
    asked = without_noise(world, bought(world, index), ridge=RIDGE)
    assert (np.abs(np.mean(thetas, axis=0) - asked) < 5 * spread + 0.05 * np.abs(asked).max()).all()
