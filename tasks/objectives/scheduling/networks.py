"""Networks that learn what a pair is worth: residual MLPs whose every random number comes from a given generator."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn


@dataclass(frozen=True, kw_only=True)
class NetworkShape:
    """Size of a residual MLP.

    Attributes:
        depth: residual layers.
        width: numbers of each layer's state.
        dropout: share of a layer's addition that is dropped in training, in [0, 1).
    """

    depth: int
    width: int
    dropout: float


class ResidualNetwork(nn.Module):
    """h_0 = V x, h_l = h_(l-1) + drop(relu(W_l h_(l-1) + b_l)), output u h_depth + c.

    SamS gives depth, width and dropout; where layers start is our choice: He's normal weights, over sqrt(depth) inside
    so that states keep their size at any depth, and a last layer that starts near the constant `start`.
    """

    def __init__(self, num_inputs: int, shape: NetworkShape, generator: Generator, *, start: float = 0.0) -> None:
        super().__init__()
        width, gain = shape.width, math.sqrt(2 / shape.depth)
        self.dropout = shape.dropout
        self.enter = _linear(num_inputs, width, 1.0, generator)
        self.layers = nn.ModuleList(_linear(width, width, gain, generator) for _ in range(shape.depth))
        self.leave = _linear(width, 1, 0.1, generator)
        nn.init.constant_(self.leave.bias, start)

    def activations(self, inputs: Tensor, drops: Generator | None = None) -> list[Tensor]:
        """h_1 ... h_depth, each (m, width), of inputs (m, num_inputs); `drops` draws what is dropped, None: nothing."""
        state, found = self.enter(inputs), []
        for layer in self.layers:
            state = state + dropped(torch.relu(layer(state)), self.dropout, drops)
            found.append(state)
        return found

    def read(self, state: Tensor) -> Tensor:
        """The output (m,) of h_depth."""
        output: Tensor = self.leave(state).squeeze(1)
        return output

    def forward(self, inputs: Tensor, drops: Generator | None = None) -> Tensor:
        """The output (m,) of inputs (m, num_inputs)."""
        return self.read(self.activations(inputs, drops)[-1])


def dropped(values: Tensor, share: float, drops: Generator | None) -> Tensor:
    """Values of which a share is put to 0 and the rest over 1 - share (Srivastava et al. 2014); all with None."""
    if drops is None or share == 0:
        return values
    with torch.no_grad():
        gains = torch.empty_like(values).bernoulli_(1 - share, generator=drops).div_(1 - share)
    return values * gains


def squared_error(predictions: Tensor, targets: Tensor) -> Tensor:
    """The mean over m of (prediction - target)^2.

    Raises:
        ValueError: not both are (m,): they would be broadcast.
    """
    if predictions.ndim != 1 or predictions.shape != targets.shape:
        raise ValueError(
            f"predictions {tuple(predictions.shape)} and targets {tuple(targets.shape)}: expected both of shape (m,)"
        )
    return (predictions - targets).square().mean()


class Regressor:
    """A network and its Adam; each has one."""

    def __init__(self, network: ResidualNetwork, *, learning_rate: float, weight_decay: float) -> None:
        self.network = network
        parameters = network.parameters()
        self._optimizer = torch.optim.Adam(parameters, lr=learning_rate, weight_decay=weight_decay, fused=True)

    @torch.enable_grad()
    def step(self, inputs: Tensor, targets: Tensor, drops: Generator) -> float:
        """One step on the mean squared error over inputs (m, num_inputs) and targets (m,); that error before it."""
        self._optimizer.zero_grad(set_to_none=True)
        error = squared_error(self.network(inputs, drops), targets)
        error.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return float(error.detach())

    def state_dict(self) -> dict[str, Any]:
        """Weights and the optimiser's moments."""
        return {"network": self.network.state_dict(), "optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])


def _linear(num_inputs: int, num_outputs: int, gain: float, generator: Generator) -> nn.Linear:
    """A layer without bias at first, of weights of variance gain^2 / num_inputs."""
    layer = nn.Linear(num_inputs, num_outputs, device="meta").to_empty(device=generator.device)
    nn.init.normal_(layer.weight, std=gain / math.sqrt(num_inputs), generator=generator)
    nn.init.zeros_(layer.bias)
    return layer
