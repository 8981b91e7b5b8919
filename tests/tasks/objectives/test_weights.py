"""Weights: utilities of reward gaps, products of factors, clipping and what is left of the sample."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tasks.objectives.weights import UTILITIES, GapUtility, SigmoidUtility, SoftplusUtility, product

GAPS = arrays(np.float64, st.integers(2, 9), elements=st.floats(-50, 50))


@given(GAPS)
@pytest.mark.parametrize("kind", list(UTILITIES))
def test_a_larger_gap_never_weighs_less(kind: str, gaps: np.ndarray) -> None:
    weights = UTILITIES[kind]()(np.sort(gaps))
    assert np.isfinite(weights).all()
    assert (weights >= 0).all()
    assert (np.diff(weights) >= -1e-12).all()


@given(GAPS, st.floats(-20, 20))
def test_a_prompts_own_offset_of_rewards_changes_no_weight(gaps: np.ndarray, offset: float) -> None:
    chosen, rejected = gaps + 3.0 + offset, np.full_like(gaps, 3.0 + offset)
    expected = SigmoidUtility()(gaps)
    np.testing.assert_allclose(SigmoidUtility()(chosen - rejected), expected, atol=1e-12)


def test_utilities_are_their_formulas() -> None:
    gaps = np.array([-1.0, 0.0, 2.0])
    np.testing.assert_allclose(SigmoidUtility(beta_2=2.0)(gaps), 1 / (1 + np.exp(-2 * gaps)))
    np.testing.assert_allclose(SoftplusUtility(beta_2=2.0)(gaps), np.log(1 + np.exp(2 * gaps)))
    np.testing.assert_allclose(GapUtility()(gaps), [0, 0, 3])
    np.testing.assert_allclose(GapUtility()(-np.abs(gaps)), [1, 1, 1])
    assert SigmoidUtility(beta_2=1e9)(np.array([-1e3, 1e3])).tolist() == [0.0, 1.0]


def test_factors_are_multiplied_and_the_sample_that_is_left_is_told() -> None:
    weighting = product({"selection": np.array([1.0, 2.0, 4.0]), "utility": np.array([0.5, 0.5, 0.0])})
    assert weighting.weights.tolist() == [0.5, 1.0, 0.0]
    assert weighting.effective_sample_size == pytest.approx(1.5**2 / 1.25)
    assert weighting.num_clipped == 0
    assert product({"one": np.ones(7)}).effective_sample_size == pytest.approx(7)


def test_clipping_limits_weights_to_a_multiple_of_their_mean_and_raises_the_sample() -> None:
    weights = np.array([1.0, 1.0, 1.0, 9.0])
    free, clipped = product({"one": weights}), product({"one": weights}, clip=2.0)
    assert clipped.weights.tolist() == [1.0, 1.0, 1.0, 6.0]
    assert clipped.num_clipped == 1
    assert clipped.effective_sample_size > free.effective_sample_size


@pytest.mark.parametrize("odd", [-0.1, np.nan, np.inf])
def test_weights_that_are_none_are_refused_with_their_place(odd: float) -> None:
    with pytest.raises(ValueError, match=rf"weight 'selection' of pair number 1 is {odd}, and 1 of 3 are negative"):
        product({"selection": np.array([1.0, odd, 1.0])})


def test_nothing_but_weights_of_0_is_refused() -> None:
    with pytest.raises(ValueError, match=r"all 2 pairs have weight 0 \(one x other\)"):
        product({"one": np.array([1.0, 0.0]), "other": np.array([0.0, 1.0])})


@pytest.mark.parametrize("kind", [SigmoidUtility, SoftplusUtility])
def test_a_scale_has_to_be_above_0(kind: type[SigmoidUtility]) -> None:
    with pytest.raises(ValueError, match=r"beta_2 is 0\.0: expected a finite number above 0"):
        kind(beta_2=0.0)
