"""Sums over all pairs of a pool, computed from its responses.

A pool of P prompts with K responses holds m = K (K - 1) / 2 pair slots per prompt, in the order of
`numpy.triu_indices(K, 1)`. The pair vectors a_e = beta sqrt(sigma'(z_e)) (phi_a - phi_b) are never formed for the whole
pool: a score needs one K x K Gram matrix per prompt, an information matrix one K x K graph Laplacian per prompt.
"""

from collections.abc import Iterator
from functools import cache

import numpy as np
import numpy.typing as npt
from scipy.special import expit

FloatArray = npt.NDArray[np.floating]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.intp]

_ROWS_PER_CHUNK = 4096


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


def pair_curvature(rewards: FloatArray, mask: BoolArray, *, beta: float) -> FloatArray:
    """beta^2 sigma'(z_e) of every pair slot, (P, m) float64; 0 where `mask` is False."""
    first, second = pair_slots(rewards.shape[1])
    wide = rewards.astype(np.float64)
    curvature: FloatArray = np.where(mask, beta**2 * logistic_curvature(wide[:, first] - wide[:, second]), 0.0)
    return curvature


def centre(features: FloatArray, valid: BoolArray) -> FloatArray:
    """Features minus the mean of their prompt's valid responses, 0 where invalid, (P, K, dim).

    Only differences within a prompt matter to a pair. Removing what a prompt's responses share costs nothing and
    spares the Gram matrices the cancellation, which single precision could not afford.
    """
    centred = np.empty(features.shape, dtype=np.result_type(features.dtype, np.float32))
    for part in _chunks(len(features), features.shape[1]):
        weight = valid[part, :, None]
        wide = features[part].astype(np.float64)
        mean = (wide * weight).sum(axis=1, keepdims=True) / np.maximum(weight.sum(axis=1, keepdims=True), 1)
        centred[part] = np.where(weight, wide - mean, 0.0)
    return centred


def within_prompt_covariance(features: FloatArray, valid: BoolArray) -> FloatArray:
    """Unbiased covariance of a prompt's valid responses, averaged over prompts that have two or more, (dim, dim)."""
    degrees = valid.sum(axis=1) - 1
    used = np.flatnonzero(degrees > 0)
    total = np.zeros((features.shape[2], features.shape[2]))
    for part in _chunks(len(used), features.shape[1]):
        prompts = used[part]
        rows = centre(features[prompts], valid[prompts]) / np.sqrt(degrees[prompts])[:, None, None]
        flat = rows.reshape(-1, features.shape[2]).astype(np.float64)
        total += flat.T @ flat
    return total / max(len(used), 1)


def pair_scores(features: FloatArray, curvature: FloatArray, *, root: FloatArray) -> FloatArray:
    """a_e' T T' a_e of every pair slot, (P, m) in the precision of `root`.

    Args:
        features: (P, K, dim), centred within prompts for accuracy.
        curvature: beta^2 sigma'(z_e), (P, m).
        root: T, (dim, q). M^-1 H^(1/2) gives the gain in tr(H M^-1), M^(-1/2) the leverage a' M^-1 a.
    """
    num_prompts, num_responses, dim = features.shape
    first, second = pair_slots(num_responses)
    scores = np.empty(curvature.shape, dtype=root.dtype)
    for part in _chunks(num_prompts, num_responses):
        chunk = features[part].astype(root.dtype, copy=False)
        mapped = (chunk.reshape(-1, dim) @ root).reshape(len(chunk), num_responses, root.shape[1])
        gram = mapped @ mapped.transpose(0, 2, 1)
        norms = np.einsum("pkk->pk", gram)
        scores[part] = norms[:, first] + norms[:, second] - 2 * gram[:, first, second]
    np.maximum(scores, 0.0, out=scores)
    scores *= curvature
    return scores


def information(features: FloatArray, pair_weights: FloatArray) -> FloatArray:
    """sum_e v_e (phi_a - phi_b)(phi_a - phi_b)' with v = `pair_weights` (P, m), (dim, dim) float64.

    For a design w pass v = w beta^2 sigma'(z). Few positive weights are gathered, many go through the Laplacians.
    """
    chosen = np.flatnonzero(pair_weights)
    if len(chosen) < 2 * features.shape[0] * features.shape[1]:
        return _gathered_information(features, pair_weights.ravel(), chosen=chosen)
    return _laplacian_information(features, pair_weights)


def _gathered_information(features: FloatArray, pair_weights: FloatArray, *, chosen: IntArray) -> FloatArray:
    first, second = pair_slots(features.shape[1])
    total = np.zeros((features.shape[2], features.shape[2]))
    for part in _chunks(len(chosen), 1):
        prompt, slot = np.divmod(chosen[part], len(first))
        rows = features[prompt, first[slot]].astype(np.float64) - features[prompt, second[slot]]
        rows *= np.sqrt(pair_weights[chosen[part], None])
        total += rows.T @ rows
    return total


def _laplacian_information(features: FloatArray, pair_weights: FloatArray) -> FloatArray:
    num_prompts, num_responses, dim = features.shape
    first, second = pair_slots(num_responses)
    diagonal = np.arange(num_responses)
    total = np.zeros((dim, dim))
    for part in _chunks(num_prompts, num_responses):
        chunk = features[part].astype(np.float64)
        laplacian = np.zeros((len(chunk), num_responses, num_responses))
        laplacian[:, first, second] = laplacian[:, second, first] = -pair_weights[part]
        laplacian[:, diagonal, diagonal] = -laplacian.sum(axis=2)
        total += chunk.reshape(-1, dim).T @ (laplacian @ chunk).reshape(-1, dim)
    return (total + total.T) / 2


def _chunks(length: int, rows_each: int) -> Iterator[slice]:
    step = max(1, _ROWS_PER_CHUNK // rows_each)
    return (slice(start, start + step) for start in range(0, length, step))
