"""Sums over all pairs of a pool, computed from its responses.

A pool of P prompts with K responses holds m = K (K - 1) / 2 pair slots per prompt, in the order of
`numpy.triu_indices(K, 1)`. The pair vectors a_e = sqrt(v_e) (phi_a - phi_b) are never formed for the whole pool: a
score needs one K x K Gram matrix per prompt, an information matrix one K x K graph Laplacian per prompt.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.special import expit

from tasks.design.arrays import (
    Array,
    BoolArray,
    FloatArray,
    IntArray,
    Precision,
    cast,
    gram,
    largest,
    multiplier,
    namespace,
    product,
    take_rows,
    to_like,
    to_numpy,
)

_NUMBERS_PER_CHUNK = 2**19


@cache
def pair_slots(num_responses: int) -> tuple[IntArray, IntArray]:
    """First and second response of every pair slot of one prompt, each (m,)."""
    first, second = np.triu_indices(num_responses, 1)
    return first, second


def logistic_curvature(margins: FloatArray) -> FloatArray:
    """sigma'(z) = sigma(z) sigma(-z): the Fisher information of one label about its margin; 1/4 at z = 0."""
    wide = np.asarray(margins, dtype=np.float64)
    curvature: FloatArray = expit(wide) * expit(-wide)
    return curvature


