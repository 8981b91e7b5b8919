"""The tables of a comparison's report, the same for HTML and Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from flows.comparison import series
from flows.comparison.evidence import COSTS
from flows.comparison.judgement import UNIFORM, Cell, Judgement, Standing
from flows.comparison.words import NONE, SHORT, interval, markdown, num, percent, saved
from flows.standings import MARKS, Grid
from tasks.design.arrays import FloatArray
from tasks.design.inference import MOST_SEEDS

Tone = Literal["", "words", "good", "bad", "broken", "alarm"]


_TONES: dict[str | None, Tone] = {"above": "good", "below": "bad"}


@dataclass(frozen=True)
class Entry:
    """A cell: its text, and what is to be made of it, which the text says, too."""

    text: str
    tone: Tone = ""


@dataclass(frozen=True)
class Sheet:
    """A table with its caption; the first entry of a row names it.

    Attributes:
        caption: what it shows.
        headings: of its columns.
        rows: as many entries as headings.
        note: how to read it.
    """

    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[Entry]]
    note: str = ""

    def is_words(self, column: int) -> bool:
        """Whether a column has words, which begin where its heading does."""
        return any(row[column].tone not in {"", "broken"} for row in self.rows)

    @property
    def markdown(self) -> str:
        """The table in Markdown, its note below it."""
        rows = [[markdown(entry.text) for entry in row] for row in self.rows]
        table = Grid(markdown(self.caption), [markdown(heading) for heading in self.headings], rows).markdown()
        return f"{table}\n\n{markdown(self.note)}" if self.note else table


def standings(judgement: Judgement, budget: int) -> Sheet:
    """Every selector against uniform at the last round of a budget, uniform itself first."""
    shown = [one for one in judgement.standings if one.budget == budget]
    headings = [
        "selector",
        "seeds",
        SHORT[judgement.evidence.metric],
        "difference to uniform\n[95\u00a0%]",
        "shown",
        "P(above uniform)",
        "labels saved, \N{MULTIPLICATION SIGN}\n[95\u00a0%]",
        "reward at matched KL\n[95\u00a0%]",
        "further seeds",
        "guards",
    ]
    rows = [_standing(one, shown_as(one, judgement)) for one in shown]
    own = _last_of_uniform(judgement, budget)
    baseline = [] if own is None else [_uniform(own)]
    return Sheet(
        f"Standings, budget {budget:,} a round",
        headings,
        [*baseline, *rows],
        "Labels saved: labels that uniform needs for the same mean, per label used; ≥ and ≤ are ends of what was "
        "measured. Further seeds: to show the difference that was observed, were it the true one.",
    )


def matrix(caption: str, names: Sequence[str], cells: FloatArray) -> Sheet:
    """Selectors by selectors."""
    rows = [
        [Entry(name), *(Entry(num(float(value), 2)) for value in row)] for name, row in zip(names, cells, strict=True)
    ]
    return Sheet(caption, ["row, column", *names], rows)


def costs(judgement: Judgement, budget: int) -> Sheet:
    """What the lineages of each selector cost, mean over lineages."""
    rows = []
    for name in judgement.evidence.selectors:
        lineages = [one for one in series.of(judgement.evidence, name, budget) if one.rounds]
        if lineages:
            seconds = series.mean_seconds(lineages)
            total = sum(seconds.values())
            money = np.mean([sum(facts.cost for facts in one.rounds) for one in lineages])
            labels = np.mean([sum(facts.num_labels for facts in one.rounds) for one in lineages])
            shares = percent(seconds["design"] / total) if total else NONE
            stages = [num(seconds[stage], 1) for stage in COSTS]
            texts = [name, str(len(lineages)), num(float(money), 2), num(float(labels), 0), *stages, num(total, 1)]
            rows.append([Entry(text) for text in (*texts, shares)])
    stages = [f"{stage}, s" for stage in COSTS]
    return Sheet(
        f"Costs of a lineage, budget {budget:,} a round",
        ["selector", "lineages", "label money", "labels", *stages, "sum, s", "share of design"],
        rows,
        "Means over lineages, all finished rounds together. A stage that several lineages share counts in each what it "
        "took where it first ran, so that the sums are what a selector would have cost alone.",
    )


def gaps(judgement: Judgement) -> Sheet | None:
    """Lineages with missing rounds, and why."""
    rows = [
        [
            Entry(one.lineage),
            Entry(", ".join(map(str, one.missing)), "words"),
            Entry(one.why or "no reason was recorded", "words"),
        ]
        for one in judgement.evidence.lineages
        if one.missing
    ]
    return Sheet("Missing rounds: left out, never filled in", ["lineage", "rounds", "why"], rows) if rows else None


def shown_as(one: Standing, judgement: Judgement) -> str | None:
    """What is shown of a selector; None where no verdict is given, or none before the last round."""
    early = one.cell.round < judgement.evidence.num_rounds - 1
    return None if judgement.refusals or early or one.cell.difference is None else one.cell.difference.verdict


def signed(verdict: str | None) -> str:
    """A verdict behind its sign."""
    return "no verdict" if verdict is None else f"{MARKS[verdict]} {verdict}"


def _standing(one: Standing, verdict: str | None) -> list[Entry]:
    cell = one.cell
    return [
        Entry(one.selector),
        Entry(str(cell.num_seeds)),
        Entry(num(cell.mean)),
        Entry(interval(cell.difference)),
        Entry(signed(verdict), _TONES.get(verdict, "words")),
        Entry(num(one.probability_above, 2)),
        Entry(saved(one.saving)),
        Entry(interval(one.matched_kl)),
        Entry(_further(one.further_seeds)),
        kept(cell),
    ]


def _further(seeds: int | None) -> str:
    if seeds is None:
        return NONE
    return f"≥{seeds:,}" if seeds >= MOST_SEEDS else f"{seeds:,}"


def kept(cell: Cell) -> Entry:
    """Whether the guards held."""
    broken = [*cell.broken, *(["reward hacking"] if cell.reward_hacking and not _told(cell) else [])]
    if broken:
        return Entry(f"⚠ broken: {'; '.join(broken)}", "alarm")
    return Entry("✓ kept" if not cell.unmeasured else "✓ kept where\nmeasured", "words")


def _told(cell: Cell) -> bool:
    return any("reward hacking" in said for said in cell.broken)


def _uniform(cell: Cell) -> list[Entry]:
    numbers = [Entry(str(cell.num_seeds)), Entry(num(cell.mean)), Entry(NONE)]
    return [Entry(f"{UNIFORM} (baseline)"), *numbers, Entry(NONE, "words"), *[Entry(NONE)] * 4, kept(cell)]


def _last_of_uniform(judgement: Judgement, budget: int) -> Cell | None:
    own = [cell for cell in judgement.cells if (cell.selector, cell.budget) == (UNIFORM, budget)]
    return max(own, key=lambda cell: cell.round, default=None)
