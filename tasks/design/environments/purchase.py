"""Labels bought in a world: what they teach, what their pairs alone would teach, and what is left to buy."""

from dataclasses import dataclass, replace

import numpy as np
from scipy.special import expit, logsumexp

from tasks.design.arrays import BoolArray, FloatArray, IntArray, to_numpy
from tasks.design.environments.fitting import fit_counts, fit_policy
from tasks.design.environments.world import World
from tasks.design.pool import Labels, Pool


@dataclass(frozen=True, eq=False)
class Purchase:
    """Labels bought so far.

    Attributes:
        index: flat pair indices in order of choice, (n,).
        weights: of the labels in the loss, (n,).
        theta: parameter of the policy fitted to them, (dim,).
    """

    index: IntArray
    weights: FloatArray
    theta: FloatArray

    @classmethod
    def of(cls, world: World, index: IntArray, weights: FloatArray, *, ridge: float) -> "Purchase":
        """The labels of these pairs, and the policy fitted to them; the ridge is in units of their mean weight."""
        return cls(index, weights, _fit(world, index, weights, world.labels(index), ridge=ridge))


def best_parameter(world: World, *, ridge: float) -> FloatArray:
    """theta that all pairs of the pool teach, each with the chances of its label in place of one label, (dim,)."""
    wins = np.where(world.pool.pair_mask, world.chances, 0.0)
    losses = np.where(world.pool.pair_mask, 1 - world.chances, 0.0)
    return fit_counts(world.pool.space, wins, losses, beta=world.pool.beta, ridge=ridge)


def without_noise(world: World, bought: Purchase, *, ridge: float) -> FloatArray:
    """theta that the pairs of a purchase teach with the chances of their labels in place of the labels, (dim,)."""
    return _fit(world, bought.index, bought.weights, world.chances.ravel()[bought.index], ridge=ridge)


def without_misfit(world: World, bought: Purchase, best: FloatArray, *, ridge: float) -> FloatArray:
    """theta that they would teach if the chances were those that a parameter `best` of the family gives, (dim,)."""
    chances = expit(world.pool.beta * (world.differences(bought.index) @ best))
    return _fit(world, bought.index, bought.weights, chances, ridge=ridge)


def _fit(
    world: World, index: IntArray, weights: FloatArray, preferred: BoolArray | FloatArray, *, ridge: float
) -> FloatArray:
    differences = world.differences(index).astype(np.float64)
    shares = weights / weights.mean()
    return fit_policy(differences, preferred, beta=world.pool.beta, ridge=ridge, weights=shares)


def present_pool(world: World, bought: Purchase) -> Pool:
    """The world's pool as it stands after a purchase: labels held, pairs left, rewards and log pi of the fitted policy.

    The chance that the policy writes one of a prompt's responses stays what it was.
    """
    pool = world.pool
    if len(bought.index) == 0:
        return pool
    signs = np.where(world.labels(bought.index), 1.0, -1.0)
    differences = signs[:, None] * world.differences(bought.index)
    gaps = None if pool.scores is None else signs * pool.differences_of(pool.scores).ravel()[bought.index]
    labels = Labels(
        differences=differences,
        margins=pool.beta * differences @ bought.theta,
        score_gaps=gaps,
        prompts=pool.pairs(bought.index)[0],
    )
    offered = pool.pair_mask.copy()
    offered.ravel()[bought.index] = False
    logits = to_numpy(pool.features) @ bought.theta
    return replace(
        pool,
        rewards=pool.rewards + pool.beta * logits,
        labels=labels,
        log_probs=None if pool.log_probs is None else _tilted(pool, pool.log_probs, logits),
        offered=offered,
    )


def _tilted(pool: Pool, log_probs: FloatArray, logits: FloatArray) -> FloatArray:
    """log pi of pi ~ pi_0 exp(logits), with each prompt's total over its valid responses as before, (P, K)."""
    before = np.where(pool.valid, log_probs, -np.inf)
    after = before + logits
    shift = logsumexp(before, axis=1, keepdims=True) - logsumexp(after, axis=1, keepdims=True)
    found: FloatArray = np.where(pool.valid, log_probs + logits + shift, log_probs)
    return found
