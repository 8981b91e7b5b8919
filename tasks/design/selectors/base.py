"""What selectors are, and the shapes that most of them have."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import numpy as np

from tasks.design.arrays import FloatArray, IntArray
from tasks.design.limits import Limits, limits_of, ranks_within
from tasks.design.pool import Pool
from tasks.design.selection import Selection, selection_of

Need = Literal["scores", "log_probs"]
"""A part of the pool that not every round has."""


class Selector(Protocol):
    """Chooses distinct valid pairs worth exactly `budget`; all randomness comes from `rng`.

    Attributes:
        max_pairs_per_prompt: cap on the pairs of one prompt; None: no cap.
        min_pairs_per_prompt: least pairs of one prompt that has as many.
        needs: parts of the pool that must be there.
        reads: other parts that it looks at where they are there.

    Raises:
        ValueError: the pool can't hold the budget, or lacks what the selector needs.
    """

    @property
    def needs(self) -> frozenset[Need]: ...  # noqa: D102

    @property
    def reads(self) -> frozenset[Need]: ...  # noqa: D102

    @property
    def max_pairs_per_prompt(self) -> int | None: ...  # noqa: D102

    @property
    def min_pairs_per_prompt(self) -> int: ...  # noqa: D102

    def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Selection:
        """Choose the pairs to label."""
        ...


@dataclass(frozen=True, kw_only=True)
class Capped:
    """What all selectors have in common.

    Attributes:
        max_pairs_per_prompt: cap on the pairs of one prompt; None: no cap.
    """

    needs: ClassVar[frozenset[Need]] = frozenset()
    reads: ClassVar[frozenset[Need]] = frozenset()

    max_pairs_per_prompt: int | None = None

    @property
    def min_pairs_per_prompt(self) -> int:
        """Least pairs of one prompt; most selectors ask for none."""
        return 0

    def __post_init__(self) -> None:
        if self.max_pairs_per_prompt is not None and self.max_pairs_per_prompt < 1:
            raise ValueError(
                f"max_pairs_per_prompt is {self.max_pairs_per_prompt}: pass 1 or more, or leave it out for no cap"
            )

    def limits(self, pool: Pool, budget: int) -> Limits:
        """The limits of the selection, once the pool is known to have what the selector needs.

        Raises:
            ValueError: the pool can't hold the budget, or lacks what the selector needs.
        """
        for name in sorted(self.needs):
            if getattr(pool, name) is None:
                raise ValueError(f"{type(self).__name__} needs the {name} of the responses, the pool has none")
        return limits_of(pool, budget, cap=self.max_pairs_per_prompt)


@dataclass(frozen=True, kw_only=True)
class Ranked(Capped, ABC):
    """Takes the pairs of highest score; ties are broken at random.

    Where every valid pair has the same score the choice is random altogether, and the selection says so.
    """

    @abstractmethod
    def rank(self, pool: Pool, rng: np.random.Generator) -> FloatArray:
        """Score of every pair slot, higher is better, (P, m); slots that are not valid may hold anything."""

    def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Selection:
        """Choose the pairs of highest score."""
        limits = self.limits(pool, budget)
        scores = self.rank(pool, rng)
        notes = degeneracy(scores[pool.pair_mask])
        return selection_of(pool, limits.take(random_order(scores, pool, rng)), scores=scores, notes=notes)


@dataclass(frozen=True, kw_only=True)
class Layered(Capped, ABC):
    """Takes the best pair of every prompt, prompts in random order, then every prompt's second best, and so on.

    For rules that name one pair a prompt: a budget below the number of prompts draws prompts at random, one above it
    comes back to them.
    """

    @abstractmethod
    def rank(self, pool: Pool, rng: np.random.Generator) -> FloatArray:
        """Score of every pair slot within its prompt, higher is better, (P, m)."""

    def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Selection:
        """Choose prompt by prompt."""
        limits = self.limits(pool, budget)
        scores = self.rank(pool, rng)
        order = layers(random_order(scores, pool, rng), pool, rng)
        notes = degeneracy(scores[pool.pair_mask])
        return selection_of(pool, limits.take(order), scores=scores, notes=notes)


def random_order(scores: FloatArray, pool: Pool, rng: np.random.Generator) -> IntArray:
    """Flat indices of the valid pairs by falling score, ties in random order."""
    pairs = rng.permutation(np.flatnonzero(pool.pair_mask))
    order: IntArray = pairs[np.argsort(-scores.ravel()[pairs], kind="stable")]
    return order


def layers(order: IntArray, pool: Pool, rng: np.random.Generator) -> IntArray:
    """The same pairs so that every prompt's first comes before any prompt's second, prompts in random order."""
    prompts = order // pool.pair_mask.shape[1]
    turn = rng.permutation(pool.num_prompts)
    layered: IntArray = order[np.lexsort((turn[prompts], ranks_within(prompts)))]
    return layered


def degeneracy(scores: FloatArray) -> tuple[str, ...]:
    """A note where all scores are equal, so that the choice was random."""
    if scores.min() < scores.max():
        return ()
    return (f"all {scores.size} pairs score {scores.flat[0]:.6g}: the choice among them was random",)
