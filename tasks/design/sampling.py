"""Fixed-size samples of unequal probability."""

import numpy as np

from tasks.design.arrays import FloatArray, IntArray

_WHOLE = 1e-6


def inclusion_probabilities(weights: FloatArray, size: int) -> FloatArray:
    """min(1, c w) with c such that the sum is `size`, (n,); as near to proportional as a sample of distinct items gets.

    Where at most `size` weights are positive those get 1, and the rest share what remains equally.

    Args:
        weights: w >= 0, (n,).
        size: items to draw, at most n.

    Raises:
        ValueError: `size` lies outside of 0 to n, or a weight is negative or not finite.
    """
    if not 0 <= size <= len(weights):
        raise ValueError(f"size is {size}: {len(weights)} items allow 0 to {len(weights)}")
    if not (np.isfinite(weights) & (weights >= 0)).all():
        raise ValueError("weights hold an entry that is negative or not finite: pass finite weights of 0 or more")
    positive = weights > 0
    num_positive = int(positive.sum())
    if num_positive > size:
        return _water_filled(weights, size)
    rest = (size - num_positive) / max(len(weights) - num_positive, 1)
    return np.where(positive, 1.0, rest)


def draw(probabilities: FloatArray, rng: np.random.Generator) -> IntArray:
    """Indices of a random sample that holds each item with exactly its probability, in random order.

    Systematic sampling in random order (Madow 1949; Goodman and Kish 1950): the probabilities are laid end to end, and
    items are hit by points one apart.

    Args:
        probabilities: in [0, 1], (n,); their sum, a whole number, is the size of the sample.
        rng: source of all randomness.

    Raises:
        ValueError: an entry lies outside of [0, 1], or the sum is no whole number.
    """
    total = float(probabilities.sum())
    if not ((probabilities >= 0) & (probabilities <= 1)).all() or abs(total - round(total)) > _WHOLE:
        raise ValueError(f"probabilities sum to {total:.9g}: pass entries in [0, 1] that sum to a whole number")
    certain = np.flatnonzero(probabilities == 1)
    others = rng.permutation(np.flatnonzero((probabilities > 0) & (probabilities < 1)))
    places = np.arange(round(total) - len(certain))
    hits = np.searchsorted(np.cumsum(probabilities[others]), rng.random() + places, side="right")
    # Rounding may hit an item twice, or beyond the last one: shift such a hit to the nearest item that is free.
    distinct = np.maximum.accumulate(hits - places) + places
    inside = np.minimum(distinct, len(others) - len(places) + places)
    return rng.permutation(np.concatenate([certain, others[inside]]))


def weighted_order(weights: FloatArray, rng: np.random.Generator) -> IntArray:
    """A random order of all items: each next one is drawn by weight from those left, those without weight come last.

    Successive sampling by keys (Efraimidis and Spirakis 2006), as sums of logarithms and Gumbel noise.

    Args:
        weights: w >= 0, (n,).
        rng: source of all randomness.
    """
    positive = weights > 0
    keys = rng.gumbel(size=len(weights))
    keys[positive] += np.log(weights[positive])
    order: IntArray = np.lexsort((-keys, ~positive))
    return order


def _water_filled(weights: FloatArray, size: int) -> FloatArray:
    """min(1, c w) where more than `size` weights are positive."""
    order = np.argsort(-weights, kind="stable")
    falling = weights[order]
    tails = np.cumsum(falling[::-1])[::-1][: size + 1]
    num_full = int(np.argmax(falling[: size + 1] * (size - np.arange(size + 1)) <= tails))
    probabilities = np.ones(len(weights))
    probabilities[order[num_full:]] = np.minimum(1.0, (size - num_full) * (falling[num_full:] / tails[num_full]))
    return probabilities
