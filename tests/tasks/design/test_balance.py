from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chi2

from tasks.design.balance import capped_shares, random_counts, ross_order, spread_pairs, systematic
from tasks.design.limits import limits_of
from tasks.design.pool import Pool
from tasks.design.sampling import inclusion_probabilities
from tasks.design.selectors.balanced import Balanced, expected_counts
from tasks.design.selectors.baselines import Uniform

DRAWS = 20_000


def assert_rates(samples, probabilities):
    """A chi-square test of the samples' mean (n,), whatever items come together; certainties exactly.

    Args:
        samples: 0 and 1, (draws, n).
        probabilities: (n,).
    """
    fixed = (probabilities == 0) | (probabilities == 1)
    np.testing.assert_array_equal(samples[:, fixed].mean(axis=0), probabilities[fixed])
    loose = samples[:, ~fixed].astype(float)
    if not loose.shape[1]:
        return
    values, vectors = np.linalg.eigh(np.cov(loose.T, ddof=0).reshape(loose.shape[1], -1))
    kept = values > 1e-9
    errors = vectors.T @ (loose.mean(axis=0) - probabilities[~fixed])
    np.testing.assert_allclose(errors[~kept], 0, atol=1e-6)
    assert len(samples) * (errors[kept] ** 2 / values[kept]).sum() < chi2.ppf(1 - 1e-4, kept.sum())


def samples_of(draw, size, draws=DRAWS):
    samples = np.zeros((draws, size), dtype=bool)
    for sample in samples:
        sample[draw()] = True
    return samples


def within_one(counts, expected):
    return (counts >= np.floor(expected + 1e-9)).all() and (counts <= np.ceil(expected - 1e-9)).all()


def select(selector, pool, budget, seed=0):
    return selector(pool, budget, np.random.default_rng(seed))


def flat_index(pool, selection):
    return pool.index_of(selection.prompt, selection.first, selection.second)


@pytest.fixture(scope="module")
def ragged():
    """Prompts with 0 to 10 pairs, some of which are not offered."""
    valid = np.array([[1, 1, 1, 1, 1], [1, 0, 1, 0, 0], [0, 0, 0, 1, 0], [1, 1, 0, 1, 1], [1, 1, 1, 1, 1]], dtype=bool)
    offered = np.ones((5, 10), dtype=bool)
    offered[0, [2, 3, 7]] = offered[3, 0] = False
    features = np.random.default_rng(3).standard_normal((5, 5, 2)) * valid[:, :, None]
    return Pool(features=features, valid=valid, rewards=np.zeros((5, 5)), beta=1.0, offered=offered)


@pytest.mark.parametrize("blocks", [None, np.array([0, 0, 0, 1, 1, 1, 4, 4, 4, 4])])
def test_a_systematic_sample_holds_each_item_with_its_probability(blocks):
    probabilities = np.array([0.3, 1.0, 0.2, 0.0, 0.9, 0.6, 0.5, 0.25, 0.05, 0.2])
    rng = np.random.default_rng(0)
    samples = samples_of(lambda: systematic(probabilities, rng, blocks=blocks), 10)
    assert_rates(samples, probabilities)
    assert (samples.sum(axis=1) == 4).all()


@pytest.mark.parametrize("power", [0, 2, 12])
def test_every_run_of_items_is_hit_as_often_as_it_expects(power):
    rng = np.random.default_rng(power)
    for size in (1, 7, 30, 59):
        probabilities = inclusion_probabilities(rng.random(60) ** power, size)
        sample = systematic(probabilities, rng)
        assert (np.diff(sample) > 0).all()
        assert len(sample) == size
        loose = probabilities < 1
        sums = np.append(0, np.cumsum(np.where(loose, probabilities, 0)))
        counts = np.append(0, np.cumsum(loose & np.isin(np.arange(60), sample)))
        for run in range(1, len(sums)):
            assert within_one(counts[run:] - counts[:-run], sums[run:] - sums[:-run])


