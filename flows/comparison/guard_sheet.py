"""The guards of a comparison as a table: what each selector's last policy measured, and what is broken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flows.comparison import series
from flows.comparison.evidence import Evidence
from flows.comparison.guards import GUARDS, REWARD_HACKING, Guard
from flows.comparison.judgement import UNIFORM, Cell, Judgement
from flows.comparison.sheets import Entry, Sheet, kept
from flows.comparison.words import NONE, num

Measures = Sequence[Mapping[str, float]]

_CONTROLLED = "win_base_length_controlled"


def guards(judgement: Judgement, budget: int) -> Sheet:
    """Every selector's guards after the last round that it and uniform both have."""
    evidence, limits = judgement.evidence, judgement.evidence.thresholds
    last: dict[str, Cell] = {}
    for cell in judgement.cells:
        if cell.budget == budget and cell.round >= last.get(cell.selector, cell).round:
            last[cell.selector] = cell
    heads = [_head(guard, limits.get(guard.threshold)) for guard in GUARDS]
    rows = [_row(evidence, last[name]) for name in evidence.selectors if name in last]
    return Sheet(
        f"Guards, budget {budget:,} a round",
        ["selector", *heads, "win rate, length-controlled", "reward hacking", "all in all"],
        rows,
        f"Means over seeds after the last round. ⚠ is beyond its limit; {NONE} was not measured, and so not guarded.",
    )


def _head(guard: Guard, limit: float | None) -> str:
    bound = "at least" if guard.least else "at most"
    return f"{guard.name}\n({'no limit' if limit is None else f'{bound} {limit:g}'})"


def _row(evidence: Evidence, cell: Cell) -> list[Entry]:
    seeds, entries = _measures(evidence, cell), [Entry(cell.selector)]
    for guard in GUARDS:
        value, limit = guard.measured(seeds), evidence.thresholds.get(guard.threshold)
        broken = value is not None and limit is not None and guard.breaks(value, limit)
        entries.append(Entry(f"⚠ {num(value)}\nbroken", "broken") if broken else Entry(num(value)))
    controlled = [one[_CONTROLLED] for one in seeds if _CONTROLLED in one]
    rate = sum(controlled) / len(controlled) if controlled else None
    return [*entries, Entry(num(rate)), _flag(cell, seeds), kept(cell)]


def _flag(cell: Cell, seeds: Measures) -> Entry:
    if cell.reward_hacking:
        return Entry("⚠ yes: reward up,\njudge down", "alarm")
    return Entry("no" if any(REWARD_HACKING in one for one in seeds) else NONE, "words")


def _measures(evidence: Evidence, cell: Cell) -> Measures:
    """Of the seeds that uniform has, too."""
    own, base = (
        {one.seed: one.round(cell.round) for one in series.of(evidence, name, cell.budget)}
        for name in (cell.selector, UNIFORM)
    )
    return [facts.measures for seed, facts in own.items() if facts is not None and base.get(seed) is not None]
