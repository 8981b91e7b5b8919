import numpy as np
import pytest

from tasks.design.preprocess import Projection, fit_projection, fit_scaling


def fitted(features, valid, *, dim) -> Projection:
    """The projection fitted on the valid responses, which come prompt by prompt."""
    return fit_projection(lambda: (rows[kept] for rows, kept in zip(features, valid, strict=True)), dim=dim)


def pool_features(seed=0, shape=(40, 5, 6)):
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((shape[2], shape[2])) * np.arange(1, shape[2] + 1)
    return rng.standard_normal(shape) @ mixing + 10, rng.random(shape[:2]) < 0.8


def test_kept_axes_are_uncorrelated_and_hold_the_largest_variances_of_the_standardised_responses():
    features, valid = pool_features()
    mapped = fitted(features, valid, dim=4)(features)
    rows = features[valid]
    largest = np.linalg.eigvalsh(np.corrcoef(rows, rowvar=False))[::-1][:4]
    np.testing.assert_allclose(np.cov(mapped[valid], rowvar=False, bias=True), np.diag(largest), atol=1e-10)
    np.testing.assert_allclose(mapped[valid].mean(axis=0), 0, atol=1e-12)


def test_only_valid_responses_are_fitted():
    features, valid = pool_features()
    spoiled = np.where(valid[:, :, None], features, 1e6)
    np.testing.assert_array_equal(fitted(spoiled, valid, dim=3).axes, fitted(features, valid, dim=3).axes)


def test_keeping_every_axis_keeps_the_distances_of_the_standardised_responses():
    features, valid = pool_features()
    projection = fitted(features, valid, dim=100)
    assert projection.axes.shape == (6, 6)
    standard = projection.standardise(features)
    gaps, mapped_gaps = (np.linalg.norm(x[:, :1] - x[:, 1:], axis=2) for x in (standard, projection(features)))
    np.testing.assert_allclose(mapped_gaps, gaps, rtol=1e-10)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_constant_columns_and_missing_directions_are_dropped_without_a_nan(dtype):
    features, valid = pool_features()
    doubled = np.concatenate([features, features[:, :, :2], np.full((40, 5, 1), 0.1), np.zeros((40, 5, 1))], axis=2)
    projection = fitted(doubled.astype(dtype), valid, dim=10)
    assert projection.gain[-2:].tolist() == [0.0, 0.0]
    assert np.isfinite(projection(doubled)).all()
    if dtype is np.float64:
        assert projection.axes.shape == (10, 6)


@pytest.mark.parametrize("value", [0.0, 3.7, 1e8])
def test_responses_that_are_all_equal_map_to_zero(value):
    features, valid = np.full((3, 2, 4), value), np.ones((3, 2), dtype=bool)
    mapped = fitted(features, valid, dim=2)(features)
    assert mapped.shape == (3, 2, 1)
    assert not mapped.any()


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_the_unit_of_a_column_does_not_matter(scale):
    features, valid = pool_features()
    expected = fitted(features, valid, dim=3)(features)
    np.testing.assert_allclose(fitted(features * scale, valid, dim=3)(features * scale), expected, atol=1e-8)


def test_the_largest_entry_of_each_axis_is_positive_and_mirrored_features_get_the_same_axes():
    features, valid = pool_features()
    axes = fitted(features, valid, dim=4).axes
    assert (axes[np.abs(axes).argmax(axis=0), np.arange(4)] > 0).all()
    np.testing.assert_allclose(fitted(-features, valid, dim=4).axes, axes, atol=1e-10)


def test_earlier_features_go_through_the_same_map_and_lose_what_all_share():
    features, valid = pool_features()
    projection = fitted(features, valid, dim=4)
    first, second = (np.random.default_rng(seed).standard_normal((7, 6)) for seed in (1, 2))
    expected = ((first - second) * projection.gain) @ projection.axes
    np.testing.assert_allclose(projection(first) - projection(second), expected, atol=1e-12)


def test_faulty_requests_are_refused():
    features, valid = pool_features()
    with pytest.raises(ValueError, match="can't keep 0 axes"):
        fitted(features, valid, dim=0)
    spoiled = features.copy()
    spoiled[3, 2, 4] = np.nan
    for fit in (fit_scaling, lambda blocks: fit_projection(blocks, dim=2)):
        with pytest.raises(ValueError, match="no response is valid"):
            fit(lambda: iter([features[0, :0]]))
        with pytest.raises(ValueError, match="not finite at response 17"):
            fit(lambda: iter(spoiled))


@pytest.mark.parametrize("unit", [1e-20, 1.0, 1e20])
def test_scaling_makes_the_mean_square_1_and_keeps_every_ratio(unit):
    features, _ = pool_features()
    scaling = fit_scaling(lambda: iter(features * unit))
    mapped = scaling((features * unit).astype(np.float32))
    assert mapped.dtype == np.float32
    rows = mapped.reshape(-1, 6).astype(np.float64)
    assert rows.var(axis=0).mean() == pytest.approx(1, rel=1e-4)
    np.testing.assert_allclose(mapped / mapped[0, 0, 0], features / features[0, 0, 0], rtol=1e-5)


def test_zeros_are_scaled_to_zeros():
    zeros = np.zeros((4, 3), dtype=np.float32)
    assert fit_scaling(lambda: iter([zeros]))(zeros).tolist() == zeros.tolist()


def test_few_long_rows_are_mapped_to_coordinates_that_keep_every_inner_product():
    rng = np.random.default_rng(0)
    rows, others = rng.standard_normal((6, 50)).astype(np.float32), rng.standard_normal((4, 50)).astype(np.float32)
    scaling = fit_scaling(lambda: iter([rows[:2], rows[2:]]), lambda: iter([others]))
    mapped = np.concatenate([scaling(rows), scaling(others)])
    whole = fit_scaling(lambda: iter([rows]), lambda: iter([np.tile(others, (20, 1))]))
    kept = np.concatenate([whole(rows), whole(others)]).astype(np.float64)
    assert (scaling.dim, whole.dim, mapped.shape, mapped.dtype) == (10, 50, (10, 10), np.float64)
    np.testing.assert_allclose(mapped @ mapped.T, kept @ kept.T, rtol=1e-5, atol=1e-5)
