"""Selectors that look at no feature: what every other one is compared with."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from tasks.design.limits import ranks_within
from tasks.design.pool import Pool
from tasks.design.selection import Selection, selection_of
from tasks.design.selectors.base import Capped


@dataclass(frozen=True, kw_only=True)
class Uniform(Capped):
    """Draw pairs uniformly without replacement: the baseline of every comparison.

    Without a cap each pair is included with probability budget / num_pairs. Under a cap the pairs come in uniform
    order and those of a full prompt are passed over; inclusion probabilities are then left undefined.
    """

    kind: Literal["uniform"] = "uniform"

    def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Selection:
        """Choose the pairs to label; their order is random too."""
        limits = self.limits(pool, budget)
        order = rng.permutation(np.flatnonzero(pool.pair_mask))
        known = self.max_pairs_per_prompt is None and pool.costs is None
        probabilities = np.full(pool.pair_mask.shape, budget / pool.num_pairs) if known else None
        return selection_of(pool, limits.take(order), probabilities=probabilities)


@dataclass(frozen=True, kw_only=True)
class FirstTwo(Capped):
    """Take the first pair of valid responses of every prompt, prompts as they stand, then every second pair, and so on.

    What a pipeline without selection labels: two responses to each prompt, in the order in which they were logged.
    Responses are exchangeable draws of one policy, so it is a uniform draw with the prompts spread evenly; where their
    order means something, such as models in turn, it is not. Deterministic.
    """

    kind: Literal["first_two"] = "first_two"

    def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Selection:  # noqa: ARG002 (the protocol's)
        """Choose the pairs to label, layer by layer; no randomness is used."""
        limits = self.limits(pool, budget)
        pairs = np.flatnonzero(pool.pair_mask)
        layer = ranks_within(pairs // pool.pair_mask.shape[1])
        return selection_of(pool, limits.take(pairs[np.argsort(layer, kind="stable")]))
