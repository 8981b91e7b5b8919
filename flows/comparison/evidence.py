"""What the lineages of a comparison did, read from the store: its manifests, its records and its ledger."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from flows.history import NEEDED_STAGES, recorded
from flows.report import RoundReport, round_of
from tasks.tables import PAIRS, Table, read

if TYPE_CHECKING:
    from cluster.storage import Store
    from flows.comparison.config import ComparisonConfig, Member
    from tasks.design.selectors import AnySelector
    from tasks.labellers.ledger import Ledger

COSTS = ("generation", "features", "design", "training", "evaluation")
"""What a round's seconds are spent on; "design" is the selection."""

SPENT_ON: Mapping[str, str | None] = {
    **dict.fromkeys(("prompts", "drawn", "explored", "pool"), "generation"),
    **dict.fromkeys(("features", "recalled", "recalled_features", "explored_features"), "features"),
    "selection": "design",
    "preferences": None,
    "training": "training",
}
"""What each stage belongs to, "evaluation" those that aren't named. Labelling is paid for and waited for, so that its
seconds are nobody's."""


@dataclass(frozen=True)
class RoundFacts:
    """A finished round.

    Attributes:
        number: of the round, from 0.
        measures: of the evaluation, means over held-out prompts and their standard errors under `_se`; finite ones.
        num_labels: charged to the lineage in this round.
        cost: what they cost.
        seconds: by COSTS; a stage counts what it took where it first ran.
        model_seconds: of all stages, in models.
        certificate: numbers that the selection measured; finite ones.
        pool: digest of the pool; rounds with equal ones chose from the same responses.
        pairs: ids of the selected pairs in order of choice.
    """

    number: int
    measures: Mapping[str, float]
    num_labels: int
    cost: float
    seconds: Mapping[str, float]
    model_seconds: float
    certificate: Mapping[str, float]
    pool: str
    pairs: tuple[str, ...]


@dataclass(frozen=True)
class LineageFacts:
    """A lineage and its finished rounds, in order; gaps are gaps.

    Attributes:
        lineage: its name in the store.
        selector: its name in the comparison.
        seed: of the lineage.
        budget: labels a round.
        rounds: the finished ones.
        missing: numbers of the others.
        why: they are missing; "" if none is.
    """

    lineage: str
    selector: str
    seed: int
    budget: int
    rounds: tuple[RoundFacts, ...]
    missing: tuple[int, ...]
    why: str

    def round(self, number: int) -> RoundFacts | None:
        """The round of this number, if it is finished."""
        return next((one for one in self.rounds if one.number == number), None)


@dataclass(frozen=True)
class Evidence:
    """All that a judgement rests on.

    Attributes:
        comparison: its name.
        metric: measure of the evaluation by which selectors are judged; higher is better.
        seeds: that were to run.
        budgets: labels a round, each one a lineage of its own.
        num_rounds: of each lineage.
        selectors: names, uniform first.
        lineages: by selector, budget and seed.
        confounds: differences other than selector, seed and budget, in words; empty: a fair comparison.
        thresholds: of the guards, by name; None: that guard is off.
        kinds: what each selector is, in words.
        reference: from which KL is measured, "base" or "previous".
    """

    comparison: str
    metric: str
    seeds: tuple[int, ...]
    budgets: tuple[int, ...]
    num_rounds: int
    selectors: tuple[str, ...]
    lineages: tuple[LineageFacts, ...]
    confounds: tuple[str, ...]
    thresholds: Mapping[str, float | None]
    kinds: Mapping[str, str] = field(default_factory=dict)
    reference: str = "base"


def gather(
    config: ComparisonConfig,
    store: Store,
    ledger: Ledger,
    *,
    confounds: Sequence[str],
    reasons: Mapping[str, str],
) -> Evidence:
    """Read what all lineages of a comparison did, those that joined it, too.

    Args:
        config: the comparison.
        store: of its lineages.
        ledger: of their labels.
        confounds: differences between them other than selector, seed and budget, in words.
        reasons: why a lineage lacks rounds, by its name, where somebody knows better than its record.

    Raises:
        InputError: a lineage that is to join doesn't exist, or stands for the same as another.
    """
    from flows.comparison.check import party_of

    everyone = party_of(config, store).everyone
    selectors = tuple(dict.fromkeys([*config.selectors, *(member.selector for member in everyone)]))
    ordered = sorted(everyone, key=lambda member: (selectors.index(member.selector), member.budget, member.seed))
    return Evidence(
        comparison=config.comparison,
        metric=config.metric,
        seeds=tuple(sorted({member.seed for member in everyone})),
        budgets=tuple(sorted({member.budget for member in everyone})),
        num_rounds=config.num_rounds,
        selectors=selectors,
        lineages=tuple(
            _lineage(member, store, ledger, num_rounds=config.num_rounds, why=reasons) for member in ordered
        ),
        confounds=tuple(confounds),
        thresholds=config.thresholds.model_dump(),
        kinds={member.selector: in_words(member.config.round.selection.selector) for member in ordered},
        reference=config.base.round.training.reference,
    )


