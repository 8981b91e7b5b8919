"""The vectors that stand for responses: a hidden state, or a gradient of log pi(y|x)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch

from tasks.gradients.batches import Batch
from tasks.gradients.forward import Pass
from tasks.gradients.modules import Pooling
from tasks.gradients.projections import AnyProjection, Projector, Shapes, Whole
from tasks.gradients.randomness import hashed
from tasks.gradients.taps import LoraLayer, tapped

HEAD = "lm_head"
"""Name of the head's matrix, for the projections."""

VOCABULARY_BUCKETS = 512
"""Sums that the vocabulary's side of the head's gradient is hashed to before it is projected."""


@dataclass(frozen=True, eq=False)
class Measured:
    """Log-probabilities in nats, float64, (batch,), and vectors, float32 or wider, (batch, dim)."""

    logp: torch.Tensor
    vectors: torch.Tensor


class Vectors(Protocol):
    """A kind of vector, ready to be measured batch by batch."""

    @property
    def dim(self) -> int:
        """Numbers of a vector."""
        ...

    @property
    def reads_prompts_once(self) -> bool:
        """Whether a prompt's pass may serve all of its responses."""
        ...

    @property
    def facts(self) -> dict[str, int]:
        """What there is to tell of how they are made."""
        ...

    def __call__(self, batch: Batch, run: Callable[[], Pass]) -> Measured:
        """Measure a batch, with one call of `run`."""
        ...


class OfUnitLength:
    """Other vectors, each scaled to length 1; zeros stay."""

    def __init__(self, vectors: Vectors) -> None:
        """Scale these."""
        self._vectors = vectors
        self.dim, self.reads_prompts_once, self.facts = vectors.dim, vectors.reads_prompts_once, vectors.facts

    def __call__(self, batch: Batch, run: Callable[[], Pass]) -> Measured:
        """Measure a batch."""
        found = self._vectors(batch, run)
        return Measured(found.logp, torch.nn.functional.normalize(found.vectors, dim=1))


class Likelihoods:
    """No vector, log-probabilities alone."""

    dim = 0
    reads_prompts_once = True
    facts: ClassVar[dict[str, int]] = {}

    @torch.no_grad()
    def __call__(self, batch: Batch, run: Callable[[], Pass]) -> Measured:
        """Measure a batch."""
        logp = run().logp
        return Measured(logp, logp.new_zeros(batch.size, 0))


class HiddenStates:
    """States of the last layer, of the response's last token or the mean over its tokens."""

    reads_prompts_once = True
    facts: ClassVar[dict[str, int]] = {}

    def __init__(self, dim: int, pooling: Pooling) -> None:
        """Get ready for states of `dim` numbers."""
        self.dim, self.pooling = dim, pooling

    @torch.no_grad()
    def __call__(self, batch: Batch, run: Callable[[], Pass]) -> Measured:
        """Measure a batch; an empty response has a vector of zeros."""
        seen = run()
        counts = torch.bincount(batch.rows, minlength=batch.size)
        states = seen.states[batch.rows, batch.columns + 1].float()
        if self.pooling == "mean":
            return Measured(seen.logp, batch.sums(states) / counts.clamp(min=1)[:, None])
        last = states.new_zeros(batch.size, states.shape[1])
        last[counts > 0] = states[counts.cumsum(0)[counts > 0] - 1]
        return Measured(seen.logp, last)


class HeadGradients:
    """The gradient of log pi(y|x) in the weights of the head: sum over tokens of (e_y - p) h'.

    Exact up to the vocabulary's side, which is first hashed with random signs to `VOCABULARY_BUCKETS` sums, unless the
    projection is none; what the model does to logits (a cap, a scale) is part of the gradient. Of a head tied to the
    input embeddings, the part that comes through these is left out.
    """

    reads_prompts_once = True
    facts: ClassVar[dict[str, int]] = {}

    def __init__(self, vocabulary: int, hidden: int, projection: AnyProjection, device: str) -> None:
        """Get ready for a head of this shape."""
        self._hash: tuple[torch.Tensor, torch.Tensor] | None = None
        rows = vocabulary
        if not isinstance(projection, Whole) and vocabulary > VOCABULARY_BUCKETS:
            rows = VOCABULARY_BUCKETS
            buckets, gains = hashed(projection.seed, f"{HEAD}/vocabulary", vocabulary, rows)
            self._hash = torch.from_numpy(buckets).to(device), torch.from_numpy(gains).to(device)
        self._rows = rows
        self._projector = projection.over({HEAD: (rows, hidden)}, device)

    @property
    def dim(self) -> int:
        """Numbers of a vector."""
        return self._projector.dim

    @torch.enable_grad()
    def __call__(self, batch: Batch, run: Callable[[], Pass]) -> Measured:
        """Measure a batch."""
        seen = run()
        (residual,) = torch.autograd.grad(seen.logp.sum(), seen.head)
        with torch.no_grad():
            left = batch.apart(self._hashed(residual[0].float()))
            right = batch.apart(seen.predictors.float())
            vectors = right.new_zeros(batch.size, self.dim)
            self._projector.add(vectors, HEAD, left.transpose(1, 2) @ right)
        return Measured(seen.logp.detach(), vectors)

    def _hashed(self, residual: torch.Tensor) -> torch.Tensor:
        if self._hash is None:
            return residual
        buckets, gains = self._hash
        sums = residual.new_zeros(len(residual), self._rows)
        return sums.scatter_add_(1, buckets.expand_as(residual), residual * gains)


class LoraGradients:
    """The gradient of log pi(y|x) in LoRA matrices, projected; exact for every response of a batch."""

    def __init__(
        self, layers: Sequence[LoraLayer], projection: AnyProjection, *, warm_start: float = 0.0, whole: bool = True
    ) -> None:
        """Get ready for these layers.

        Args:
            layers: whose matrices.
            projection: into how many numbers.
            warm_start: see `tapped`.
            whole: False stops the gradient at the prompt, whose pass then serves all of its responses: what LoRA does
                to the prompt's keys and values is left out of the vector (an approximation; log-probabilities stay
                exact).
        """
        self.layers = layers
        self.reads_prompts_once = not whole
        self._warm_start = warm_start
        shapes: dict[str, tuple[int, int]] = {}
        for layer in layers:
            shapes |= layer.shapes()
        self._projector: Projector = projection.over(shapes, str(layers[0].lora_a.weight.device))
        self.shapes: Shapes = shapes

    @property
    def dim(self) -> int:
        """Numbers of a vector."""
        return self._projector.dim

    @property
    def facts(self) -> dict[str, int]:
        """How many modules, and in how many B is zero and the gradient of A with it, which is not computed there."""
        silent = 0 if self._warm_start else sum(layer.is_silent for layer in self.layers)
        return {"num_lora_modules": len(self.layers), "num_lora_a_skipped": silent}

    @torch.enable_grad()
    def __call__(self, batch: Batch, run: Callable[[], Pass]) -> Measured:
        """Measure a batch."""
        wide = self.layers[0].lora_a.weight.dtype == torch.float64
        dtype = torch.float64 if wide else torch.float32
        vectors = torch.zeros(batch.size, self.dim, dtype=dtype, device=batch.ids.device)

        def take(name: str, gradient: torch.Tensor) -> None:
            self._projector.add(vectors, name, gradient)

        with tapped(self.layers, take, warm_start=self._warm_start):
            seen = run()
            torch.autograd.backward([seen.logp.sum()])
        return Measured(seen.logp.detach(), vectors)
