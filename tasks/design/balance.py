"""Fixed-size samples that are spread: along an order, over blocks, and over the responses of a prompt."""

from functools import cache

import numpy as np

from tasks.design.arrays import BoolArray, FloatArray, IntArray
from tasks.design.kernels import pair_slots

_WHOLE = 1e-6
_ROUNDING = 1e-9


def systematic(probabilities: FloatArray, rng: np.random.Generator, *, blocks: IntArray | None = None) -> IntArray:
    """Indices, rising, of a random sample that holds each item with exactly its probability, spread along their order.

    Systematic sampling (Madow 1949): the probabilities are laid end to end as the items stand, and items are hit by
    points one apart, the first one uniform. In every draw any run of consecutive items is hit floor(s) or ceil(s)
    times, where s is the sum of its probabilities, those of 1 left out and counted by themselves. With blocks that
    holds for every block, every run of whole blocks, and runs within a block; points start anew in each, so that
    blocks are not hit in step. Which items come together depends on the order: shuffle where it means nothing.

    Args:
        probabilities: in [0, 1], (n,); their sum, a whole number, is the size of the sample.
        rng: source of all randomness.
        blocks: number of the block that each item belongs to, never falling, (n,), such as the prompts of flat pair
            indices; None: all are one block.

    Raises:
        ValueError: an entry lies outside of [0, 1], the sum is no whole number, or the blocks fall.
    """
    total = float(probabilities.sum())
    if not ((probabilities >= 0) & (probabilities <= 1)).all() or abs(total - round(total)) > _WHOLE:
        raise ValueError(f"probabilities sum to {total:.9g}: pass entries in [0, 1] that sum to a whole number")
    if blocks is not None and (np.diff(blocks) < 0).any():
        raise ValueError("the numbers of the blocks fall: sort the items by block")
    loose = np.flatnonzero((probabilities > 0) & (probabilities < 1))
    certain = np.flatnonzero(probabilities == 1)
    if not len(loose):
        return certain
    starts = np.zeros(1, dtype=np.intp)
    if blocks is not None:
        starts = np.flatnonzero(np.diff(blocks[loose], prepend=blocks[loose[0]] - 1))
    return np.sort(np.concatenate([certain, loose[_hits(probabilities[loose], starts, rng)]]))


def _hits(probabilities: FloatArray, starts: IntArray, rng: np.random.Generator) -> IntArray:
    """Places, rising, of the items hit, all probabilities in (0, 1), blocks given by their first places."""
    ends = np.append(starts[1:], len(probabilities))
    sums = np.add.reduceat(probabilities, starts) if len(starts) > 1 else np.rint([probabilities.sum()])
    counts = random_counts(sums, rng)
    fraction, uniform = sums - np.floor(sums), rng.random(len(sums))
    phase = np.where(counts > sums, uniform * fraction, fraction + uniform * (1 - fraction))
    edges = np.cumsum(probabilities)
    places = np.arange(int(counts.sum()))
    step = places - np.repeat(np.cumsum(counts) - counts, counts)
    points = np.repeat(phase + np.append(0.0, edges)[starts], counts) + step
    hits = np.searchsorted(edges, points, side="right")
    # Rounding may hit an item twice, or one of the next block: shift such a hit to the nearest item that is free.
    inside = np.clip(hits, np.repeat(starts, counts) + step, np.repeat(ends - counts, counts) + step)
    shifted: IntArray = np.maximum.accumulate(inside - places) + places
    return shifted


def random_counts(expected: FloatArray, rng: np.random.Generator) -> IntArray:
    """Whole numbers, each the floor or the ceiling of its expectation, that always have the same sum, (n,).

    So is the sum of any run of consecutive entries. An expectation that is whole but for rounding is met.

    Args:
        expected: >= 0, (n,), with a whole number for a sum.
        rng: source of all randomness.
    """
    nearest = np.rint(expected)
    whole = (nearest > 0) & (np.abs(expected - nearest) <= _ROUNDING * expected)
    steady = np.where(whole, nearest, expected)
    counts: IntArray = np.floor(steady).astype(np.intp)
    fractions: FloatArray = steady - counts
    if fractions.any():
        counts[systematic(fractions, rng)] += 1
    return counts


