"""Reward at matched KL: a lineage's path over rounds, read where another one's ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from flows.comparison.evidence import LineageFacts
    from tasks.design.arrays import FloatArray


@dataclass(frozen=True, eq=False)
class Path:
    """Where a policy went from the base.

    Attributes:
        distance: square root of the KL from the base, nats, the base's own 0 first, (R + 1,).
        reward: there, (R + 1,).
    """

    distance: FloatArray
    reward: FloatArray

    def at(self, distance: float) -> float:
        """Reward at its end, if that has this distance, else where it first has it; it must not exceed the end's.

        Reward is linear between rounds in sqrt(KL) (ours): over small KL that is how it grows (published: Gao et al.
        2023, arXiv:2210.10760, where it is d (alpha - beta log d) or d (alpha - beta d) with d = sqrt(KL)).
        """
        if self.distance[-1] == distance:
            return float(self.reward[-1])
        (reached,) = np.nonzero(self.distance >= distance)
        after = int(reached[0])
        if after == 0:
            return float(self.reward[0])
        before = after - 1
        share = (distance - self.distance[before]) / (self.distance[after] - self.distance[before])
        return float(self.reward[before] + share * (self.reward[after] - self.reward[before]))


def path_of(lineage: LineageFacts, last: int) -> Path | None:
    """A lineage's path up to a round; None where a round is missing, or its KL or a reward was not measured."""
    rounds = [lineage.round(number) for number in range(last + 1)]
    measured = [facts.measures for facts in rounds if facts is not None]
    if len(measured) <= last or not all({"kl", "reward"} <= one.keys() for one in measured):
        return None
    if "reward_base" not in measured[0]:
        return None
    kl = np.array([0.0, *(one["kl"] for one in measured)])
    reward = np.array([measured[0]["reward_base"], *(one["reward"] for one in measured)])
    return Path(np.sqrt(np.maximum(kl, 0.0)), reward)  # an estimate of a small KL may be below 0


def matched(one: Path, other: Path) -> float:
    """Reward of the one above the other's, both where the path ends that ends nearer to the base."""
    distance = float(min(one.distance[-1], other.distance[-1]))
    return one.at(distance) - other.at(distance)
