"""Verdicts in words: what was shown, what was not and what it would take, and why none is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flows.comparison.judged import UNIFORM, Cell, Standing
from flows.comparison.words import SHORT, num
from tasks.design.inference import MOST_SEEDS

if TYPE_CHECKING:
    from flows.comparison.evidence import Evidence
    from flows.comparison.seeds import Roster
    from tasks.design.statistics import Difference, Verdict


def refusals(roster: Roster, cells: Sequence[Cell]) -> tuple[str, ...]:
    """Why no verdict can be given on any selector; empty if one can."""
    evidence = roster.evidence
    found = [f"not a fair comparison: {'; '.join(evidence.confounds)}"] if evidence.confounds else []
    found += [
        f"lineages {one} and {other} are one selector with one seed and budget, and {other} alone counts: leave one out"
        for one, other in roster.doubles
    ]
    if not list(roster.others()):
        found.append(f"no selector beside {UNIFORM}: name one under selectors")
    elif not cells:
        found.append(f"nothing to compare: no round of {UNIFORM} and of another selector has {evidence.metric}")
    elif len(evidence.seeds) == 1:
        found.append(
            f"one seed only, so that chance can't be told from merit: run a second seed "
            f"(seeds: [{evidence.seeds[0]}, {evidence.seeds[0] + 1}]; what is finished is reused)"
        )
    elif all(cell.difference is None or cell.round != roster.last for cell in cells):
        found.append(
            f"no selector has two seeds that have finished the last round ({roster.last}) as {UNIFORM} has: "
            "run the comparison again, it goes on where it stopped"
        )
    return tuple(found)


def words(evidence: Evidence, standing: Standing, *, refused: bool) -> str:
    """What is shown of one selector at one budget."""
    cell, difference = standing.cell, standing.cell.difference
    who = f"{cell.selector} at budget {cell.budget:,}" if len(evidence.budgets) > 1 else cell.selector
    if difference is None:
        beside = f"{num(cell.mean)} beside uniform's {num(cell.uniform)} after round {cell.round}"
        said = f"No verdict on {who}: {beside} is of one seed alone; run a second seed."
    elif cell.round != evidence.num_rounds - 1:
        said = f"No verdict on {who}: round {evidence.num_rounds - 1} is missing. After round {cell.round}: "
        said += f"{_told(difference)} to uniform, {_seeds(cell.num_seeds)}."
    elif refused:
        said = f"No verdict on {who}, for the reasons above: {_told(difference)} to uniform, {_seeds(cell.num_seeds)}."
    else:
        said = _verdict(who, standing, difference)
    return " ".join([said, *_guards(cell)])


def headline(evidence: Evidence, standings: Sequence[Standing], refused: Sequence[str]) -> str:
    """The verdict on all selectors; losses are told as gains are."""
    if refused:
        return f"No verdict: {'; '.join(refused)}."
    metric = SHORT.get(evidence.metric, evidence.metric)
    judged = [one for one in standings if _is_judged(evidence, one)]
    after = f"after {_count(evidence.num_rounds, 'round')}"
    above, below, neither = (
        [one for one in judged if _shown(one) == verdict] for verdict in ("above", "below", "no difference shown")
    )
    if above or below:
        sides = {"above": above, "below": below}
        parts = [f"{_names(evidence, those)} {side} uniform" for side, those in sides.items() if those]
        found = [f"In {metric} {after}: {'; '.join(parts)}."]
        found += [f"No difference shown for {_names(evidence, neither, numbers=False)}."] if neither else []
    else:
        found = [f"No difference to uniform shown in {metric} {after}{_closest(evidence, judged)}."]
    marked = [one for one in above if one.cell.broken or one.cell.reward_hacking]
    found += [f"A gain that breaks a guard: {_names(evidence, marked, numbers=False)}."] if marked else []
    rest = [one for one in standings if one not in judged]
    found += [f"No verdict on {_names(evidence, rest, numbers=False)}: see below."] if rest else []
    return " ".join(found)


def _verdict(who: str, standing: Standing, difference: Difference) -> str:
    told = f"{_told(difference)}, {_seeds(standing.cell.num_seeds)}, corrected p {difference.adjusted:.2g}"
    if difference.verdict != "no difference shown":
        return f"{who} is {difference.verdict} uniform: {told}."
    return f"No difference to uniform shown for {who}: {told}. {_lacking(standing, difference)}"


def _lacking(standing: Standing, difference: Difference) -> str:
    """What it would take to show the difference that was observed."""
    if standing.further_seeds is None:
        return "None was observed that further seeds could show."
    needed = _further(standing.further_seeds)
    return f"{needed[0].upper()}{needed[1:]} would be needed to show {num(difference.mean, sign=True)}."


def _guards(cell: Cell) -> list[str]:
    broken = [*cell.broken, *(["reward hacking: reward up, judge down"] if cell.reward_hacking else [])]
    gained = cell.difference is not None and cell.difference.mean > 0
    found = [f"{'This gain' if gained else 'It'} breaks {_count(len(broken), 'guard')}: {'; '.join(broken)}."]
    unmeasured = [f"Not guarded, for want of a measure: {', '.join(cell.unmeasured)}."]
    return [*(found if broken else []), *(unmeasured if cell.unmeasured else [])]


def _closest(evidence: Evidence, judged: Sequence[Standing]) -> str:
    """The selector that needs the fewest further seeds."""
    lacking = [(one.further_seeds, one) for one in judged if one.further_seeds is not None]
    if not lacking:
        return ""
    seeds, one = min(lacking, key=lambda pair: (pair[0], pair[1].selector, pair[1].budget))
    return f"; {_further(seeds)} would be needed to show {_names(evidence, [one])}, the nearest to it"


def _is_judged(evidence: Evidence, one: Standing) -> bool:
    return one.cell.difference is not None and one.cell.round == evidence.num_rounds - 1


def _shown(one: Standing) -> Verdict | None:
    return None if one.cell.difference is None else one.cell.difference.verdict


def _names(evidence: Evidence, standings: Sequence[Standing], *, numbers: bool = True) -> str:
    said = []
    for one in standings:
        budget = f"budget {one.budget:,}" if len(evidence.budgets) > 1 else ""
        mean = num(one.cell.difference.mean, sign=True) if numbers and one.cell.difference is not None else ""
        beside = ", ".join(part for part in (mean, budget) if part)
        said.append(f"{one.selector} ({beside})" if beside else one.selector)
    return ", ".join(said)


def _told(difference: Difference) -> str:
    mean, low, high = (num(value, sign=True) for value in (difference.mean, difference.low, difference.high))
    return f"{mean} [{low}, {high}]"


def _further(seeds: int) -> str:
    return f"{seeds:,} further seeds or more" if seeds >= MOST_SEEDS else f"about {_count(seeds, 'further seed')}"


def _seeds(number: int) -> str:
    return _count(number, "seed")


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
