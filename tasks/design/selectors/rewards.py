"""Selectors that follow a proxy for the labeller: the scores of a small reward model, of an older judge.

They save labels only where the scores come cheap: every response of the pool is scored.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from tasks.design.arrays import FloatArray, IntArray
from tasks.design.kernels import pair_slots
from tasks.design.limits import ranks_within
from tasks.design.pool import Pool
from tasks.design.selection import Selection, selection_of
from tasks.design.selectors.base import Capped, Need, degeneracy, layers, random_order

_DECIMALS = 9


@dataclass(frozen=True, kw_only=True)
class RewardDriven(Capped, ABC):
    """Compares scores within prompts alone: what is added to all scores of a prompt changes nothing.

    A pair of equal scores is the last of its prompt; other ties are broken at random. The scores of the selection are
    the gaps |s_a - s_b|.

    Attributes:
        max_pairs_per_prompt: cap on the pairs of one prompt; None: no cap.
        random_twin: draw, in place of every pair that the rule takes, a random pair of the same prompt. The control
            that tells what the rule gains by its pairs from what it gains by its prompts. Where pairs have prices the
            twin keeps what the budget still buys.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"scores"})

    random_twin: bool = False

    @abstractmethod
    def order(self, pool: Pool, rng: np.random.Generator) -> IntArray:
        """Flat indices of all valid pairs, best first."""

    def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Selection:
        """Choose by the rule, or its twin."""
        limits = self.limits(pool, budget)
        chosen = limits.take(self.order(pool, rng))
        if self.random_twin:
            chosen = limits.take(_twin(chosen, pool, rng))
        gaps = _gaps(pool)
        return selection_of(pool, chosen, scores=gaps, notes=degeneracy(gaps[pool.pair_mask]))


@dataclass(frozen=True, kw_only=True)
class BestWorst(RewardDriven):
    """Take best against worst of every prompt, prompts in random order, then every prompt's next largest gap.

    `max_min` of Online-RLHF (Dong et al. 2024, arXiv:2405.07863). As published: one pair a prompt, equal scores
    left out. Reported to lose as responses become many (arXiv:2502.16825), where extremes of the proxy are its errors.
    """

    kind: Literal["best_worst"] = "best_worst"

    def order(self, pool: Pool, rng: np.random.Generator) -> IntArray:
        """By falling gap, prompt by prompt."""
        return _prompt_by_prompt(_gaps(pool), pool, rng)


@dataclass(frozen=True, kw_only=True)
class BestSecond(RewardDriven):
    """Take best against second of every prompt, prompts in random order, then best against third, and so on.

    `max_max` of Online-RLHF (arXiv:2405.07863). As published: one pair a prompt. Ours: once the best response has
    met all others the rule starts over without it.
    """

    kind: Literal["best_second"] = "best_second"

    def order(self, pool: Pool, rng: np.random.Generator) -> IntArray:
        """By the place of the better response, then by that of the worse, prompt by prompt."""
        better, worse = _places(pool)
        return _prompt_by_prompt(-(better * pool.valid.shape[1] + worse), pool, rng)


@dataclass(frozen=True, kw_only=True)
class BestRandom(RewardDriven):
    """Take best against a random other of every prompt, prompts in random order, then best against another.

    The rule of UltraFeedback's binarised form (Tunstall et al. 2023, "Zephyr", arXiv:2310.16944) and `max_random` of
    Online-RLHF (arXiv:2405.07863), which always takes the same other. Ours: once the best response has met all others
    the rule starts over without it.
    """

    kind: Literal["best_random"] = "best_random"

    def order(self, pool: Pool, rng: np.random.Generator) -> IntArray:
        """By the place of the better response, prompt by prompt."""
        better, _ = _places(pool)
        return _prompt_by_prompt(-better, pool, rng)


@dataclass(frozen=True, kw_only=True)
class TopGap(RewardDriven):
    """Draw at random among the largest gaps of the whole pool; where those don't suffice, take the next by size.

    Ours, after the common practice to draw from pairs that a proxy tells well apart.

    Attributes:
        max_pairs_per_prompt: cap on the pairs of one prompt; None: no cap.
        random_twin: see `RewardDriven`.
        share: part of the pool's pairs among which to draw, in [0, 1]; 0 takes the largest gaps themselves.
    """

    kind: Literal["top_gap"] = "top_gap"
    share: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_share("share", self.share)

    def order(self, pool: Pool, rng: np.random.Generator) -> IntArray:
        """Largest gaps in random order, then the others by falling gap."""
        gaps = _gaps(pool)
        falling = random_order(gaps, pool, rng)
        size = min(round(self.share * pool.num_pairs), int((gaps[pool.pair_mask] > 0).sum()))
        return np.concatenate([rng.permutation(falling[:size]), falling[size:]])


