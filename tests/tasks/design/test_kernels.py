from dataclasses import replace

import numpy as np
import pytest

from tasks.design.criterion import curvature_of
from tasks.design.kernels import PairSpace, logistic_curvature, squared_lengths

SHAPES = [(1, 2, 3), (6, 4, 3), (3, 9, 5), (1500, 5, 4)]  # the last one crosses the borders between chunks


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("masked", [False, True])
def test_scores_equal_those_of_materialised_pairs(make_pool, pair_vectors, shape, masked):
    pool = make_pool(shape, masked=masked)
    root = np.random.default_rng(1).standard_normal((shape[2], 2))
    scores = pool.space.scores(curvature_of(pool), root)
    np.testing.assert_allclose(scores.ravel(), np.square(pair_vectors(pool) @ root).sum(axis=1), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [1.0, 0.1])  # most pairs go through Laplacians, few are gathered
def test_information_equals_that_of_materialised_pairs(make_pool, pair_vectors, shape, share):
    pool = make_pool(shape, masked=True)
    rng = np.random.default_rng(2)
    weights = rng.random(pool.pair_mask.shape) * (rng.random(pool.pair_mask.shape) < share)
    found = pool.space.information(curvature_of(pool) * weights)
    vectors = pair_vectors(pool)
    np.testing.assert_allclose(found, (vectors * weights.reshape(-1, 1)).T @ vectors, rtol=1e-10, atol=1e-12)


def test_single_precision_survives_a_component_shared_by_a_prompts_responses(make_pool):
    pool = make_pool((50, 6, 8))
    shared = 1e4 * np.random.default_rng(3).standard_normal((50, 1, 8))
    curvature = curvature_of(pool)
    exact = pool.space.scores(curvature, np.eye(8))
    single = PairSpace.of(pool.features + shared, pool.valid).scores(curvature, np.eye(8, dtype=np.float32))
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, exact, rtol=1e-4, atol=1e-5)


def test_within_prompt_covariance_averages_the_sample_covariances_of_prompts_with_two_responses():
    rng = np.random.default_rng(4)
    features = rng.standard_normal((4, 5, 3))
    valid = np.array([[1, 1, 1, 1, 1], [1, 0, 1, 0, 1], [0, 0, 1, 0, 0], [0, 1, 1, 0, 0]], dtype=bool)
    expected = np.mean([np.cov(features[p, valid[p]], rowvar=False) for p in (0, 1, 3)], axis=0)
    np.testing.assert_allclose(PairSpace.of(features, valid).covariance(), expected, rtol=1e-12)


def test_a_label_tells_most_about_the_scale_of_a_margin_at_2_39936():
    margins = np.linspace(0, 6, 600_001)
    told = margins**2 * logistic_curvature(margins)
    assert logistic_curvature(np.zeros(1))[0] == 0.25
    assert margins[told.argmax()] == pytest.approx(2.39936, abs=2e-5)
    assert told.max() == pytest.approx(0.439229, abs=1e-6)


def test_the_curvature_of_extreme_margins_vanishes_without_overflow(make_pool):
    pool = replace(make_pool(), rewards=np.tile([0.0, 1e8, -1e8, 1e308], (6, 1)))
    curvature = curvature_of(pool)
    assert np.isfinite(curvature).all()
    assert curvature.max() == 0


def test_single_precision_features_give_double_precision_information(make_pool, pair_vectors):
    pool = make_pool((1500, 5, 4))
    single = replace(pool, features=pool.features.astype(np.float32))
    weights = np.ones(pool.pair_mask.shape)
    found = single.space.information(curvature_of(single) * weights)
    assert found.dtype == np.float64
    vectors = pair_vectors(single)
    np.testing.assert_allclose(found, vectors.T @ vectors, rtol=1e-6)
    np.testing.assert_allclose(single.space.covariance(), pool.space.covariance(), rtol=1e-5, atol=1e-6)


def test_the_rows_of_pairs_are_their_differences(make_pool):
    pool = make_pool((7, 5, 3))
    pairs = np.array([69, 0, 33])
    prompt, first, second = pool.pairs(pairs)
    expected = pool.features[prompt, first] - pool.features[prompt, second]
    np.testing.assert_array_equal(pool.space.rows(pairs), expected)
    root = np.random.default_rng(5).standard_normal((3, 2))
    np.testing.assert_allclose(squared_lengths(expected, root), np.square(expected @ root).sum(axis=1), rtol=1e-12)
