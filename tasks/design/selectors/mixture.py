"""A share of uniform pairs beside any other selector."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from tasks.design.arrays import FloatArray, IntArray
from tasks.design.balance import capped_shares, systematic
from tasks.design.limits import Limits, limits_of
from tasks.design.pool import Pool
from tasks.design.selection import Selection, selection_of
from tasks.design.selectors.base import Need, Selector


@dataclass(frozen=True, kw_only=True)
class MixtureOf:
    """Spend a share of the budget on pairs drawn uniformly from those that another selector leaves over.

    They keep every pair possible and show, round after round, what the selector overlooks. Their places in the order
    are random, so that a prefix is a mixture too. The cap is that of the inner selector and holds for both together.

    Inclusion probabilities are conditional on the inner choice: 1 for its pairs, and for a uniform pair the chance
    u / (n - b) of u draws from the n - b pairs left by it, or less where a cap leaves its prompt little room. With
    costs they are undefined. A certificate of the inner selector does not speak of the whole and is left out; so are
    scores and weights, which uniform pairs lack.

    Attributes:
        selector: what spends the rest of the budget.
        uniform_share: share of the budget for uniform pairs, rounded to whole ones, in [0, 1].

    Raises:
        ValueError: the share lies outside of [0, 1].
    """

    kind: Literal["mixture"] = "mixture"
    selector: Selector
    uniform_share: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.uniform_share <= 1:
            raise ValueError(f"uniform_share is {self.uniform_share}: pass a share of the budget from 0 to 1")

    @property
    def max_pairs_per_prompt(self) -> int | None:
        """Cap on the pairs of one prompt; None: no cap."""
        return self.selector.max_pairs_per_prompt

    @property
    def min_pairs_per_prompt(self) -> int:
        """Least pairs of one prompt."""
        return self.selector.min_pairs_per_prompt

    @property
    def needs(self) -> frozenset[Need]:
        """Parts of the pool that must be there."""
        return self.selector.needs

    @property
    def reads(self) -> frozenset[Need]:
        """Other parts that it looks at where they are there."""
        return self.selector.reads

    def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Selection:
        """Choose the pairs to label."""
        limits = limits_of(pool, budget, cap=self.max_pairs_per_prompt)
        inner_budget = budget - round(self.uniform_share * budget)
        picked, notes = self._inner_choice(pool, inner_budget, rng)
        chosen, probabilities = with_uniform(picked, limits, rng)
        notes = (*notes, f"{len(chosen) - len(picked)} pairs were drawn uniformly from those left over")
        return selection_of(pool, chosen, probabilities=probabilities, notes=notes)

    def _inner_choice(self, pool: Pool, budget: int, rng: np.random.Generator) -> tuple[IntArray, tuple[str, ...]]:
        if budget == 0:
            return np.zeros(0, dtype=np.intp), ()
        selection = self.selector(pool, budget, rng)
        return pool.index_of(selection.prompt, selection.first, selection.second), selection.notes


def with_uniform(picked: IntArray, limits: Limits, rng: np.random.Generator) -> tuple[IntArray, FloatArray | None]:
    """The picked pairs among uniform draws from all others, up to the budget; inclusion probabilities (P, m) or None.

    Those of the picked pairs are 1, the others share one, but that under a cap prompts with little room get less. The
    draws spread over prompts: each gets the floor or the ceiling of what it expects. With costs pairs come in random
    order as far as the money goes, and probabilities are left undefined.

    Args:
        picked: flat pair indices within the limits, in order of choice.
        limits: what may be chosen.
        rng: source of all randomness.
    """
    left = np.setdiff1d(np.flatnonzero(limits.mask), picked)
    if limits.costs is not None:
        uniform = limits.take(np.concatenate([picked, rng.permutation(left)]))[len(picked) :]
        return _interleaved(picked, uniform, rng), None
    prompts = left // limits.mask.shape[1]
    sizes = np.bincount(prompts, minlength=len(limits.mask))
    shares = capped_shares(sizes, np.minimum(sizes, limits.room(picked)), limits.budget - len(picked))
    chances = (shares / np.maximum(sizes, 1))[prompts]
    uniform = rng.permutation(left[systematic(chances, rng, blocks=prompts)])
    probabilities = np.zeros(limits.mask.shape)
    probabilities.flat[left], probabilities.flat[picked] = chances, 1.0
    return _interleaved(picked, uniform, rng), probabilities


def _interleaved(picked: IntArray, uniform: IntArray, rng: np.random.Generator) -> IntArray:
    """All pairs, those of each kind in their order, the kinds in random order."""
    is_uniform = rng.permutation(np.arange(len(picked) + len(uniform)) >= len(picked))
    mixed = np.empty(len(is_uniform), dtype=np.intp)
    mixed[~is_uniform], mixed[is_uniform] = picked, uniform
    return mixed
