"""Evidence by place: which lineage stands for a selector, a budget and a seed, and what pairs of them measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from flows.comparison.judged import UNIFORM

if TYPE_CHECKING:
    from flows.comparison.evidence import Evidence, LineageFacts, RoundFacts
    from tasks.design.arrays import FloatArray


@dataclass(frozen=True, eq=False)
class Roster:
    """The lineages of a comparison, each at its place; of two at one place the first by name counts."""

    evidence: Evidence

    @cached_property
    def places(self) -> Mapping[tuple[str, int], Mapping[int, LineageFacts]]:
        """Lineages by selector and budget, and there by seed."""
        found: dict[tuple[str, int], dict[int, LineageFacts]] = {}
        for one in sorted(self.evidence.lineages, key=lambda one: (one.seed, one.lineage)):
            found.setdefault((one.selector, one.budget), {}).setdefault(one.seed, one)
        return found

    @property
    def doubles(self) -> list[tuple[str, str]]:
        """Lineages that don't count, each with the one that does."""
        there = {id(one) for by_seed in self.places.values() for one in by_seed.values()}
        return sorted(
            (one.lineage, self.places[one.selector, one.budget][one.seed].lineage)
            for one in self.evidence.lineages
            if id(one) not in there
        )

    @property
    def last(self) -> int:
        """Number of the last round that was planned."""
        return self.evidence.num_rounds - 1

    def rounds(self, selector: str, budget: int, number: int) -> Mapping[int, RoundFacts]:
        """A round of a selector by seed, where it is finished and measured the metric."""
        return self._rounds.get((selector, budget, number), {})

    @cached_property
    def _rounds(self) -> Mapping[tuple[str, int, int], Mapping[int, RoundFacts]]:
        found: dict[tuple[str, int, int], dict[int, RoundFacts]] = {}
        for place, by_seed in self.places.items():
            for seed, lineage in by_seed.items():
                for facts in lineage.rounds:
                    if self.evidence.metric in facts.measures:
                        found.setdefault((*place, facts.number), {})[seed] = facts
        return found

    def common(self, selector: str, other: str, budget: int, number: int) -> list[int]:
        """Seeds that two selectors both have there, rising."""
        return sorted(self.rounds(selector, budget, number).keys() & self.rounds(other, budget, number).keys())

    def measured(self, selector: str, budget: int, number: int, *, seeds: list[int]) -> FloatArray:
        """The metric of these seeds, (n,)."""
        rounds, metric = self.rounds(selector, budget, number), self.evidence.metric
        return np.array([rounds[seed].measures[metric] for seed in seeds])

    def differences(self, selector: str, other: str, budget: int, number: int) -> FloatArray:
        """Of the metric, over the seeds that both have, (n,)."""
        seeds = self.common(selector, other, budget, number)
        one, two = (self.measured(name, budget, number, seeds=seeds) for name in (selector, other))
        return one - two

    def labels(self, selector: str, budget: int, number: int, *, seeds: list[int]) -> float:
        """Mean labels charged by the end of a round, over those of these seeds that have all rounds before it."""
        lineages = [self.places[selector, budget][seed] for seed in seeds]
        spent = [
            sum(facts.num_labels for facts in one.rounds if facts.number <= number)
            for one in lineages
            if all(earlier not in one.missing for earlier in range(number))
        ]
        return float(np.mean(spent)) if spent else float("nan")

    def others(self) -> Iterator[tuple[str, int]]:
        """Every selector but uniform at every budget."""
        for budget in self.evidence.budgets:
            for selector in self.evidence.selectors:
                if selector != UNIFORM:
                    yield selector, budget


def jaccard(one: tuple[str, ...], two: tuple[str, ...]) -> float:
    """Shared items over all items of two sets; 1 if both are empty."""
    first, second = set(one), set(two)
    return len(first & second) / len(first | second) if first | second else 1.0


def overlap(roster: Roster, selector: str, other: str, budget: int) -> float | None:
    """Mean Jaccard similarity of what two selectors chose, over seeds and rounds in which they saw the same pool."""
    mine, theirs = (roster.places.get((name, budget), {}) for name in (selector, other))
    found = [
        jaccard(facts.pairs, match.pairs)
        for seed, lineage in mine.items()
        if seed in theirs
        for facts in lineage.rounds
        if (match := theirs[seed].round(facts.number)) is not None and match.pool == facts.pool
    ]
    return float(np.mean(found)) if found else None
