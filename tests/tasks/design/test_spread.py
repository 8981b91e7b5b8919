from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chisquare

from tasks.design.limits import Limits, limits_of
from tasks.design.pool import Pool
from tasks.design.spread import PairVectors, farthest_first, move_centres, nearest_to_means, sample_by_distance

LIMITS = [{}, {"cap": 1}, {"cap": 2}, {"costly": True}, {"costly": True, "cap": 2}]


def limited(pool, budget, *, cap=None, costly=False):
    costs = np.random.default_rng(9).choice([0.5, 1.0, 3.0], pool.pair_mask.shape) if costly else None
    return limits_of(replace(pool, costs=costs), budget, cap=cap)


def scales_of(pool):
    return np.random.default_rng(8).uniform(-1.5, 1.5, pool.pair_mask.shape)


def vectors_of(pool, *, scaled=True, oriented=False):
    return PairVectors.of(pool.space, pool.pair_mask, scales=scales_of(pool) if scaled else None, oriented=oriented)


def rows_of(pool, *, scaled=True):
    """Every vector of a pool, one after the other: the slow truth."""
    _, num_responses, dim = pool.features.shape
    first, second = np.triu_indices(num_responses, 1)
    rows = (pool.features[:, first] - pool.features[:, second]).astype(np.float64)
    return (rows * (scales_of(pool)[:, :, None] if scaled else 1.0)).reshape(-1, dim)


def squared_distances(rows, centre, *, oriented):
    apart = np.square(rows - centre).sum(axis=1)
    return apart if oriented else np.minimum(apart, np.square(rows + centre).sum(axis=1))


