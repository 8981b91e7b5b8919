"""A lineage's chain: the same from MLflow alone as from the store, walked by links, printed by the command."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient

from cluster.errors import InputError
from cluster.runs import LineageRuns, LoggedRun, read_text, runs_of
from cluster.storage import MANIFEST
from cluster.tracking import Tracker
from flows.chain import chain_of_store, chain_of_tracking
from flows.history import recorded
from flows.notes import NOTE_TAG
from tasks.stages import manifest_artifact, manifest_of

EXPERIMENT = "chains"
LINK = re.compile(r"\]\(#/experiments/(\w+)/runs/(\w+)(?:/artifacts/(\w+))?\)")
MODEL = re.compile(r"\]\(#/models/([\w-]+)/versions/(\d+)\)")


@pytest.fixture(scope="module")
def desk(make_desk: Callable[[str], Any]) -> Any:
    """A lineage of two rounds, and one of another name whose first round is made of the same stages."""
    desk = make_desk("chained")
    values = yaml.safe_load(desk.config.read_text()) | {"experiment": EXPERIMENT, "comparison": "fair"}
    desk.config.write_text(yaml.safe_dump(values))
    desk.run("run")
    desk.config.write_text(yaml.safe_dump(values | {"lineage": "again"}))
    desk.run("run", "--rounds", "1")
    return desk


@pytest.fixture(scope="module")
def tracker(desk: Any) -> Tracker:
    return Tracker(tracking_uri=f"sqlite:///{desk.home / 'mlflow.db'}", experiment=EXPERIMENT)


@pytest.fixture(scope="module")
def runs(tracker: Tracker) -> LineageRuns:
    return runs_of(tracker, "chained")


def of_lineage(runs: LineageRuns) -> LoggedRun:
    assert runs.lineage is not None
    return runs.lineage


def test_mlflow_alone_gives_the_chain_that_the_manifests_give(desk: Any, tracker: Tracker) -> None:
    chain = chain_of_store(desk.store, "chained")
    assert chain_of_tracking(tracker, "chained") == chain
    rounds = [recorded(desk.store, "chained", number) for number in (0, 1)]
    first, second = chain.links
    for link, tables in zip(chain.links, rounds, strict=True):
        stages = {"pool": link.pool, "selection": link.selection, "preferences": link.labels, "training": link.adapter}
        assert {stage: tables[stage].digest for stage in stages} == stages
    assert first.writer == first.start == first.reference == second.reference == chain.base
    assert second.writer == second.start == first.adapter
    assert (first.offered, second.offered) == ((first.pool,), (second.pool, first.pool))
    assert (first.learnt_from, second.learnt_from) == ((first.labels,), (first.labels, second.labels))


def test_mlflow_has_the_manifests_as_they_lie_in_the_store(desk: Any, tracker: Tracker, runs: LineageRuns) -> None:
    for number, run in runs.rounds.items():
        tables = recorded(desk.store, "chained", number)
        for stage, table in tables.items():
            assert read_text(tracker, run.run, manifest_artifact(stage)) == (table.path / MANIFEST).read_text()
            assert run.tags[f"digest.{stage}"] == table.digest
        assert run.tags["inputs.selection"].split(",") == list(dict.fromkeys(manifest_of(tables["selection"]).inputs))


def test_mlflow_needs_no_store_for_it(desk: Any, tracker: Tracker) -> None:
    before, away = chain_of_tracking(tracker, "chained"), desk.home / "away"
    desk.store.root.rename(away)
    try:
        assert not chain_of_store(desk.store, "chained").links
        assert chain_of_tracking(tracker, "chained") == before
    finally:
        away.rename(desk.store.root)


def test_a_lineage_whose_first_round_was_reused_has_that_round_in_its_chain(desk: Any, tracker: Tracker) -> None:
    (link,) = chain_of_tracking(tracker, "again").links
    assert link == chain_of_store(desk.store, "chained").links[0]
    record = json.loads((desk.store.lineage("again") / "round-000" / "training.json").read_text())
    assert record["reused"] is True


def test_a_manifest_that_was_tampered_with_in_mlflow_is_refused(
    desk: Any, tracker: Tracker, runs: LineageRuns, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    copy = replace(tracker, tracking_uri=f"sqlite:///{shutil.copy(desk.home / 'mlflow.db', folder)}")
    run, name = runs.rounds[1].run, manifest_artifact("training")
    text = read_text(tracker, run, name)
    changed = json.loads(text)
    changed["inputs"][1] = chain_of_store(desk.store, "chained").base
    try:
        copy.log_text(run, json.dumps(changed), artifact_file=name)
        with pytest.raises(InputError, match=rf"manifest of training of {run} in MLflow doesn't fit"):
            chain_of_tracking(copy, "chained")
    finally:
        copy.log_text(run, text, artifact_file=name)


def test_every_link_of_the_notes_leads_to_what_is_there(tracker: Tracker, runs: LineageRuns) -> None:
    client, seen = tracker.client, set()
    for run in (of_lineage(runs), *runs.rounds.values()):
        note = run.tags[NOTE_TAG]
        for experiment, target, artifact in LINK.findall(note):
            assert client.get_run(target).info.experiment_id == experiment
            assert not artifact or client.list_artifacts(target, artifact)
            seen.add((run.run, target))
        for name, version in MODEL.findall(note):
            assert client.get_model_version(name, version).run_id == run.run
    first, second, parent = runs.rounds[0].run, runs.rounds[1].run, of_lineage(runs).run
    assert seen == {(one, other) for one in (first, second, parent) for other in (first, second, parent)} - {
        (parent, parent)
    }
    assert all(len(MODEL.findall(run.tags[NOTE_TAG])) == 1 for run in runs.rounds.values())
    assert runs.rounds[1].tags["pairwright.previous_run"] == first


def test_a_comparison_of_lineages_finds_a_curve_of_each(tracker: Tracker, runs: LineageRuns) -> None:
    wanted = "tags.`pairwright.kind` = 'lineage' and tags.`pairwright.comparison` = 'fair'"
    found = tracker.client.search_runs([of_lineage(runs).experiment], wanted)
    assert {run.data.tags["pairwright.lineage"] for run in found} == {"chained", "again"}
    for run in found:
        steps = range(2 if run.data.tags["pairwright.lineage"] == "chained" else 1)
        for name in ("evaluation/win_base", "evaluation/kl", "labels/spent", "labels/cost", "seconds/models"):
            history = tracker.client.get_metric_history(run.info.run_id, name)
            assert [point.step for point in history] == list(steps)
        spent = tracker.client.get_metric_history(run.info.run_id, "labels/spent")
        assert [point.value for point in spent] == [16.0 * (step + 1) for step in steps]


def test_runs_name_the_flow_runs_that_made_them(desk: Any, runs: LineageRuns) -> None:
    with SyncPrefectClient(api=desk.prefect) as client:
        for run, flow in ((of_lineage(runs), "chained"), (runs.rounds[1], "chained-r001")):
            assert client.read_flow_run(UUID(run.tags["pairwright.prefect_run"])).name == flow
            assert run.tags["pairwright.prefect_url"].startswith(desk.prefect.removesuffix("/api"))
    assert runs.rounds[1].tags["pairwright.prefect_runs"] == runs.rounds[1].tags["pairwright.prefect_run"]


def ask(desk: Any, *arguments: str, code: int = 0) -> str:
    """What a command that takes no config says."""
    command = [str(Path(sys.executable).with_name("pairwright")), *arguments]
    done = subprocess.run(command, env=desk.environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("source", ["store", "mlflow"])
def test_the_command_prints_the_chain_with_the_runs(desk: Any, runs: LineageRuns, source: str) -> None:
    output = ask(desk, "lineage", "chained", "--from", source)
    first, second = chain_of_store(desk.store, "chained").links
    rows = [" ".join(line.replace("│", " ").split()) for line in output.splitlines()]
    for expected in (
        f"0 pool {first.pool[:12]} written by base {runs.rounds[0].run}",
        f"1 pool {second.pool[:12]} written by adapter of round 0 {runs.rounds[1].run}",
        f"selection {second.selection[:12]} out of pool of round 1, pool of round 0",
        f"labels {second.labels[:12]} of the selection of round 1",
    ):
        assert expected in rows
    assert "adapter of round 0 taught by labels of round 0, labels of round 1; reference base" in " ".join(rows)
    assert f"experiment {EXPERIMENT}: " in output
    assert of_lineage(runs).link in output


def test_an_unknown_lineage_is_refused_with_those_that_are_known(desk: Any) -> None:
    said = ask(desk, "lineage", "nobody", code=2)
    assert f"no lineage 'nobody' in {desk.store.root}: found again, chained" in said
