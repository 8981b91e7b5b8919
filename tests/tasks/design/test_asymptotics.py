"""What labels from a design teach once they are many: closed forms, designs, and Monte Carlo."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import log_softmax

from tasks.design.asymptotics import (
    DESIGNS,
    Limit,
    best_design,
    drawn_design,
    even_design,
    label_information,
    predicted_gap,
)
from tasks.design.environments import Linear
from tasks.design.environments.fitting import fit_counts
from tasks.design.environments.tabular import Tabular
from tasks.design.fisher import exact_fisher
from tasks.design.kernels import pair_slots
from tasks.design.pool import Pool
from tasks.theory import draw_labels

CONTEXTUAL = Linear(num_prompts=8, num_responses=4, dim=4, beta=0.5, reference_spread=1.5, reward_scale=0.5)


def tabular(policy, *, edges=None, beta=1.0):
    """One prompt whose responses have features of their own, at the reference: every sigma' is 1/4."""
    size = len(policy)
    first, second = pair_slots(size)
    offered = None if edges is None else np.isin(first * size + second, [a * size + b for a, b in edges])[None]
    return Pool(
        features=np.eye(size)[None],
        valid=np.ones((1, size), dtype=bool),
        rewards=np.zeros((1, size)),
        beta=beta,
        fisher=np.diag(policy) - np.outer(policy, policy),
        log_probs=np.log(policy)[None],
        offered=offered,
    )


def value(pool, design):
    """tr(I M^+) where a label of a pair is a unit conductance: the prediction less beta / 2, beta^2 and sigma'."""
    return predicted_gap(label_information(pool, design), pool.policy_fisher, beta=pool.beta) * pool.beta / 2


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_even_pairs_and_pairs_drawn_by_the_policy_are_predicted_the_same_gap(beta):
    policy = np.array([0.5, 0.2, 0.2, 0.07, 0.03])
    pool = tabular(policy, beta=beta)
    expected = 4 * (1 - np.square(policy).sum()) / 2
    assert value(pool, even_design(pool)) == pytest.approx(expected, rel=1e-10)
    assert value(pool, drawn_design(pool)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("size", "expected"), [(3, 2 / 3), (6, 25 / 12)])
def test_an_even_policy_is_best_compared_evenly(size, expected):
    pool = tabular(np.full(size, 1 / size))
    assert value(pool, even_design(pool)) == pytest.approx(expected, rel=1e-12)
    assert value(pool, best_design(pool, 1e-6)) == pytest.approx(expected, rel=1e-6)


def test_a_star_shares_labels_by_the_root_of_pi_times_its_rest():
    policy = np.array([0.4, 0.3, 0.15, 0.1, 0.05])
    pool = tabular(policy, edges=[(0, leaf) for leaf in range(1, 5)])
    roots = np.sqrt(policy[1:] * (1 - policy[1:]))
    design = best_design(pool, 1e-8)
    np.testing.assert_allclose(design[pool.pair_mask], roots / roots.sum(), rtol=1e-3)
    assert value(pool, design) == pytest.approx(roots.sum() ** 2, rel=1e-6)


def test_orthogonal_pairs_share_by_root_importance_over_length():
    lengths, importance = np.array([1.0, 2.0, 0.5]), np.array([1.0, 3.0, 0.2])
    features = np.stack([np.diag(lengths), np.zeros((3, 3))], axis=1)
    ones = np.ones((3, 2), dtype=bool)
    pool = Pool(features=features, valid=ones, rewards=np.zeros((3, 2)), beta=1.0, fisher=np.diag(importance))
    ratios, design = np.sqrt(importance) / lengths, best_design(pool, 1e-8)
    np.testing.assert_allclose(design[:, 0], ratios / ratios.sum(), rtol=1e-3)
    assert value(pool, design) == pytest.approx(ratios.sum() ** 2, rel=1e-6)


