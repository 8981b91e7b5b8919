"""Few seeds: Student's test and Holm's correction are what they are in books, and further seeds do show."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from tasks.design.inference import (
    MOST_SEEDS,
    POWER,
    further_seeds,
    power,
    probability_above,
    sign_flips,
    student,
    wilson,
)
from tasks.design.statistics import LEVEL


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("num_seeds", [2, 3, 5, 20])
def test_one_column_is_the_paired_t_test(num_seeds: int) -> None:
    values = rng().normal(0.5, 1.0, num_seeds)
    (found,) = student([values])
    expected = stats.ttest_1samp(values, 0.0)
    interval = expected.confidence_interval(1 - LEVEL)
    assert (found.mean, found.error) == pytest.approx((values.mean(), stats.sem(values)))
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.p_value == found.adjusted == pytest.approx(expected.pvalue)


def test_a_family_is_corrected_step_by_step_whatever_its_columns_lengths() -> None:
    columns = [rng(1).normal(2, 1, 3), rng(2).normal(0, 1, 5), rng(3).normal(1, 1, 4)]
    alone = [stats.ttest_1samp(column, 0.0).pvalue for column in columns]
    first, second, third = sorted(alone)
    by_hand = {
        first: min(1, 3 * first),
        second: min(1, max(3 * first, 2 * second)),
        third: min(1, max(3 * first, 2 * second, third)),
    }
    assert [found.adjusted for found in student(columns)] == pytest.approx([by_hand[p_value] for p_value in alone])


def test_the_order_of_seeds_and_of_columns_means_nothing() -> None:
    columns = [rng(seed).normal(0.4, 1, 6) for seed in range(4)]
    turned = student([column[::-1] for column in columns[::-1]])[::-1]
    assert turned == student(columns)


def test_equal_differences_show_no_more_than_their_signs() -> None:
    few, many, none = student([np.full(3, 0.25), np.full(6, 0.25), np.zeros(6)])
    assert (few.p_value, few.low, few.high) == (0.25, 0.25, 0.25)
    assert many.p_value == 1 / 32
    assert (none.p_value, none.verdict) == (1.0, "no difference shown")
    assert few.verdict == "no difference shown"


@pytest.mark.parametrize("values", [[0.1], [], [0.1, math.nan], [0.1, math.inf]])
def test_columns_that_tell_nothing_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match=r"run 2 or more|run that seed again"):
        student([np.array(values)])


def test_the_probability_is_that_of_the_posterior_t_and_of_the_other_side_the_rest() -> None:
    values = np.array([0.3, -0.1, 0.4, 0.2])
    (found,), (turned,) = student([values]), student([-values])
    assert probability_above(found) == pytest.approx(stats.t.cdf(found.mean / found.error, 3))
    assert probability_above(found) + probability_above(turned) == pytest.approx(1)
    assert probability_above(student([np.full(2, 0.1)])[0]) == 0.75
    assert probability_above(student([np.zeros(4)])[0]) == 0.5


def test_power_is_the_share_of_samples_that_student_shows() -> None:
    samples = rng().normal(0.8, 1.0, (4000, 8))
    shown = np.mean(stats.ttest_1samp(samples, 0.0, axis=1).pvalue <= LEVEL)
    assert power(0.8, 8) == pytest.approx(shown, abs=0.025)
    assert power(0.0, 8) == pytest.approx(LEVEL)
    assert power(50.0, 3) == pytest.approx(1)


def test_further_seeds_are_the_fewest_that_have_the_power() -> None:
    values = np.array([0.5, -0.2, 0.4, 0.1])
    effect, family = values.mean() / values.std(ddof=1), 3
    further = further_seeds(values, family)
    assert further is not None
    assert power(effect, 4 + further, LEVEL / family) >= POWER > power(effect, 3 + further, LEVEL / family)
    alone = further_seeds(values, 1)
    assert alone is not None
    assert alone < further


def test_further_seeds_have_an_end_and_a_difference_of_nothing_has_none() -> None:
    assert further_seeds(np.array([1.0, -0.9999]), 1) == MOST_SEEDS
    assert further_seeds(np.array([0.1, -0.1]), 1) is None
    assert further_seeds(np.array([0.1]), 1) is None
    assert further_seeds(np.full(2, 0.1), 1) == 4, "six equal signs have a chance of 1 in 32"
    assert further_seeds(np.full(2, 0.1), 2) == 5


def test_turned_signs_are_counted_one_by_one() -> None:
    values = rng().normal(0.5, 1, (6, 2))

    def largest(signs: tuple[int, ...]) -> np.ndarray:
        turned = np.array(signs)[:, None] * values
        found: np.ndarray = np.abs(turned.mean(axis=0) / turned.std(axis=0))
        return found

    drawn = np.array([largest(signs) for signs in itertools.product([1, -1], repeat=6)])
    observed = largest((1,) * 6)
    best = int(np.argmax(observed))
    first = np.mean(drawn.max(axis=1) >= observed[best] - 1e-9)
    second = max(first, np.mean(drawn[:, 1 - best] >= observed[1 - best] - 1e-9))
    found = sign_flips(values, rng())
    assert (found[best], found[1 - best]) == pytest.approx((first, second))


def test_fewer_than_six_seeds_show_nothing_by_their_signs() -> None:
    assert sign_flips(np.full((5, 1), 1.0) + 0.01 * rng().random((5, 1)), rng()) == [1 / 16]
    assert sign_flips(np.full((6, 1), 1.0) + 0.01 * rng().random((6, 1)), rng()) == [1 / 32]


def test_wilsons_interval_is_scipys() -> None:
    for found, tried in ((0, 20), (7, 200), (20, 20)):
        expected = stats.binomtest(found, tried).proportion_ci(method="wilson")
        assert wilson(found, tried) == pytest.approx((expected.low, expected.high), abs=1e-12)
