"""What the labels held say of the rewards: a Gaussian posterior over a weight for each feature.

A label prefers a to b with probability sigma(z), z = beta theta' (phi_a - phi_b), and theta is N(0, I / ridge) before
any label. Laplace's approximation of its posterior is N(theta_hat, M^-1), with theta_hat the ridge logistic regression
and M the curvature of its loss there (MacKay 1992, "The Evidence Framework Applied to Classification Networks").
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from logging import getLogger

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit

from tasks.design.arrays import Array, FloatArray, namespace, to_like, to_numpy
from tasks.design.kernels import logistic_curvature
from tasks.design.measures import inverse_root
from tasks.design.pool import Pool

logger = getLogger(__name__)

_TOLERANCE = 1e-10
_MAX_STEPS = 100


@dataclass(frozen=True, eq=False, kw_only=True)
class Posterior:
    """N(mean, R R') over theta, seen through the responses of a pool.

    A reward is beta theta' phi_c in nats, phi_c the features about the mean of the prompt's valid responses: labels
    within prompts tell nothing of what a prompt's responses share. Responses that are not valid have reward 0.

    Attributes:
        pool: the responses.
        mean: theta_hat, (dim,).
        inverse_root: R with R R' = M^-1, (dim, dim).
    """

    pool: Pool
    mean: FloatArray
    inverse_root: FloatArray

    @cached_property
    def rewards(self) -> FloatArray:
        """Mean reward of every response, nats, (P, K)."""
        rewards: FloatArray = np.concatenate([to_numpy(mapped[..., 0]) for mapped in self._mapped(self.mean[:, None])])
        return rewards

    @cached_property
    def deviations(self) -> FloatArray:
        """Standard deviation of every response's reward, nats, (P, K)."""
        squares = [to_numpy(namespace(mapped).sum(mapped**2, axis=2)) for mapped in self._mapped(self.inverse_root)]
        deviations: FloatArray = np.sqrt(np.concatenate(squares))
        return deviations

    @cached_property
    def logits(self) -> FloatArray:
        """Mean logit z of every pair slot, that its first response is preferred, (P, m)."""
        return self.pool.differences_of(self.rewards)

    @cached_property
    def logit_deviations(self) -> FloatArray:
        """Standard deviation of every pair slot's logit, (P, m)."""
        squared_beta = np.full(self.pool.pair_mask.shape, self.pool.beta**2)
        deviations: FloatArray = np.sqrt(self.pool.space.scores(squared_beta, self._like(self.inverse_root)))
        return deviations

    def draws(self, count: int, rng: np.random.Generator) -> FloatArray:
        """Rewards under `count` draws of theta, (count, P, K).

        Every prompt has draws of its own: a batch that shared one would bet on it as a whole.
        """
        noisy = []
        for mapped in self._mapped(self.inverse_root):
            noise = rng.standard_normal((mapped.shape[0], mapped.shape[2], count))
            noisy.append(to_numpy(mapped @ self._like(noise)))
        draws: FloatArray = np.moveaxis(np.concatenate(noisy), 2, 0) + self.rewards
        return draws

    def _mapped(self, matrix: FloatArray) -> Iterator[Array]:
        """Chunks of prompts, each beta T' phi_c for T = `matrix` (dim, q), (p, K, q)."""
        scaled = self._like(self.pool.beta * matrix)
        for _, chunk in self.pool.space.chunks(np.float64):
            xp = namespace(chunk)
            flat = xp.reshape(chunk, (-1, chunk.shape[2])) @ scaled
            yield xp.reshape(flat, (*chunk.shape[:2], -1))

    def _like(self, values: FloatArray) -> Array:
        return to_like(values, self.pool.features)


def laplace_posterior(pool: Pool, *, ridge: float) -> Posterior:
    """The posterior given the labels that a pool comes with; without labels it is the prior.

    Args:
        pool: responses and labels.
        ridge: prior precision of every weight; theta_hat minimises sum_e -log sigma(z_e) + ridge |theta|^2 / 2.
    """
    differences = np.zeros((0, pool.dim)) if pool.labels is None else pool.labels.differences
    mean, root = _fit(pool.beta * differences.astype(np.float64), ridge)
    return Posterior(pool=pool, mean=mean, inverse_root=root)


def _fit(rows: FloatArray, ridge: float) -> tuple[FloatArray, FloatArray]:
    """theta_hat and R of labels whose logits are `rows` theta, by Newton's method with exact line search.

    Ends within 1e-10 posterior standard deviations of the optimum.
    """
    weights = np.zeros(rows.shape[1])
    for _ in range(_MAX_STEPS):
        logits = rows @ weights
        root = inverse_root(rows.T @ (logistic_curvature(logits)[:, None] * rows), ridge)
        ascent = root.T @ (rows.T @ expit(-logits) - ridge * weights)
        if np.linalg.norm(ascent) <= _TOLERANCE:
            break
        weights = weights + _step_length(rows, weights, step=root @ ascent, ridge=ridge) * (root @ ascent)
    else:
        logger.warning("the logistic fit to %d labels is %.1e short", len(rows), np.linalg.norm(ascent))
    return weights, root


def _step_length(rows: FloatArray, weights: FloatArray, *, step: FloatArray, ridge: float) -> float:
    """Step t in [0, 1] that minimises the loss at weights + t step."""
    logits, moves = rows @ weights, rows @ step

    def slope(length: float) -> float:
        return float(ridge * (weights + length * step) @ step - moves @ expit(-logits - length * moves))

    if slope(1.0) <= 0 or slope(0.0) >= 0:  # the latter only where rounding is all that is left
        return 1.0
    return float(brentq(slope, 0.0, 1.0))