@pytest.mark.parametrize("beta", [0.1, 1.0])
@pytest.mark.parametrize("dim", [1, 3, 7])
def test_two_independent_draws_a_label_lose_dim_over_beta_whatever_features_and_policy(dim, beta):
    rng = np.random.default_rng(4)
    features, log_probs = rng.standard_t(3, (20, 6, dim)), log_softmax(rng.standard_normal((20, 6)), axis=1)
    ones, fisher = np.ones((20, 6), dtype=bool), exact_fisher(features, log_probs)
    pool = Pool(features=features, valid=ones, rewards=np.zeros((20, 6)), beta=beta, log_probs=log_probs)
    first, second = pair_slots(6)
    with_ties = 2 * np.exp(log_probs[:, first] + log_probs[:, second]) / 20  # the rest of the mass is on ties
    predicted = predicted_gap(label_information(pool, with_ties), fisher, beta=beta)
    assert predicted == pytest.approx(dim / beta, rel=1e-9)


def test_a_direction_that_labels_never_show_costs_without_end_if_the_policy_bends_there():
    fisher = np.diag([1.0, 1.0, 0.0])
    assert predicted_gap(np.diag([2.0, 4.0, 0.0]), fisher, beta=2.0) == pytest.approx(0.75)
    assert predicted_gap(np.diag([2.0, 0.0, 1.0]), fisher, beta=2.0) == np.inf
    assert predicted_gap(np.zeros((3, 3)), fisher, beta=2.0) == np.inf


def test_pairs_by_the_policy_have_prompts_alike_and_ties_drawn_again():
    world = CONTEXTUAL.draw(np.random.default_rng(0))
    design, shares = drawn_design(world.pool), np.exp(world.pool.log_probs[2])
    np.testing.assert_allclose(design.sum(axis=1), 1 / 8)
    first, second = pair_slots(4)
    expected = shares[first] * shares[second] * 2 / (1 - np.square(shares).sum()) / 8
    np.testing.assert_allclose(design[2], expected)
    with pytest.raises(ValueError, match="needs the log_probs"):
        drawn_design(replace(world.pool, log_probs=None))


@pytest.mark.parametrize("environment", [CONTEXTUAL, Tabular(num_responses=8, reward_scale=1.0)])
def test_no_design_is_predicted_less_than_the_oracle(environment):
    for seed in range(3):
        limit = Limit.of(environment.draw(np.random.default_rng(seed)))
        predicted = {name: limit.predicted(design) for name, design in limit.designs.items()}
        assert list(predicted) == list(DESIGNS)
        assert predicted["oracle"] * 0.99 <= min(predicted.values())
        assert predicted["plug_in"] < predicted["uniform"]


def test_without_a_reward_plug_in_is_the_oracle():
    limit = Limit.of(replace(CONTEXTUAL, reward_scale=1e-6).draw(np.random.default_rng(1)))
    np.testing.assert_allclose(limit.designs["plug_in"], limit.designs["oracle"], atol=1e-4)


@pytest.mark.parametrize("environment", [CONTEXTUAL, Tabular(num_responses=6, beta=0.5)])
def test_policies_trained_on_many_labels_lose_what_is_predicted(environment):
    world = environment.draw(np.random.default_rng(2))
    limit, beta, size = Limit.of(world), world.pool.beta, 30_000
    for place, name in enumerate(("uniform", "plug_in")):
        design, gaps = limit.designs[name], []
        for draw in range(400):
            wins, losses = draw_labels(world, design, size, np.random.default_rng([place, draw]))
            theta = fit_counts(world.pool.space, wins, losses, beta=beta, ridge=1e-6)
            gaps.append(size * limit.target.regret(limit.target.policy(theta), beta=beta))
        error = np.std(gaps) / np.sqrt(len(gaps))
        assert error < 0.06 * np.mean(gaps)
        assert abs(np.mean(gaps) - limit.predicted(design)) < 3 * error


def test_a_world_in_which_a_premise_fails_is_refused():
    rng = np.random.default_rng(3)
    with pytest.raises(ValueError, match=r"features leave 0\.\d+ of the utilities unexplained"):
        Limit.of(replace(CONTEXTUAL, fit=0.5).draw(rng))
    with pytest.raises(ValueError, match=r"flip_rate is 0\.1: the theory's labels are Bradley-Terry"):
        Limit.of(replace(CONTEXTUAL, flip_rate=0.1).draw(rng))
    world = CONTEXTUAL.draw(rng)
    with pytest.raises(ValueError, match="the pool has no log_probs"):
        Limit.of(replace(world, pool=replace(world.pool, log_probs=None)))
