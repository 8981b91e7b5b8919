"""What the bandit study shows of four findings of Tajwar et al. (arXiv:2404.14367), from paired runs over seeds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flows.claims import Claim, Finding, Named, Rule, decide
from tasks.design.arrays import FloatArray

Mask = NDArray[np.bool_]

OFFLINE, ON_POLICY = 0, 1


@dataclass(frozen=True, eq=False)
class Finals:
    """Expected rewards at the end of all trainings.

    Attributes:
        values: (rewards, methods, sources, T, seeds); sources are offline, on-policy, T rises.
        far: whether the reference has little mass at a reward's peak, (rewards,).
        negative: whether a method has a negative gradient, (methods,).
        contrastive: whether it is an objective of the margin, (methods,).
        inner_steps: the values of T.
    """

    values: FloatArray
    far: Mask
    negative: Mask
    contrastive: Mask
    inner_steps: Sequence[int]

    def mean(self, *, methods: Mask | None = None, source: int | None = None) -> FloatArray:
        """Means over rewards, T, and such methods and sources, (seeds,); NaN where there is no such method."""
        chosen = self.values if methods is None else self.values[:, methods]
        if not chosen.shape[1]:
            return np.full(self.values.shape[-1], np.nan)
        picked = chosen if source is None else chosen[:, :, [source]]
        means: FloatArray = picked.mean(axis=(0, 1, 2, 3))
        return means

    def gain(self, *, far: bool) -> FloatArray:
        """On-policy over offline, for rewards with a far or near peak, (seeds,); NaN where there is no such reward."""
        chosen = self.values[self.far == far]
        if not len(chosen):
            return np.full(self.values.shape[-1], np.nan)
        gains: FloatArray = (chosen[:, :, ON_POLICY] - chosen[:, :, OFFLINE]).mean(axis=(0, 1, 2))
        return gains


def findings(finals: Finals) -> list[Finding]:
    """The paper's four, each decided by differences of final rewards that are paired over seeds.

    Means are over all that a contrast doesn't name.
    """
    return decide(
        [
            Claim(
                "On-policy data help most where the reference has little mass at the reward's peak", *_places(finals)
            ),
            Claim("Negative gradients help", *_negatives(finals)),
            Claim("On-policy data and negative gradients are complementary: both together are best", *_both(finals)),
            Claim("Many gradient steps T on the same on-policy batch hurt", *_reuse(finals)),
        ]
    )


def _places(finals: Finals) -> tuple[Named, Rule, Named]:
    far, near = finals.gain(far=True), finals.gain(far=False)
    deciding = {"gain where it is little": far, "that less the gain elsewhere": far - near}
    return deciding, "all", {"gain elsewhere": near}


def _negatives(finals: Finals) -> tuple[Named, Rule, Named]:
    negative, contrastive = finals.negative, finals.contrastive
    added, bare = negative & ~contrastive, ~negative
    beside: dict[str, FloatArray] = {}
    for words, source in (("offline", OFFLINE), ("on-policy", ON_POLICY)):
        plain = finals.mean(methods=bare, source=source)
        beside[f"{words} margins v. likelihoods alone"] = finals.mean(methods=contrastive, source=source) - plain
        beside[f"{words} likelihoods with v. without"] = finals.mean(methods=added, source=source) - plain
    return {"with v. without": finals.mean(methods=negative) - finals.mean(methods=bare)}, "all", beside


def _both(finals: Finals) -> tuple[Named, Rule, Named]:
    negative = finals.negative
    both = finals.mean(methods=negative, source=ON_POLICY)
    one = finals.mean(methods=~negative, source=ON_POLICY)
    other = finals.mean(methods=negative, source=OFFLINE)
    neither = finals.mean(methods=~negative, source=OFFLINE)
    deciding = {"both v. on-policy alone": both - one, "both v. negative gradient alone": both - other}
    return deciding, "all", {"both less the sum of their gains alone": both - one - other + neither}


def _reuse(finals: Finals) -> tuple[Named, Rule, Named]:
    by_steps = finals.values[:, :, ON_POLICY].mean(axis=(0, 1))
    *fewer, most = finals.inner_steps
    named = {f"T = {steps} v. {most}": by_steps[place] - by_steps[-1] for place, steps in enumerate(fewer)}
    return named, "any", {}
