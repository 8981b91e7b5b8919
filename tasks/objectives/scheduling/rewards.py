"""What SamS pays its scheduler for the pairs that it kept, after "Adaptive Batch-Wise Sample Scheduling for DPO"."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.objectives.scheduling.seen import Seen


def batch_reward(before: float, after: float) -> float:
    """(e^A - e^B) / max(e^A, e^B) with the mean losses A before a step and B after it, in (-1, 1); above 0 iff it fell.

    B is the mean over the next step's batch, which is seen anyway: no forward pass is made for the reward. The paper
    says in words that the loss is exponentiated and normalised; the formula is our reconstruction. Computed as
    1 - e^-|A - B| with the sign of A - B, which is the same and can't overflow.
    """
    fallen = before - after
    return math.copysign(-math.expm1(-abs(fallen)), fallen)


def scaled(values: Tensor) -> Tensor:
    """Min-max over a batch: (n,) values into [0, 1]; 1/2 for all where they are alike (our choice)."""
    low, high = values.min(), values.max()
    return torch.where(high > low, (values - low) / (high - low).clamp_min(torch.finfo(values.dtype).tiny), 0.5)


@dataclass(frozen=True, kw_only=True)
class RewardMix:
    """How much each part of a reward counts.

    Attributes:
        gamma: share of the batch's reward against the pairs' own, in [0, 1].
        delta: share of the margin against the chosen response's uncertainty, in [0, 1].
    """

    gamma: float
    delta: float

    def of_pairs(self, seen: Seen) -> Tensor:
        """r_S = delta g(margin) + (1 - delta) (1 - g(log pi(chosen))), (n,) in [0, 1], g as in `scaled`.

        The paper has the meaning, its code the second term and delta = 1/2; the layout is our reconstruction.
        """
        margins, logps = (scaled(of.float()) for of in (seen.margins, seen.chosen_logps))
        return self.delta * margins + (1 - self.delta) * (1 - logps)

    def of_round(self, batch: float, pairs: Tensor) -> Tensor:
        """r = gamma sigmoid(r_B) + (1 - gamma) sigmoid(r_S) (eq. 8), (k,) in (0.269, 0.731), from r_S (k,)."""
        return self.gamma / (1 + math.exp(-batch)) + (1 - self.gamma) * torch.sigmoid(pairs)
