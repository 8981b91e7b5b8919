"""A comparison as a user runs it: killed, resumed, with a lineage that fails, retried, widened, reported."""

import json
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import ArtifactFilter, FlowRunFilter
from prefect.client.schemas.objects import StateType

from cluster.runs import runs_of
from cluster.settings import Settings
from cluster.tracking import Tracker
from flows.comparison.config import ComparisonConfig, load_comparison
from flows.comparison.flow import report
from flows.comparison.folder import Folder
from flows.filing import Filing, keep_filing
from flows.history import is_finished, keep_config, recorded
from tasks.labellers.ledger import Ledger

FIRST = [f"duel-{selector}-b8-s{seed}" for seed in (0, 1) for selector in ("uniform", "greedy")]
BROKEN = FIRST[-1]
"""The lineage that can't keep its record until somebody mends the store."""
NEW = [f"duel-spread-b8-s{seed}" for seed in (0, 1)]
NOBODY = "http://127.0.0.1:9"


@dataclass(frozen=True)
class Phase:
    """What a command did to the store."""

    code: int
    said: str
    before: dict[Path, int]
    """Manifests and shards of responses, with the times at which they were written."""
    after: dict[Path, int]
    finished: list[str]
    """Lineages whose first round is finished."""

    @property
    def new(self) -> set[str]:
        """Stages that were made."""
        return {path.parent.parent.name for path in self.after.keys() - self.before.keys() if path.suffix == ".json"}


@dataclass
class Table:
    """A desk with a comparison on it."""

    desk: Any

    def write(self, **changes: object) -> None:
        values = {
            "comparison": "duel",
            "base": "lineage.yaml",
            "selectors": {"greedy": {"kind": "d_design"}},
            "seeds": [0, 1],
            "budgets": [8],
            "rounds": 1,
            **changes,
        }
        self.desk.config = self.desk.home / "duel.yaml"
        self.desk.config.write_text(yaml.safe_dump(values), encoding="utf-8")

    def written(self) -> dict[Path, int]:
        stages = self.desk.store.root / "stages"
        kept = [*stages.rglob("manifest.json"), *(stages / "responses").rglob("part-*")]
        return {path: path.stat().st_mtime_ns for path in kept}

    def finished(self, number: int = 0) -> list[str]:
        return [lineage for lineage in FIRST + NEW if is_finished(recorded(self.desk.store, lineage, number))]

    def run(self, *arguments: str, seen: Callable[[], bool] | None = None) -> Phase:
        """Run the command to its end, or kill it without warning when something is seen."""
        before, log = self.written(), self.desk.log
        start = log.stat().st_size if log.exists() else 0
        process = self.desk.start("compare", *arguments)
        deadline = time.monotonic() + 550
        while process.poll() is None:
            if time.monotonic() > deadline:
                process.kill()
                raise AssertionError(log.read_text())
            if seen is not None and seen():
                process.send_signal(signal.SIGKILL)
            time.sleep(0.02)
        said = log.read_bytes()[start:].decode()
        return Phase(process.returncode, said, before, self.written(), self.finished())

    @property
    def tracker(self) -> Tracker:
        return Tracker(tracking_uri=f"sqlite:///{self.desk.home / 'mlflow.db'}", experiment="duel")

    @property
    def folder(self) -> Path:
        return Path(self.desk.store.root / "comparisons" / "duel")

    @property
    def obstacle(self) -> Path:
        """A file where the broken lineage wants the folder of its first round."""
        return Path(self.desk.store.lineage(BROKEN) / "round-000")

    def summary(self) -> Any:
        client = self.tracker.client
        experiment = client.get_experiment_by_name("duel").experiment_id
        (run,) = client.search_runs([experiment], "tags.`pairwright.kind` = 'comparison'")
        return run


@pytest.fixture(scope="module")
def table(make_desk: Callable[[str], Any]) -> Table:
    table = Table(make_desk("base"))
    table.write()
    return table


@pytest.fixture(scope="module")
def killed(table: Table) -> Phase:
    """Killed while the first lineage of the second seed writes its pool; one lineage will fail."""
    keep_filing(table.desk.store, BROKEN, Filing(experiment="duel", comparison="duel"))
    table.obstacle.write_text("no folder")
    shards = table.desk.store.root / "stages" / "responses"
    return table.run(
        seen=lambda: (
            FIRST[1] in table.finished()
            and table.desk.store.lineage(FIRST[2]).is_dir()
            and any(not (path.parent / "manifest.json").exists() for path in shards.rglob("part-*"))
        )
    )


@pytest.fixture(scope="module")
def failed(table: Table, killed: Phase) -> Phase:
    return table.run()


