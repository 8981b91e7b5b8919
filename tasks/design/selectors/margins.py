"""Selectors that ask the policy itself: its implicit margins z = r(x, a) - r(x, b), and its entropy."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from tasks.design.arrays import BoolArray, FloatArray
from tasks.design.limits import ranks_within
from tasks.design.pool import Pool
from tasks.design.selection import Selection, selection_of
from tasks.design.selectors.base import Capped, Need, Ranked, degeneracy, layers, random_order


@dataclass(frozen=True, kw_only=True)
class MaxMargin(Ranked):
    """Take the pairs of largest |z|: those of which the policy is most certain.

    The preference-model certainty (PMC) of Muldrew, Hayes, Zhang and Barber, "Active Preference Learning for Large
    Language Models" (arXiv:2402.08114). As published: the score. They draw one pair of responses to a prompt; that all
    pairs of a pool compete is ours. In round 0, where policy and reference agree, every margin is 0.
    """

    kind: Literal["max_margin", "pmc"] = "max_margin"

    def rank(self, pool: Pool, rng: np.random.Generator) -> FloatArray:  # noqa: ARG002 (the base's)
        """|z|, nats."""
        return np.abs(pool.margins)


@dataclass(frozen=True, kw_only=True)
class MinMargin(Ranked):
    """Take the pairs of smallest |z|: those that the policy finds hardest to tell apart, on the level set z = 0.

    This is also what SHARP and W-SHARP (arXiv:2503.22137) take. As published, they score a pair by the mean over the
    standard deviation of the norm of its DPO gradient, whose label is preferred with probability p: 1/2 in SHARP,
    sigma(z) in W-SHARP. Derived: with g = grad z the gradients under the two labels are G1 = -sigma(-z) g and
    G2 = sigma(z) g, so that

        mean = (p sigma(-z) + (1 - p) sigma(z)) |g|
        deviation = sqrt(p (1 - p)) |sigma(z) - sigma(-z)| |g|

    and |g| cancels from their quotient. As sigma(z) + sigma(-z) = 1 and sigma(z) - sigma(-z) = tanh(z / 2),

        SHARP   = 1 / |tanh(z / 2)|
        W-SHARP = 2 sqrt(sigma(z) sigma(-z)) / |sigma(z) - sigma(-z)| = 1 / sinh(|z| / 2)

    Both fall strictly in |z|: one ranking, the reverse of PMC's. At z = 0 they are infinite, -|z| is not.
    """

    kind: Literal["min_margin", "level_set", "sharp", "w_sharp"] = "min_margin"

    def rank(self, pool: Pool, rng: np.random.Generator) -> FloatArray:  # noqa: ARG002 (the base's)
        """-|z|, nats."""
        return -np.abs(pool.margins)


@dataclass(frozen=True, kw_only=True)
class Entropy(Capped):
    """Take a random pair of every prompt, prompts by falling entropy of the policy, then a second of each, and so on.

    The predictive entropy of Muldrew et al. (arXiv:2402.08114), see `prompt_entropy`. As published: prompts of
    HIGHEST entropy are kept. Ours: the further layers, for a budget above the number of prompts.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"log_probs"})

    kind: Literal["entropy"] = "entropy"

    def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Selection:
        """Choose prompt by prompt; the scores are entropies in nats."""
        limits = self.limits(pool, budget)
        entropy = np.broadcast_to(prompt_entropy(pool)[:, None], pool.pair_mask.shape)
        drawn = layers(rng.permutation(np.flatnonzero(pool.pair_mask)), pool, rng)
        layer = ranks_within(drawn // pool.pair_mask.shape[1])
        order = drawn[np.lexsort((-entropy.ravel()[drawn], layer))]
        return selection_of(pool, limits.take(order), scores=entropy, notes=degeneracy(entropy[pool.pair_mask]))


@dataclass(frozen=True, kw_only=True)
class Apl(Capped):
    """Keep the prompts of highest entropy, then take the pairs of largest |z| among theirs.

    The hybrid of Muldrew et al. (arXiv:2402.08114). As published: prompts of highest entropy are kept for
    `oversampling` times the pairs that are wanted, one pair a prompt, and the most certain of those are labelled; 8 is
    their over-generation by certainty on TL;DR, 16 on IMDb. Ours: a prompt counts with all pairs that the cap lets it
    give, so that a cap of 1 is their setting; pairs of other prompts come last, for a budget that leaves change.

    Attributes:
        max_pairs_per_prompt: cap on the pairs of one prompt; None: no cap.
        oversampling: how many times the budget the kept prompts hold; 1 or more.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"log_probs"})

    kind: Literal["apl"] = "apl"
    oversampling: float = 8.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.oversampling < np.inf:
            raise ValueError(f"oversampling is {self.oversampling}: pass 1 or more, such as 8")

    def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Selection:
        """Choose among the kept prompts; the scores are |z| in nats."""
        limits = self.limits(pool, budget)
        kept = pool.pair_mask & self._kept(pool, budget, rng)[:, None]
        certainty = np.abs(pool.margins)
        order = random_order(certainty, pool, rng)
        order = order[np.argsort(~kept.ravel()[order], kind="stable")]
        notes = _filter_notes(pool, kept) + degeneracy(certainty[kept])
        return selection_of(pool, limits.take(order), scores=certainty, notes=notes)

    def _kept(self, pool: Pool, budget: int, rng: np.random.Generator) -> BoolArray:
        """Prompts by falling entropy, ties in random order, until they hold enough; True where kept, (P,)."""
        turn = rng.permutation(pool.num_prompts)
        falling = turn[np.argsort(-prompt_entropy(pool)[turn], kind="stable")]
        held = np.cumsum(self._volume(pool)[falling])
        kept = np.zeros(pool.num_prompts, dtype=bool)
        kept[falling[: 1 + np.searchsorted(held, self.oversampling * budget)]] = True
        return kept

    def _volume(self, pool: Pool) -> FloatArray:
        """What the pairs of each prompt are worth of the budget, as far as the cap admits them, (P,)."""
        counts = pool.pair_mask.sum(axis=1)
        costs = np.ones(pool.pair_mask.shape) if pool.costs is None else pool.costs
        price = (costs * pool.pair_mask).sum(axis=1) / np.maximum(counts, 1)
        volume: FloatArray = price * np.minimum(counts, self.max_pairs_per_prompt or np.inf)
        return volume


def prompt_entropy(pool: Pool) -> FloatArray:
    """H(x) = -(1/N) sum_n log pi(y_n | x) over the N valid responses of every prompt, nats, (P,) float64.

    A Monte Carlo estimate of the entropy of the policy's answers where they were drawn from it at temperature 1, of
    their cross entropy where not; 0 without valid responses. Duplicates are not valid: where answers repeat, it
    comes out too high.
    """
    assert pool.log_probs is not None, "Capped.limits refuses a pool without them"
    total = pool.log_probs.sum(axis=1, where=pool.valid, dtype=np.float64)
    entropy: FloatArray = -total / np.maximum(pool.valid.sum(axis=1), 1)
    return entropy


def _filter_notes(pool: Pool, kept: BoolArray) -> tuple[str, ...]:
    """What a reader has to know of a filter by entropy that had nothing to tell prompts by, or none to leave out."""
    if kept.sum() == pool.num_pairs:
        return ("the filter by entropy left out no prompt: the pool has too few pairs for the oversampling",)
    entropy = np.broadcast_to(prompt_entropy(pool)[:, None], kept.shape)
    return tuple(f"filter by entropy: {note}" for note in degeneracy(entropy[pool.pair_mask]))
