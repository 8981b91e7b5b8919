"""How every study is published: a folder of results, report and config, and one run in MLflow."""

import json
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from cluster.settings import Settings
from cluster.storage import atomic_path
from cluster.tracking import Status, Tracker
from flows.claims import Finding, metrics
from flows.standings import Grid

STUDIES = "pairwright-studies"
"""The experiment of all studies in MLflow."""


@dataclass(frozen=True)
class Published:
    """What a terminal shows of a study.

    Attributes:
        grids: tables of its results.
        findings: the paper's, each with its answer.
        notes: how to read them.
        reused: whether the results were found finished.
        out: folder of results, report and figures.
    """

    grids: tuple[Grid, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    reused: bool
    out: Path


@dataclass(frozen=True)
class Identity:
    """A study's name, and the digest of all that decides its results."""

    name: str
    digest: str


def write(published: Published, config: BaseModel, found: pa.Table, report: str) -> None:
    """Write results, report and config into the study's folder."""
    with atomic_path(published.out / "results.parquet") as temporary:
        pq.write_table(found, temporary)
    with atomic_path(published.out / "report.md") as temporary:
        temporary.write_text(report, encoding="utf-8")
    with atomic_path(published.out / "config.json") as temporary:
        temporary.write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")


def log(published: Published, identity: Identity, config: BaseModel, settings: Settings) -> None:
    """Record the study and its folder as one run in MLflow; the same digest continues the same run."""
    tracker = Tracker(tracking_uri=settings.tracking, experiment=STUDIES, artifact_root=settings.artifact_root)
    run = tracker.open_study(identity.name, identity.digest)
    status: Status = "FAILED"
    try:
        values = config.model_dump(mode="json")
        tracker.log_params(run, {name: json.dumps(value) for name, value in values.items()})
        tracker.log_metrics(run, metrics(published.findings), step=0)
        answers = {f"finding.{place}": finding.answer for place, finding in enumerate(published.findings, start=1)}
        tracker.set_tags(run, answers)
        tracker.log_folder(run, published.out)
        status = "FINISHED"
    finally:
        tracker.close(run, status)
