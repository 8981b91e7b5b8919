"""Dueling bandits: rules that name a first and a second response of every prompt, from a posterior over rewards.

Most are those that ActiveUltraFeedback (arXiv:2603.09692) compares. There the bounds and draws come from an ensemble's
heads, one set for each response by itself; here from the Laplace posterior over the pool's features, in which rewards
of one prompt are correlated. The rules name one pair a prompt. What follows where the budget asks for more is ours.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import expit

from tasks.design.arrays import BoolArray, FloatArray, IntArray
from tasks.design.kernels import pair_slots
from tasks.design.pool import Pool
from tasks.design.selectors.base import Layered
from tasks.design.selectors.posteriors import Bayesian


@dataclass(frozen=True, kw_only=True)
class _Sampled(Bayesian, Layered, ABC):
    """Names the first response by one draw and the second by the next draws, until it is another response.

    Draws go on after a pair is found, so that a prompt gives its pairs in the order in which they come up. A prompt
    that runs out of draws pairs the first response it has left with others at random, as the source does; pairs
    without it come last.

    Attributes:
        max_pairs_per_prompt: cap on the pairs of one prompt; None: no cap.
        ridge: prior precision of every feature's weight.
        num_draws: draws of theta for each prompt.
    """

    num_draws: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_draws < 2:
            raise ValueError(f"num_draws is {self.num_draws}: a pair takes 2 or more")

    @abstractmethod
    def opponent(self, draw: FloatArray) -> FloatArray:
        """What the second response maximises under a draw of rewards (P, K)."""

    def rank(self, pool: Pool, rng: np.random.Generator) -> FloatArray:
        """Draws that were left when the pair first came up, (P, m); below those, 1 and 0 where it did not."""
        slots, prompts = _slot_table(pool), np.arange(pool.num_prompts)
        first = np.full(pool.num_prompts, -1)
        left = np.zeros(pool.pair_mask.shape)
        for turn, draw in enumerate(self.posterior(pool).draws(self.num_draws, rng)):
            second = _best(self.opponent(draw), pool)
            met = prompts[(first >= 0) & (second != first)]
            pair = (met, slots[first[met], second[met]])
            left[pair] = np.maximum(left[pair], self.num_draws + 1 - turn)
            first = np.where(first < 0, _best(draw, pool), first)
            first[met] = -1
        return np.maximum(left, _holds(first, pool))


@dataclass(frozen=True, kw_only=True)
class Thompson(_Sampled):
    """Double Thompson sampling, DTS: the best under one draw against the best under another.

    Compared in ActiveUltraFeedback (arXiv:2603.09692), after Wu and Liu (arXiv:1604.07101).
    """

    kind: Literal["thompson"] = "thompson"

    def opponent(self, draw: FloatArray) -> FloatArray:
        """The best."""
        return draw


@dataclass(frozen=True, kw_only=True)
class DoubleReversedThompson(_Sampled):
    """Double reversed Thompson sampling, DRTS: the best under one draw against the worst under another.

    Proposed in ActiveUltraFeedback (arXiv:2603.09692), where pairs of a large gap train the better policies.
    """

    kind: Literal["double_reversed_thompson"] = "double_reversed_thompson"

    def opponent(self, draw: FloatArray) -> FloatArray:
        """The worst."""
        return -draw


@dataclass(frozen=True, kw_only=True)
class Baits(Bayesian, Layered):
    """Best-arm identification: the best under a draw against argmax_j Var[r_first - r_j].

    `EnnBAITS` of SEA (Liu et al., arXiv:2411.01493), which draws one head of an ensemble for the whole batch; here
    every prompt has a draw of its own. Pairs of the same first response follow by variance, then those without it.
    """

    kind: Literal["baits"] = "baits"

    def rank(self, pool: Pool, rng: np.random.Generator) -> FloatArray:
        """Variance of the pair's logit, with the prompt's largest on top where the pair holds the first, (P, m)."""
        posterior = self.posterior(pool)
        first = _best(posterior.draws(1, rng)[0], pool)
        variance = np.where(pool.pair_mask, np.square(posterior.logit_deviations), 0.0)
        ranked: FloatArray = variance + _holds(first, pool) * variance.max(axis=1, keepdims=True)
        return ranked


@dataclass(frozen=True, kw_only=True)
class _Bounded(Bayesian, Layered, ABC):
    """Names pairs by confidence bounds on every response: l, u = mean reward -+ width * standard deviation.

    Attributes:
        max_pairs_per_prompt: cap on the pairs of one prompt; None: no cap.
        ridge: prior precision of every feature's weight.
        width: standard deviations from the mean reward to either bound.
    """

    width: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.width < np.inf:
            raise ValueError(f"width is {self.width}: pass 0 or a positive, finite number of standard deviations")

    def bounds(self, pool: Pool) -> tuple[FloatArray, FloatArray]:
        """Lower and upper bound of every response's reward, each (P, K)."""
        posterior = self.posterior(pool)
        reach = self.width * posterior.deviations
        return posterior.rewards - reach, posterior.rewards + reach


