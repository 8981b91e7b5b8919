from dataclasses import replace

import numpy as np
import pytest

from tasks.design.pool import Labels, Pool


def test_pairs_walk_the_upper_triangle_prompt_by_prompt(make_pool):
    prompt, first, second = make_pool((2, 3, 1)).pairs(np.arange(6))
    assert prompt.tolist() == [0, 0, 0, 1, 1, 1]
    assert first.tolist() == [0, 0, 1, 0, 0, 1]
    assert second.tolist() == [1, 2, 2, 1, 2, 2]


def test_an_index_is_that_of_its_pair(make_pool):
    pool = make_pool((5, 6, 1))
    index = np.random.default_rng(0).permutation(75)
    np.testing.assert_array_equal(pool.index_of(*pool.pairs(index)), index)


def test_only_pairs_of_two_valid_responses_count(make_pool):
    valid = np.array([[True, True, False, True], [False, True, False, False]])
    pool = replace(make_pool((2, 4, 1)), valid=valid)
    assert pool.num_pairs == 3
    _, first, second = pool.pairs(np.flatnonzero(pool.pair_mask))
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == [(0, 1), (0, 3), (1, 3)]


@pytest.mark.parametrize("name", ["features", "rewards", "scores", "log_probs"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_refused_with_its_place(make_pool, name, value):
    pool = make_pool((5, 4, 3))
    array = pool.features.copy() if name == "features" else np.zeros((5, 4))
    array[3, 2] = value
    with pytest.raises(ValueError, match=rf"{name} holds {value} at prompt 3, response 2"):
        replace(pool, **{name: array})


def test_a_matrix_with_a_nan_or_without_symmetry_is_refused(make_pool):
    pool, broken, skew = make_pool(), np.eye(3), np.eye(3)
    broken[1, 2], skew[0, 1] = np.nan, 0.5
    with pytest.raises(ValueError, match=r"fisher holds nan at row 1, column 2"):
        replace(pool, fisher=broken)
    with pytest.raises(ValueError, match=r"fisher differs from its transpose by 0\.5"):
        replace(pool, fisher=skew)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("rewards", (6, 3), r"\(6, 4\)"),
        ("scores", (5, 4), r"\(6, 4\)"),
        ("fisher", (4, 4), r"\(3, 3\)"),
        ("costs", (6, 4), r"\(6, 6\)"),
        ("offered", (6, 4), r"\(6, 6\)"),
    ],
)
def test_a_shape_that_disagrees_with_the_features_is_refused(make_pool, name, shape, expected):
    with pytest.raises(ValueError, match=rf"{name} has shape .*, the features ask for {expected}"):
        replace(make_pool(), **{name: np.zeros(shape)})


def test_features_that_are_not_floats_per_response_are_refused(make_pool):
    pool = make_pool()
    with pytest.raises(ValueError, match=r"features is float64 of shape \(6, 4\)"):
        replace(pool, features=pool.features[:, :, 0])
    with pytest.raises(ValueError, match="features is int64"):
        replace(pool, features=pool.features.astype(int))
    with pytest.raises(ValueError, match="valid holds float64"):
        replace(pool, valid=pool.rewards)


@pytest.mark.parametrize("beta", [0.0, -0.1, np.nan, np.inf])
def test_a_beta_without_meaning_is_refused(make_pool, beta):
    with pytest.raises(ValueError, match="beta is"):
        replace(make_pool(), beta=beta)


def test_the_policy_fisher_is_the_given_one_or_else_estimated(make_pool):
    pool = make_pool((40, 5, 3))
    given = np.diag([3.0, 2.0, 1.0])
    expected = np.mean([np.cov(features, rowvar=False) for features in pool.features], axis=0)
    np.testing.assert_allclose(pool.policy_fisher, expected, rtol=1e-12)
    assert replace(pool, fisher=given).policy_fisher is given


def test_a_pool_without_pairs_has_no_fisher_information():
    pool = Pool(features=np.ones((3, 2, 2)), valid=np.eye(3, 2, dtype=bool), rewards=np.zeros((3, 2)), beta=1.0)
    assert pool.num_pairs == 0
    assert not pool.policy_fisher.any()


def test_a_place_beyond_the_first_prompts_is_named_too():
    features = np.zeros((1200, 2, 1))
    features[777, 1, 0] = np.nan
    with pytest.raises(ValueError, match="features holds nan at prompt 777, response 1"):
        Pool(features=features, valid=np.ones((1200, 2), dtype=bool), rewards=np.zeros((1200, 2)), beta=1.0)


def test_pairs_that_are_not_offered_are_no_candidates(make_pool):
    pool = make_pool((2, 3, 1))
    offered = np.array([[True, False, True], [False, False, True]])
    assert np.flatnonzero(replace(pool, offered=offered).pair_mask).tolist() == [0, 2, 5]
    assert replace(pool, offered=offered, valid=np.eye(2, 3, dtype=bool)).num_pairs == 0


@pytest.mark.parametrize("price", [0.0, -1.0, np.nan, np.inf])
def test_a_price_without_meaning_is_refused(make_pool, price):
    costs = np.ones((6, 6))
    costs[2, 2] = price
    with pytest.raises(ValueError, match="costs holds an entry that is not positive and finite"):
        replace(make_pool(), costs=costs)


def test_labels_inform_by_their_curvature():
    rng = np.random.default_rng(5)
    differences, margins = rng.standard_normal((9, 3)), rng.standard_normal(9)
    expected = np.zeros((3, 3))
    for g, z in zip(differences, margins, strict=True):
        win = 1 / (1 + np.exp(-z))
        expected += 0.3**2 * win * (1 - win) * np.outer(g, g)
    labels = Labels(differences=differences, margins=margins)
    np.testing.assert_allclose(labels.information(beta=0.3), expected, rtol=1e-12)
    plain = labels.information(beta=0.3, logistic=False)
    np.testing.assert_allclose(plain, 0.09 * differences.T @ differences, rtol=1e-12)
    assert not Labels(differences=np.zeros((0, 3)), margins=np.zeros(0)).information(beta=0.3).any()


def test_labels_that_do_not_fit_are_refused(make_pool):
    with pytest.raises(ValueError, match=r"shapes \(9, 3\) and \(8,\)"):
        Labels(differences=np.zeros((9, 3)), margins=np.zeros(8))
    with pytest.raises(ValueError, match="margins of the labels hold nan at label 4"):
        Labels(differences=np.zeros((9, 3)), margins=np.where(np.arange(9) == 4, np.nan, 0))
    with pytest.raises(ValueError, match="features of the labels have 2 numbers, those of the pool 3"):
        replace(make_pool(), labels=Labels(differences=np.zeros((9, 2)), margins=np.zeros(9)))
