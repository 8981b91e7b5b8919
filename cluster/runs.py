"""Runs read back: a lineage's run and those of its rounds, as MLflow has them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from cluster.tracking import KIND_TAG, LINEAGE_TAG, ROUND_TAG, Tracker, tag_filter

PAGE = 1000


@dataclass(frozen=True)
class LoggedRun:
    """A run as MLflow has it."""

    run: str
    experiment: str
    """Id of its experiment."""
    status: str
    tags: Mapping[str, str]

    @property
    def link(self) -> str:
        """Where MLflow's pages show it, relative to their address."""
        return f"#/experiments/{self.experiment}/runs/{self.run}"


@dataclass(frozen=True)
class LineageRuns:
    """The runs of a lineage."""

    lineage: LoggedRun | None
    rounds: Mapping[int, LoggedRun]
    """By number, in order."""


def runs_of(tracker: Tracker, lineage: str) -> LineageRuns:
    """Find the runs of a lineage; none where the experiment or the lineage isn't there."""
    client = tracker.client
    experiment = client.get_experiment_by_name(tracker.experiment)
    if experiment is None:
        return LineageRuns(None, {})
    found = _search(tracker, experiment.experiment_id, tag_filter({LINEAGE_TAG: lineage}))
    parents = [one for one in found if one.tags.get(KIND_TAG) == "lineage"]
    rounds = {int(one.tags[ROUND_TAG]): one for one in reversed(found) if one.tags.get(KIND_TAG) == "round"}
    return LineageRuns(parents[0] if parents else None, dict(sorted(rounds.items())))


def read_text(tracker: Tracker, run: str, artifact_file: str) -> str:
    """The text of an artifact.

    Raises:
        MlflowException: the run has no such artifact.
    """
    with TemporaryDirectory() as folder:
        return Path(tracker.client.download_artifacts(run, artifact_file, folder)).read_text(encoding="utf-8")


def steps_of(tracker: Tracker, run: str, metric: str) -> set[int]:
    """The steps that a metric of a run has."""
    return {point.step for point in tracker.client.get_metric_history(run, metric)}


def _search(tracker: Tracker, experiment: str, wanted: str) -> list[LoggedRun]:
    """All runs that fit, oldest first."""
    found: list[LoggedRun] = []
    token: str | None = ""
    while token is not None:
        page = tracker.client.search_runs(
            [experiment],
            wanted,
            max_results=PAGE,
            order_by=["attributes.start_time ASC"],
            page_token=token or None,
        )
        found += [LoggedRun(run.info.run_id, experiment, run.info.status, run.data.tags) for run in page]
        token = page.token or None
    return found
