"""What a judgement holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flows.comparison.evidence import Evidence
    from tasks.design.statistics import Difference, Saving

UNIFORM = "uniform"
"""The selector with which all others are compared."""


@dataclass(frozen=True)
class Cell:
    """One selector beside uniform, at one budget after one round.

    Attributes:
        selector: its name.
        budget: labels a round.
        round: its number.
        num_seeds: that both have there; all numbers below are theirs.
        labels: mean labels that the selector was charged by then; NaN where earlier rounds are missing.
        mean: of the metric.
        uniform: mean of the metric of uniform.
        difference: of the two, paired over seeds; None: fewer than two seeds, or it is uniform itself. Only those after
            the last round that was planned are looked at for verdicts, and corrected as one family; for the others
            `adjusted` is 1.
        broken: guards that are broken, in words with numbers.
        reward_hacking: whether in most seeds reward is shown to have risen and a second judge's score to have fallen.
        unmeasured: guards of which nothing was measured.
    """

    selector: str
    budget: int
    round: int
    num_seeds: int
    labels: float
    mean: float
    uniform: float
    difference: Difference | None
    broken: tuple[str, ...] = ()
    reward_hacking: bool = False
    unmeasured: tuple[str, ...] = ()


@dataclass(frozen=True)
class Standing:
    """A selector's verdict at a budget.

    Attributes:
        selector: its name.
        budget: labels a round.
        cell: of the last round that it and uniform have; only after the last one that was planned is there a verdict.
        probability_above: that its mean exceeds uniform's; None: fewer than two seeds.
        saving: labels that uniform needs for the same mean, per label used; None: it can't be read.
        matched_kl: reward above uniform's at equal KL from the base; None: fewer than two seeds, or not measured.
        further_seeds: to show the difference that was observed, 0: it is shown; None: no number can be had.
        words: the verdict in a sentence or a few.
    """

    selector: str
    budget: int
    cell: Cell
    probability_above: float | None
    saving: Saving | None
    matched_kl: Difference | None
    further_seeds: int | None
    words: str


@dataclass(frozen=True)
class Judgement:
    """All that the evidence shows.

    Attributes:
        evidence: that was judged.
        cells: of every selector, budget and round that both it and uniform have, uniform's own among them.
        standings: of every selector but uniform at every budget, where there is such a cell.
        above: P(A's mean > B's) by (A, B, budget), after the last round that was planned; None: fewer than two seeds.
        overlap: mean Jaccard similarity of what A and B chose from the same pools, by (A, B, budget), all rounds
            and seeds in which they had one.
        headline: the verdict, the first words of a report.
        refusals: why no verdict is given; empty if one is.
    """

    evidence: Evidence
    cells: tuple[Cell, ...]
    standings: tuple[Standing, ...]
    above: Mapping[tuple[str, str, int], float | None]
    overlap: Mapping[tuple[str, str, int], float]
    headline: str
    refusals: tuple[str, ...]
