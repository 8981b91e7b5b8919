"""What a scheduler sees of a step's pairs before it says which of them are trained on."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Seen:
    """The n pairs of one step under the policy as it is before that step; no gradients.

    Attributes:
        margins: beta (log-ratio of chosen - log-ratio of rejected), (n,).
        chosen_logps: log pi(chosen | prompt), summed over its tokens, nats, (n,).
        losses: of every pair, (n,).
        states: hidden states of every layer, averaged over tokens and over both responses, (n, layers, hidden).
    """

    margins: Tensor
    chosen_logps: Tensor
    losses: Tensor
    states: Tensor | None = None

    def __post_init__(self) -> None:
        shapes = [tuple(of.shape) for of in (self.margins, self.chosen_logps, self.losses)]
        if len(shapes[0]) != 1 or len(set(shapes)) > 1:
            raise ValueError(
                f"margins, chosen_logps and losses have the shapes {shapes[0]}, {shapes[1]} and {shapes[2]}: "
                "expected one number a pair, all (n,)"
            )
        if self.states is not None and (self.states.ndim != 3 or len(self.states) != self.num_pairs):
            raise ValueError(
                f"states have the shape {tuple(self.states.shape)}: expected ({self.num_pairs}, layers, hidden)"
            )

    @classmethod
    def unread(cls, num_pairs: int, device: str = "cpu") -> "Seen":
        """So many pairs that nobody looked at, for the schedulers that need nothing: all measures are NaN."""
        nothing = torch.full((num_pairs,), math.nan, device=device)
        return cls(margins=nothing, chosen_logps=nothing, losses=nothing)

    @property
    def num_pairs(self) -> int:
        """Pairs of the step."""
        return self.margins.shape[0]


class Scheduler(Protocol):
    """Says step by step which pairs are trained on; draws from a generator of its own."""

    @property
    def metrics(self) -> dict[str, float]:
        """Facts of the last step."""
        ...

    def __call__(self, seen: Seen) -> Tensor:
        """Places of the pairs to train on, ascending, int64, on the device of the measures.

        There are `num_kept` of them, or all pairs where there are fewer.

        Raises:
            ValueError: something that the scheduler reads is missing or not finite.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that its next steps depend on beside its config and seed, in tensors, numbers and containers."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there, bit by bit as without the stop."""
        ...


def top_places(scores: Tensor, num_kept: int) -> Tensor:
    """Places of the `num_kept` largest of the scores (n,), ascending; of equal ones the first come first.

    Raises:
        ValueError: a score is not finite.
    """
    require_finite(scores, "scores of the pairs")
    order = torch.sort(scores, descending=True, stable=True).indices
    return order[:num_kept].sort().values


def measures(seen: Seen, kept: Tensor) -> dict[str, float]:
    """Means over a step's pairs and over those that are kept, so that schedulers can be compared; none of the unread.

    Losses and margins have no unit; likelihoods of chosen responses are in nats.
    """
    read = {"loss": seen.losses, "margin": seen.margins, "chosen_logps": seen.chosen_logps}
    found = {f"batch_{name}": float(of.mean()) for name, of in read.items()}
    found |= {f"kept_{name}": float(of[kept].mean()) for name, of in read.items()}
    return {"num_kept": float(len(kept)), **{name: mean for name, mean in found.items() if not math.isnan(mean)}}


def require_finite(values: Tensor, what: str) -> None:
    """Check that numbers can be ranked and learnt from.

    Raises:
        ValueError: some can't.
    """
    num_bad = int((~torch.isfinite(values)).sum())
    if num_bad:
        raise ValueError(
            f"{num_bad} of {values.numel()} {what} are not finite: expected a forward pass of every pair through a "
            "policy that has not diverged; lower the learning rate, or choose a scheduler that needs no such pass"
        )
