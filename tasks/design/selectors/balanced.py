"""Random selection without the accidents of chance: pairs spread evenly over prompts and responses."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from tasks.design.arrays import FloatArray
from tasks.design.balance import capped_shares, random_counts, spread_pairs
from tasks.design.limits import Limits
from tasks.design.pool import Pool
from tasks.design.selection import Selection, selection_of
from tasks.design.selectors.base import Capped


@dataclass(frozen=True, kw_only=True)
class Balanced(Capped):
    """Draw pairs uniformly, but spread: over prompts evenly, and within each over different responses.

    Every pair is included with probability budget / num_pairs, exactly, as by `uniform`; what varies less is how many
    pairs a prompt gets, the floor or the ceiling of what it expects, and how often one response is compared. A cap
    holds in every draw; pairs of one prompt then still have the same probability, prompts as equal ones as the cap
    allows. With costs, pairs come in uniform order as far as the money goes, and probabilities are left undefined.

    Attributes:
        max_pairs_per_prompt: cap on the pairs of one prompt; None: no cap.
    """

    kind: Literal["balanced"] = "balanced"

    def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Selection:
        """Draw the pairs to label; their order is random too."""
        limits = self.limits(pool, budget)
        if limits.costs is not None:
            return selection_of(pool, limits.take(rng.permutation(np.flatnonzero(pool.pair_mask))))
        expected = expected_counts(limits)
        counts = np.zeros(pool.num_prompts, dtype=np.intp)
        order = rng.permutation(pool.num_prompts)
        counts[order] = random_counts(expected[order], rng)
        taken = spread_pairs(pool.pair_mask, counts, pool.valid.shape[1], rng)
        probabilities = expected / np.maximum(pool.pair_mask.sum(axis=1), 1)
        each = np.broadcast_to(probabilities[:, None], pool.pair_mask.shape)
        return selection_of(pool, rng.permutation(np.flatnonzero(taken)), probabilities=each)


def expected_counts(limits: Limits) -> FloatArray:
    """Pairs that each prompt gets in expectation, (P,): all pairs are equally likely, but for full prompts."""
    sizes = limits.mask.sum(axis=1)
    room = sizes if limits.cap is None else np.minimum(sizes, limits.cap)
    return capped_shares(sizes, room, limits.budget)
