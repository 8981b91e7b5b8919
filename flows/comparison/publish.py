"""A comparison's report where people look for it: an artifact in Prefect, a summary run in MLflow."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping

from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run

from cluster.errors import InputError
from cluster.preflight import reachable
from cluster.runs import runs_of
from cluster.settings import Settings
from cluster.storage import Store
from cluster.tracking import KIND_TAG, Status, Tracker
from flows.comparison.evidence import Evidence, LineageFacts
from flows.comparison.folder import FIGURES, REPORT, Folder
from flows.comparison.judged import Judgement
from flows.comparison.seeds import jaccard
from flows.filing import filing_of
from flows.logbook import COMPARISON_TAG, PREFECT_TAG
from flows.notes import NOTE_TAG
from flows.opening import tracker_of


def announce(judgement: Judgement, folder: Folder) -> None:
    """Show the report in Prefect."""
    name = f"comparison-{judgement.evidence.comparison}".lower()
    key = "".join(letter if letter.isalnum() else "-" for letter in name)
    text = (folder.out / "report.md").read_text(encoding="utf-8")
    where = f"With its figures: `{folder.out / 'report.html'}`"
    create_markdown_artifact(key=key, markdown=f"{where}\n\n{text}", description=judgement.headline)


def log_report(judgement: Judgement, folder: Folder, settings: Settings, *, failed: bool) -> str:
    """Log the report to MLflow, over an earlier one; gives why MLflow has no record of it, "" if it has."""
    from mlflow.exceptions import MlflowException

    try:
        reachable(settings.tracking, timeout=settings.connect_timeout)
        _log_summary(judgement, folder, settings, failed=failed)
        for lineage in judgement.evidence.lineages:
            _log_overlap(lineage, judgement.evidence, settings)
    except (InputError, MlflowException, OSError) as error:
        return f"MLflow has no record of this report; the next run of the same command logs it: {error}"
    return ""


def overlaps(lineage: LineageFacts, evidence: Evidence) -> dict[int, dict[str, float]]:
    """Jaccard similarity of a lineage's pairs with those that others chose from the same pool.

    By round and selector; seed and budget are the same.
    """
    place = (lineage.seed, lineage.budget)
    others = [one for one in evidence.lineages if one is not lineage and (one.seed, one.budget) == place]
    return {
        own.number: {
            other.selector: jaccard(own.pairs, theirs.pairs)
            for other in others
            if (theirs := other.round(own.number)) is not None and theirs.pool == own.pool
        }
        for own in lineage.rounds
    }


def metrics(judgement: Judgement) -> dict[str, float]:
    """The main numbers of a judgement, under quantity/selector-budget; those that don't exist are left out."""
    return {name: value for name, value in _numbers(judgement) if value is not None and math.isfinite(value)}


def _numbers(judgement: Judgement) -> Iterator[tuple[str, float | None]]:
    for one in judgement.standings:
        place, cell = f"{one.selector}-b{one.budget}", one.cell
        yield f"mean/{place}", cell.mean
        yield f"mean/uniform-b{one.budget}", cell.uniform
        yield f"labels/{place}", cell.labels
        yield f"seeds/{place}", float(cell.num_seeds)
        yield f"guards_broken/{place}", float(len(cell.broken))
        yield f"probability_above/{place}", one.probability_above
        yield f"further_seeds/{place}", None if one.further_seeds is None else float(one.further_seeds)
        if cell.difference is not None:
            yield f"difference/{place}", cell.difference.mean
            yield f"difference_low/{place}", cell.difference.low
            yield f"difference_high/{place}", cell.difference.high
        if one.saving is not None:
            yield f"labels_saved/{place}", one.saving.factor.value
        if one.matched_kl is not None:
            yield f"reward_at_matched_kl/{place}", one.matched_kl.mean


def _log_summary(judgement: Judgement, folder: Folder, settings: Settings, *, failed: bool) -> None:
    evidence = judgement.evidence
    tracker = tracker_of(settings, evidence.comparison)
    run = tracker.open_run(
        {KIND_TAG: "comparison", COMPARISON_TAG: evidence.comparison}, _tags(judgement), name="comparison"
    )
    whole = not any(lineage.missing for lineage in evidence.lineages)
    status: Status = "FAILED"
    try:
        _renew(tracker, run, metrics(judgement), step=0)
        for name in REPORT:
            tracker.log_file(run, folder.out / name)
        if (folder.out / FIGURES).is_dir():
            tracker.log_folder(run, folder.out / FIGURES, artifact_path=FIGURES)
        status = "FAILED" if failed else "FINISHED" if whole else "SCHEDULED"
    finally:
        tracker.close(run, status)


def _tags(judgement: Judgement) -> dict[str, str]:
    evidence = judgement.evidence
    untold = [refusal for refusal in judgement.refusals if refusal not in judgement.headline]
    said, mine = [judgement.headline, *untold], flow_run.id
    return {
        NOTE_TAG: "\n\n".join(said),
        "pairwright.metric": evidence.metric,
        "pairwright.selectors": ", ".join(evidence.selectors),
        "pairwright.seeds": ", ".join(map(str, evidence.seeds)),
        "pairwright.budgets": ", ".join(map(str, evidence.budgets)),
        "pairwright.rounds": str(evidence.num_rounds),
        **({} if mine is None else {PREFECT_TAG: mine}),
    }


def _log_overlap(lineage: LineageFacts, evidence: Evidence, settings: Settings) -> None:
    """Log overlaps to the runs of a lineage's rounds; another selector's comes to those that are there."""
    filing = filing_of(Store(settings.store), lineage.lineage)
    tracker = tracker_of(settings, filing.experiment)
    found = {number: values for number, values in overlaps(lineage, evidence).items() if values}
    runs = runs_of(tracker, lineage.lineage).rounds if found else {}
    for number, values in found.items():
        if number in runs:
            named = {f"overlap/{selector}": value for selector, value in values.items()}
            _renew(tracker, runs[number].run, named, step=number)


def _renew(tracker: Tracker, run: str, values: Mapping[str, float], *, step: int) -> None:
    """Log metrics whose latest value is another; unlike those of a stage they can change."""
    from mlflow.entities import Metric

    known, now = tracker.client.get_run(run).data.metrics, int(time.time() * 1000)
    new = [Metric(name, value, now, step) for name, value in values.items() if known.get(name) != value]
    if new:
        tracker.client.log_batch(run, metrics=new)
