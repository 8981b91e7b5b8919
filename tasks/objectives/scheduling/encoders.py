"""Encoders: the hidden states of all layers of a pair into one vector of length 1. They are frozen."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor
from torch.nn import functional

Read = Callable[[Tensor], Tensor]
"""A text encoder's body: a sequence of embeddings (n, layers, dim) into its last states, of the same shape."""


class Encoder(Protocol):
    """A pair's context."""

    @property
    def dim(self) -> int:
        """Numbers of a context."""
        ...

    def __call__(self, states: Tensor) -> Tensor:
        """Contexts (n, dim) of length 1, float32, on the encoder's device, of states (n, layers, hidden)."""
        ...


@dataclass(frozen=True, eq=False)
class Connector:
    """Two layers of fixed random weights, W_2 tanh(W_1 x / |x|), for the states of every model layer.

    SamS has two layers and trains them beforehand against rewards of SFT losses. These are random features (Rahimi
    and Recht 2007) instead: scaling to length 1 lets every model layer count alike, and tanh is odd, so no offset is
    added that all pairs share.
    """

    inner: Tensor
    outer: Tensor

    @classmethod
    def drawn(cls, sizes: tuple[int, int, int], generator: Generator) -> "Connector":
        """From hidden over inner to outer size; numbers of its output are of size 1 or less."""
        hidden, inner, outer = sizes
        first = torch.randn(hidden, inner, generator=generator)
        return cls(first, torch.randn(inner, outer, generator=generator) / math.sqrt(inner))

    def to(self, device: str) -> "Connector":
        """The same there."""
        return Connector(self.inner.to(device), self.outer.to(device))

    def __call__(self, states: Tensor) -> Tensor:
        """(n, layers, hidden) into (n, layers, outer), float32."""
        own = states.to(self.inner)
        lengths = torch.linalg.vector_norm(own, dim=2, keepdim=True).clamp_min(1e-12)
        return torch.tanh((own @ self.inner) / lengths) @ self.outer


@dataclass(frozen=True, eq=False)
class LayerMean:
    """The mean over the layers of signs_l * connector(x_l); fixed signs (layers, dim) tell the layers apart."""

    connector: Connector
    signs: Tensor

    @property
    def dim(self) -> int:
        """Numbers of a context."""
        return self.signs.shape[1]

    @torch.no_grad()
    def __call__(self, states: Tensor) -> Tensor:
        """See `Encoder`."""
        return functional.normalize((self.signs * self.connector(states)).mean(dim=1), dim=1)


@dataclass(frozen=True, eq=False)
class SequenceEncoder:
    """A text encoder reads the layers as a sequence of `scale` * connector(x_l); the mean over its last states.

    As in SamS, but for the connector, see there.
    """

    connector: Connector
    read: Read
    scale: float

    @property
    def dim(self) -> int:
        """Numbers of a context."""
        return self.connector.outer.shape[1]

    @torch.no_grad()
    def __call__(self, states: Tensor) -> Tensor:
        """See `Encoder`."""
        return functional.normalize(self.read(self.scale * self.connector(states)).mean(dim=1), dim=1)


def layer_mean(sizes: tuple[int, int, int], num_layers: int, seed: int, device: str) -> LayerMean:
    """A random encoder from hidden over inner to outer size; the same numbers on every device."""
    generator = torch.Generator().manual_seed(seed)
    connector = Connector.drawn(sizes, generator)
    signs = 2.0 * torch.randint(2, (num_layers, sizes[2]), generator=generator) - 1
    return LayerMean(connector.to(device), signs.to(device))


def sequence_encoder(sizes: tuple[int, int, int], embeddings: Tensor, read: Read, seed: int) -> SequenceEncoder:
    """A text encoder's, whose own `embeddings` (words, outer) say how large its inputs are."""
    connector = Connector.drawn(sizes, torch.Generator().manual_seed(seed))
    scale = float(embeddings.detach().float().square().mean().sqrt())
    return SequenceEncoder(connector.to(str(embeddings.device)), read, scale)
