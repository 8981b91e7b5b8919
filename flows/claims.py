"""Published claims, and what paired runs over seeds show of them: what every study says in the end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from tasks.design.arrays import FloatArray
from tasks.design.statistics import Difference, compare

Answer = Literal["holds", "does not hold", "not shown"]
Rule = Literal["all", "any"]

Named = Mapping[str, FloatArray]
"""Differences over seeds, (n,) each, by what they are in words; not finite where the config has nothing that tells."""


@dataclass(frozen=True)
class Contrast:
    """A mean of paired differences, in words and numbers."""

    words: str
    difference: Difference

    def __str__(self) -> str:
        """In one line."""
        shown = self.difference
        return f"{self.words} {shown.mean:+.3f} [{shown.low:.3f}, {shown.high:.3f}] ({shown.verdict})"


@dataclass(frozen=True)
class Finding:
    """A claim and what decides on it.

    Attributes:
        claim: the paper's.
        deciding: contrasts that are above 0 if it holds.
        rule: whether all of them have to be above, or any.
        beside: contrasts that tell more and decide nothing.
    """

    claim: str
    deciding: tuple[Contrast, ...]
    rule: Rule = "all"
    beside: tuple[Contrast, ...] = ()

    @property
    def answer(self) -> Answer:
        """Holds, or its contrary is shown, or neither."""
        shown = [contrast.difference.verdict for contrast in self.deciding]
        holds, fails = (all, any) if self.rule == "all" else (any, all)
        if shown and holds(verdict == "above" for verdict in shown):
            return "holds"
        return "does not hold" if shown and fails(verdict == "below" for verdict in shown) else "not shown"

    def __str__(self) -> str:
        """Claim, answer, numbers."""
        deciding = "; ".join(map(str, self.deciding)) or "the config has nothing that could decide it"
        beside = f" Beside: {'; '.join(map(str, self.beside))}." if self.beside else ""
        return f"{self.claim}: {self.answer.upper()}. {deciding}.{beside}"


@dataclass(frozen=True, eq=False)
class Claim:
    """A claim, and the differences that speak of it.

    Attributes:
        words: the paper's.
        deciding: differences that are above 0 if it holds.
        rule: whether all of them have to be above, or any.
        beside: differences that tell more and decide nothing.
    """

    words: str
    deciding: Named
    rule: Rule = "all"
    beside: Named = field(default_factory=dict)


def decide(claims: Sequence[Claim]) -> list[Finding]:
    """What is found of each claim.

    All differences are one family: their verdicts are corrected for being so many
    (`tasks.design.statistics.compare`); the intervals are of each alone.
    """
    family = {
        (place, name): values
        for place, claim in enumerate(claims)
        for name, values in {**claim.deciding, **claim.beside}.items()
    }
    known = {key: values for key, values in family.items() if np.isfinite(values).all()}
    shown = compare(np.stack(list(known.values()), axis=1), np.random.default_rng(0)) if known else []
    contrasts = {key: Contrast(key[1], entry) for key, entry in zip(known, shown, strict=True)}

    def of(place: int, names: Named) -> tuple[Contrast, ...]:
        return tuple(contrasts[place, name] for name in names if (place, name) in contrasts)

    return [
        Finding(
            claim.words,
            of(place, claim.deciding) if len(of(place, claim.deciding)) == len(claim.deciding) else (),
            claim.rule,
            of(place, claim.beside),
        )
        for place, claim in enumerate(claims)
    ]


def metrics(findings: Sequence[Finding]) -> Mapping[str, float]:
    """Means of all contrasts, by the place of the finding and their own."""
    named = [
        (f"finding_{place}/{number}", contrast)
        for place, finding in enumerate(findings, start=1)
        for number, contrast in enumerate((*finding.deciding, *finding.beside), start=1)
    ]
    return {name: contrast.difference.mean for name, contrast in named}
