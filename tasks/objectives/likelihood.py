"""Objectives of likelihoods, without a reference, and the negative gradient that can be added to them.

They are the methods that Tajwar et al. (arXiv:2404.14367) set against contrastive ones. Likelihoods are averaged over
all tokens of a batch, as supervised fine-tuning does. `negative` times the log-likelihood of the rejected response is
added to the loss: an explicit negative gradient, unbounded below, so keep it small or training short.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from tasks.objectives.pairs import Need, Pairs, required

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class _OfChosen:
    negative: float = 0.0

    def __post_init__(self) -> None:
        _require_share("negative", self.negative)

    def __call__(self, pairs: Pairs, beta: float) -> "torch.Tensor":  # noqa: ARG002 - no reference, no temperature
        """Losses of the pairs, (n,)."""
        pushed = self.negative * _per_token(pairs.rejected, pairs.num_rejected_tokens)
        return pushed - _per_token(pairs.chosen, pairs.num_chosen_tokens)


@dataclass(frozen=True, kw_only=True)
class SftChosen(_OfChosen):
    """-log pi(chosen|x): fine-tuning on the preferred responses (Pref-FT)."""

    needs: ClassVar[frozenset[Need]] = frozenset()
    best_alone: ClassVar[bool] = False

    kind: Literal["sft_chosen"] = "sft_chosen"


@dataclass(frozen=True, kw_only=True)
class BestOfN(_OfChosen):
    """-log pi(best|x): the same on the best response of each prompt alone, by reward."""

    needs: ClassVar[frozenset[Need]] = frozenset({"rewards"})
    best_alone: ClassVar[bool] = True

    kind: Literal["best_of_n"] = "best_of_n"


@dataclass(frozen=True, kw_only=True)
class Rwr:
    """-w_c log pi(chosen|x) - w_r log pi(rejected|x), with w the softmax of the two rewards over `temperature`.

    Reward-weighted regression (Peters & Schaal 2007) with weights that are normalised within the pair, so that a
    prompt's own offset of rewards changes nothing. That normalisation is ours.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"rewards"})
    best_alone: ClassVar[bool] = False

    kind: Literal["rwr"] = "rwr"
    temperature: float = 1.0
    negative: float = 0.0

    def __post_init__(self) -> None:
        _require_share("negative", self.negative)
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature is {self.temperature}: expected a finite number above 0")

    def __call__(self, pairs: Pairs, beta: float) -> "torch.Tensor":  # noqa: ARG002 - no reference, no temperature
        """Losses of the pairs, (n,)."""
        import torch

        rewards = (required(pairs.chosen_rewards, "rewards"), required(pairs.rejected_rewards, "rewards"))
        chosen, rejected = torch.softmax(torch.stack(rewards) / self.temperature, dim=0)
        taught = _per_token(chosen * pairs.chosen, pairs.num_chosen_tokens)
        taught = taught + _per_token(rejected * pairs.rejected, pairs.num_rejected_tokens)
        return -taught + self.negative * _per_token(pairs.rejected, pairs.num_rejected_tokens)


def _per_token(logps: "torch.Tensor", num_tokens: "torch.Tensor") -> "torch.Tensor":
    """Shares of the responses in the mean over all tokens of the batch: their mean is that mean."""
    return logps / num_tokens.to(logps.dtype).mean().clamp(min=1)


def _require_share(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} is {value}: expected a finite number, 0 or more")