@dataclass(frozen=True, eq=False, kw_only=True)
class PairSpace:
    """Features of a pool, seen through the differences between responses to one prompt.

    What a prompt's responses share means nothing to a pair. It is taken off chunk by chunk as the features are read,
    which spares the Gram matrices a cancellation that single precision can't afford, and memory a second copy.

    Attributes:
        features: phi(x, y), (P, K, dim), as they came.
        means: what is taken off, (P, 1, dim), in the precision of the features.
        valid: responses that count; the others read as zeros, (P, K).
    """

    features: Array
    means: Array
    valid: BoolArray

    @classmethod
    def of(cls, features: Array, valid: BoolArray) -> "PairSpace":
        """The features about the mean of each prompt's valid responses."""
        xp = namespace(features)
        num_prompts, num_responses = valid.shape
        means = xp.zeros_like(features[:, :1, :])
        for part in _chunks(num_prompts, num_responses * features.shape[2]):
            share = to_like(valid[part] / np.maximum(valid[part].sum(axis=1, keepdims=True), 1), features)
            means[part, ...] = xp.astype(share[:, None, :] @ cast(features[part, ...], np.float64), features.dtype)
        return cls(features=features, means=means, valid=valid)

    @property
    def dim(self) -> int:
        """Length of a feature vector."""
        return int(self.features.shape[2])

    @property
    def precision(self) -> Precision:
        """The precision that the features came in."""
        return np.float32 if self.features.dtype == namespace(self.features).float32 else np.float64

    def chunks(self, precision: Precision) -> Iterator[tuple[slice, Array]]:
        """Slices of prompts and their centred features (p, K, dim), zeros where invalid."""
        whole, wider = bool(self.valid.all()), self._wider(precision)
        for part in _chunks(self.features.shape[0], self.features.shape[1] * self.dim):
            rows = cast(cast(self.features[part, ...], wider) - cast(self.means[part, ...], wider), precision)
            yield part, rows if whole else rows * to_like(self.valid[part, :, None], rows, precision)

    def _wider(self, precision: Precision) -> Precision:
        """The precision to take differences in before they are rounded to another."""
        return np.float64 if np.float64 in (precision, self.precision) else np.float32

    def rows(self, pairs: IntArray, precision: Precision = np.float64) -> Array:
        """phi_a - phi_b of flat pair indices, (n, dim) in the given precision."""
        xp, num_responses = namespace(self.features), self.features.shape[1]
        first, second = pair_slots(num_responses)
        prompt, slot = np.divmod(pairs, len(first))
        flat = xp.reshape(self.features, (-1, self.dim))
        ends = (take_rows(flat, prompt * num_responses + end[slot]) for end in (first, second))
        a, b = (cast(rows, self._wider(precision)) for rows in ends)
        return cast(a - b, precision)

    def scores(self, curvature: FloatArray, root: Array) -> FloatArray:
        """v_e |T' (phi_a - phi_b)|^2 of every pair slot, (P, m), in the precision of T.

        Args:
            curvature: v_e, (P, m).
            root: T, (dim, q), float32 or float64: the precision of the pass.
        """
        xp, num_responses = namespace(root), self.features.shape[1]
        precision: Precision = np.float32 if root.dtype == xp.float32 else np.float64
        first, second = pair_slots(num_responses)
        diagonal = np.arange(num_responses) * (num_responses + 1)
        scores, multiplied = np.empty(curvature.shape, dtype=precision), multiplier(root, overwrite=True)
        for part, chunk in self.chunks(precision):
            mapped = xp.reshape(multiplied(xp.reshape(chunk, (-1, self.dim))), (chunk.shape[0], num_responses, -1))
            gram = to_numpy(mapped @ xp.matrix_transpose(mapped)).reshape(chunk.shape[0], -1)
            norms = gram[:, diagonal]
            scores[part] = norms[:, first] + norms[:, second] - 2 * gram[:, first * num_responses + second]
        np.maximum(scores, 0.0, out=scores)
        scores *= curvature
        return scores

    def scores_of(self, pairs: IntArray, root: Array, precision: Precision) -> FloatArray:
        """|T' (phi_a - phi_b)|^2 of flat pair indices, (n,) float64; computed in the given precision.

        Args:
            pairs: flat pair indices.
            root: T, (dim, q) float64.
            precision: of the pass.
        """
        parts = (squared_lengths(self.rows(pairs[part], precision), root) for part in _chunks(len(pairs), self.dim))
        return np.concatenate([np.zeros(0), *parts])

    def information(self, pair_weights: FloatArray, precision: Precision = np.float64) -> Array:
        """sum_e v_e (phi_a - phi_b)(phi_a - phi_b)' with v = `pair_weights` (P, m), (dim, dim) float64.

        Few positive weights are gathered, many go through the graph Laplacians. Products are formed in the given
        precision and summed in float64.
        """
        chosen = np.flatnonzero(pair_weights)
        if len(chosen) < 2 * self.valid.size:
            return self.information_of(chosen, pair_weights.ravel()[chosen], precision)
        return self._laplacian_information(pair_weights, precision)

    def information_of(self, pairs: IntArray, weights: FloatArray, precision: Precision = np.float64) -> Array:
        """sum_e v_e (phi_a - phi_b)(phi_a - phi_b)' over flat pair indices, (dim, dim) float64."""
        total = to_like(np.zeros((self.dim, self.dim)), self.features)
        for part in _chunks(len(pairs), self.dim):
            rows = self.rows(pairs[part], precision)
            rows *= to_like(np.sqrt(weights[part])[:, None], rows, precision)
            total += cast(gram(rows), np.float64)
        return total

    def scatter(self, shares: FloatArray) -> Array:
        """sum_x u_x sum_y phi_c phi_c' over the valid responses, phi_c about the prompt's mean, (dim, dim) float64.

        With u_x the number of its valid responses, this is the sum over all pairs of (phi_a - phi_b)(phi_a - phi_b)'.

        Args:
            shares: u_x >= 0, (P,).
        """
        roots = np.sqrt(shares)[:, None, None]
        total = to_like(np.zeros((self.dim, self.dim)), self.features)
        xp = namespace(total)
        for part, chunk in self.chunks(self.precision):
            flat = xp.reshape(chunk * to_like(roots[part], chunk, self.precision), (-1, self.dim))
            total += cast(gram(flat), np.float64)
        return total

    def covariance(self) -> Array:
        """Unbiased covariance of a prompt's responses, averaged over prompts that have two, (dim, dim) float64."""
        degrees = self.valid.sum(axis=1) - 1
        shares = np.divide(1.0, degrees, out=np.zeros(len(degrees)), where=degrees > 0)
        return self.scatter(shares / max(int((degrees > 0).sum()), 1))

    def _laplacian_information(self, pair_weights: FloatArray, precision: Precision) -> Array:
        num_responses = self.features.shape[1]
        first, second = pair_slots(num_responses)
        diagonal = np.arange(num_responses)
        total = to_like(np.zeros((self.dim, self.dim)), self.features)
        xp = namespace(total)
        for part, chunk in self.chunks(precision):
            laplacian = np.zeros((chunk.shape[0], num_responses, num_responses))
            laplacian[:, first, second] = laplacian[:, second, first] = -pair_weights[part]
            laplacian[:, diagonal, diagonal] = -laplacian.sum(axis=2)
            spread = xp.reshape(to_like(laplacian, chunk, precision) @ chunk, (-1, self.dim))
            total += cast(product(xp.reshape(chunk, (-1, self.dim)).T, spread), np.float64)
        return (total + total.T) / 2


def squared_lengths(rows: Array, root: Array) -> FloatArray:
    """|T' x|^2 of every row x, (n,) float64; computed in the precision of the rows.

    Args:
        rows: (n, dim).
        root: T, (dim, q) float64.
    """
    xp = namespace(rows)
    scale = largest(root) or 1.0
    mapped = multiplier(xp.astype(root / scale, rows.dtype))(rows)
    return to_numpy(xp.sum(mapped * mapped, axis=1)).astype(np.float64) * scale**2


def _chunks(length: int, numbers_each: int) -> Iterator[slice]:
    step = max(1, _NUMBERS_PER_CHUNK // numbers_each)
    return (slice(start, min(start + step, length)) for start in range(0, length, step))
