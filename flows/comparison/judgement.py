"""What the evidence of a comparison shows: differences to uniform, their intervals, guards, and a verdict in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np

from flows.comparison import verdicts
from flows.comparison.frontier import matched, path_of
from flows.comparison.guards import is_hacked, look
from flows.comparison.judged import UNIFORM, Cell, Judgement, Standing
from flows.comparison.seeds import Roster, overlap
from tasks.design.inference import further_seeds, probability_above, student
from tasks.design.statistics import Difference, Saving, labels_saved

if TYPE_CHECKING:
    from flows.comparison.evidence import Evidence
    from tasks.design.arrays import FloatArray

__all__ = ["UNIFORM", "Cell", "Judgement", "Standing", "judge"]

Place = tuple[str, int]
"""A selector and a budget."""


def judge(evidence: Evidence) -> Judgement:
    """What the evidence shows.

    Selectors are compared with uniform at the same budget after the same round, seed by seed: seeds that lack the
    round for either side are left out. Verdicts are of the last round that was planned, at 5 % for the family of all
    selectors and budgets together (`tasks.design.inference.student`). Where a verdict is refused all numbers are
    there, and words call no selector better or worse.
    """
    roster = Roster(evidence)
    cells = _cells(roster)
    refusals = verdicts.refusals(roster, cells)
    standings = _standings(roster, cells, refused=bool(refusals))
    pairs = [(one, two, budget) for budget in evidence.budgets for one, two in permutations(evidence.selectors, 2)]
    overlaps = {pair: overlap(roster, *pair) for pair in pairs}
    return Judgement(
        evidence=evidence,
        cells=cells,
        standings=standings,
        above={pair: _above(roster, *pair) for pair in pairs},
        overlap={pair: value for pair, value in overlaps.items() if value is not None},
        headline=verdicts.headline(evidence, standings, refusals),
        refusals=refusals,
    )


def _cells(roster: Roster) -> tuple[Cell, ...]:
    evidence = roster.evidence
    found = [
        cell
        for budget in evidence.budgets
        for selector in evidence.selectors
        for number in range(evidence.num_rounds)
        if (cell := _cell(roster, selector, budget, number)) is not None
    ]
    final = [cell for cell in found if cell.round == roster.last and cell.difference is not None]
    corrected = student([_column(roster, cell) for cell in final])
    shown = {(cell.selector, cell.budget): difference for cell, difference in zip(final, corrected, strict=True)}
    return tuple(
        replace(cell, difference=shown.get((cell.selector, cell.budget))) if cell.round == roster.last else cell
        for cell in found
    )


def _cell(roster: Roster, selector: str, budget: int, number: int) -> Cell | None:
    """A cell whose difference, if there is one, is not corrected; None without a seed that both have."""
    seeds = roster.common(selector, UNIFORM, budget, number)
    if not seeds:
        return None
    own, uniform = (roster.measured(name, budget, number, seeds=seeds) for name in (selector, UNIFORM))
    rounds = roster.rounds(selector, budget, number)
    measures = [rounds[seed].measures for seed in seeds]
    broken, unmeasured = look(measures, roster.evidence.thresholds)
    is_compared = selector != UNIFORM and len(seeds) > 1
    return Cell(
        selector=selector,
        budget=budget,
        round=number,
        num_seeds=len(seeds),
        labels=roster.labels(selector, budget, number, seeds=seeds),
        mean=float(own.mean()),
        uniform=float(uniform.mean()),
        difference=replace(student([own - uniform])[0], adjusted=1.0) if is_compared else None,
        broken=broken,
        reward_hacking=is_hacked(measures),
        unmeasured=unmeasured,
    )


def _column(roster: Roster, cell: Cell) -> FloatArray:
    return roster.differences(cell.selector, UNIFORM, cell.budget, cell.round)


def _standings(roster: Roster, cells: tuple[Cell, ...], *, refused: bool) -> tuple[Standing, ...]:
    latest = {(cell.selector, cell.budget): cell for cell in sorted(cells, key=lambda cell: cell.round)}
    shown = {place: latest[place] for place in roster.others() if place in latest}
    family = sum(cell.round == roster.last and cell.difference is not None for cell in shown.values())
    matches = _matched_kl(roster, shown)
    return tuple(
        _standing(roster, cell, matches.get(place), family=max(1, family), refused=refused)
        for place, cell in shown.items()
    )


def _standing(roster: Roster, cell: Cell, matched_kl: Difference | None, *, family: int, refused: bool) -> Standing:
    difference = cell.difference
    standing = Standing(
        selector=cell.selector,
        budget=cell.budget,
        cell=cell,
        probability_above=None if difference is None else probability_above(difference),
        saving=_saving(roster, cell),
        matched_kl=matched_kl,
        further_seeds=_further_seeds(_column(roster, cell), difference, family),
        words="",
    )
    return replace(standing, words=verdicts.words(roster.evidence, standing, refused=refused))


def _further_seeds(column: FloatArray, difference: Difference | None, family: int) -> int | None:
    if difference is not None and difference.verdict != "no difference shown":
        return 0
    return further_seeds(column, family)


def _matched_kl(roster: Roster, shown: Mapping[Place, Cell]) -> dict[Place, Difference]:
    """Rewards above uniform's at the KL of whichever of the two ends nearer to the base; a family of their own.

    KL from the previous round's policy tells of no distance from the base.
    """
    if roster.evidence.reference != "base":
        return {}
    columns = {place: _matches(roster, cell) for place, cell in shown.items()}
    known = {place: column for place, column in columns.items() if len(column) > 1}
    return dict(zip(known, student(list(known.values())), strict=True))


def _matches(roster: Roster, cell: Cell) -> FloatArray:
    mine, theirs = (roster.places.get((name, cell.budget), {}) for name in (cell.selector, UNIFORM))
    paths = [
        (path_of(mine[seed], cell.round), path_of(theirs[seed], cell.round))
        for seed in sorted(mine.keys() & theirs.keys())
    ]
    return np.array([matched(one, two) for one, two in paths if one is not None and two is not None])


def _saving(roster: Roster, cell: Cell) -> Saving | None:
    """Labels that uniform needs for the selector's mean, per label used, of the seeds that have all of it.

    Uniform's means are those of the rounds of this budget up to this one, and of this round of the other budgets: what
    it had on its way here, and what it has after as many rounds of more or fewer labels (ours).
    """
    budgets = roster.evidence.budgets
    points = [(cell.budget, number) for number in range(cell.round + 1)]
    points += [(budget, cell.round) for budget in budgets if budget != cell.budget]
    own = set(roster.rounds(cell.selector, cell.budget, cell.round))
    needed = [roster.rounds(UNIFORM, *point).keys() for point in points[: cell.round + 1]]
    seeds = sorted(own.intersection(*needed))
    points = [point for point in points if roster.rounds(UNIFORM, *point).keys() >= set(seeds)]
    if len(seeds) < 2 or not np.isfinite(cell.labels):
        return None
    spent = np.array([roster.labels(UNIFORM, *point, seeds=seeds) for point in points])
    uniform = np.stack([roster.measured(UNIFORM, *point, seeds=seeds) for point in points], axis=1)
    levels = np.unique(spent[spent > 0])  # without the NaN of unknown spending
    used = roster.labels(cell.selector, cell.budget, cell.round, seeds=seeds)
    if len(levels) < 2 or not used > 0:
        return None
    curve = np.stack([uniform[:, spent == level].mean(axis=1) for level in levels], axis=1)
    values = roster.measured(cell.selector, cell.budget, cell.round, seeds=seeds)[:, None]
    return labels_saved(values, curve, ([used], levels.tolist()), np.random.default_rng(0))[0]


def _above(roster: Roster, one: str, two: str, budget: int) -> float | None:
    values = roster.differences(one, two, budget, roster.last)
    return probability_above(student([values])[0]) if len(values) > 1 else None
