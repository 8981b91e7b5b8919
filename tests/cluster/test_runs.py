"""Runs read back from a real MLflow store."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from cluster import runs
from cluster.errors import InputError
from cluster.runs import LineageRuns, read_text, runs_of, steps_of
from cluster.tracking import Tracker


@pytest.fixture
def tracker(tracking_template: Path, tmp_path: Path) -> Tracker:
    path = shutil.copy(tracking_template, tmp_path / "mlflow.db")
    return Tracker(tracking_uri=f"sqlite:///{path}", experiment="pairwright", artifact_root=str(tmp_path / "artifacts"))


def test_a_lineage_has_its_own_runs_alone_in_order_of_rounds(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "PAGE", 2)
    for lineage in ("mine", "other"):
        parent = tracker.open_lineage(lineage, {})
        opened = {number: tracker.open_round(parent, lineage, round_number=number, tags={}) for number in (2, 0, 1)}
        tracker.close(opened[0], "FAILED")
        found = runs_of(tracker, lineage)
        assert found.lineage is not None
        assert found.lineage.run == parent
        assert [(number, one.run) for number, one in found.rounds.items()] == sorted(opened.items())
        assert [one.status for one in found.rounds.values()] == ["FAILED", "RUNNING", "RUNNING"]
        assert found.rounds[2].tags["pairwright.round"] == "002"
        experiment = tracker.client.get_run(parent).info.experiment_id
        assert found.rounds[2].link == f"#/experiments/{experiment}/runs/{opened[2]}"


def test_looking_for_runs_makes_no_experiment(tracker: Tracker) -> None:
    elsewhere = replace(tracker, experiment="elsewhere")
    assert runs_of(elsewhere, "mine") == LineageRuns(None, {})
    assert tracker.client.get_experiment_by_name("elsewhere") is None


def test_a_text_and_the_steps_of_a_metric_are_read_back(tracker: Tracker) -> None:
    run = tracker.open_lineage("read", {})
    tracker.log_text(run, "naïve\n", artifact_file="deep/note.txt")
    for step in (3, 0):
        tracker.log_metrics(run, {"kl": 0.5}, step=step)
    assert read_text(tracker, run, "deep/note.txt") == "naïve\n"
    assert (steps_of(tracker, run, "kl"), steps_of(tracker, run, "reward")) == ({0, 3}, set())


def test_a_name_with_a_quote_is_refused(tracker: Tracker) -> None:
    tracker.open_lineage("any", {})
    with pytest.raises(InputError, match="holds a quote"):
        runs_of(tracker, "it's")
