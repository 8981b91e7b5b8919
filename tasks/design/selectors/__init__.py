"""Selectors: ways to spend a labelling budget on a pool. The union below is the one place to add one."""  # noqa: A005 (only ever tasks.design.selectors)

from dataclasses import dataclass, field
from typing import get_args, get_type_hints

from tasks.design.selectors.balanced import Balanced
from tasks.design.selectors.bandits import (
    Baits,
    DeltaUcb,
    DoubleReversedThompson,
    Infomax,
    MaxMinLcb,
    Thompson,
)
from tasks.design.selectors.base import Selector
from tasks.design.selectors.baselines import FirstTwo, Uniform
from tasks.design.selectors.designs import ADesign, DDesign, TraceDesign, VDesign
from tasks.design.selectors.diversity import Badge, KCenter, KMeans
from tasks.design.selectors.greedy import ActiveDpo, Adpo, AdpoOffline, Apo, Bait
from tasks.design.selectors.margins import Apl, Entropy, MaxMargin, MinMargin
from tasks.design.selectors.mixture import MixtureOf
from tasks.design.selectors.posteriors import Bald, BalPm, NearTie
from tasks.design.selectors.rewards import BestRandom, BestSecond, BestWorst, QuantileGap, TopGap
from tasks.design.selectors.robust import RobustDesign
from tasks.design.selectors.sampled import Dope, ReferenceWeighted, SampledTraceDesign

PlainSelector = (
    RobustDesign
    | Uniform
    | Balanced
    | FirstTwo
    | ReferenceWeighted
    | TraceDesign
    | SampledTraceDesign
    | DDesign
    | ADesign
    | VDesign
    | Dope
    | ActiveDpo
    | Apo
    | Adpo
    | AdpoOffline
    | Bait
    | MaxMargin
    | MinMargin
    | Entropy
    | Apl
    | BestWorst
    | BestSecond
    | BestRandom
    | TopGap
    | QuantileGap
    | Badge
    | KCenter
    | KMeans
    | Bald
    | NearTie
    | BalPm
    | Thompson
    | DoubleReversedThompson
    | Baits
    | DeltaUcb
    | Infomax
    | MaxMinLcb
)


@dataclass(frozen=True, kw_only=True)
class Mixture(MixtureOf):
    __doc__ = MixtureOf.__doc__

    selector: PlainSelector = field(default_factory=TraceDesign)


AnySelector = PlainSelector | Mixture

SELECTORS: dict[str, type[AnySelector]] = {
    kind: selector for selector in get_args(AnySelector) for kind in get_args(get_type_hints(selector)["kind"])
}
"""Every selector by its kind; some answer to more than one."""

__all__ = ["SELECTORS", "AnySelector", "Selector"]