@pytest.fixture(scope="module")
def states(table: Table, failed: Phase) -> list[tuple[StateType, str]]:
    """How Prefect has the flow runs of the comparison, oldest first."""
    with SyncPrefectClient(api=table.desk.prefect) as client:
        runs = client.read_flow_runs(flow_run_filter=FlowRunFilter(name={"any_": ["duel"]}))
    runs.sort(key=lambda run: run.created)
    return [(run.state.type, str(run.state.message)) for run in runs]


@pytest.fixture(scope="module")
def mended(table: Table, states: list[tuple[StateType, str]]) -> Phase:
    """The lineage that failed is run alone."""
    table.obstacle.unlink()
    return table.run("--only", BROKEN)


@pytest.fixture(scope="module")
def widened(table: Table, mended: Phase) -> Phase:
    """Another selector, its two lineages at once."""
    table.write(selectors={"greedy": {"kind": "d_design"}, "spread": {"kind": "v_design"}}, max_concurrent=2)
    return table.run()


@pytest.fixture(scope="module")
def longer(table: Table, widened: Phase) -> Phase:
    """A second round, of one lineage only."""
    selectors = {"greedy": {"kind": "d_design"}, "spread": {"kind": "v_design"}}
    table.write(selectors=selectors, rounds=2)
    return table.run("--only", FIRST[0])


def untouched(phase: Phase) -> bool:
    return all(phase.after.get(path) == written for path, written in phase.before.items())


def test_the_killed_comparison_goes_on_and_repeats_nothing(killed: Phase, failed: Phase) -> None:
    assert killed.code == -signal.SIGKILL
    assert killed.finished == FIRST[:2], "the kill came at another moment than it should"
    assert killed.after == failed.before
    assert untouched(failed)


def test_a_lineage_that_fails_stops_no_other_and_the_command_says_how_to_retry_it(table: Table, failed: Phase) -> None:
    assert failed.code == 1
    assert failed.finished == FIRST[:3]
    assert f"lineage {BROKEN} failed: FileExistsError" in failed.said
    assert f"pairwright compare {table.desk.config} --only {BROKEN}" in failed.said
    assert "report: " in failed.said


def test_the_flow_run_is_failed_and_names_the_lineage(states: list[tuple[StateType, str]]) -> None:
    state, message = states[-1]
    assert state == StateType.FAILED
    assert BROKEN in message
    assert "The report has been written" in message


def test_the_failed_lineage_is_run_alone(mended: Phase) -> None:
    assert (mended.code, mended.finished) == (0, FIRST)
    assert untouched(mended)
    assert "responses" in mended.new  # its answers to held-out prompts; the pool is there
    assert [lineage for lineage in FIRST if f"subflow run '{lineage}'" in mended.said] == [BROKEN]


def test_pools_of_the_first_round_are_generated_once_for_each_seed(table: Table, widened: Phase) -> None:
    for seed in (0, 1):
        lineages = [lineage for lineage in FIRST + NEW if lineage.endswith(f"s{seed}")]
        digests = {recorded(table.desk.store, lineage, 0)["pool"].digest for lineage in lineages}
        assert len(digests) == 1
        assert f"round-0 pool of seed {seed}: generated once (36 rows, " in widened.said
    assert widened.said.count("used by 3 lineages") == 4


def test_only_the_lineages_of_a_new_selector_run(widened: Phase) -> None:
    assert (widened.code, widened.finished) == (0, FIRST + NEW)
    assert untouched(widened)
    ran = [lineage for lineage in FIRST + NEW if f"subflow run '{lineage}-r000'" in widened.said]
    assert ran == NEW
    assert widened.new.isdisjoint({"prompts", "features_pool"})


def test_no_label_is_paid_twice(table: Table, widened: Phase) -> None:
    ledger = Ledger.at(table.desk.store.ledger)
    spend = ledger.spend()
    assert (spend.num_labels, spend.num_pending, spend.num_repeated) == (8 * len(FIRST + NEW), 0, 0)
    bought = [(entry.key, entry.lineage) for entry in ledger.entries()]
    assert len({key for key, _ in bought}) == spend.num_bought <= spend.num_labels
    assert f"labels: {spend.num_labels} charged to the lineages at 48, {spend.num_bought} bought" in widened.said


def test_more_rounds_go_on_from_those_that_are_there_and_leave_gaps_visible(table: Table, longer: Phase) -> None:
    assert longer.code == 0
    assert untouched(longer)
    assert table.finished(1) == [FIRST[0]]
    evidence = json.loads((table.folder / "evidence.json").read_text())
    missing = {lineage["lineage"]: lineage["missing"] for lineage in evidence["lineages"]}
    assert missing == {lineage: [] if lineage == FIRST[0] else [1] for lineage in FIRST + NEW}


