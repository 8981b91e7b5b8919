"""Training in a world of log-linear policies: DPO is a logistic regression there."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.linalg import solve
from scipy.special import expit

from tasks.design.arrays import BoolArray, FloatArray, IntArray
from tasks.design.kernels import PairSpace, pair_slots

_MOST_STEPS = 100
_SHORTEST = 1e-10
_SUFFICIENT = 1e-4
_ROUNDING = 1e-13


def fit_policy(
    differences: FloatArray,
    preferred: BoolArray | FloatArray,
    *,
    beta: float,
    ridge: float,
    weights: FloatArray | None = None,
) -> FloatArray:
    """theta (dim,) that minimises sum_e w_e l_e(beta theta'g_e) + (ridge / 2) beta^2 |theta|^2.

    l_e(z) = p_e log(1 + exp(-z)) + (1 - p_e) log(1 + exp(z)): the DPO loss of pi ~ pi_ref exp(theta'phi), whose
    implicit rewards are beta theta'phi, or its mean over labels whose chance is p_e. Newton's method, damped.

    Args:
        differences: g_e, first response minus second, (n, dim).
        preferred: p_e, whether the label prefers the first, or the chance that it does, in [0, 1], (n,).
        beta: inverse temperature of the loss.
        ridge: of the reward's parameter beta theta, in units of one label's weight.
        weights: w_e, (n,); None: 1 each.

    Raises:
        ArithmeticError: the steps don't settle.
    """
    weights = np.ones(len(differences)) if weights is None else weights
    labels = _Labels(_Rows(differences), weights * preferred, weights * (1 - preferred), ridge)
    return _minimise(labels, differences.shape[1]) / beta


def fit_counts(space: PairSpace, wins: FloatArray, losses: FloatArray, *, beta: float, ridge: float) -> FloatArray:
    """`fit_policy` of labels that are counted by pair slot, so that a repeated pair costs no more than one label.

    Args:
        space: the features of numpy, as differences within prompts.
        wins: labels that prefer the first response of every pair slot, (P, m).
        losses: labels that prefer the second, (P, m).
        beta: inverse temperature of the loss.
        ridge: of the reward's parameter beta theta, in units of one label.

    Raises:
        ArithmeticError: the steps don't settle.
    """
    asked = np.flatnonzero(wins + losses)
    labels = _Labels(_Slots.of(space, asked), wins.ravel()[asked], losses.ravel()[asked], ridge)
    return _minimise(labels, space.dim) / beta


class _Pairs(Protocol):
    """Pairs that were labelled, whose vectors g_e are never asked for themselves."""

    def margins(self, reward: FloatArray) -> FloatArray:
        """reward'g_e, (n,)."""

    def pull(self, forces: FloatArray) -> FloatArray:
        """sum_e f_e g_e, (dim,)."""

    def information(self, curvature: FloatArray) -> FloatArray:
        """sum_e v_e g_e g_e', (dim, dim)."""


@dataclass(frozen=True, eq=False)
class _Rows:
    """Pairs as their vectors, (n, dim)."""

    rows: FloatArray

    def margins(self, reward: FloatArray) -> FloatArray:
        found: FloatArray = self.rows @ reward
        return found

    def pull(self, forces: FloatArray) -> FloatArray:
        found: FloatArray = self.rows.T @ forces
        return found

    def information(self, curvature: FloatArray) -> FloatArray:
        found: FloatArray = (self.rows * curvature[:, None]).T @ self.rows
        return found


@dataclass(frozen=True, eq=False)
class _Slots:
    """Pairs as pair slots of a pool: flat indices of slots and of their responses, (n,) each."""

    space: PairSpace
    slots: IntArray
    first: IntArray
    second: IntArray

    @classmethod
    def of(cls, space: PairSpace, slots: IntArray) -> "_Slots":
        width = space.valid.shape[1]
        first, second = pair_slots(width)
        prompt, slot = np.divmod(slots, len(first))
        return cls(space, slots, prompt * width + first[slot], prompt * width + second[slot])

    @property
    def _responses(self) -> FloatArray:
        flat: FloatArray = self.space.features.reshape(-1, self.space.dim)
        return flat

    def margins(self, reward: FloatArray) -> FloatArray:
        rewards: FloatArray = self._responses @ reward
        return rewards[self.first] - rewards[self.second]

    def pull(self, forces: FloatArray) -> FloatArray:
        size = self.space.valid.size
        net = np.bincount(self.first, forces, size) - np.bincount(self.second, forces, size)
        found: FloatArray = self._responses.T @ net
        return found

    def information(self, curvature: FloatArray) -> FloatArray:
        num_prompts, width = self.space.valid.shape
        spread = np.zeros((num_prompts, width * (width - 1) // 2))
        spread.flat[self.slots] = curvature
        found: FloatArray = self.space.information(spread)
        return found


@dataclass(frozen=True, eq=False)
class _Labels:
    """What is minimised: weights of labels for the first response and for the second, (n,) each."""

    pairs: _Pairs
    wins: FloatArray
    losses: FloatArray
    ridge: float

    def loss(self, reward: FloatArray) -> float:
        margins = self.pairs.margins(reward)
        missed = self.wins @ np.logaddexp(0.0, -margins) + self.losses @ np.logaddexp(0.0, margins)
        return float(missed + self.ridge / 2 * reward @ reward)

    def newton(self, reward: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Gradient of the loss, and the step that it and the curvature give, (dim,) each."""
        margins = self.pairs.margins(reward)
        above, below = expit(margins), expit(-margins)
        slope = self.ridge * reward + self.pairs.pull(self.losses * above - self.wins * below)
        curvature = self.pairs.information((self.wins + self.losses) * above * below)
        curvature[np.diag_indices_from(curvature)] += self.ridge
        return slope, solve(curvature, slope, assume_a="pos")


def _minimise(labels: _Labels, dim: int) -> FloatArray:
    """The reward's parameter, beta theta, (dim,)."""
    reward = np.zeros(dim)
    for _ in range(_MOST_STEPS):
        slope, step = labels.newton(reward)
        if np.abs(step).max(initial=0.0) <= 1e-8 * (1 + np.abs(reward).max(initial=0.0)):
            return reward
        length, begun = 1.0, labels.loss(reward)
        enough = _SUFFICIENT * float(slope @ step)
        while labels.loss(reward - length * step) > begun * (1 + _ROUNDING) - length * enough and length > _SHORTEST:
            length /= 2
        reward = reward - length * step
    raise ArithmeticError(f"no fit of {len(labels.wins)} pairs after {_MOST_STEPS} Newton steps: raise the ridge")