class Rulebook:
    """What fits, worked out afresh for every pick."""

    def __init__(self, limits):
        self.limits, self.taken = limits, []
        self.costs = np.ones(limits.mask.size) if limits.costs is None else limits.costs.ravel()

    @property
    def fits(self):
        width = self.limits.mask.shape[1]
        counts = np.bincount(np.array(self.taken, dtype=int) // width, minlength=len(self.limits.mask))
        fits = self.limits.mask.ravel() & (self.costs <= self.limits.budget - self.costs[self.taken].sum())
        fits &= np.repeat(counts < (self.limits.cap or width), width)
        fits[self.taken] = False
        return fits


def spread_out(rows, limits, choose, *, oriented, centres=()):
    """Pick by pick, with all distances from all centres computed anew."""
    rules, found, centres = Rulebook(limits), [], list(centres)
    while rules.fits.any():
        if centres:
            nearest = np.min([squared_distances(rows, centre, oriented=oriented) for centre in centres], axis=0)
            place = choose(np.where(rules.fits, nearest, 0.0))
        else:
            nearest = np.square(rows).sum(axis=1)
            place = int(np.where(rules.fits, nearest, -1.0).argmax())
        rules.taken.append(place)
        found.append(nearest[place])
        centres.append(rows[place])
    return rules.taken, found


def drawer(seed):
    rng = np.random.default_rng(seed)

    def draw(nearest):
        mass = np.cumsum(nearest)
        return int(np.searchsorted(mass, rng.random() * mass[-1], side="right"))

    return draw


@pytest.mark.parametrize("shape", [(1, 2, 3), (6, 4, 3), (900, 5, 4)])  # the last one crosses the borders of blocks
@pytest.mark.parametrize("oriented", [False, True])
def test_distances_equal_those_of_materialised_vectors(make_pool, shape, oriented):
    pool = make_pool(shape, masked=shape[0] > 1)
    centres = np.random.default_rng(2).standard_normal((40, shape[2]))
    rows = rows_of(pool)[pool.pair_mask.ravel()]
    found = list(vectors_of(pool, oriented=oriented).squared_distances(centres))
    expected = [squared_distances(rows, centre, oriented=oriented) for centre in centres]
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("oriented", [False, True])
def test_single_precision_stays_single_and_survives_what_a_prompts_responses_share(make_pool, oriented):
    pool = make_pool((50, 6, 8))
    shared = 1e3 * np.random.default_rng(3).standard_normal((50, 1, 8))
    single = replace(pool, features=(pool.features + shared).astype(np.float32))
    vectors = vectors_of(single, oriented=oriented)
    centres = vectors.rows(np.arange(5))
    found = list(vectors.squared_distances(centres))
    assert {centres.dtype, *(each.dtype for each in found)} == {np.dtype(np.float32)}
    expected = [squared_distances(rows_of(pool), centre, oriented=oriented) for centre in rows_of(pool)[:5]]
    np.testing.assert_allclose(found, expected, rtol=3e-3, atol=3e-3)


@pytest.mark.parametrize("precision", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_a_copy_of_a_centre_is_at_distance_0_and_the_opposite_too_where_signs_mean_nothing(make_pool, precision, size):
    features = np.tile(make_pool((5, 3, 200)).features, (4, 1, 1)) * size
    features[5:10] = features[5:10, ::-1]
    pool = Pool(
        features=features.astype(precision), valid=np.ones((20, 3), dtype=bool), rewards=np.zeros((20, 3)), beta=1.0
    )
    for oriented, copies in ((False, 4), (True, 3)):
        vectors = vectors_of(pool, scaled=False, oriented=oriented)
        for distances in vectors.squared_distances(vectors.rows(np.array([0, 2, 5]))):
            assert (distances == 0).sum() == copies


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("oriented", [False, True])
def test_sampling_equals_the_naive_one_on_the_same_random_numbers(make_pool, limit, oriented):
    pool = make_pool((20, 4, 30), masked=True, decay=0.3)
    limits = limited(pool, 10, **limit)
    found = sample_by_distance(vectors_of(pool, oriented=oriented), limits, rng=np.random.default_rng(5))
    taken, distances = spread_out(rows_of(pool), limits, drawer(5), oriented=oriented)
    assert found.pairs.tolist() == taken
    assert found.notes == ()
    np.testing.assert_allclose(found.squared_distances, distances, rtol=1e-9)


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("num_held", [0, 1, 50])
@pytest.mark.parametrize("oriented", [False, True])
def test_farthest_first_equals_the_naive_one(make_pool, limit, num_held, oriented):
    pool = make_pool((20, 4, 5), masked=True)
    limits = limited(pool, 10, **limit)
    held = 0.3 * np.random.default_rng(6).standard_normal((num_held, 5))
    vectors = vectors_of(pool, oriented=oriented)
    found = farthest_first(vectors, limits, rng=np.random.default_rng(0), centres=held)
    taken, distances = spread_out(rows_of(pool), limits, np.argmax, oriented=oriented, centres=held)
    assert found.pairs.tolist() == taken
    assert found.notes == ()
    np.testing.assert_allclose(found.squared_distances, distances, rtol=1e-9)


@pytest.mark.parametrize("oriented", [False, True])
def test_pairs_are_drawn_as_often_as_their_squared_distances_say(make_pool, oriented):
    pool = make_pool((2, 3, 2), seed=1)
    rows, vectors, limits = rows_of(pool), vectors_of(pool, oriented=oriented), limited(pool, 3)
    apart = np.array([squared_distances(rows, row, oriented=oriented) for row in rows])
    longest = int(np.square(rows).sum(axis=1).argmax())
    expected = np.zeros((6, 6))
    for second in set(range(6)) - {longest}:
        nearest = np.minimum(apart[longest], apart[second])
        expected[second] = apart[longest, second] / apart[longest].sum() * nearest / nearest.sum()
    observed, rng = np.zeros((6, 6)), np.random.default_rng(7)
    for _ in range(6000):
        first, second, third = sample_by_distance(vectors, limits, rng=rng).pairs
        assert first == longest
        observed[second, third] += 1
    possible = expected > 0
    assert possible.sum() == 20
    assert not observed[~possible].any()
    assert chisquare(observed[possible], 6000 * expected[possible]).pvalue > 1e-3


def test_inertia_falls_with_every_iteration_and_means_are_those_of_the_nearest_vectors(make_pool):
    pool = make_pool((40, 4, 3), masked=True)
    for oriented in (False, True):
        vectors = vectors_of(pool, oriented=oriented)
        rows = rows_of(pool)[pool.pair_mask.ravel()]
        centres, inertias = vectors.rows(np.arange(9)), []
        for _ in range(12):
            apart = np.array([squared_distances(rows, centre, oriented=oriented) for centre in centres])
            nearest = apart.argmin(axis=0)
            signs = np.where((rows * centres[nearest]).sum(axis=1) < 0, -1 + 2 * oriented, 1)
            means = [(signs[:, None] * rows)[nearest == label].mean(axis=0) for label in range(9)]
            centres, inertia = move_centres(vectors, centres)
            inertias.append(inertia)
            assert inertia == pytest.approx(apart.min(axis=0).sum())
            np.testing.assert_allclose(centres, means, rtol=1e-9, atol=1e-12)
        assert (np.diff(inertias) <= 1e-9).all()
        assert inertias[-1] < 0.9 * inertias[0]


def test_a_centre_that_no_pair_is_nearest_to_stays(make_pool):
    far = np.full((1, 3), 1e3)
    vectors = vectors_of(make_pool())
    moved, _ = move_centres(vectors, np.concatenate([vectors.rows(np.arange(3)), far]))
    np.testing.assert_array_equal(moved[3:], far)


def test_more_pairs_than_one_block_holds_move_the_centres_the_same(make_pool, monkeypatch):
    vectors = vectors_of(make_pool((40, 4, 3), masked=True))
    whole, inertia = move_centres(vectors, vectors.rows(np.arange(9)))
    monkeypatch.setattr("tasks.design.spread._NUMBERS_AT_ONCE", 70)
    parts, same = move_centres(vectors, vectors.rows(np.arange(9)))
    np.testing.assert_allclose(parts, whole, rtol=1e-12)
    assert same == pytest.approx(inertia, rel=1e-12)


@pytest.mark.parametrize("limit", LIMITS)
def test_the_pairs_nearest_to_the_means_equal_the_naive_ones(make_pool, limit):
    pool = make_pool((20, 4, 5), masked=True)
    limits = limited(pool, 10, **limit)
    vectors, rows, rules = vectors_of(pool), rows_of(pool), Rulebook(limits)
    centres = rows[sample_by_distance(vectors, limits, rng=np.random.default_rng(3)).pairs]
    for _ in range(4):
        centres, _ = move_centres(vectors, centres)
    for centre in centres:
        if rules.fits.any():
            apart = squared_distances(rows, centre, oriented=False)
            rules.taken.append(int(np.where(rules.fits, apart, np.inf).argmin()))
    found = nearest_to_means(vectors, limits, rng=np.random.default_rng(3), num_iterations=4)
    assert found.pairs[: len(rules.taken)].tolist() == rules.taken
    assert bool(found.notes) == (len(found.pairs) > len(rules.taken))


def draw(vectors, limits):
    return sample_by_distance(vectors, limits, rng=np.random.default_rng(4))


def traverse(vectors, limits):
    return farthest_first(vectors, limits, rng=np.random.default_rng(4))


def cluster(vectors, limits):
    return nearest_to_means(vectors, limits, rng=np.random.default_rng(4), num_iterations=3)


@pytest.mark.parametrize("search", [draw, traverse, cluster])
def test_the_signs_of_vectors_mean_nothing_unless_they_are_oriented(make_pool, search):
    pool = make_pool((15, 4, 5), masked=True)
    flipped = scales_of(pool) * np.random.default_rng(5).choice([-1, 1], pool.pair_mask.shape)
    limits = limited(pool, 12)
    found = search(vectors_of(pool), limits)
    mirrored = search(PairVectors.of(pool.space, pool.pair_mask, scales=flipped), limits)
    assert found.pairs.tolist() == mirrored.pairs.tolist()


@pytest.mark.parametrize("search", [draw, traverse])
@pytest.mark.parametrize("precision", [np.float32, np.float64])
def test_copies_wait_until_everything_distinct_is_chosen(make_pool, search, precision):
    features = np.tile(make_pool((5, 3, 20)).features, (4, 1, 1)).astype(precision)
    features[7] *= -1
    pool = Pool(features=features, valid=np.ones((20, 3), dtype=bool), rewards=np.zeros((20, 3)), beta=1.0)
    found = search(vectors_of(pool, scaled=False), limited(pool, 40))
    assert sorted(found.pairs[:15] % 15) == list(range(15))
    assert (found.squared_distances[:15] > 0).all()
    assert not found.squared_distances[15:].any()
    assert len(set(found.pairs.tolist())) == 40
    assert found.notes == ("the distances name no further pair: the last 25 of 40 were drawn at random",)


@pytest.mark.parametrize("search", [draw, traverse, cluster])
@pytest.mark.parametrize("limit", LIMITS)
def test_vectors_that_are_all_zero_leave_a_random_choice_within_the_limits(search, limit):
    pool = Pool(features=np.ones((30, 4, 3)), valid=np.ones((30, 4), dtype=bool), rewards=np.zeros((30, 4)), beta=1.0)
    limits = limited(pool, 20, **limit)
    found = search(vectors_of(pool), limits)
    assert len(set(found.pairs.tolist())) == len(found.pairs)
    assert limits.take(found.pairs).tolist() == found.pairs.tolist()
    assert not found.squared_distances.any()
    assert f"the last {len(found.pairs)} of {len(found.pairs)}" in found.notes[0]
    assert found.pairs.max() > 60


@pytest.mark.parametrize("search", [draw, traverse, cluster])
def test_a_budget_of_all_pairs_takes_them_all(make_pool, search):
    pool = make_pool((7, 5, 3), masked=True)
    found = search(vectors_of(pool), limited(pool, pool.num_pairs))
    assert sorted(found.pairs) == np.flatnonzero(pool.pair_mask).tolist()


@pytest.mark.parametrize("search", [draw, traverse, cluster])
def test_a_single_pair_is_a_pool_too(search):
    pool = Pool(features=np.eye(2)[None], valid=np.ones((1, 2), dtype=bool), rewards=np.zeros((1, 2)), beta=1.0)
    assert search(vectors_of(pool), limited(pool, 1)).pairs.tolist() == [0]


def test_pairs_outside_the_mask_are_neither_vectors_nor_centres(make_pool):
    pool = make_pool((9, 4, 3))
    mask = np.random.default_rng(6).random((9, 6)) < 0.4
    vectors = PairVectors.of(pool.space, mask)
    found = traverse(vectors, Limits(mask=mask, budget=int(mask.sum())))
    assert sorted(found.pairs) == np.flatnonzero(mask).tolist() == vectors.pairs.tolist()


def test_features_of_another_array_library_lead_to_the_same_pairs(make_pool):
    torch = pytest.importorskip("torch")
    pool = make_pool((20, 4, 5), masked=True)
    elsewhere = replace(pool, features=torch.from_numpy(pool.features))
    for search in (draw, traverse, cluster):
        found = search(vectors_of(elsewhere, scaled=False), limited(pool, 15))
        assert found.pairs.tolist() == search(vectors_of(pool, scaled=False), limited(pool, 15)).pairs.tolist()