def test_mlflow_draws_a_line_for_each_lineage(table: Table, longer: Phase) -> None:
    client = table.tracker.client
    for lineage in FIRST + NEW:
        runs = runs_of(table.tracker, lineage)
        assert runs.lineage is not None
        _, selector, budget, seed = lineage.split("-")
        tags = {"lineage": lineage, "selector": selector, "seed": seed[1:], "budget": budget[1:]}
        tags |= {"comparison": "duel", "reference": "base", "kind": "lineage"}
        assert {name: runs.lineage.tags[f"pairwright.{name}"] for name in tags} == tags
        history = client.get_metric_history(runs.lineage.run, "evaluation/win_base")
        assert [point.step for point in history] == ([0, 1] if lineage == FIRST[0] else [0])
        assert all(child.tags["mlflow.parentRunId"] == runs.lineage.run for child in runs.rounds.values())
        assert list(runs.rounds) == [point.step for point in history]


def test_rounds_tell_their_overlap_with_what_others_chose_from_the_same_pool(table: Table, longer: Phase) -> None:
    client, store = table.tracker.client, table.desk.store
    measured = client.get_run(runs_of(table.tracker, FIRST[0]).rounds[0].run).data.metrics
    found = {name: value for name, value in measured.items() if name.startswith("overlap/")}
    import pyarrow.parquet as pq

    chosen = {
        lineage: set(
            pq.read_table(recorded(store, lineage, 0)["selection"].path / "part-00000.parquet")["pair_id"].to_pylist()
        )
        for lineage in (FIRST[0], FIRST[1], NEW[0])
    }
    own = chosen[FIRST[0]]
    assert found == {
        f"overlap/{name}": pytest.approx(len(own & chosen[other]) / len(own | chosen[other]))
        for name, other in (("greedy", FIRST[1]), ("spread", NEW[0]))
    }


def test_the_comparison_is_one_run_in_mlflow_with_the_report(table: Table, longer: Phase) -> None:
    run = table.summary()
    assert run.info.status == "SCHEDULED"  # rounds are missing
    assert run.data.tags["pairwright.selectors"] == "uniform, greedy, spread"
    assert "mean/greedy-b8" in run.data.metrics
    names = {file.path for file in table.tracker.client.list_artifacts(run.info.run_id)}
    assert names == {"report.html", "report.md", "evidence.json", "figures"}


def test_the_report_is_an_artifact_in_prefect(table: Table, widened: Phase) -> None:
    with SyncPrefectClient(api=table.desk.prefect) as client:
        found = client.read_artifacts(artifact_filter=ArtifactFilter(key={"any_": ["comparison-duel"]}))
    assert len(found) >= 3
    assert any("duel-spread" in str(artifact.data) or "spread" in str(artifact.data) for artifact in found)


def test_mlflow_that_is_gone_at_the_end_costs_no_report_and_the_next_run_logs_it(table: Table, longer: Phase) -> None:
    config = load_comparison(table.desk.config)
    gone = Settings(home=table.desk.home, tracking_uri=NOBODY, connect_timeout=0.2)
    before = table.summary().info.end_time
    compared = report(config, gone, Folder.of(config, gone, None))
    assert "MLflow has no record of this report; the next run of the same command logs it" in compared.unlogged
    assert NOBODY in compared.unlogged
    assert compared.report.read_text(encoding="utf-8").startswith("<!")
    assert table.summary().info.end_time == before
    assert "MLflow: experiment duel" in table.run("--redraw").said
    assert table.summary().info.end_time > before


def test_confounded_lineages_are_refused_or_shown_in_red(table: Table, longer: Phase) -> None:
    config = load_comparison(table.desk.config)
    other = config.base.round.training.model_copy(update={"beta": 0.5})
    keep_config(table.desk.store, "elder", config.base.round.model_copy(update={"training": other, "seed": 7}))
    table.write(lineages=["elder"])
    refused = table.run()
    assert refused.code == 2
    assert "training.beta: 0.1 in the comparison's config; 0.5 in elder" in refused.said
    assert refused.before == refused.after
    assert "Traceback" not in refused.said
    assert table.run("--redraw", "--allow-confounded").code == 0
    text = (table.folder / "report.html").read_text(encoding="utf-8")
    alarm = text.split('<section class="box alarm"')[1].split("</section>")[0]
    assert "training.beta" in alarm
    assert "elder" in alarm


def test_a_comparison_is_deployed_with_its_config_and_schedule(table: Table, longer: Phase) -> None:
    table.write(schedule={"cron": "30 3 * * *", "rounds_per_start": 2})
    assert "deployment compare/duel (" in table.desk.run("deploy")
    with SyncPrefectClient(api=table.desk.prefect) as client:
        found = client.read_deployment_by_name("compare/duel")
    assert [schedule.schedule.cron for schedule in found.schedules] == ["30 3 * * *"]
    assert found.entrypoint == "flows.comparison.flow.compare"
    assert found.parameters["max_rounds"] == 2
    assert ComparisonConfig.model_validate(found.parameters["config"]) == load_comparison(table.desk.config)
