from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import expit, logsumexp

from tasks.design.environments.linear import Linear
from tasks.design.environments.table import FromTable
from tasks.design.environments.tabular import Tabular
from tasks.design.environments.world import Target
from tasks.design.selectors import SELECTORS

SMALL = Linear(dim=6, num_prompts=12, num_responses=4, fit=0.6)


@pytest.fixture(params=["linear", "tabular", "ragged table"])
def world(request, make_table):
    environment = {"linear": SMALL, "tabular": Tabular(num_prompts=2, num_responses=5)}.get(request.param)
    return (environment or FromTable(dim=4)).draw(np.random.default_rng(1), make_table(ragged=True))


@pytest.mark.parametrize("beta", [0.1, 1.0, 3.0])
def test_the_regret_is_what_the_policy_lacks_in_value(world, beta):
    target = world.target
    theta = np.random.default_rng(2).standard_normal(world.pool.dim)
    best, policy = target.optimum(beta=beta), target.policy(theta)

    lacking = target.value(best, beta=beta) - target.value(policy, beta=beta)

    assert target.regret(policy, beta=beta) == pytest.approx(lacking, abs=1e-12 * max(1, abs(lacking)))
    assert lacking > 0
    assert target.regret(best, beta=beta) == 0


def test_the_best_value_is_the_log_partition_function(world):
    target = world.target
    best = 0.5 * logsumexp(target.log_reference + target.utilities / 0.5, axis=1).mean()

    assert target.value(target.optimum(beta=0.5), beta=0.5) == pytest.approx(best, abs=1e-12)


def test_policies_sum_to_one_and_leave_padding_out(world):
    target = world.target
    policy = target.policy(np.ones(world.pool.dim))

    np.testing.assert_allclose(np.exp(policy).sum(axis=1), 1)
    assert (np.exp(policy)[np.isinf(target.log_reference)] == 0).all()


@pytest.mark.parametrize("divergence", [0.01, 0.2, 0.5])
def test_the_frontier_is_read_at_the_divergence_asked_for(world, divergence):
    target, theta = world.target, np.random.default_rng(3).standard_normal(world.pool.dim)
    scale = brentq(lambda c: target.divergence(target.policy(c * theta)) - divergence, 0, 100, xtol=1e-14)

    assert target.utility_at(theta, divergence) == pytest.approx(target.utility(target.policy(scale * theta)), abs=1e-8)


def test_the_frontier_of_two_responses_has_a_closed_form():
    target = Target(
        features=np.array([[[1.0], [0.0]]]), utilities=np.array([[3.0, 1.0]]), log_reference=np.log([[0.5, 0.5]])
    )
    share = 0.8
    divergence = share * np.log(2 * share) + (1 - share) * np.log(2 * (1 - share))

    assert target.utility_at(np.array([0.7]), divergence) == pytest.approx(3 * share + (1 - share), abs=1e-8)
    assert target.utility_at(np.array([0.7]), 5.0) == pytest.approx(3, abs=1e-8)  # log 2 is as far as it goes
    assert target.utility_at(np.array([0.0]), 0.5) == 2


@pytest.mark.parametrize("scale", [1e-6, 0.3, 50.0, 1e6])
def test_the_frontier_knows_no_scale(world, scale):
    theta = np.random.default_rng(4).standard_normal(world.pool.dim)

    assert world.target.utility_at(scale * theta, 0.3) == pytest.approx(world.target.utility_at(theta, 0.3), abs=1e-8)


def test_a_pair_has_one_answer_whoever_asks():
    world = SMALL.draw(np.random.default_rng(5))
    picks = [SELECTORS[kind]()(world.pool, 40, np.random.default_rng(i)) for i, kind in enumerate(("uniform", "apo"))]
    first, second = (
        dict(zip(world.index_of(pick).tolist(), world.labels(world.index_of(pick)), strict=True)) for pick in picks
    )
    shared = first.keys() & second.keys()

    assert len(shared) > 5
    assert all(first[pair] == second[pair] for pair in shared)


def test_labels_follow_bradley_terry():
    world = Linear(dim=4, num_prompts=2000, num_responses=4).draw(np.random.default_rng(6))
    first, second = world.pool.pairs(np.arange(world.draws.size))[1:]
    prompts = np.repeat(np.arange(2000), 6)
    gaps = world.utilities[prompts, first] - world.utilities[prompts, second]
    wins = world.labels(np.arange(world.draws.size))

    assert abs((wins - expit(gaps)).mean()) < 4 * 0.5 / np.sqrt(wins.size)
    assert abs((np.sign(gaps) * (wins - expit(gaps))).mean()) < 4 * 0.5 / np.sqrt(wins.size)


def test_flips_turn_a_share_of_the_labels_round():
    clean = Linear(dim=4, num_prompts=2000, num_responses=4, reward_scale=30).draw(np.random.default_rng(7))
    flipped = replace(clean, flip_rate=0.2)
    index = np.arange(clean.draws.size)

    differing = (clean.labels(index) != flipped.labels(index)).mean()

    np.testing.assert_allclose(flipped.chances, 0.2 + 0.6 * clean.chances)
    assert differing == pytest.approx(0.2, abs=4 * np.sqrt(0.2 * 0.8 / index.size))


def test_differences_are_first_minus_second():
    world = SMALL.draw(np.random.default_rng(8))
    selection = SELECTORS["uniform"]()(world.pool, 10, np.random.default_rng(0))
    index = world.index_of(selection)

    expected = (
        world.pool.features[selection.prompt, selection.first] - world.pool.features[selection.prompt, selection.second]
    )
    np.testing.assert_array_equal(world.differences(index), expected)


def test_padding_changes_nothing():
    rng = np.random.default_rng(9)
    bare = Target(
        features=rng.standard_normal((3, 4, 2)),
        utilities=rng.standard_normal((3, 4)),
        log_reference=np.log(np.full((3, 4), 0.25)),
    )
    padded = Target(
        features=np.pad(bare.features, ((0, 0), (0, 2), (0, 0))),
        utilities=np.pad(bare.utilities, ((0, 0), (0, 2))),
        log_reference=np.pad(bare.log_reference, ((0, 0), (0, 2)), constant_values=-np.inf),
    )
    theta = np.array([1.0, -2.0])

    for judge in (
        lambda target: target.value(target.policy(theta), beta=0.3),
        lambda target: target.regret(target.policy(theta), beta=0.3),
        lambda target: target.utility_at(theta, 0.4),
    ):
        assert judge(padded) == pytest.approx(judge(bare), abs=1e-12)
