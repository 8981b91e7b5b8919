"""Exploration through the loss: terms that push down the likelihood of what the reference would say.

Both are added to the loss of a pair; the response they look at is one that the reference drew to the same prompt.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Xpo:
    """alpha log pi(y_ref|x) (Xie et al., arXiv:2405.21046, as in oat and TRL)."""

    kind: Literal["xpo"] = "xpo"
    alpha: float = 1e-5

    def __post_init__(self) -> None:
        _require_positive(self.alpha)

    def __call__(self, logps: "torch.Tensor", reference_logps: "torch.Tensor", beta: float) -> "torch.Tensor":  # noqa: ARG002
        """Terms of the pairs, (n,), from log-probabilities of the reference's responses, (n,), nats."""
        return self.alpha * logps


@dataclass(frozen=True, kw_only=True)
class Selm:
    """alpha beta (log pi(y_ref|x) - log pi_ref(y_ref|x)) (Zhang et al., arXiv:2405.19332, as its authors' code)."""

    kind: Literal["selm"] = "selm"
    alpha: float = 1e-3

    def __post_init__(self) -> None:
        _require_positive(self.alpha)

    def __call__(self, logps: "torch.Tensor", reference_logps: "torch.Tensor", beta: float) -> "torch.Tensor":
        """Terms of the pairs, (n,), from log-probabilities of the reference's responses, (n,), nats."""
        return self.alpha * beta * (logps - reference_logps)


AnyExploration = Xpo | Selm
"""The one place to add an exploration term."""

EXPLORATIONS = {exploration.kind: exploration for exploration in get_args(AnyExploration)}


def _require_positive(alpha: float) -> None:
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha is {alpha}: expected a finite number above 0; leave exploration out for none")
