"""Training in a world of log-linear policies: DPO is a logistic regression there."""

import numpy as np
from scipy.linalg import solve
from scipy.special import expit

from tasks.design.arrays import BoolArray, FloatArray

_MOST_STEPS = 100
_SHORTEST = 1e-10
_SUFFICIENT = 1e-4
_ROUNDING = 1e-13


def fit_policy(
    differences: FloatArray, preferred: BoolArray, *, beta: float, ridge: float, weights: FloatArray | None = None
) -> FloatArray:
    """theta (dim,) that minimises sum_e w_e log(1 + exp(-+ beta theta'g_e)) + (ridge / 2) beta^2 |theta|^2.

    The DPO loss of pi ~ pi_ref exp(theta'phi), whose implicit rewards are beta theta'phi; Newton's method, damped.

    Args:
        differences: g_e, first response minus second, (n, dim).
        preferred: whether the label prefers the first, (n,).
        beta: inverse temperature of the loss.
        ridge: of the reward's parameter beta theta, in units of one label's weight.
        weights: w_e, (n,); None: 1 each.

    Raises:
        ArithmeticError: the steps don't settle.
    """
    weights = np.ones(len(differences)) if weights is None else weights
    signed = np.where(preferred, 1.0, -1.0)[:, None] * differences

    def loss(reward: FloatArray) -> float:
        return float(weights @ np.logaddexp(0.0, -(signed @ reward)) + ridge / 2 * reward @ reward)

    reward = np.zeros(differences.shape[1])
    for _ in range(_MOST_STEPS):
        slope, step = _newton(signed, reward, weights=weights, ridge=ridge)
        if np.abs(step).max(initial=0.0) <= 1e-8 * (1 + np.abs(reward).max(initial=0.0)):
            return reward / beta
        length, begun = 1.0, loss(reward)
        enough = _SUFFICIENT * float(slope @ step)
        while loss(reward - length * step) > begun * (1 + _ROUNDING) - length * enough and length > _SHORTEST:
            length /= 2
        reward = reward - length * step
    raise ArithmeticError(f"no fit of {len(differences)} labels after {_MOST_STEPS} Newton steps: raise the ridge")


def _newton(
    signed: FloatArray, reward: FloatArray, *, weights: FloatArray, ridge: float
) -> tuple[FloatArray, FloatArray]:
    """Gradient of the loss, and the step that it and the curvature give, (dim,) each."""
    miss = expit(-(signed @ reward))
    slope = ridge * reward - signed.T @ (weights * miss)
    curvature = (signed * (weights * miss * (1 - miss))[:, None]).T @ signed
    curvature[np.diag_indices_from(curvature)] += ridge
    return slope, solve(curvature, slope, assume_a="pos")