@dataclass(frozen=True, kw_only=True)
class QuantileGap(RewardDriven):
    """Take of every prompt the pair at a quantile of its gaps, prompts in random order, then the nearest to it.

    DeltaQuantile of ActiveUltraFeedback (arXiv:2603.09692), on scores without confidence bounds. As published: it ranks
    the gaps of all ordered pairs and takes place floor(0.05 n) from the top. Derived: of those pairs half have a
    negative gap, so that their 0.05 is 0.9 of the unordered pairs here. A prompt of n gaps above 0 gives that at place
    floor((1 - quantile) n), counted from 0 at the largest.

    Attributes:
        max_pairs_per_prompt: cap on the pairs of one prompt; None: no cap.
        random_twin: see `RewardDriven`.
        quantile: in [0, 1]; 1 is the prompt's largest gap, 0 its smallest above 0.
    """

    kind: Literal["quantile_gap"] = "quantile_gap"
    quantile: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_share("quantile", self.quantile)

    def order(self, pool: Pool, rng: np.random.Generator) -> IntArray:
        """By distance in places from the quantile, prompt by prompt."""
        gaps = _gaps(pool)
        falling = random_order(gaps, pool, rng)
        prompts = falling // gaps.shape[1]
        distance = np.zeros(gaps.shape)
        distance.flat[falling] = np.abs(ranks_within(prompts) - self._target(pool, gaps)[prompts])
        return _prompt_by_prompt(-distance, pool, rng)

    def _target(self, pool: Pool, gaps: FloatArray) -> IntArray:
        """Place of the quantile among the gaps above 0 of every prompt, (P,)."""
        counts = (pool.pair_mask & (gaps > 0)).sum(axis=1)
        exact = np.round((1 - self.quantile) * counts, _DECIMALS)  # 0.9 of 10 gaps is place 1, 0.99... is not
        target: IntArray = np.minimum(exact.astype(np.intp), counts - 1)
        return target


def _scores(pool: Pool) -> FloatArray:
    assert pool.scores is not None, "Capped.limits refuses a pool without them"
    return pool.scores


def _gaps(pool: Pool) -> FloatArray:
    """|s_a - s_b| of every pair slot, (P, m) float64."""
    return np.abs(pool.differences_of(_scores(pool)))


def _places(pool: Pool) -> tuple[IntArray, IntArray]:
    """Place of the better and of the worse response of every pair slot, (P, m) each; lower is better.

    A place is the number of the prompt's responses that score higher; equal scores share one.
    """
    scores = _scores(pool)
    places = (scores[:, None, :] > scores[:, :, None]).sum(axis=2)
    first, second = pair_slots(scores.shape[1])
    return np.minimum(places[:, first], places[:, second]), np.maximum(places[:, first], places[:, second])


def _prompt_by_prompt(worth: FloatArray | IntArray, pool: Pool, rng: np.random.Generator) -> IntArray:
    """Every prompt's pair of highest worth, then every prompt's second; pairs of equal scores are their prompt's last.

    Args:
        worth: of every pair slot against the others of its prompt, (P, m).
        pool: where the pairs come from.
        rng: breaks ties, and orders the prompts.
    """
    return layers(random_order(np.where(_gaps(pool) > 0, worth, -np.inf), pool, rng), pool, rng)


def _twin(chosen: IntArray, pool: Pool, rng: np.random.Generator) -> IntArray:
    """Distinct random pairs, the i-th of the same prompt as the i-th chosen one."""
    width = pool.pair_mask.shape[1]
    counts = np.bincount(chosen // width, minlength=pool.num_prompts)
    drawn = rng.permutation(np.flatnonzero(pool.pair_mask))
    drawn = drawn[ranks_within(drawn // width) < counts[drawn // width]]
    twin = np.empty_like(chosen)
    twin[np.argsort(chosen // width)] = drawn[np.argsort(drawn // width)]
    return twin


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}: pass a part of the whole, from 0 to 1")
