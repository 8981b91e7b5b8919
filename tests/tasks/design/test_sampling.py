import numpy as np
import pytest

from tasks.design.sampling import draw, inclusion_probabilities, weighted_order


def assert_rates(counts, probabilities, draws):
    """Every rate within 4 standard errors; certainties exactly."""
    error = np.sqrt(probabilities * (1 - probabilities) / draws)
    assert (np.abs(counts / draws - probabilities) <= 4 * error).all()


def counted(sample, size, draws):
    counts = np.zeros(size)
    for _ in range(draws):
        counts[sample()] += 1
    return counts


@pytest.mark.parametrize("size", [0, 1, 5, 17, 39, 40])
@pytest.mark.parametrize("spread", [0.0, 1.0, 20.0])
def test_probabilities_sum_to_the_size_and_are_proportional_below_one(size, spread):
    weights = np.exp(spread * np.random.default_rng(size).standard_normal(40))
    probabilities = inclusion_probabilities(weights, size)
    below = probabilities < 1
    assert probabilities.sum() == pytest.approx(size, rel=1e-12)
    assert ((probabilities >= 0) & (probabilities <= 1)).all()
    if 0 < size < 40:
        ratios = probabilities[below] / weights[below]
        np.testing.assert_allclose(ratios, ratios[0], rtol=1e-9)
        assert (weights[~below] * ratios[0] >= 1 - 1e-9).all()


def test_a_weight_above_its_share_is_certain_and_leaves_the_rest_to_the_others():
    np.testing.assert_allclose(inclusion_probabilities(np.array([10.0, 1.0, 2.0, 1.0]), 2), [1, 0.25, 0.5, 0.25])


def test_items_without_weight_share_what_those_with_weight_leave():
    np.testing.assert_allclose(
        inclusion_probabilities(np.array([0.0, 3.0, 0.0, 1.0, 0.0]), 3), [1 / 3, 1, 1 / 3, 1, 1 / 3]
    )
    np.testing.assert_array_equal(inclusion_probabilities(np.array([0.0, 3.0, 1.0]), 2), [0, 1, 1])
    np.testing.assert_array_equal(inclusion_probabilities(np.zeros(4), 1), np.full(4, 0.25))


def test_weights_three_hundred_orders_apart_keep_their_proportions():
    probabilities = inclusion_probabilities(np.array([1.0, 3e-300, 1e-300]), 2)
    np.testing.assert_allclose(probabilities, [1, 0.75, 0.25])


@pytest.mark.parametrize("size", [-1, 4])
def test_a_size_that_the_items_do_not_allow_is_refused(size):
    with pytest.raises(ValueError, match=f"size is {size}: 3 items allow 0 to 3"):
        inclusion_probabilities(np.ones(3), size)


@pytest.mark.parametrize("wrong", [-1.0, np.nan, np.inf])
def test_weights_that_are_no_weights_are_refused(wrong):
    with pytest.raises(ValueError, match="negative or not finite"):
        inclusion_probabilities(np.array([1.0, wrong]), 1)


@pytest.mark.parametrize("wrong", [[0.5, 0.4], [1.5, 0.5], [np.nan, 1.0]])
def test_probabilities_of_no_fixed_size_are_refused(wrong):
    with pytest.raises(ValueError, match="sum to a whole number"):
        draw(np.array(wrong), np.random.default_rng(0))


def test_a_draw_holds_each_item_as_often_as_its_probability_says():
    rng, draws = np.random.default_rng(0), 20_000
    probabilities = inclusion_probabilities(np.array([8.0, 0.0, 1.0, 2.0, 3.0, 0.5, 0.01, 3.0]), 4)
    assert_rates(counted(lambda: draw(probabilities, rng), 8, draws), probabilities, draws)


def test_the_order_of_a_draw_is_random():
    rng, draws = np.random.default_rng(1), 4000
    probabilities = np.array([1.0, 0.5, 0.5, 1.0])
    first = counted(lambda: draw(probabilities, rng)[0], 4, draws)
    assert_rates(first, probabilities / 3, draws)


@pytest.mark.parametrize("size", [1, 37, 500, 999])
def test_draws_are_distinct_and_of_the_size_despite_rounding(size):
    rng = np.random.default_rng(size)
    for _ in range(200):
        probabilities = inclusion_probabilities(rng.random(1000) ** 8, size)
        sample = draw(probabilities, rng)
        assert len(sample) == size == len(np.unique(sample))
        assert np.isin(np.flatnonzero(probabilities == 1), sample).all()


class _Start:
    """A generator that permutes nothing and starts at a chosen point."""

    def __init__(self, start):
        self.start = start

    def random(self):
        return self.start

    def permutation(self, items):
        return items


@pytest.mark.parametrize("start", [0.0, 1e-17, 0.1, 0.5, np.nextafter(1, 0)])
@pytest.mark.parametrize("value", [0.1, 1 / 3, 0.7, 1 - 1e-16])
def test_points_that_rounding_puts_on_an_edge_hit_distinct_items(start, value):
    probabilities = np.full(30, value)
    probabilities *= np.round(probabilities.sum()) / probabilities.sum()
    sample = draw(np.minimum(probabilities, np.nextafter(1, 0)), _Start(start))
    assert len(np.unique(sample)) == len(sample) == round(30 * value)
    assert sample.max() < 30


def test_nothing_drawn_and_everything_drawn():
    rng = np.random.default_rng(0)
    assert len(draw(np.zeros(5), rng)) == 0
    assert sorted(draw(np.ones(5), rng)) == [0, 1, 2, 3, 4]


def test_a_weighted_order_draws_by_weight_from_those_left_and_takes_those_without_weight_last():
    rng, draws = np.random.default_rng(2), 20_000
    weights = np.array([3.0, 0.0, 1.0, 0.0, 2.0])
    orders = np.array([weighted_order(weights, rng) for _ in range(draws)])
    assert_rates(np.bincount(orders[:, 0], minlength=5), weights / 6, draws)
    after_the_heaviest = orders[orders[:, 0] == 0][:, 1]
    expected = np.array([0, 0, 1 / 3, 0, 2 / 3])
    assert_rates(np.bincount(after_the_heaviest, minlength=5), expected, len(after_the_heaviest))
    assert_rates(np.bincount(orders[:, 3], minlength=5), np.array([0, 0.5, 0, 0.5, 0]), draws)
