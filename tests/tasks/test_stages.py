"""Stages: done once, finished after a failure, told to MLflow and to the lineage's record without doubling."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.runs import read_text
from cluster.storage import MANIFEST, StageKey, digest_of
from tasks.stages import Publish, RoundContext, manifest_artifact, manifest_of, round_record, run_stage
from tasks.tables import PROMPTS, part_path, write_part

KEY = StageKey("prompts", {"seed": 1}, ["input"])
PROMPT = {"prompt_id": "p", "messages": [{"role": None, "content": "hello"}]}
MEASURES = {"tokens": 7, "mean": 0.5, "converged": True, "labeller": "simulated", "nothing": None, "nan": math.nan}


class Work:
    """Writes two prompts, and counts how often it is asked to; fails as often as it is told."""

    def __init__(self, failures: int = 0) -> None:
        self.calls = 0
        self.failures = failures

    def __call__(self, folder: Path) -> dict[str, Any]:
        self.calls += 1
        write_part(part_path(folder, 0), [PROMPT], PROMPTS)
        (folder / ".scratch").touch()
        if self.calls <= self.failures:
            raise RuntimeError("the engine died")
        write_part(part_path(folder, 1), [PROMPT], PROMPTS)
        return dict(MEASURES)


def record(here: RoundContext, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        (round_record(here.store, here.lineage, here.round) / f"{name}.json").read_text()
    )
    return found


def test_a_finished_stage_is_not_worked_again(here: RoundContext) -> None:
    work = Work()
    tables = [run_stage(KEY, work, here, publish=Publish("pool")) for _ in range(2)]
    assert work.calls == 1
    assert tables[0] == tables[1]
    assert (tables[0].rows, tables[0].digest) == (2, KEY.digest)
    assert tables[0].path == here.store.stage(KEY).path


def test_another_lineage_with_the_same_inputs_reuses_the_stage(
    here: RoundContext, join_round: Callable[..., RoundContext]
) -> None:
    other, work = join_round(here.settings.root, "other", 3), Work()
    for one in (here, other):
        run_stage(KEY, work, one, publish=Publish("pool"))
    assert work.calls == 1
    assert [record(one, "pool")["reused"] for one in (here, other)] == [False, True]
    assert record(here, "pool")["path"] == record(other, "pool")["path"]


@pytest.mark.parametrize("other", [StageKey("prompts", {"seed": 2}, ["input"]), StageKey("prompts", {"seed": 1}, [])])
def test_another_config_or_input_is_another_stage(here: RoundContext, other: StageKey) -> None:
    work = Work()
    for key in (KEY, other):
        run_stage(key, work, here, publish=Publish("pool"))
    assert work.calls == 2


def test_a_failing_work_leaves_the_stage_unfinished_and_the_next_call_finishes_it(here: RoundContext) -> None:
    work = Work(failures=1)
    with pytest.raises(RuntimeError, match="the engine died"):
        run_stage(KEY, work, here, publish=Publish("pool"))
    assert here.store.stage(KEY).manifest is None
    assert not round_record(here.store, here.lineage, here.round).exists()
    assert run_stage(KEY, work, here, publish=Publish("pool")).rows == 2
    assert work.calls == 2
    assert [path.name for path in here.store.stage(KEY).path.glob(".*")] == []


def test_measures_survive_and_only_numbers_become_metrics(here: RoundContext) -> None:
    table = run_stage(KEY, Work(), here, publish=Publish("pool"))
    measures = manifest_of(table).measures
    assert math.isnan(measures.pop("nan"))
    assert measures == {name: value for name, value in MEASURES.items() if name != "nan"}
    metrics = here.tracker.client.get_run(here.run).data.metrics
    assert {name: metrics[f"pool/{name}"] for name in ("rows", "tokens", "mean", "converged")} == {
        "rows": 2,
        "tokens": 7,
        "mean": 0.5,
        "converged": 1,
    }
    assert "pool/labeller" not in metrics
    assert "pool/nothing" not in metrics


def test_a_stage_is_recorded_and_tracked_once_however_often_it_runs(here: RoundContext) -> None:
    client, work = here.tracker.client, Work()
    for _ in range(3):
        run_stage(KEY, work, here, publish=Publish("pool", parquet=True))
    run = client.get_run(here.run)
    assert [path.name for path in round_record(here.store, here.lineage, here.round).iterdir()] == ["pool.json"]
    assert record(here, "pool") == {
        "path": str(here.store.stage(KEY).path),
        "rows": 2,
        "digest": KEY.digest,
        "reused": True,
    }
    assert run.data.tags["digest.pool"] == KEY.digest
    for name in ("rows", "seconds", "tokens", "nan"):
        assert [metric.step for metric in client.get_metric_history(here.run, f"pool/{name}")] == [0]
    assert [(one.dataset.name, KEY.digest.startswith(one.dataset.digest)) for one in run.inputs.dataset_inputs] == [
        ("pool", True)
    ]
    assert [file.path for file in client.list_artifacts(here.run, "pool")] == [
        "pool/part-00000.parquet",
        "pool/part-00001.parquet",
    ]


def test_parquet_stays_in_the_store_where_it_is_not_published(here: RoundContext) -> None:
    run_stage(KEY, Work(), here, publish=Publish("pool"))
    assert [file.path for file in here.tracker.client.list_artifacts(here.run)] == ["manifests"]


def test_mlflow_has_every_manifest_whole_and_of_the_chain_what_it_was_made_from(here: RoundContext) -> None:
    stages = [digest_of(number) for number in range(130)]
    few = StageKey("prompts", {}, [stages[0], "2", *stages[1:3], stages[0], "prompt-id"])
    many = StageKey("prompts", {}, stages)
    for name, key in (("pool", few), ("training", many), ("selection", KEY), ("answers", few)):
        table = run_stage(key, Work(), here, publish=Publish(name))
        logged = read_text(here.tracker, here.run, manifest_artifact(name))
        assert logged == (table.path / MANIFEST).read_text()
    tags = here.tracker.client.get_run(here.run).data.tags
    inputs = {key: value for key, value in tags.items() if key.startswith("inputs.")}
    assert inputs == {"inputs.pool": ",".join(stages[:3])}, "no list is cut, and prompts are no stages"


def test_seeds_differ_by_lineage_seed_round_and_purpose(here: RoundContext) -> None:
    rounds = [
        RoundContext("demo", number, seed, here.settings, here.tracker, here.run)
        for number in (0, 1)
        for seed in (0, 1)
    ]
    seeds = {one.seed_of(word) for one in rounds for word in ("selection", "training")}
    assert len(seeds) == 8
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert here.seed_of("selection") == here.seed_of("selection")