def to_json(evidence: Evidence) -> str:
    """Evidence as a JSON file keeps it."""
    return _JSON.dump_json(evidence, indent=2).decode() + "\n"


def from_json(text: str) -> Evidence:
    """Evidence of a JSON file.

    Raises:
        ValidationError: it holds something else.
    """
    return _JSON.validate_json(text)


def in_words(selector: AnySelector) -> str:
    """A selector's kind, and the parameters that aren't at their defaults."""
    shown = [
        f"{one.name} {getattr(selector, one.name)}"
        for one in dataclasses.fields(selector)
        if one.name != "kind" and getattr(selector, one.name) != _default(one)
    ]
    return f"{selector.kind} ({', '.join(shown)})" if shown else selector.kind


_JSON = TypeAdapter(Evidence)


def _lineage(member: Member, store: Store, ledger: Ledger, *, num_rounds: int, why: Mapping[str, str]) -> LineageFacts:
    reports = [round_of(store, member.lineage, number) for number in range(num_rounds)]
    missing = tuple(report.number for report in reports if not report.finished)
    return LineageFacts(
        lineage=member.lineage,
        selector=member.selector,
        seed=member.seed,
        budget=member.budget,
        rounds=tuple(_round(member, report, store, ledger) for report in reports if report.finished),
        missing=missing,
        why=(why.get(member.lineage) or _state(reports[missing[0]])) if missing else "",
    )


def _round(member: Member, report: RoundReport, store: Store, ledger: Ledger) -> RoundFacts:
    spend = ledger.spend(member.lineage, report.number)
    manifests = report.manifests
    return RoundFacts(
        number=report.number,
        measures=_numbers(manifests["evaluation"].measures),
        num_labels=spend.num_labels,
        cost=spend.cost,
        seconds=_seconds(report),
        model_seconds=sum(_once(report, "model_seconds").values()),
        certificate=_numbers(manifests["selection"].measures),
        pool=manifests["pool"].digest,
        pairs=_pairs(recorded(store, member.lineage, report.number)["selection"]),
    )


def _pairs(selection: Table) -> tuple[str, ...]:
    rows = read(selection.path, PAIRS).select(["order", "pair_id"]).to_pylist()
    return tuple(row["pair_id"] for row in sorted(rows, key=lambda row: int(row["order"])))


def _seconds(report: RoundReport) -> dict[str, float]:
    """By COSTS; a stage that serves the round twice counts once, where it comes first."""
    found = dict.fromkeys(COSTS, 0.0)
    for stage, seconds in _once(report, "seconds").items():
        if (cost := SPENT_ON.get(stage, "evaluation")) is not None:
            found[cost] += seconds
    return found


def _once(report: RoundReport, what: str) -> dict[str, float]:
    """Seconds of the stages, or of models in them, without those that are one with an earlier stage."""
    found: dict[str, float] = {}
    digests: set[str] = set()
    for stage, manifest in report.manifests.items():
        if manifest.digest not in digests:
            digests.add(manifest.digest)
            found[stage] = manifest.seconds if what == "seconds" else float(manifest.measures.get(what, 0.0))
    return found


def _numbers(measures: Mapping[str, object]) -> dict[str, float]:
    numbers = {name: float(value) for name, value in measures.items() if isinstance(value, int | float)}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def _state(report: RoundReport) -> str:
    """Why a round is missing, as far as its record tells."""
    lacking = next(stage for stage in NEEDED_STAGES if stage not in report.manifests)
    return f"round {report.number} lacks {lacking}" if report.manifests else f"round {report.number} has not begun"


def _default(one: dataclasses.Field[Any]) -> object:
    return one.default if one.default_factory is dataclasses.MISSING else one.default_factory()
