"""The logbook: what MLflow gets of a lineage and of its rounds, beside what every stage logs."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from prefect.context import FlowRunContext
from prefect.runtime import flow_run
from prefect.utilities.urls import url_for

from cluster.preflight import git_state
from cluster.runs import steps_of
from cluster.settings import Settings
from cluster.storage import Manifest, Store, digest_of
from cluster.tracking import Tracker
from flows.config import RoundConfig
from flows.filing import Filing
from flows.history import settled
from flows.report import RoundReport, rounds_of
from tasks.labellers.ledger import Ledger, Spend

SELECTOR_TAG = "pairwright.selector"
SEED_TAG = "pairwright.seed"
BUDGET_TAG = "pairwright.budget"
REFERENCE_TAG = "pairwright.reference"
CONFIG_TAG = "pairwright.config_digest"
COMPARISON_TAG = "pairwright.comparison"
PREFECT_TAG = "pairwright.prefect_run"
"""Id of the flow run that worked on it last: that of the round, and on a lineage's run that of the lineage."""
PREFECT_RUNS_TAG = "pairwright.prefect_runs"
"""Ids of all flow runs that worked on a round, oldest first."""
PREFECT_URL_TAG = "pairwright.prefect_url"

SPENT = "labels/spent"
CURVES = ("selection", "preferences", "training", "evaluation")
"""Stages whose numbers a lineage's run has, at step = round."""
TIMES = {"seconds", "model_seconds", "passes"}
"""Numbers of a stage that are no result."""


def open_runs(
    tracker: Tracker, config: RoundConfig, *, lineage: str, round_number: int, filing: Filing
) -> tuple[str, str]:
    """Find or create the runs of a lineage and of one of its rounds, with tags to search them by; gives both ids."""
    tags = _tags(config, filing)
    parent = tracker.open_lineage(lineage, tags | _prefect_tags(flow_run.parent_flow_run_id or _flow_run()))
    run = tracker.open_round(parent, lineage, round_number=round_number, tags=tags | _prefect_tags(_flow_run()))
    if (mine := _flow_run()) is not None:
        tracker.add_to_tag(run, PREFECT_RUNS_TAG, mine)
    tracker.log_params(run, dict(_flat(settled(config))))
    return parent, run


def log_standing(tracker: Tracker, parent: str, lineage: str, settings: Settings) -> None:
    """Log how a lineage stood after each of its finished rounds to its run, at step = round.

    What is there stays and what is missing is added, so that a lineage of an earlier release gets its curves.
    """
    known, ledger = steps_of(tracker, parent, SPENT), Ledger(url=settings.ledger)
    past: list[RoundReport] = []
    spends: list[Spend] = []
    for report in rounds_of(Store(settings.store), lineage):
        if not report.finished:
            return
        past.append(report)
        spends.append(ledger.spend(lineage, report.number))
        if report.number not in known:
            tracker.log_metrics(parent, standing(past, spends), step=report.number)


def standing(rounds: Sequence[RoundReport], spends: Sequence[Spend]) -> dict[str, float]:
    """What the last of these rounds measured, and what all of them together took.

    `labels/` are answers charged and their cost; `seconds/` are of stages, each where it first ran and once, however
    often it serves the lineage.
    """
    stages = list({one.digest: one for report in rounds for one in report.manifests.values()}.values())
    return {
        **{f"{stage}/{key}": value for stage in CURVES for key, value in _results(rounds[-1].manifests[stage])},
        SPENT: float(sum(spend.num_labels for spend in spends)),
        "labels/cost": sum(spend.cost for spend in spends),
        "seconds/stages": sum(stage.seconds for stage in stages),
        "seconds/models": sum(float(stage.measures.get("model_seconds", 0.0)) for stage in stages),
    }


def _results(manifest: Manifest) -> Iterator[tuple[str, float]]:
    for key, value in manifest.measures.items():
        if isinstance(value, int | float) and key not in TIMES:
            yield key, float(value)


def _tags(config: RoundConfig, filing: Filing) -> dict[str, str]:
    return {
        SELECTOR_TAG: filing.called or config.selection.selector.kind,
        SEED_TAG: str(config.seed),
        BUDGET_TAG: str(config.selection.budget),
        REFERENCE_TAG: config.training.reference,
        CONFIG_TAG: digest_of(settled(config)),
        **({} if filing.comparison is None else {COMPARISON_TAG: filing.comparison}),
        **git_state(Path.cwd()),
    }


def _flow_run() -> str | None:
    context = FlowRunContext.get()
    return None if context is None or context.flow_run is None else str(context.flow_run.id)


def _prefect_tags(identifier: str | None) -> dict[str, str]:
    if identifier is None:
        return {}
    url = url_for("flow-run", obj_id=identifier)
    return {PREFECT_TAG: identifier} | ({PREFECT_URL_TAG: url} if url else {})


def _flat(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)
