"""Picks one after the other: greedy designs and k-means++, against the ways in which others make the same picks."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from measuring import Finding, peer, take_turns
from selection.peers import Matrix, greedy_downdated, greedy_naive
from selection.problems import flat_pairs, make_pool, pair_rows, size_of

from tasks.design.criterion import curvature_of, log_det_criterion
from tasks.design.greedy import greedy_design
from tasks.design.limits import limits_of
from tasks.design.pool import Pool
from tasks.design.selectors.greedy import ActiveDpo
from tasks.design.spread import PairVectors, sample_by_distance

RIDGE = 1e-2  # with less, rounding within submodlib changes its picks


def greedy_large(repeats: int) -> Iterator[Finding]:
    """1,000 greedy picks, against the two ways over pairs; these are timed on fewer picks."""
    pool, budget, downdated, naive = make_pool((7143, 8, 256)), 1000, 200, 30
    rows = pair_rows(pool, logistic=False)
    slow, slower, mine = take_turns(
        lambda: greedy_downdated(rows, ridge=RIDGE, picks=downdated),
        lambda: greedy_naive(rows, ridge=RIDGE, picks=naive),
        lambda: _picks(pool, budget),
        repeats=repeats,
    )
    work = f"active_dpo, {size_of(pool)}, {budget:,} picks"
    cases = (
        ("scores brought up to date (Sherman-Morrison)", slow, downdated, 5),
        ("all scores anew", slower, naive, 80),
    )
    for name, other, timed, least in cases:
        each = other.seconds / timed
        said = f"{name}: {each * budget:.3g} s from {timed} picks"
        yield Finding(workload=work, ours=str(mine), peer=said, number=each * budget / mine.seconds, low=least)
        yield _same_picks(mine.value[:timed], other.value)


def greedy_small(repeats: int) -> Iterator[Finding]:
    """200 greedy picks, against submodlib's log determinant of the kernel matrix."""
    submodlib = peer("submodlib")
    pool, budget = make_pool((108, 8, 64)), 200
    rows = pair_rows(pool, logistic=False)
    eager, lazy, mine = take_turns(
        lambda: _kernel_picks(submodlib, rows, budget, "NaiveGreedy"),
        lambda: _kernel_picks(submodlib, rows, budget, "LazyGreedy"),
        lambda: _picks(pool, budget),
        repeats=repeats,
    )
    work = f"active_dpo, {size_of(pool)}, {budget} picks"
    for name, other, least in (("NaiveGreedy, the default", eager, 100), ("LazyGreedy", lazy, None)):
        said = f"submodlib LogDeterminant, {name}, kernel included: {other}"
        yield Finding(workload=work, ours=str(mine), peer=said, number=other.seconds / mine.seconds, low=least)
        yield _same_picks(mine.value, other.value)


def greedy_wide(repeats: int) -> Iterator[Finding]:
    """Greedy picks in more dimensions than there are responses, against the same in all dimensions."""
    pool, budget = make_pool((1000, 3, 8192)), 50
    theirs, mine = take_turns(lambda: _primal_picks(pool, budget), lambda: _picks(pool, budget), repeats=repeats)
    yield Finding(
        workload=f"active_dpo, {size_of(pool)}, {budget} picks",
        ours=f"in the span of the differences: {mine}",
        peer=f"in all dimensions: {theirs}",
        number=theirs.seconds / mine.seconds,
        low=1,
    )
    yield _same_picks(mine.value, theirs.value)


def distance_sampling(repeats: int, *, shape: tuple[int, int, int], least: float) -> Iterator[Finding]:
    """200 picks of k-means++, against scikit-learn's."""
    cluster = peer("sklearn.cluster")
    pool, budget = make_pool(shape), 200
    limits, scales, rows = limits_of(pool, budget), np.sqrt(curvature_of(pool)), pair_rows(pool)

    def vectors() -> PairVectors:
        return PairVectors.of(pool.space, limits.mask, scales=scales, oriented=True)

    theirs, mine = take_turns(
        lambda: cluster.kmeans_plusplus(rows, budget, n_local_trials=1, random_state=0)[0],
        lambda: sample_by_distance(vectors(), limits, rng=np.random.default_rng(0)).pairs,
        repeats=repeats,
    )
    yield Finding(
        workload=f"k-means++, {size_of(pool)}, {budget} picks",
        ours=str(mine),
        peer=f"sklearn, one trial a pick: {theirs}",
        number=theirs.seconds / mine.seconds,
        low=least,
    )
    inertia = [vectors().assign(centres)[2] for centres in (rows[mine.value], theirs.value)]
    yield Finding(
        workload="squared distances left, over sklearn's",
        ours=f"{inertia[0]:.4g}",
        peer=f"{inertia[1]:.4g}",
        number=inertia[0] / inertia[1],
        high=1.05,
    )


def _picks(pool: Pool, budget: int) -> list[int]:
    selection = ActiveDpo(ridge=RIDGE)(pool, budget, np.random.default_rng(0))
    return flat_pairs(pool, selection).tolist()


def _primal_picks(pool: Pool, budget: int) -> list[int]:
    criterion = log_det_criterion(pool, ridge=RIDGE, logistic=False)
    return greedy_design(criterion, limits_of(pool, budget))[0].tolist()


def _kernel_picks(submodlib: Any, rows: Matrix, budget: int, optimizer: str) -> list[int]:
    kernel = rows @ rows.T / RIDGE
    function = submodlib.LogDeterminantFunction(n=len(rows), mode="dense", lambdaVal=1.0, sijs=kernel)
    chosen = function.maximize(budget=budget, optimizer=optimizer, show_progress=False)
    return [pair for pair, _ in chosen]


def _same_picks(ours: list[int], theirs: list[int]) -> Finding:
    same = sum(one == other for one, other in zip(ours, theirs, strict=True)) / len(theirs)
    return Finding(workload=f"the same of {len(theirs)} picks", number=same, low=1)
