"""The same selection on any machine: BLAS rounds in a way that depends on its number of threads."""

from dataclasses import replace

import numpy as np
import pytest
import threadpoolctl

from tasks.design import criterion
from tasks.design.capped import Problem, bounded_design
from tasks.design.limits import Limits
from tasks.design.pool import Labels
from tasks.design.search import Effort
from tasks.design.selectors import SELECTORS
from tasks.design.simplex import simplex_design

BUDGET = 32
every_design = pytest.mark.parametrize("kind", ["trace_design", "d_design", "a_design", "v_design"])


@pytest.fixture(scope="module")
def pool(make_pool):
    """So many dimensions that BLAS shares out the factorisation, whose last bits then change."""
    plain, rng = make_pool((50, 4, 128), decay=0.5, masked=True), np.random.default_rng(0)
    return replace(plain, labels=Labels(differences=rng.standard_normal((60, 128)), margins=rng.standard_normal(60)))


def on_threads(count, work):
    """What the work gives where BLAS has so many threads."""
    with threadpoolctl.threadpool_limits(count, user_api="blas"):
        libraries = [found for found in threadpoolctl.threadpool_info() if found["user_api"] == "blas"]
        assert max(library["num_threads"] for library in libraries) == count
        return work()


def select(kind, pool, seed=0):
    return SELECTORS[kind](max_pairs_per_prompt=4, max_passes=4)(pool, BUDGET, np.random.default_rng(seed))


def overlap(one, other):
    pairs = [set(zip(found.prompt, found.first, found.second, strict=True)) for found in (one, other)]
    return len(pairs[0] & pairs[1]) / BUDGET


def assert_same(other, one):
    assert overlap(one, other) >= 0.999
    assert other.certificate.objective == pytest.approx(one.certificate.objective, rel=1e-9)
    assert other.certificate.lower_bound == pytest.approx(one.certificate.lower_bound, rel=1e-9)
    assert other.certificate.passes == one.certificate.passes


@every_design
def test_neither_the_seed_nor_rounding_of_the_features_changes_the_selection(pool, kind):
    noise = np.random.default_rng(1).uniform(-1, 1, pool.features.shape)
    rounded = replace(pool, features=pool.features * (1 + 2e-16 * noise))
    assert (rounded.features != pool.features).mean() > 0.1
    assert_same(*(on_threads(1, lambda each=each: select(kind, *each)) for each in ((rounded, 1), (pool, 0))))


@pytest.mark.parametrize("kind", ["trace_design", "d_design"])
def test_threads_do_not_change_the_selection(pool, kind):
    assert_same(*(on_threads(count, lambda: select(kind, pool)) for count in (2, 1)))


def test_in_single_precision_threads_change_nothing_that_matters(pool, monkeypatch):
    monkeypatch.setattr(criterion, "_LARGE_POOL", 1)
    single = replace(pool, features=pool.features.astype(np.float32))
    one, two = (on_threads(count, lambda: select("trace_design", single)) for count in (1, 2))
    assert two.certificate.objective == pytest.approx(one.certificate.objective, rel=1e-5)
    assert overlap(one, two) >= 0.97
    assert two.certificate.lower_bound <= one.certificate.objective
    assert one.certificate.lower_bound <= two.certificate.objective


@pytest.mark.parametrize("which", ["one pair a prompt", "prices", "distribution"])
def test_threads_do_not_change_designs_of_other_limits(pool, which):
    measured = SELECTORS["trace_design"]().criterion(pool)
    effort = Effort(max_passes=3)
    if which == "distribution":
        one, two = (on_threads(count, lambda: simplex_design(measured, effort)) for count in (1, 2))
    else:
        exact = int(np.minimum(pool.pair_mask.sum(axis=1), 1).sum())
        costs = 1 + np.random.default_rng(2).random(pool.pair_mask.shape)
        limits = {"budget": exact, "cap": 1, "floor": 1} if which[0] == "o" else {"budget": BUDGET, "costs": costs}
        problem = Problem(measured, Limits(mask=pool.pair_mask, **limits))
        one, two = (on_threads(count, lambda: bounded_design(problem, effort)) for count in (1, 2))
    assert two.objective == pytest.approx(one.objective, rel=1e-9)
    assert np.abs(two.weights - one.weights).sum() <= 1e-3 * one.weights.sum()


@every_design
def test_a_selection_made_again_is_the_same_to_the_bit(make_pool, kind):
    pool = make_pool((200, 5, 12), decay=0.5, masked=True)
    one, again = (on_threads(1, lambda: select(kind, pool)) for _ in range(2))
    for name in ("prompt", "first", "second", "weights", "scores"):
        np.testing.assert_array_equal(getattr(again, name), getattr(one, name))
    assert again.certificate.objective == one.certificate.objective
