from dataclasses import replace

import numpy as np
import pytest

from tasks.design.criterion import effective_rank, trace_criterion
from tasks.design.pool import Pool


def one_hot_pool(num_responses, *, beta=1.0):
    population = np.eye(num_responses) / num_responses - 1 / num_responses**2
    return Pool(
        features=np.eye(num_responses)[None],
        valid=np.ones((1, num_responses), dtype=bool),
        rewards=np.zeros((1, num_responses)),
        beta=beta,
        fisher=population,
    )


def test_the_objective_is_the_trace_of_its_definition(make_pool, pair_vectors, labels_of):
    prior = np.diag([0.3, 0.0, 2.0])
    pool = replace(make_pool(masked=True), labels=labels_of(prior, beta=0.7))
    weights = np.random.default_rng(5).random(pool.pair_mask.shape)
    vectors = pair_vectors(pool)
    matrix = 0.01 * np.eye(3) + prior + (vectors * weights.reshape(-1, 1)).T @ vectors
    expected = np.trace(pool.policy_fisher @ np.linalg.inv(matrix))
    assert trace_criterion(pool, ridge=0.01).objective(weights) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dim", [1, 3, 7])
@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_uniform_weights_give_two_dim_over_beta_squared_whatever_the_features(dim, beta):
    """The information of one uniform pair at round 0 is beta^2 sigma'(0) 2 H = (beta^2 / 2) H."""
    features = np.random.default_rng(6).standard_t(3, (20, 6, dim)) * np.arange(1, dim + 1)
    ones = np.ones((20, 6), dtype=bool)
    pool = Pool(features=features, valid=ones, rewards=np.zeros((20, 6)), beta=beta)
    uniform = np.full(pool.pair_mask.shape, 1 / pool.num_pairs)
    found = trace_criterion(pool, ridge=0.0).objective(uniform)
    assert found == pytest.approx(2 * dim / beta**2, rel=1e-10)


@pytest.mark.parametrize(("num_responses", "expected"), [(3, 2 / 3), (6, 25 / 12), (9, 64 / 18)])
def test_uniform_comparison_of_one_hot_responses_has_the_resistance_of_the_complete_graph(num_responses, expected):
    pool = one_hot_pool(num_responses)
    uniform = np.full(pool.pair_mask.shape, 1 / pool.num_pairs)
    assert trace_criterion(pool, ridge=1e-9).objective(uniform) == pytest.approx(4 * expected, rel=1e-6)


def test_pairs_weighted_by_a_uniform_or_any_other_policy_agree_with_uniform_pairs():
    policy = np.array([0.5, 0.25, 0.15, 0.1])
    pool = replace(one_hot_pool(4), fisher=np.diag(policy) - np.outer(policy, policy))
    criterion = trace_criterion(pool, ridge=1e-10)
    by_policy = np.outer(policy, policy)[np.triu_indices(4, 1)][None]
    expected = 4 * 3 * (1 - np.square(policy).sum()) / 2
    assert criterion.objective(np.full((1, 6), 1 / 6)) == pytest.approx(expected, rel=1e-6)
    assert criterion.objective(by_policy / by_policy.sum()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("sign", [+1, -1])
def test_adding_and_removing_a_pair_follow_the_rank_one_formula(make_pool, pair_vectors, sign):
    pool = make_pool()
    criterion = trace_criterion(pool, ridge=0.05)
    weights = np.full(pool.pair_mask.shape, 1.5)
    expansion = criterion.expand(criterion.information(weights))
    gains = criterion.gains(expansion).ravel()
    leverages = np.square(pair_vectors(pool) @ expansion.inverse_root).sum(axis=1)
    for pair in range(weights.size):
        changed = weights.copy().ravel()
        changed[pair] += sign
        change = (expansion.worth if sign > 0 else expansion.price)(gains[[pair]], leverages[[pair]])[0]
        expected = expansion.objective - sign * change
        assert criterion.objective(changed.reshape(weights.shape)) == pytest.approx(expected, rel=1e-10)


def test_scores_are_the_negative_gradient(make_pool):
    pool = make_pool((2, 3, 2))
    criterion = trace_criterion(pool, ridge=0.1)
    weights = np.random.default_rng(7).random((2, 3))
    scores = criterion.gains(criterion.expand(criterion.information(weights)))
    for place in np.ndindex(2, 3):
        step = np.zeros((2, 3))
        step[place] = 1e-5
        slope = (criterion.objective(weights + step) - criterion.objective(weights - step)) / 2e-5
        assert scores[place] == pytest.approx(-slope, rel=1e-6)


def test_the_best_step_is_the_best_of_a_fine_grid(make_pool):
    for seed in range(8):
        pool = make_pool((8, 4, 5), seed=seed, decay=1.0)
        criterion = trace_criterion(pool, ridge=1e-3)
        rng = np.random.default_rng(seed)
        begin, end = (criterion.information(rng.random(pool.pair_mask.shape) ** 6) for _ in range(2))
        step = criterion.expand(begin).best_step(end - begin)
        grid = np.linspace(0, 1, 2001)
        values = [criterion.expand(begin + share * (end - begin)).objective for share in grid]
        assert abs(step - grid[np.argmin(values)]) <= 5.1e-4


def test_the_curves_give_the_second_derivative(make_pool):
    pool = make_pool((8, 4, 3))
    criterion = trace_criterion(pool, ridge=1e-2)
    rng = np.random.default_rng(8)
    begin, end = (criterion.information(rng.random(pool.pair_mask.shape)) for _ in range(2))
    expansion = criterion.expand(begin)
    at = [criterion.expand(begin + share * (end - begin)).objective for share in (-1e-3, 0.0, 1e-3)]
    expected = (at[0] - 2 * at[1] + at[2]) / 1e-6
    assert 2 * np.square(expansion.curve(end - begin)).sum() == pytest.approx(expected, rel=1e-4)


def test_more_labels_never_raise_the_objective_and_copies_divide_it(make_pool):
    criterion = trace_criterion(make_pool(), ridge=1e-12)
    weights = np.random.default_rng(9).random(criterion.mask.shape)
    assert criterion.objective(3 * weights) == pytest.approx(criterion.objective(weights) / 3, rel=1e-9)
    for pair in range(weights.size):
        more = weights.copy()
        more.flat[pair] += 0.5
        assert criterion.objective(more) < criterion.objective(weights)


def test_the_effective_rank_counts_equal_directions_and_ignores_scale():
    assert effective_rank(np.diag([2.0, 2.0, 2.0, 0.0])) == pytest.approx(3)
    assert effective_rank(1e-200 * np.diag([4.0, 2.0])) == pytest.approx(36 / 20)
    assert effective_rank(np.zeros((3, 3))) == 0


def test_a_fisher_matrix_with_a_negative_eigenvalue_is_refused(make_pool):
    pool = replace(make_pool(), fisher=np.diag([1.0, -0.5, 1.0]))
    with pytest.raises(ValueError, match=r"fisher has the negative eigenvalue -0\.5"):
        trace_criterion(pool, ridge=1e-3)


def test_information_that_swallows_the_ridge_still_factorises(make_pool):
    criterion = trace_criterion(make_pool(), ridge=1e-3)
    direction = np.array([1.0, 1.0, 1.0])
    held = 1e20 * np.outer(direction, direction) - 1e3 * np.eye(3)  # as rounding may leave it
    expansion = criterion.expand(held)
    assert np.isfinite(expansion.inverse_root).all()
    assert np.abs(expansion.inverse_root).max() <= 1 / np.sqrt(1e-3)
