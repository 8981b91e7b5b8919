"""Training in a world of log-linear policies: DPO is a logistic regression there."""

import numpy as np
from scipy.linalg import solve
from scipy.special import expit

from tasks.design.arrays import BoolArray, FloatArray

_LONGEST = 4.0
"""Largest change of a margin in one Newton step, nats."""


def fit_policy(
    differences: FloatArray, preferred: BoolArray, *, beta: float, ridge: float, weights: FloatArray | None = None
) -> FloatArray:
    """theta (dim,) that minimises sum_e w_e log(1 + exp(-+ beta theta'g_e)) + (ridge / 2) beta^2 |theta|^2.

    The DPO loss of pi ~ pi_ref exp(theta'phi), whose implicit rewards are beta theta'phi; Newton's method.

    Args:
        differences: g_e, first response minus second, (n, dim).
        preferred: whether the label prefers the first, (n,).
        beta: inverse temperature of the loss.
        ridge: of the reward's parameter beta theta, in units of one label's weight.
        weights: w_e, (n,); None: 1 each.
    """
    weights = np.ones(len(differences)) if weights is None else weights
    reward = np.zeros(differences.shape[1])
    for _ in range(100):
        chance = expit(differences @ reward)
        slope = differences.T @ (weights * (chance - preferred)) + ridge * reward
        curvature = (differences * (weights * chance * (1 - chance))[:, None]).T @ differences
        curvature[np.diag_indices_from(curvature)] += ridge
        step = solve(curvature, slope, assume_a="pos")
        step *= min(1.0, _LONGEST / max(float(np.abs(differences @ step).max(initial=0.0)), 1e-300))
        reward -= step
        if np.abs(step).max(initial=0.0) <= 1e-8 * (1 + np.abs(reward).max(initial=0.0)):
            break
    return reward / beta
