"""A world: a pool whose labels, and whose policies' worth, are known exactly."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, log_softmax

from tasks.design.arrays import BoolArray, FloatArray, IntArray, to_numpy
from tasks.design.pool import Pool
from tasks.design.selection import Selection

_WIDEST = 2.0**40


@dataclass(frozen=True, eq=False, kw_only=True)
class Target:
    """Prompts on which log-linear policies pi(y|x) ~ pi_ref(y|x) exp(theta'phi(x, y)) are judged, exactly.

    Attributes:
        features: phi(x, y), (Q, K, dim).
        utilities: r*(x, y), logits of the labeller's preference, (Q, K).
        log_reference: log pi_ref(y|x), nats, (Q, K); each prompt's sum to one, -inf marks padding.
    """

    features: FloatArray
    utilities: FloatArray
    log_reference: FloatArray

    def policy(self, theta: FloatArray) -> FloatArray:
        """log pi(y|x) of a parameter (dim,), nats, (Q, K)."""
        return self._tilted(self.features @ theta)

    def optimum(self, *, beta: float) -> FloatArray:
        """log pi*(y|x), pi* ~ pi_ref exp(r*/beta), which maximises J; nats, (Q, K)."""
        return self._tilted(self.utilities / beta)

    def _tilted(self, logits: FloatArray) -> FloatArray:
        tilted: FloatArray = log_softmax(self.log_reference + logits, axis=1)
        return tilted

    def utility(self, policy: FloatArray) -> float:
        """E_x E_{y ~ pi} r*(x, y) of a policy's log-probabilities (Q, K)."""
        return float((np.exp(policy) * self.utilities).sum(axis=1).mean())

    def divergence(self, policy: FloatArray) -> float:
        """E_x KL(pi || pi_ref) of a policy's log-probabilities (Q, K), nats."""
        return _divergence(policy, self.log_reference)

    def value(self, policy: FloatArray, *, beta: float) -> float:
        """J(pi) = E r* - beta KL(pi || pi_ref)."""
        return self.utility(policy) - beta * self.divergence(policy)

    def regret(self, policy: FloatArray, *, beta: float) -> float:
        """J(pi*) - J(pi), which is beta E_x KL(pi || pi*)."""
        return beta * _divergence(policy, self.optimum(beta=beta))

    def utility_at(self, theta: FloatArray, divergence: float) -> float:
        """Utility where the ray c theta, c >= 0, reaches a KL from the reference: a point of the frontier.

        Policies of one direction differ by their scale alone, which beta, the ridge and the misfit of the features all
        change: at equal KL directions are compared. A ray that never gets so far gives its limit.

        Args:
            theta: direction, (dim,).
            divergence: KL(pi || pi_ref) at which to read, nats.
        """
        logits = self.features @ theta
        logits = logits / max(float(np.abs(logits).max(initial=0.0)), 1e-300)

        def excess(scale: float) -> float:
            return self.divergence(self._tilted(scale * logits)) - divergence

        widest = 1.0
        while excess(widest) < 0 and widest < _WIDEST:
            widest *= 2
        scale = brentq(excess, 0.0, widest, rtol=1e-9) if excess(widest) > 0 else widest
        return self.utility(self._tilted(scale * logits))


@dataclass(frozen=True, eq=False, kw_only=True)
class World:
    """One draw of an environment.

    The label of a pair is decided by one uniform number of the pair's own, whoever asks: selectors that ask for the
    same pair get the same answer (common random numbers).

    Attributes:
        pool: what selectors see, P prompts of K responses.
        utilities: r* of the pool's responses, (P, K), the logits of the labeller's preference.
        draws: uniform numbers in [0, 1), one a pair slot, (P, m).
        flip_rate: chance that a label is turned round.
        target: where policies are judged.
    """

    pool: Pool
    utilities: FloatArray
    draws: FloatArray
    flip_rate: float
    target: Target

    @cached_property
    def chances(self) -> FloatArray:
        """P(label prefers the first response of a pair slot), Bradley-Terry with flips, (P, m)."""
        honest: FloatArray = expit(self.pool.differences_of(self.utilities))
        return self.flip_rate + (1 - 2 * self.flip_rate) * honest

    def labels(self, index: IntArray) -> BoolArray:
        """Whether the label of each flat pair index prefers the first response, (n,)."""
        answers: BoolArray = (self.draws < self.chances).ravel()[index]
        return answers

    def index_of(self, selection: Selection) -> IntArray:
        """Flat pair indices of a selection, (n,)."""
        return self.pool.index_of(selection.prompt, selection.first, selection.second)

    def differences(self, index: IntArray) -> FloatArray:
        """phi of the first response minus that of the second, of flat pair indices, (n, dim)."""
        prompt, first, second = self.pool.pairs(index)
        difference: FloatArray = to_numpy(self.pool.features[prompt, first] - self.pool.features[prompt, second])
        return difference


def _divergence(policy: FloatArray, other: FloatArray) -> float:
    """E_x KL(pi || pi') of two policies' log-probabilities (Q, K) with -inf in the same places, nats."""
    ratios = np.subtract(policy, other, out=np.zeros(policy.shape), where=np.isfinite(policy))
    return float((np.exp(policy) * ratios).sum(axis=1).mean())
