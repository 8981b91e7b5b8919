"""Ways to estimate the policy Fisher information H = E_x Cov_{y ~ pi}(phi(x, y)) that a trace design minimises under.

The simplest is a pool's own `policy_fisher`: the sample covariance of each prompt's responses, which trusts them to be
draws of the policy. With two responses a prompt it is half the mean of (phi_a - phi_b)(phi_a - phi_b)'.
"""

import numpy as np
from scipy.linalg import solve
from scipy.special import log_softmax

from tasks.design.arrays import Array, BoolArray, FloatArray, namespace, to_like, to_numpy
from tasks.design.kernels import PairSpace
from tasks.design.pool import Pool


def fisher_of(features: Array, valid: BoolArray) -> FloatArray:
    """H of responses to any prompts, (dim, dim): as `Pool.fisher` it aims a design at the prompts they answer.

    Args:
        features: phi(x, y), mapped like those of the pool that is chosen from, (prompts, responses, dim).
        valid: responses that count, (prompts, responses).
    """
    return to_numpy(PairSpace.of(features, valid).covariance())


def exact_fisher(features: Array, log_policy: FloatArray) -> FloatArray:
    """H of a policy whose every probability is known, all prompts equally likely, (dim, dim).

    Args:
        features: phi(x, y) of all that it can write, (prompts, responses, dim).
        log_policy: log pi(y|x), nats, (prompts, responses); -inf marks padding.
    """
    space = PairSpace.of(features, np.isfinite(log_policy))
    return _weighted_covariance(space, np.exp(log_policy) / len(log_policy))


def fitted_fisher(pool: Pool, *, ridge: float = 1e-3) -> FloatArray:
    """H under a log-linear policy that is fitted to the policy's log-probabilities of the pool's responses, (dim, dim).

    Han, Goyal and Ma (arXiv:2606.19607) are reported to ridge-regress reference log-probabilities on the features and
    to estimate the information there. Our reading: theta_0 minimises sum (log pi - theta' phi)^2 within prompts, p_k is
    the softmax of theta_0' phi_k over a prompt's valid responses, and H the mean of Cov_p(phi). It needs no draws
    from the policy: responses of any origin will do.

    Args:
        pool: responses with log_probs.
        ridge: multiple of the mean square of a feature that is added to the normal equations.

    Raises:
        ValueError: the pool has no log_probs.
    """
    if pool.log_probs is None:
        raise ValueError("fisher 'fitted' needs the log_probs of the responses, the pool has none")
    counted = pool.valid.sum(axis=1) > 1
    logits = np.where(pool.valid, _projected(pool.space, _ridge_fit(pool, pool.log_probs, ridge=ridge)), -np.inf)
    shares = np.zeros(logits.shape)
    shares[counted] = np.exp(log_softmax(logits[counted], axis=1)) / max(int(counted.sum()), 1)
    return _weighted_covariance(pool.space, shares)


def _ridge_fit(pool: Pool, log_probs: FloatArray, *, ridge: float) -> FloatArray:
    """theta_0, (dim,)."""
    wide = np.where(pool.valid, log_probs, 0.0)
    means = wide.sum(axis=1, keepdims=True) / np.maximum(pool.valid.sum(axis=1, keepdims=True), 1)
    centred = np.where(pool.valid, wide - means, 0.0)
    moments = np.zeros(pool.dim)
    for part, chunk in pool.space.chunks(np.float64):
        flat = namespace(chunk).reshape(chunk, (-1, pool.dim))
        moments += to_numpy(flat.T @ to_like(centred[part].ravel(), flat))
    spread = to_numpy(pool.space.scatter(np.ones(pool.num_prompts)))
    least = ridge * float(np.trace(spread)) / pool.dim or 1.0
    fitted: FloatArray = solve(spread + least * np.eye(pool.dim), moments, assume_a="pos")
    return fitted


def _projected(space: PairSpace, theta: FloatArray) -> FloatArray:
    """theta' phi of every response, (P, K)."""
    parts = [to_numpy(chunk @ to_like(theta, chunk)) for _, chunk in space.chunks(np.float64)]
    projected: FloatArray = np.concatenate(parts)
    return projected


def _weighted_covariance(space: PairSpace, shares: FloatArray) -> FloatArray:
    """sum_x sum_k p_k (phi_k - m)(phi_k - m)', m the mean of a prompt's responses under its p, (dim, dim)."""
    total = np.zeros((space.dim, space.dim))
    for part, chunk in space.chunks(np.float64):
        xp = namespace(chunk)
        weights = shares[part]
        within = to_like(weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-300), chunk)
        rows = chunk - within[:, None, :] @ chunk
        flat = xp.reshape(rows * to_like(np.sqrt(weights)[:, :, None], rows), (-1, space.dim))
        total += to_numpy(flat.T @ flat)
    return total
