"""SIGKILL at any moment: the next run ends as an undisturbed one, and repeats at most the shard in flight."""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pyarrow import feather

from flows.history import STAGES, recorded
from tasks.labellers.ledger import Ledger
from tasks.tables import ARROW, parts
from tasks.trainer.checkpoints import COMPLETE

# Python imports this module of the test's at the start of the command: it kills the command at the moment in which a
# stage's manifest would take its name, when all of the stage's work is done and nothing says so yet.
ASSASSIN = """
import os, re, signal
rename = os.replace
def replace(source, target, *rest, **named):
    if re.search(rf"/stages/{os.environ['KILL_AT']}/[0-9a-f]+/manifest.json$", str(target)):
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(source, target, *rest, **named)
os.replace = replace
"""


class Kept:
    """What a later run must not do again: generate or score a whole shard, finish a finished stage, buy a label."""

    def __init__(self) -> None:
        self.files: dict[Path, int] = {}
        self.labels: set[tuple[str, str]] = set()

    def look(self, desk: Any) -> None:
        stages = desk.store.root / "stages"
        kept = [*stages.rglob("manifest.json")]
        kept += [shard for stage in ("responses", "features") for shard in (stages / stage).rglob("part-*")]
        for path in kept:
            written = path.stat().st_mtime_ns
            assert self.files.setdefault(path, written) == written, f"{path} was written twice"
        assert set(self.files) <= set(kept), "something finished was lost"
        bought = labels_in(desk)
        assert self.labels <= bought
        self.labels = bought


def labels_in(desk: Any) -> set[tuple[str, str]]:
    if not desk.store.ledger.exists():
        return set()
    return {(entry.key, str(entry.answered_at)) for entry in Ledger.at(desk.store.ledger).entries()}


def kill_when(desk: Any, seen: Callable[[], bool]) -> None:
    """Run the round, and kill it without warning as soon as something is seen in the store."""
    process = desk.start("round", "--round", "0")
    deadline = time.monotonic() + 120
    while not seen():
        assert process.poll() is None, desk.log.read_text()
        assert time.monotonic() < deadline, "what the kill waits for never came"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()


def kill_at_manifest(desk: Any, stage: str, folder: Path) -> None:
    (folder / "sitecustomize.py").write_text(ASSASSIN, encoding="utf-8")
    desk.extra = {"PYTHONPATH": str(folder), "KILL_AT": stage}
    process = desk.start("round", "--round", "0")
    code = process.wait(timeout=300)
    desk.extra = {}
    assert code == -signal.SIGKILL, desk.log.read_text()


@pytest.fixture(scope="module")
def survivor(make_desk: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A desk whose round was killed in every stage before it was let through, watched after every kill."""
    desk, kept = make_desk("undisturbed"), Kept()
    folder = tmp_path_factory.mktemp("assassin")

    def shards(stage: str) -> list[Path]:
        return list((desk.store.root / "stages" / stage).rglob("part-*"))

    kill_at_manifest(desk, "prompts", folder)
    kept.look(desk)
    kill_when(desk, lambda: len(shards("responses")) == 2)
    assert 2 <= len(shards("responses")) < 4, "the kill came too late to hit the stage"
    kept.look(desk)
    kill_when(desk, lambda: len(shards("features")) == 1)
    kept.look(desk)
    for stage in ("pairs", "preferences"):
        kill_at_manifest(desk, stage, folder)
        kept.look(desk)
    kill_when(desk, lambda: any(desk.store.root.rglob(f"checkpoint-*/{COMPLETE}")))
    kept.look(desk)
    for stage in ("adapter", "scores", "promotion"):
        kill_at_manifest(desk, stage, folder)
        kept.look(desk)
    desk.run("round", "--round", "0")
    kept.look(desk)
    return desk


def test_the_killed_round_ends_as_the_undisturbed_one(survivor: Any, undisturbed: Any) -> None:
    killed, whole = recorded(survivor.store, "undisturbed", 0), recorded(undisturbed.store, "undisturbed", 0)
    assert tuple(killed) == STAGES
    for stage in STAGES:
        assert killed[stage].digest == whole[stage].digest
        for path in parts(whole[stage].path):
            load = feather.read_table if path.suffix == ARROW else pq.read_table
            assert load(killed[stage].path / path.name).equals(load(path)), stage


def test_the_killed_training_ends_with_the_same_weights(survivor: Any, undisturbed: Any) -> None:
    from safetensors.numpy import load_file

    file = "adapter/adapter_model.safetensors"
    killed, whole = (
        load_file(recorded(desk.store, "undisturbed", 0)["training"].path / file) for desk in (survivor, undisturbed)
    )
    assert killed.keys() == whole.keys()
    for name, weights in whole.items():
        assert killed[name] == pytest.approx(weights, abs=1e-6), name


def test_no_label_was_bought_twice(survivor: Any) -> None:
    spend = Ledger.at(survivor.store.ledger).spend()
    assert (spend.num_bought, spend.paid, spend.num_pending) == (16, 16.0, 0)


def test_mlflow_has_one_run_with_every_step_once(survivor: Any) -> None:
    from cluster.tracking import Tracker

    client = Tracker(tracking_uri=f"sqlite:///{survivor.home / 'mlflow.db'}", experiment="pairwright").client
    runs = client.search_runs([client.get_experiment_by_name("pairwright").experiment_id])
    assert sorted(run.data.tags["pairwright.kind"] for run in runs) == ["lineage", "round"]
    child = next(run for run in runs if run.data.tags["pairwright.kind"] == "round")
    assert child.info.status == "FINISHED"
    steps = [metric.step for metric in client.get_metric_history(child.info.run_id, "train/loss")]
    assert steps == list(range(1, 9))