@dataclass(frozen=True, kw_only=True)
class DeltaUcb(_Bounded):
    """The largest gap that the bounds leave possible: max u_i - l_j over ordered pairs (i, j).

    ActiveUltraFeedback (arXiv:2603.09692).
    """

    kind: Literal["delta_ucb"] = "delta_ucb"

    def rank(self, pool: Pool, rng: np.random.Generator) -> FloatArray:  # noqa: ARG002 (the protocol's)
        """max(u_a - l_b, u_b - l_a), (P, m)."""
        lower, upper = self.bounds(pool)
        return np.maximum(*_both_ways(upper, lower))


@dataclass(frozen=True, kw_only=True)
class Infomax(_Bounded):
    """The probability of preference that is least known: max sigma(u_i - l_j) - sigma(l_i - u_j).

    ActiveUltraFeedback (arXiv:2603.09692).
    """

    kind: Literal["infomax"] = "infomax"

    def rank(self, pool: Pool, rng: np.random.Generator) -> FloatArray:  # noqa: ARG002 (the protocol's)
        """Width of the probability's interval, (P, m); the same in both orders of the pair."""
        lower, upper = self.bounds(pool)
        highest, _ = _both_ways(upper, lower)
        lowest, _ = _both_ways(lower, upper)
        width: FloatArray = expit(highest) - expit(lowest)
        return width


@dataclass(frozen=True, kw_only=True)
class MaxMinLcb(_Bounded):
    """The response that does best against its worst opponent: argmax_i min_j l_i - u_j, and that opponent.

    Pasztor, Kassraie and Krause (arXiv:2406.16745), as compared in ActiveUltraFeedback (arXiv:2603.09692); l_i - u_j is
    the lower bound (r_i - r_j) - width (s_i + s_j). The latter's code first drops the responses that are surely beaten;
    that never names another pair, and may name none, so it is left out. Pairs not named follow by their lower bound.
    """

    kind: Literal["max_min_lcb"] = "max_min_lcb"

    def rank(self, pool: Pool, rng: np.random.Generator) -> FloatArray:  # noqa: ARG002 (the protocol's)
        """max(l_a - u_b, l_b - u_a), (P, m); of the pair named, the next number above its prompt's largest."""
        lower, upper = self.bounds(pool)
        bound = np.where(pool.pair_mask, np.maximum(*_both_ways(lower, upper)), -np.inf)
        named = (np.arange(pool.num_prompts), _slot_table(pool)[self._leader_and_opponent(lower, upper, pool)])
        bound[named] = np.nextafter(bound.max(axis=1), np.inf)
        return bound

    @staticmethod
    def _leader_and_opponent(lower: FloatArray, upper: FloatArray, pool: Pool) -> tuple[IntArray, IntArray]:
        """Each (P,): the worst opponent of all is the one of highest u, and its own worst the second highest."""
        by_upper = np.argsort(np.where(pool.valid, -upper, np.inf), axis=1)
        is_top = np.arange(upper.shape[1]) == by_upper[:, :1]
        opponents = np.where(is_top, by_upper[:, 1:2], by_upper[:, :1])
        leader = _best(lower - np.take_along_axis(upper, opponents, axis=1), pool)
        return leader, opponents[np.arange(len(leader)), leader]


def _best(values: FloatArray, pool: Pool) -> IntArray:
    """The valid response of largest value of every prompt, (P,)."""
    best: IntArray = np.where(pool.valid, values, -np.inf).argmax(axis=1)
    return best


def _both_ways(gains: FloatArray, losses: FloatArray) -> tuple[FloatArray, FloatArray]:
    """gains_a - losses_b and gains_b - losses_a of every pair slot, each (P, m)."""
    first, second = pair_slots(gains.shape[1])
    return gains[:, first] - losses[:, second], gains[:, second] - losses[:, first]


def _holds(responses: IntArray, pool: Pool) -> BoolArray:
    """Which pair slots hold the response of their prompt, (P, m)."""
    first, second = pair_slots(pool.valid.shape[1])
    held: BoolArray = (responses[:, None] == first) | (responses[:, None] == second)
    return held


def _slot_table(pool: Pool) -> IntArray:
    """Pair slot of two responses in either order, (K, K); 0 where they are the same."""
    num_responses = pool.valid.shape[1]
    first, second = pair_slots(num_responses)
    table = np.zeros((num_responses, num_responses), dtype=np.intp)
    table[first, second] = table[second, first] = np.arange(len(first))
    return table
