"""Pools to measure on, and the matrix of pairs that other implementations ask for."""

from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.design.criterion import curvature_of
from tasks.design.kernels import pair_slots
from tasks.design.pool import Pool
from tasks.design.selection import Selection

_ROWS = 512
_DECAY = 0.75  # of the variance along the principal axes: the k-th has k ** -0.75
_SHARED = 0.6  # what the responses to a prompt share, in standard deviations
_SPREAD = 0.5  # of the logarithm of how far a prompt's responses lie apart
_REWARD = 2.0  # nats; features have length 1

Matrix = npt.NDArray[np.floating[Any]]
Shape = tuple[int, int, int]
"""Prompts, responses to each, length of a feature vector."""


def make_features(shape: Shape, precision: type = np.float64, seed: int = 0) -> Matrix:
    """Features of length 1 with a falling spectrum; prompts differ in how far their responses lie apart."""
    rng = np.random.default_rng(seed)
    spectrum = np.arange(1, shape[2] + 1, dtype=np.float32) ** (-_DECAY / 2)
    features = np.empty(shape, dtype=precision)
    for start in range(0, shape[0], _ROWS):
        part = features[start : start + _ROWS]
        own = rng.standard_normal(part.shape, dtype=np.float32)
        own *= np.exp(_SPREAD * rng.standard_normal((len(part), 1, 1), dtype=np.float32))
        own += _SHARED * rng.standard_normal((len(part), 1, shape[2]), dtype=np.float32)
        own *= spectrum
        own /= np.linalg.norm(own, axis=2, keepdims=True)
        part[...] = own
    return features


def make_pool(shape: Shape, precision: type = np.float64, seed: int = 0) -> Pool:
    """A pool without labels; the rewards are linear in the features."""
    return pool_of(make_features(shape, precision, seed), seed)


def pool_of(features: Matrix, seed: int = 0) -> Pool:
    """The pool of some features."""
    direction = np.random.default_rng(seed + 1).standard_normal(features.shape[2]).astype(features.dtype)
    rewards = _REWARD * (features @ direction).astype(np.float64)
    return Pool(features=features, valid=np.ones(features.shape[:2], dtype=bool), rewards=rewards, beta=1.0)


def pair_rows(pool: Pool, *, logistic: bool = True) -> Matrix:
    """a_e of every pair, (P m, dim) float64: what one computes with who forms the pairs."""
    first, second = pair_slots(pool.valid.shape[1])
    rows = np.empty((pool.num_prompts, len(first), pool.dim))
    roots = np.sqrt(curvature_of(pool, logistic=logistic))
    for start in range(0, pool.num_prompts, _ROWS):
        part = slice(start, start + _ROWS)
        features = pool.features[part].astype(np.float64)
        rows[part] = (features[:, first] - features[:, second]) * roots[part, :, None]
    return rows.reshape(-1, pool.dim)


def flat_pairs(pool: Pool, selection: Selection) -> npt.NDArray[np.intp]:
    """Flat pair indices of a selection."""
    slots = np.zeros((pool.valid.shape[1], pool.valid.shape[1]), dtype=np.intp)
    ends = pair_slots(len(slots))
    slots[ends] = np.arange(len(ends[0]))
    flat: npt.NDArray[np.intp] = selection.prompt * len(ends[0]) + slots[selection.first, selection.second]
    return flat


def size_of(pool: Pool) -> str:
    """The pool in words."""
    prompts, responses = pool.valid.shape
    return f"{pool.num_pairs:,} pairs ({prompts:,} x {responses}), dim {pool.dim}"