@pytest.mark.parametrize("width", [1, 3, 7])
def test_every_block_and_every_run_of_blocks_is_hit_as_often_as_it_expects(width):
    rng, blocks = np.random.default_rng(width), np.arange(60) // width
    for size in (1, 20, 59):
        probabilities = inclusion_probabilities(rng.random(60) ** 2, size)
        sample = systematic(probabilities, rng, blocks=blocks)
        assert len(np.unique(sample)) == len(sample) == size
        certain = probabilities == 1
        sums = np.append(0, np.cumsum(np.bincount(blocks, np.where(certain, 0, probabilities))))
        counts = np.append(0, np.cumsum(np.bincount(blocks[sample[~certain[sample]]], minlength=blocks[-1] + 1)))
        for run in range(1, len(sums)):
            assert within_one(counts[run:] - counts[:-run], sums[run:] - sums[:-run])


class _Edge:
    """A generator whose every number is the same."""

    def __init__(self, value):
        self.value = value

    def random(self, size=None):
        return self.value if size is None else np.full(size, self.value)


@pytest.mark.parametrize("value", [0.0, 1e-17, 1 / 3, 0.5, np.nextafter(1, 0)])
@pytest.mark.parametrize("items", [3, 7, 10, 49])
def test_blocks_that_expect_whole_numbers_get_them_despite_rounding(value, items):
    for wanted in range(1, items + 1):
        probabilities = np.concatenate(
            [np.full(items, wanted / items), [0.3, 0.4], np.full(items, wanted / items), [0.3]]
        )
        blocks = np.repeat([0, 1, 2, 3], [items, 2, items, 1])
        sample = systematic(probabilities, _Edge(value), blocks=blocks)
        counts = np.bincount(blocks[sample], minlength=4)
        assert counts[0] == counts[2] == wanted
        assert len(np.unique(sample)) == len(sample) == 2 * wanted + 1


@pytest.mark.parametrize("value", [0.0, 0.25, 0.5, 0.7, np.nextafter(1, 0)])
def test_items_that_are_all_but_certain_are_drawn_once(value):
    probabilities = np.concatenate([[0.7], np.full(20_000, np.nextafter(1, 0)), [0.3]])
    sample = systematic(probabilities, _Edge(value))
    assert len(np.unique(sample)) == len(sample) == 20_001
    assert sample.max() <= 20_001


