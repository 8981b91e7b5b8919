"""A pool of past rounds, some of which are trained on again."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Generator, Tensor

Batch = tuple[Tensor, Tensor]
"""Contexts (k, dim) and rewards (k,) of the pairs that one round kept."""


class ReplayPool:
    """At most `capacity` batches; a new one takes the place of a random one when it is full.

    The paper keeps 40,000 batches and replays 32; `generator` is drawn from by others too, who share its state.
    """

    def __init__(self, capacity: int, num_replayed: int, generator: Generator) -> None:
        self.generator = generator
        self._capacity, self._num_replayed = capacity, num_replayed
        self._batches: list[Batch] = []

    def __len__(self) -> int:
        return len(self._batches)

    def with_replayed(self, batch: Batch) -> Batch:
        """A batch, and behind it `num_replayed` of the pool's, each at most once; all of them where there are fewer."""
        order = torch.randperm(len(self), generator=self.generator, device=self.generator.device).tolist()
        chosen = [batch, *(self._batches[place] for place in order[: self._num_replayed])]
        return torch.cat([contexts for contexts, _ in chosen]), torch.cat([rewards for _, rewards in chosen])

    def add(self, batch: Batch) -> None:
        """Keep a batch."""
        if len(self) < self._capacity:
            self._batches.append(batch)
        elif self._capacity:
            place = torch.randint(self._capacity, (1,), generator=self.generator, device=self.generator.device)
            self._batches[int(place)] = batch

    def state_dict(self) -> dict[str, Any]:
        """All batches end to end, how many pairs each has, and where the draws stand."""
        state: dict[str, Any] = {"generator": self.generator.get_state()}
        if self._batches:
            contexts, rewards = (torch.cat(parts) for parts in zip(*self._batches, strict=True))
            state |= {"contexts": contexts, "rewards": rewards, "sizes": [len(rewards) for _, rewards in self._batches]}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.generator.set_state(state["generator"].cpu())
        sizes = state.get("sizes", [])
        device = self.generator.device
        parts = [state[name].to(device).split(sizes) if sizes else () for name in ("contexts", "rewards")]
        self._batches = [(contexts.clone(), rewards.clone()) for contexts, rewards in zip(*parts, strict=True)]