def capped_shares(sizes: IntArray, room: IntArray, total: int) -> FloatArray:
    """min(r, c s) with c such that the sum is `total`, (n,): shares by size, as far as there is room.

    Args:
        sizes: s >= 0, (n,).
        room: r, from 0 to s, (n,).
        total: at most the sum of the room.
    """
    ratios = np.divide(room, sizes, out=np.ones(len(sizes)), where=sizes > 0)
    order = np.argsort(ratios, kind="stable")
    filled = np.cumsum(room[order]) - room[order]
    left = np.cumsum(sizes[order][::-1])[::-1]
    level = np.divide(total - filled, left, out=np.zeros(len(sizes)), where=left > 0)
    share = level[np.argmax(level <= ratios[order])]
    return np.where(share >= ratios, room, np.minimum(share * sizes, room))


@cache
def ross_order(num_items: int) -> tuple[IntArray, IntArray]:
    """All pairs of k items in a cyclic order whose neighbours share no item, (k (k - 1) / 2,) twice.

    Ross (1934), the rounds of a tournament: round r pairs r + i with r - i modulo k or, where k is even, modulo k - 1
    with the last item paired with r. A run of up to half as many pairs as items shares at most one or two items.
    """
    modulus = num_items - 1 + num_items % 2
    rounds, step = np.divmod(np.arange(num_items * (num_items - 1) // 2), num_items // 2)
    step += num_items % 2
    first, second = (rounds + step) % modulus, (rounds - step) % modulus
    return (np.where(step == 0, num_items - 1, first), second) if num_items % 2 == 0 else (first, second)


def spread_pairs(mask: BoolArray, counts: IntArray, num_responses: int, rng: np.random.Generator) -> BoolArray:
    """Which pair slots to take, (P, m): so many of each prompt, each of its pairs equally likely, few of one response.

    Responses are numbered at random, pairs put into the order of Ross, those not in the mask left out; what is taken is
    a run of that cycle from a uniform start. So every pair of the mask comes with probability counts / pairs, exactly.

    Args:
        mask: slots that may be taken, (P, m).
        counts: slots to take, (P,), at most those of the mask.
        num_responses: K.
        rng: source of all randomness.
    """
    taken = np.zeros(mask.shape, dtype=np.bool_)
    present = _present(mask, num_responses)
    numbers = present.sum(axis=1)
    slots = _slot_table(num_responses)
    for number in np.unique(numbers[counts > 0]):
        rows = np.flatnonzero((numbers == number) & (counts > 0))
        items = rng.permuted(np.nonzero(present[rows])[1].reshape(len(rows), number), axis=1)
        first, second = ross_order(int(number))
        order = slots[items[:, first], items[:, second]]
        kept = mask[rows[:, None], order]
        place = np.cumsum(kept, axis=1) - 1
        sizes = mask[rows].sum(axis=1)
        begun = rng.integers(sizes)
        run = kept & ((place - begun[:, None]) % sizes[:, None] < counts[rows][:, None])
        hit, where = np.nonzero(run)
        taken[rows[hit], order[hit, where]] = True
    return taken


def _present(mask: BoolArray, num_responses: int) -> BoolArray:
    """Responses with a pair in the mask, (P, K)."""
    paired = mask[:, _slot_table(num_responses)] & ~np.eye(num_responses, dtype=np.bool_)
    present: BoolArray = np.logical_or.reduce(paired, axis=2)
    return present


@cache
def _slot_table(num_responses: int) -> IntArray:
    """Pair slot of any two responses, in either order, (K, K)."""
    table = np.zeros((num_responses, num_responses), dtype=np.intp)
    first, second = pair_slots(num_responses)
    table[first, second] = table[second, first] = np.arange(len(first))
    return table