@pytest.mark.parametrize("scale", [1e-300, 1e-12])
def test_items_of_hardly_any_probability_do_no_harm(scale):
    probabilities = np.full(1000, scale)
    probabilities[[3, 500, 501]] = 1 - 997 * scale, 0.5, 0.5
    for blocks in (None, np.arange(1000) // 10):
        sample = systematic(probabilities, np.random.default_rng(0), blocks=blocks)
        assert sample.tolist() in ([3, 500], [3, 501])


def test_nothing_and_everything_are_drawn():
    rng, blocks = np.random.default_rng(0), np.array([0, 0, 1])
    for given in (None, blocks):
        assert systematic(np.zeros(3), rng, blocks=given).tolist() == []
        assert systematic(np.ones(3), rng, blocks=given).tolist() == [0, 1, 2]
    assert systematic(np.zeros(0), rng).tolist() == []


@pytest.mark.parametrize("wrong", [[0.5, 0.4], [1.5, 0.5], [np.nan, 1.0], [-0.5, 0.5]])
def test_probabilities_of_no_fixed_size_are_refused(wrong):
    with pytest.raises(ValueError, match="sum to a whole number"):
        systematic(np.array(wrong), np.random.default_rng(0))


def test_blocks_that_are_not_sorted_are_refused():
    with pytest.raises(ValueError, match="sort the items by block"):
        systematic(np.array([0.5, 0.5]), np.random.default_rng(0), blocks=np.array([1, 0]))


def test_random_counts_are_the_floor_or_the_ceiling_and_unbiased():
    expected, rng = np.array([0.25, 2.5, 0.0, 1.0, 3.75, 0.5]), np.random.default_rng(1)
    counts = np.array([random_counts(expected, rng) for _ in range(DRAWS)])
    assert (counts.sum(axis=1) == 8).all()
    assert all(within_one(row, expected) for row in counts)
    assert_rates((counts - np.floor(expected)).astype(bool), expected - np.floor(expected))


def test_capped_shares_are_proportional_below_the_room():
    sizes, room = np.array([10, 0, 1, 6, 3, 28]), np.array([2, 0, 1, 2, 2, 2])
    for total in range(10):
        shares = capped_shares(sizes, room, total)
        assert shares.sum() == pytest.approx(total)
        below = shares < room
        np.testing.assert_allclose(shares[below] / sizes[below], (shares[below] / sizes[below])[:1].repeat(below.sum()))
        level = (shares[below] / sizes[below]).max(initial=0)
        assert (room[~below] <= max(level, 1) * sizes[~below] + 1e-12).all()
    np.testing.assert_array_equal(capped_shares(sizes, room, 9), room)
    np.testing.assert_allclose(capped_shares(sizes, sizes, 12), sizes / 4)


@pytest.mark.parametrize("num_items", range(2, 17))
def test_the_order_of_ross_holds_every_pair_once_and_neighbours_share_no_item(num_items):
    first, second = ross_order(num_items)
    pairs = {frozenset(pair) for pair in zip(first.tolist(), second.tolist(), strict=True)}
    assert len(pairs) == len(first) == num_items * (num_items - 1) // 2
    assert all(len(pair) == 2 and max(pair) < num_items for pair in pairs)
    uses = np.zeros((len(first), num_items), dtype=int)
    np.add.at(uses, (np.arange(len(first)).repeat(2), np.stack([first, second], axis=1).ravel()), 1)
    for length in range(1, len(first) + 1):
        counts = sum(np.roll(uses, shift, axis=0) for shift in range(length))
        assert np.ptp(counts, axis=1).max() <= 3
        assert counts.max() == 1 or length >= num_items // 2 or num_items < 5


@pytest.mark.parametrize(
    ("budget", "cap", "draws"), [(11, 4, DRAWS), (1, None, 1000), (6, None, 1000), (17, None, 1000), (6, 2, 1000)]
)
def test_every_pair_comes_with_the_probability_told(ragged, budget, cap, draws):
    rng, selector = np.random.default_rng(budget), Balanced(max_pairs_per_prompt=cap)
    expected, sizes = expected_counts(limits_of(ragged, budget, cap=cap)), ragged.pair_mask.sum(axis=1)
    probabilities = (ragged.pair_mask * (expected / np.maximum(sizes, 1))[:, None]).ravel()
    samples = samples_of(lambda: flat_index(ragged, selector(ragged, budget, rng)), 50, draws)
    assert_rates(samples, probabilities)
    counts = samples.reshape(-1, 5, 10).sum(axis=2)
    assert (counts.sum(axis=1) == budget).all()
    assert all(within_one(row, expected) for row in counts)
    assert cap is None or counts.max() <= cap
    told = select(selector, ragged, budget)
    np.testing.assert_array_equal(told.inclusion_probabilities, probabilities[flat_index(ragged, told)])
    if cap is None:
        np.testing.assert_allclose(told.inclusion_probabilities, budget / ragged.num_pairs, rtol=1e-14)


def test_a_cap_takes_what_it_must_from_the_full_prompts_only(ragged):
    expected = expected_counts(limits_of(ragged, 13, cap=4))
    np.testing.assert_allclose(expected, [4, 1, 0, 4, 4])
    np.testing.assert_allclose(expected_counts(limits_of(ragged, 6, cap=2)), [2, 1 / 3, 0, 5 / 3, 2])


def test_totals_of_horvitz_and_thompson_are_unbiased_and_vary_less_than_those_of_uniform_draws(make_pool):
    pool, rng = make_pool((12, 6, 2), masked=True, seed=2), np.random.default_rng(0)
    gaps = np.abs(pool.space.rows(np.arange(pool.pair_mask.size))).sum(axis=1)
    values = np.where(pool.pair_mask.ravel(), gaps * np.repeat(np.exp(rng.standard_normal(12)), 15), 0.0)
    spreads = []
    for selector in (Balanced(), Uniform(), Balanced(max_pairs_per_prompt=3)):
        totals = []
        for _ in range(1500):
            drawn = selector(pool, 24, rng)
            totals.append((values[flat_index(pool, drawn)] / drawn.inclusion_probabilities).sum())
        assert abs(np.mean(totals) - values.sum()) < 4 * np.std(totals) / np.sqrt(len(totals))
        spreads.append(np.std(totals))
    assert spreads[0] < 0.8 * spreads[1]


def test_pairs_of_one_prompt_share_responses_as_little_as_they_can(make_pool):
    pool = make_pool((20, 8, 2))
    for seed in range(50):
        one_each, three_each = (select(Balanced(), pool, 20 * count, seed) for count in (1, 3))
        assert np.bincount(one_each.prompt).tolist() == [1] * 20
        responses = np.concatenate([8 * three_each.prompt + end for end in (three_each.first, three_each.second)])
        assert np.bincount(responses).max() == 1


def test_all_pairs_without_a_common_response_come_together(make_pool):
    pool, rng = make_pool((1, 6, 2)), np.random.default_rng(0)
    seen = {frozenset(flat_index(pool, Balanced()(pool, 2, rng)).tolist()) for _ in range(1000)}
    assert len(seen) == 45


def test_no_response_is_left_out_for_long(make_pool):
    pool = make_pool((15, 7, 2))
    for count in range(4, 21):
        selection = select(Balanced(), pool, 15 * count, count)
        ends = np.concatenate([7 * selection.prompt + end for end in (selection.first, selection.second)])
        assert np.ptp(np.bincount(ends, minlength=105)) <= 3


@pytest.mark.parametrize("count", [1, 2, 5, 9, 12])
@pytest.mark.parametrize("share", [0.7, 1.0])
def test_pairs_of_one_prompt_come_equally_often(count, share):
    mask = np.random.default_rng(3).random(15) < share
    copies = np.broadcast_to(mask, (DRAWS, 15))
    count = min(count, int(mask.sum()) - 1)
    taken = spread_pairs(copies, np.full(DRAWS, count), 6, np.random.default_rng(count))
    assert_rates(taken, mask * count / mask.sum())


def test_spread_pairs_keeps_to_the_mask_and_the_counts():
    rng = np.random.default_rng(0)
    mask = rng.random((40, 21)) < 0.6
    for _ in range(50):
        counts = rng.integers(0, mask.sum(axis=1) + 1)
        taken = spread_pairs(mask, counts, 7, rng)
        assert not (taken & ~mask).any()
        np.testing.assert_array_equal(taken.sum(axis=1), counts)


def test_the_seed_decides_pairs_and_their_order(make_pool):
    pool = make_pool((20, 5, 3), masked=True)
    one, same, other = (flat_index(pool, select(Balanced(), pool, 15, seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert set(one) != set(other)
    assert (np.diff(one) < 0).any()


def test_features_don_t_matter_not_even_if_all_are_alike(make_pool):
    pool = make_pool((10, 5, 3))
    alike = replace(pool, features=np.zeros((10, 5, 3)))
    np.testing.assert_array_equal(*(flat_index(each, select(Balanced(), each, 15)) for each in (pool, alike)))


@pytest.mark.parametrize("shape", [(1, 2, 2), (1, 7, 2), (9, 2, 2), (6, 5, 2)])
def test_all_pairs_one_pair_and_all_but_one(make_pool, shape):
    pool = make_pool(shape)
    for budget in {1, max(1, pool.num_pairs - 1), pool.num_pairs}:
        selection = select(Balanced(), pool, budget)
        assert len(np.unique(flat_index(pool, selection))) == budget
        np.testing.assert_allclose(selection.inclusion_probabilities, budget / pool.num_pairs)


def test_the_tightest_cap_is_met(make_pool):
    pool = make_pool((12, 5, 2), masked=True)
    for cap in (1, 2, 5):
        most = int(np.minimum(pool.pair_mask.sum(axis=1), cap).sum())
        selection = select(Balanced(max_pairs_per_prompt=cap), pool, most)
        np.testing.assert_array_equal(
            np.bincount(selection.prompt, minlength=12), np.minimum(pool.pair_mask.sum(axis=1), cap)
        )
        with pytest.raises(ValueError, match=f"cap of {cap} per prompt"):
            select(Balanced(max_pairs_per_prompt=cap), pool, most + 1)


def test_costs_are_paid_and_leave_probabilities_undefined(make_pool):
    pool = make_pool((12, 4, 3))
    pool = replace(pool, costs=np.random.default_rng(0).uniform(0.5, 3, pool.pair_mask.shape))
    selection = select(Balanced(), pool, 12)
    assert 9 < pool.costs.ravel()[flat_index(pool, selection)].sum() <= 12
    assert selection.inclusion_probabilities is None
