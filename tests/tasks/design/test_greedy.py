from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.design import greedy
from tasks.design.criterion import Criterion, log_det_criterion, trace_criterion
from tasks.design.greedy import forward_backward, greedy_design, projections, squared_distances
from tasks.design.limits import Limits
from tasks.design.measures import LogDet, inverse_root
from tasks.design.pool import Labels, Pool

TIE = 1e-9


def vectors_of(criterion):
    every = np.arange(criterion.mask.size)
    return criterion.space.rows(every) * np.sqrt(criterion.curvature.ravel())[:, None]


def may_follow(limits, chosen, budget):
    """Pairs after which the floors and the budget can still be kept, counted from scratch."""
    every, (prompts, slots) = np.arange(limits.mask.size), limits.mask.shape
    prices = np.ones(limits.mask.size) if limits.costs is None else limits.costs.ravel()
    taken = np.bincount(np.array(chosen, dtype=int) // slots, minlength=prompts)
    owed = np.maximum(np.minimum(limits.mask.sum(axis=1), limits.floor) - taken, 0)
    spent = prices[chosen].sum() + prices + owed.sum() - (owed > 0)[every // slots]
    full = (taken >= (limits.cap or slots))[every // slots]
    return every[limits.mask.ravel() & ~np.isin(every, chosen) & ~full & (spent <= budget)]


def naive(criterion, limits):
    """Every score anew for every pick, from a factorisation of its own."""
    vectors, held, chosen, worth = vectors_of(criterion), criterion.prior, [], []
    while len(allowed := may_follow(limits, chosen, limits.budget)):
        scores = np.square(vectors[allowed] @ inverse_root(held, criterion.ridge)).sum(axis=1)
        place = np.flatnonzero(scores >= scores.max() * (1 - TIE))[0]
        chosen.append(allowed[place])
        worth.append(scores[place])
        held = held + np.outer(vectors[chosen[-1]], vectors[chosen[-1]])
    return chosen, worth


@pytest.fixture
def small_blocks(monkeypatch):
    """Shortlists and blocks so small that every border between them is crossed."""
    for name, value in (("_SHORTLIST", 3), ("_FEW", 2), ("_BLOCK", 5), ("_SHORT_BLOCK", 2)):
        monkeypatch.setattr(greedy, name, value)


@st.composite
def problems(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = draw(st.tuples(st.integers(1, 7), st.integers(2, 5), st.integers(1, 4)))
    features = rng.standard_normal(shape) * draw(st.sampled_from([1e-3, 1.0, 1e3]))
    if draw(st.booleans()):
        features = rng.integers(-1, 2, shape).astype(float)  # duplicates, zeros and ties
    valid = rng.random(shape[:2]) < draw(st.sampled_from([0.6, 1.0]))
    valid[0, :2] = True
    rewards = rng.standard_normal(shape[:2]) * draw(st.sampled_from([0.0, 2.0]))
    held = rng.standard_normal((draw(st.integers(0, 3)), shape[2]))
    labels = Labels(differences=held, margins=np.zeros(len(held)))
    pool = Pool(features=features, valid=valid, rewards=rewards, beta=0.7, labels=labels)
    cap, floor = draw(st.sampled_from([(None, 0), (1, 0), (2, 1), (None, 1), (3, 3)]))
    per_prompt = pool.pair_mask.sum(axis=1)
    least = max(1, int(np.minimum(per_prompt, floor).sum()))
    most = pool.num_pairs if cap is None else int(np.minimum(per_prompt, cap).sum())
    limits = Limits(mask=pool.pair_mask, budget=draw(st.integers(least, most)), cap=cap, floor=floor)
    return log_det_criterion(pool, ridge=draw(st.sampled_from([1e-6, 1e-2, 1.0]))), limits


@settings(max_examples=50, deadline=None, derandomize=True)
@given(problem=problems())
def test_the_picks_are_those_of_the_naive_greedy(problem):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("_SHORTLIST", 3), ("_FEW", 2), ("_BLOCK", 5), ("_SHORT_BLOCK", 2)):
            patch.setattr(greedy, name, value)
        criterion, limits = problem
        chosen, scores = greedy_design(*problem)
    expected, worth = naive(criterion, limits)
    assert chosen.tolist() == expected
    np.testing.assert_allclose(scores, worth, rtol=1e-5, atol=1e-12 * max(worth))


def criterion_of(pool, *, ridge=1e-3):
    return Criterion(
        space=pool.space,
        curvature=pool.pair_mask.astype(float),
        mask=pool.pair_mask,
        prior=np.zeros((pool.dim, pool.dim)),
        ridge=ridge,
        measure=LogDet(),
    )


@pytest.mark.parametrize("shape", [(150, 6, 8), (400, 2, 5), (40, 9, 30)])
def test_shortlists_of_their_usual_size_pick_the_same(make_pool, shape):
    criterion = log_det_criterion(make_pool(shape, decay=0.5, masked=True), ridge=1e-2)
    limits = Limits(mask=criterion.mask, budget=40)
    assert greedy_design(criterion, limits)[0].tolist() == naive(criterion, limits)[0]


def test_every_pick_has_the_largest_increment_of_the_log_determinant(make_pool):
    criterion = log_det_criterion(make_pool((8, 4, 3)), ridge=0.1)
    chosen, scores = greedy_design(criterion, Limits(mask=criterion.mask, budget=10))
    vectors, matrix = vectors_of(criterion), 0.1 * np.eye(3)
    for pair, score in zip(chosen, scores, strict=True):
        grown = [np.linalg.slogdet(matrix + np.outer(a, a))[1] for a in vectors]
        added = max(np.delete(grown, chosen[: list(chosen).index(pair)])) - np.linalg.slogdet(matrix)[1]
        assert np.log1p(score) == pytest.approx(added, rel=1e-9)
        matrix = matrix + np.outer(vectors[pair], vectors[pair])


def test_an_exact_duplicate_falls_from_q_to_q_over_1_plus_q():
    features = np.tile(np.array([[2.0, 0.0], [0.0, 0.0]]), (3, 1, 1))
    pool = Pool(features=features, valid=np.ones((3, 2), dtype=bool), rewards=np.zeros((3, 2)), beta=1.0)
    chosen, scores = greedy_design(criterion_of(pool, ridge=0.5), Limits(mask=pool.pair_mask, budget=3))
    assert chosen.tolist() == [0, 1, 2]
    np.testing.assert_allclose(scores, [8.0, 8 / 9, 8 / 17], rtol=1e-12)


def test_a_ridge_that_vanishes_beside_the_features_costs_no_digits(make_pool):
    criterion = log_det_criterion(make_pool((30, 4, 2)), ridge=1e-14)
    limits = Limits(mask=criterion.mask, budget=30)
    chosen, scores = greedy_design(criterion, limits)
    expected, worth = naive(criterion, limits)
    assert chosen.tolist() == expected
    np.testing.assert_allclose(scores[2:], worth[2:], rtol=1e-9)  # the second has lost them to the ridge itself


def test_pairs_that_tell_nothing_come_last_and_by_index(make_pool, small_blocks):
    pool = make_pool((5, 3, 2))
    features = pool.features.copy()
    features[[0, 2, 4]] = features[[0, 2, 4], :1]
    pool = replace(pool, features=features)
    chosen, scores = greedy_design(criterion_of(pool), Limits(mask=pool.pair_mask, budget=13))
    assert set(chosen[:6].tolist()) == {3, 4, 5, 9, 10, 11}
    assert chosen[6:].tolist() == [0, 1, 2, 6, 7, 8, 12]
    assert (scores[:6] > 0).all()
    assert (scores[6:] == 0).all()


def test_costs_pass_over_what_no_longer_fits(make_pool, small_blocks):
    pool = make_pool((6, 3, 2))
    costs = np.random.default_rng(3).uniform(0.5, 3.0, pool.pair_mask.shape)
    criterion = criterion_of(pool)
    limits = Limits(mask=pool.pair_mask, budget=9, cap=2, costs=costs)
    chosen, _ = greedy_design(criterion, limits)
    assert chosen.tolist() == naive(criterion, limits)[0]
    assert costs.ravel()[chosen].sum() <= 9


def test_single_precision_features_pick_as_their_doubles_do(make_pool):
    pool = make_pool((60, 5, 6), masked=True)
    single = replace(pool, features=pool.features.astype(np.float32))
    double = replace(pool, features=single.features.astype(np.float64))
    limits = Limits(mask=pool.pair_mask, budget=30)
    picks = [greedy_design(log_det_criterion(each, ridge=1e-2), limits)[0].tolist() for each in (single, double)]
    assert picks[0] == picks[1]


def brute_forward_backward(criterion, limits):
    """tr(H M^-1) itself for every candidate of every step."""
    vectors, fisher = vectors_of(criterion), criterion.measure.root @ criterion.measure.root.T

    def trace(pairs):
        rows = vectors[pairs]
        return np.trace(
            fisher @ np.linalg.inv(criterion.ridge * np.eye(rows.shape[1]) + criterion.prior + rows.T @ rows)
        )

    chosen, worth = [], []
    while len(allowed := may_follow(limits, chosen, 2 * limits.budget)):
        values = np.array([trace([*chosen, pair]) for pair in allowed])
        worth.append(trace(chosen) - values.min())
        chosen.append(int(allowed[values.argmin()]))
    kept = list(range(len(chosen)))
    while len(kept) > limits.budget:
        values = [trace([chosen[i] for i in kept if i != out]) for out in kept]
        kept.pop(int(np.argmin(values)))
    return [chosen[i] for i in kept], [worth[i] for i in kept]


@pytest.mark.parametrize("cap", [None, 1, 2])
@pytest.mark.parametrize("seed", range(5))
def test_forward_and_backward_steps_are_those_of_brute_force(make_pool, cap, seed):
    pool = make_pool((6, 4, 3), masked=True, seed=seed)
    held = np.random.default_rng(seed).standard_normal((2, 3))
    pool = replace(pool, labels=Labels(differences=held, margins=np.ones(2)))
    criterion = trace_criterion(pool, ridge=1e-2)
    limits = Limits(mask=criterion.mask, budget=3, cap=cap)
    chosen, worth = forward_backward(criterion, limits)
    expected, taken_off = brute_forward_backward(criterion, limits)
    assert chosen.tolist() == expected
    np.testing.assert_allclose(worth, taken_off, rtol=1e-7)


def test_forward_takes_what_there_is_where_twice_the_budget_is_not(make_pool):
    pool = make_pool((3, 3, 2))
    criterion = trace_criterion(pool, ridge=1e-2)
    for budget in (7, 9):
        chosen, _ = forward_backward(criterion, Limits(mask=criterion.mask, budget=budget))
        assert len(set(chosen.tolist())) == budget


def test_backward_makes_room_within_costs(make_pool):
    pool = make_pool((6, 3, 2))
    costs = np.random.default_rng(3).uniform(0.5, 3.0, pool.pair_mask.shape)
    chosen, _ = forward_backward(trace_criterion(pool, ridge=1e-2), Limits(mask=pool.pair_mask, budget=6, costs=costs))
    assert 0 < costs.ravel()[chosen].sum() <= 6


def test_distances_and_projections_are_those_of_materialised_pairs(make_pool):
    pool = make_pool((5, 4, 3), masked=True)
    rows = pool.space.rows(np.arange(pool.pair_mask.size)) * pool.pair_mask.reshape(-1, 1)
    vectors = np.random.default_rng(1).standard_normal((2, 3))
    found = projections(pool.space, vectors).reshape(2, -1) * pool.pair_mask.ravel()
    np.testing.assert_allclose(found, vectors @ rows.T, atol=1e-12)
    distances = squared_distances(pool.space, vectors.T).ravel() * pool.pair_mask.ravel()
    np.testing.assert_allclose(distances, np.square(rows @ vectors.T).sum(axis=1), atol=1e-12)


def test_equal_responses_are_no_distance_apart_even_beside_a_far_one():
    features = np.array([[[0.1, 0.2], [0.1, 0.2], [1e6, -3e5]]])
    space = Pool(features=features, valid=np.ones((1, 3), dtype=bool), rewards=np.zeros((1, 3)), beta=1.0).space
    found = squared_distances(space, np.eye(2))
    assert found[0, 0] == 0
    assert (found[0, 1:] > 0).all()
