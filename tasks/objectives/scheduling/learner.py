"""Exploitation and exploration: what is known of a pair's worth, and how far off that may be."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tasks.objectives.scheduling.networks import Regressor
from tasks.objectives.scheduling.replay import Batch, ReplayPool


@dataclass(frozen=True, eq=False, kw_only=True)
class Learner:
    """The score f(x) + lambda f'(h(x)): f regresses the reward r, f' its residual r - f(x).

    SamS, after EE-Net (Ban et al. 2022): h(x) are the activations of f, in means over blocks. Contexts, of length 1,
    enter f scaled to sqrt(dim) so that their numbers are of size 1 (our choice).

    Attributes:
        exploit: f.
        explore: f', on block means.
        pool: past rounds, whose generator drops too.
        block_size: activations in a mean.
        exploration: lambda.
    """

    exploit: Regressor
    explore: Regressor
    pool: ReplayPool
    block_size: int
    exploration: float

    @torch.no_grad()
    def scores(self, contexts: Tensor) -> Tensor:
        """The score (n,) of contexts (n, dim)."""
        known, blocks = self._look(_inputs(contexts))
        uncertain: Tensor = self.explore.network(blocks)
        return known + self.exploration * uncertain

    def learn(self, batch: Batch) -> tuple[float, float]:
        """A step of f and then one of f' on a round and replayed ones; the mean squared errors before each."""
        contexts, rewards = self.pool.with_replayed(batch)
        self.pool.add(batch)
        inputs, drops = _inputs(contexts), self.pool.generator
        exploit_error = self.exploit.step(inputs, rewards, drops)
        known, blocks = self._look(inputs)
        return exploit_error, self.explore.step(blocks, rewards - known, drops)

    def state_dict(self) -> dict[str, Any]:
        """Networks, optimisers, pool and generator."""
        networks = {"exploit": self.exploit.state_dict(), "explore": self.explore.state_dict()}
        return networks | {"pool": self.pool.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.exploit.load_state_dict(state["exploit"])
        self.explore.load_state_dict(state["explore"])
        self.pool.load_state_dict(state["pool"])

    @torch.no_grad()
    def _look(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """f(x) (m,) and h(x) (m, depth width / block_size), nothing dropped."""
        layers = self.exploit.network.activations(inputs)
        return self.exploit.network.read(layers[-1]), block_means(torch.cat(layers, dim=1), self.block_size)


def block_means(values: Tensor, block_size: int) -> Tensor:
    """Means over blocks of neighbours: (m, d) into (m, d / block_size)."""
    return values.view(len(values), -1, block_size).mean(dim=2)


def _inputs(contexts: Tensor) -> Tensor:
    scaled: Tensor = contexts * contexts.shape[1] ** 0.5
    return scaled
