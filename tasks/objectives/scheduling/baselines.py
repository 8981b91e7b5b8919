"""Baselines: the same share of every batch by one measure, at random, or all of it. None of them learns."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from tasks.objectives.scheduling.seen import Seen, measures, top_places

Rank = Callable[[Seen], Tensor]
"""Scores of the pairs (n,): the larger, the sooner a pair is kept."""


def largest_margin(seen: Seen) -> Tensor:
    """The pairs that the policy already ranks as labelled, by most."""
    return seen.margins


def smallest_margin(seen: Seen) -> Tensor:
    """The pairs of the smallest signed margin, wrongly ranked ones first: those of the largest DPO loss."""
    return -seen.margins


def lowest_chosen_likelihood(seen: Seen) -> Tensor:
    """The pairs whose chosen response is least likely, whatever its length."""
    return -seen.chosen_logps


class Ranked:
    """Keeps the pairs that one measure puts first; a `Scheduler`."""

    def __init__(self, rank: Rank, num_kept: int) -> None:
        self.metrics: dict[str, float] = {}
        self._rank, self._num_kept = rank, num_kept

    def __call__(self, seen: Seen) -> Tensor:
        """See `Scheduler`; of equal pairs the first are kept."""
        kept = top_places(self._rank(seen), self._num_kept)
        self.metrics = measures(seen, kept)
        return kept

    def state_dict(self) -> dict[str, Any]:
        """Nothing is remembered."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing is remembered."""


class Everything:
    """Keeps all pairs, which is training as it is without a scheduler; a `Scheduler`."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}

    def __call__(self, seen: Seen) -> Tensor:
        """See `Scheduler`."""
        kept = torch.arange(seen.num_pairs, device=seen.margins.device)
        self.metrics = measures(seen, kept)
        return kept

    def state_dict(self) -> dict[str, Any]:
        """Nothing is remembered."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing is remembered."""


class Draw:
    """Keeps a uniform draw without replacement; a `Scheduler`."""

    def __init__(self, num_kept: int, seed: int) -> None:
        self.metrics: dict[str, float] = {}
        self._num_kept, self._generator = num_kept, torch.Generator().manual_seed(seed)

    def __call__(self, seen: Seen) -> Tensor:
        """See `Scheduler`."""
        drawn = torch.randperm(seen.num_pairs, generator=self._generator)[: self._num_kept]
        kept = drawn.sort().values.to(seen.margins.device)
        self.metrics = measures(seen, kept)
        return kept

    def state_dict(self) -> dict[str, Any]:
        """Where its draws stand."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on drawing from there."""
        self._generator.set_state(state["generator"])
