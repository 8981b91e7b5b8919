"""The logbook: tags to search by, curves on the lineage's run, notes with links; nothing twice, nothing lost."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from cluster.runs import LineageRuns, LoggedRun, runs_of
from cluster.settings import Settings
from cluster.storage import StageKey, Store, digest_of, write_json
from cluster.tracking import Tracker
from flows.config import LineageConfig, RoundConfig
from flows.filing import Filing
from flows.history import STAGES, settled
from flows.logbook import log_standing, open_runs
from flows.notes import BELOW, NOTE_TAG, PREVIOUS_TAG, lineage_note, write_notes
from tasks.labellers.ledger import Account, Ledger, question_key
from tasks.labellers.protocol import Question, Workplace
from tasks.labellers.rewards import Length
from tasks.labellers.simulated import SimulatedLabeller
from tasks.stages import round_record

MEASURES: dict[str, dict[str, Any]] = {
    "pool": {"model_seconds": 2.0},
    "selection": {"staleness": 0.5, "seconds": 9.0, "notes": ["none"]},
    "preferences": {"num_preferred": 15},
    "training": {"rewards/margins_after": 0.25, "model_seconds": 4.0},
    "evaluation": {"win_base": 0.75, "kl": 1.5},
}
SELECTOR = "d_design"


@pytest.fixture
def tracker(tracking_template: Path, tmp_path: Path) -> Tracker:
    path = shutil.copy(tracking_template, tmp_path / "mlflow.db")
    return Tracker(tracking_uri=f"sqlite:///{path}", experiment="fair", artifact_root=str(tmp_path / "artifacts"))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path)


@pytest.fixture
def store(settings: Settings) -> Store:
    return Store(settings.store)


def config(**changes: Any) -> RoundConfig:
    own = {
        "model": {"kind": "folder", "path": "/models/tiny"},
        "seed": 7,
        "prompts": {"path": "/prompts.jsonl", "num_prompts": 12, "num_held_out": 4},
        "selection": {"budget": 16, "selector": {"kind": SELECTOR}},
        "training": {"reference": "previous"},
    }
    return LineageConfig.model_validate({"lineage": "demo", "round": own | changes}).round


def open_demo(tracker: Tracker, number: int, filing: Filing | None = None) -> tuple[str, str]:
    filing = filing or Filing(comparison="fair")
    return open_runs(tracker, config(), lineage="demo", round_number=number, filing=filing)


def finish(store: Store, number: int, *, shared: tuple[str, ...] = (), lacks: tuple[str, ...] = ()) -> None:
    """Finish the stages of a round of the lineage `demo`; shared ones are the same in every round."""
    for stage in STAGES:
        if stage in lacks:
            continue
        folder = store.stage(StageKey(stage, {"round": 0 if stage in shared else number}, []))
        if folder.manifest is None:
            with folder.work() as started:
                folder.finish(started, rows=16, schema_digest=None, measures=MEASURES.get(stage, {}))
        entry = {"path": str(folder.path), "rows": 16, "digest": folder.key.digest, "reused": False}
        write_json(round_record(store, "demo", number) / f"{stage}.json", entry)


def buy(settings: Settings, number: int, num_labels: int) -> None:
    """Have so many pairs labelled in a round of the lineage `demo`, at 0.5 each."""
    messages = [{"role": None, "content": "?"}]
    pairs = [(f"one {number}.{label}", f"two {number}.{label}") for label in range(num_labels)]
    questions = [
        Question(key=question_key("?", first=first, second=second), messages=messages, first=first, second=second)
        for first, second in pairs
    ]
    labeller = SimulatedLabeller(reward=Length(), cost=0.5)
    account = Account(lineage="demo", round=number)
    workplace = Workplace(settings=settings, lineage="demo", round=number)
    Ledger(url=settings.ledger).buy(questions, labeller, account, workplace)


def curve(tracker: Tracker, run: str, name: str) -> dict[int, float]:
    return {point.step: point.value for point in tracker.client.get_metric_history(run, name)}


def test_both_runs_of_a_round_are_found_by_what_they_compare(tracker: Tracker) -> None:
    parent, run = open_demo(tracker, 3)
    expected = {
        "lineage": "demo",
        "selector": SELECTOR,
        "seed": "7",
        "budget": "16",
        "reference": "previous",
        "config_digest": digest_of(settled(config())),
        "comparison": "fair",
    }
    wanted = " and ".join(f"tags.`pairwright.{key}` = '{value}'" for key, value in expected.items())
    experiment = tracker.client.get_run(run).info.experiment_id
    assert {one.info.run_id for one in tracker.client.search_runs([experiment], wanted)} == {parent, run}
    assert tracker.client.get_run(run).data.tags["pairwright.round"] == "003"
    assert "pairwright.round" not in tracker.client.get_run(parent).data.tags
    assert tracker.client.get_run(run).data.params["selection.budget"] == "16"


def test_a_lineage_outside_of_comparisons_has_no_such_tag_and_one_outside_of_prefect_names_no_flow_run(
    tracker: Tracker,
) -> None:
    for run in open_demo(tracker, 0, Filing()):
        tags = tracker.client.get_run(run).data.tags
        assert not {"pairwright.comparison", "pairwright.prefect_run", "pairwright.prefect_url"} & set(tags)


def test_two_selectors_of_one_kind_are_told_apart_by_what_a_comparison_calls_them(tracker: Tracker) -> None:
    for run in open_demo(tracker, 0, Filing(comparison="fair", called="cold")):
        assert tracker.client.get_run(run).data.tags["pairwright.selector"] == "cold"


def test_every_finished_round_is_a_point_of_the_lineages_curves(
    tracker: Tracker, store: Store, settings: Settings
) -> None:
    parent, _ = open_demo(tracker, 0)
    for number in range(2):
        buy(settings, number, 3 + number)
        finish(store, number, shared=("answers_base", "training"))
        log_standing(tracker, parent, "demo", settings)
    assert curve(tracker, parent, "labels/spent") == {0: 3.0, 1: 7.0}
    assert curve(tracker, parent, "labels/cost") == {0: 1.5, 1: 3.5}
    assert curve(tracker, parent, "seconds/models") == {0: 6.0, 1: 8.0}, "a shared training took its seconds once"
    for name in ("evaluation/win_base", "selection/staleness", "training/rewards/margins_after"):
        stage, _, key = name.partition("/")
        assert curve(tracker, parent, name) == dict.fromkeys((0, 1), MEASURES[stage][key])
    names = set(tracker.client.get_run(parent).data.metrics)
    assert not names & {"selection/seconds", "selection/notes", "training/model_seconds", "pool/model_seconds"}
    seconds = curve(tracker, parent, "seconds/stages")
    assert 0 < seconds[0] < seconds[1]


def test_what_was_logged_stays_and_what_is_missing_is_added(tracker: Tracker, store: Store, settings: Settings) -> None:
    parent, _ = open_demo(tracker, 0)
    for number in range(3):
        buy(settings, number, 1)
        finish(store, number)
    tracker.log_metrics(parent, {"labels/spent": 99.0}, step=1)
    for _ in range(2):
        log_standing(tracker, parent, "demo", settings)
    history = tracker.client.get_metric_history(parent, "labels/spent")
    assert sorted((point.step, point.value) for point in history) == [(0, 1.0), (1, 99.0), (2, 3.0)]


def test_an_unfinished_round_is_no_point(tracker: Tracker, store: Store, settings: Settings) -> None:
    parent, _ = open_demo(tracker, 0)
    finish(store, 0)
    finish(store, 1, lacks=("evaluation", "promotion"))
    log_standing(tracker, parent, "demo", settings)
    assert set(curve(tracker, parent, "labels/spent")) == {0}


def test_notes_link_a_round_with_those_beside_it_and_its_lineage(tracker: Tracker) -> None:
    runs = {}
    for number in range(3):
        parent, runs[number] = open_demo(tracker, number)
        tracker.set_tags(runs[number], {"digest.training": str(number) * 64})
        write_notes(tracker, "demo", number)
    found = runs_of(tracker, "demo")
    assert found.lineage is not None
    for number, run in runs.items():
        note = found.rounds[number].tags[NOTE_TAG]
        linked = {other for other, one in found.rounds.items() if f"({one.link})" in note}
        assert linked == {number - 1, number + 1} & set(runs)
        assert f"Round {number} of [lineage demo]({found.lineage.link})" in note
        assert f"[adapter {str(number) * 12}]({found.rounds[number].link}/artifacts/adapter)" in note
        assert f"({found.rounds[number].link})" in found.lineage.tags[NOTE_TAG]
        assert found.rounds[number].tags.get(PREVIOUS_TAG) == runs.get(number - 1)
        assert run == found.rounds[number].run
    assert found.lineage.run == parent


def test_what_people_wrote_into_a_note_stays_below_ours(tracker: Tracker) -> None:
    parent, run = open_demo(tracker, 0)
    tracker.set_tags(parent, {NOTE_TAG: "The one to keep."})
    for number in (0, 1):
        run = open_demo(tracker, number)[1]
        write_notes(tracker, "demo", number)
    note = tracker.client.get_run(parent).data.tags[NOTE_TAG]
    assert note.startswith("Lineage demo\n")
    assert note.endswith(f"{BELOW}\n\nThe one to keep.")
    assert note.count(BELOW) == 1
    tracker.set_tags(run, {NOTE_TAG: tracker.client.get_run(run).data.tags[NOTE_TAG] + "\n\nOdd."})
    write_notes(tracker, "demo", 1)
    assert tracker.client.get_run(run).data.tags[NOTE_TAG].endswith(f"{BELOW}\n\nOdd.")


def test_the_note_of_a_long_lineage_lists_its_last_rounds_and_fits() -> None:
    rounds = {number: LoggedRun("r" * 32, "e" * 18, "FINISHED", {"digest.training": "a" * 64}) for number in range(53)}
    note = lineage_note("demo", LineageRuns(rounds[0], rounds))
    assert len(note) < 7000, "MLflow takes 8000 characters, and people write below"
    assert "* 3 earlier rounds\n* [round 3]" in note
    assert "[round 52]" in note
