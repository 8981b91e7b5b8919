"""History: which rounds are finished, what they left, and which config the lineage runs with."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import InputError
from cluster.models import Policy
from cluster.storage import MANIFEST, StageKey, Store, write_json
from flows.config import LineageConfig
from flows.history import (
    ADDED_STAGES,
    NEEDED_STAGES,
    STAGES,
    first_unfinished,
    history,
    is_finished,
    keep_config,
    recorded,
    settled,
)
from tasks.stages import ADAPTER, round_record
from tasks.tables import Table

BASE = Policy(digest="base", model=Path("/models/tiny"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def config(**changes: Any) -> LineageConfig:
    own = {
        "model": {"kind": "folder", "path": "/models/tiny"},
        "prompts": {"path": "/prompts.jsonl", "num_prompts": 12, "num_held_out": 4},
        "selection": {"budget": 16},
    }
    return LineageConfig.model_validate({"lineage": "demo", "rounds": 3, "round": own | changes})


def finish(store: Store, number: int, stages: tuple[str, ...] = STAGES) -> dict[str, Table]:
    """Finish these stages of a round of the lineage `demo`."""
    tables = {}
    for stage in stages:
        key = StageKey(stage, {"round": number}, [])
        folder = store.stage(key)
        with folder.work() as started:
            folder.finish(started, rows=number, schema_digest=None, measures={})
        tables[stage] = Table(path=folder.path, rows=number, digest=key.digest)
        entry = {"path": str(folder.path), "rows": number, "digest": key.digest, "reused": False}
        write_json(round_record(store, "demo", number) / f"{stage}.json", entry)
    return tables


def test_the_first_round_has_the_base_and_nothing_else(store: Store) -> None:
    past = history(store, "demo", 0, BASE)
    assert past.policy == past.base == BASE
    assert (list(past.policies), list(past.rounds)) == ([], [])


def test_a_round_knows_the_policies_and_labels_of_all_before_it(store: Store) -> None:
    tables = [finish(store, number) for number in range(3)]
    past = history(store, "demo", 2, BASE)
    assert [policy.digest for policy in past.policies] == [own["training"].digest for own in tables[:2]]
    assert past.policy.adapter == tables[1]["training"].path / ADAPTER
    assert past.policy.model == BASE.model
    for one, own in zip(past.rounds, tables[:2], strict=True):
        assert (one.pool, one.features) == (own["pool"], own["features"])
        assert (one.recalled_features, one.preferences) == (own["recalled_features"], own["preferences"])


@pytest.mark.parametrize(
    ("reference", "start"), [("base", "base"), ("base", "previous"), ("previous", "base"), ("previous", "previous")]
)
def test_reference_and_start_are_the_named_ones(store: Store, reference: str, start: str) -> None:
    finish(store, 0)
    past = history(store, "demo", 1, BASE)
    training = config(training={"reference": reference, "start": start}).round.training
    mine = Table(path=Path("/mine"), rows=1, digest="mine")
    named = {"base": BASE, "previous": past.policy}
    assert past.contrast(training).policy == past.policy
    assert past.contrast(training).reference == named[reference]
    scores = Table(path=Path("/scores"), rows=1, digest="scores")
    lessons = past.lessons(training, mine, [scores])
    assert (lessons.base, lessons.start, lessons.reference) == (BASE, named[start], named[reference])
    assert len(lessons.features) == 3
    assert lessons.features[-1] == scores
    assert len(lessons.reference_features) == (3 if reference == "base" else 1), "others are under another reference"


@pytest.mark.parametrize(("data", "expected"), [("lineage", 3), ("newest", 3), ("round", 1)])
def test_a_round_learns_from_its_own_labels_or_from_all(store: Store, data: str, expected: int) -> None:
    for number in range(2):
        finish(store, number)
    mine = Table(path=Path("/mine"), rows=1, digest="mine")
    lessons = history(store, "demo", 2, BASE).lessons(config(training={"data": data}).round.training, mine, [])
    assert len(lessons.preferences) == expected
    assert lessons.preferences[-1] == mine


def test_a_round_after_an_unfinished_one_is_refused(store: Store) -> None:
    finish(store, 0)
    finish(store, 1, STAGES[:3])
    message = (
        r"round 2 of lineage 'demo' can't start: round 1 is unfinished \(found prompts, held_out, pool\): run that"
    )
    with pytest.raises(InputError, match=message):
        history(store, "demo", 2, BASE)


def test_a_round_after_one_that_never_began_is_refused(store: Store) -> None:
    with pytest.raises(InputError, match=r"round 0 is unfinished \(found nothing\)"):
        history(store, "demo", 1, BASE)


def test_the_next_round_is_the_first_that_lacks_a_stage(store: Store) -> None:
    assert first_unfinished(store, config()) == 0
    finish(store, 0)
    assert first_unfinished(store, config()) == 1
    finish(store, 1, STAGES[:-1])
    assert first_unfinished(store, config()) == 1
    finish(store, 1)
    finish(store, 2)
    assert first_unfinished(store, config()) == 3


@pytest.mark.parametrize("stage", NEEDED_STAGES)
def test_a_round_is_unfinished_again_when_a_stage_is_deleted(store: Store, stage: str) -> None:
    tables = finish(store, 0)
    assert recorded(store, "demo", 0) == tables
    assert is_finished(tables)
    shutil.rmtree(tables[stage].path)
    found = recorded(store, "demo", 0)
    assert not is_finished(found)
    assert list(found) == [name for name in STAGES if name != stage]
    assert first_unfinished(store, config()) == 0


def test_a_finished_round_of_an_earlier_release_stays_finished_and_later_rounds_build_on_it(store: Store) -> None:
    tables = finish(store, 0, NEEDED_STAGES)
    assert not set(ADDED_STAGES) & set(tables)
    assert is_finished(recorded(store, "demo", 0))
    assert first_unfinished(store, config()) == 1
    assert history(store, "demo", 1, BASE).preferences == [tables["preferences"]]


def test_a_stage_that_only_some_rounds_have_is_found_in_its_place_and_missed_by_none(store: Store) -> None:
    finish(store, 0)
    tables = finish(store, 1, (*STAGES, "drawn"))
    found = recorded(store, "demo", 1)
    assert list(found) == ["prompts", "held_out", "drawn", *STAGES[2:]]
    assert found == tables
    assert all(is_finished(recorded(store, "demo", number)) for number in (0, 1))
    (tables["pool"].path / MANIFEST).unlink()
    assert not is_finished(recorded(store, "demo", 1))


def test_a_stage_without_its_manifest_does_not_count(store: Store) -> None:
    tables = finish(store, 0)
    (tables["pool"].path / MANIFEST).unlink()
    assert "pool" not in recorded(store, "demo", 0)


def test_rounds_of_other_lineages_do_not_count(store: Store) -> None:
    finish(store, 0)
    assert recorded(store, "other", 0) == {}


def test_an_unchanged_config_is_kept(store: Store) -> None:
    for _ in range(2):
        keep_config(store, "demo", config().round)
    assert [file.name for file in store.lineage("demo").iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({"seed": 7}, ["round.seed was 0, now 7"]),
        ({"selection": {"budget": 20}}, ["round.selection.budget was 16, now 20"]),
        (
            {"selection": {"budget": 16, "selector": {"kind": "uniform"}}},
            ["round.selection.selector.kind was 'robust_design', now 'uniform'"],
        ),
        (
            {"seed": 7, "training": {"optimizer": {"learning_rate": 0.5}}},
            ["round.seed was 0, now 7", "round.training.optimizer.learning_rate was 1e-05, now 0.5"],
        ),
    ],
)
def test_a_changed_config_is_refused_with_each_key_and_both_values(
    store: Store, changes: dict[str, Any], messages: list[str]
) -> None:
    keep_config(store, "demo", config().round)
    with pytest.raises(InputError) as refusal:
        keep_config(store, "demo", config(**changes).round)
    for message in (*messages, "lineage 'demo' has run with another config", "a lineage name of its own"):
        assert message in str(refusal.value)
    keep_config(store, "demo", config().round)


@pytest.mark.labels
def test_what_labels_may_cost_and_how_long_people_are_waited_for_can_change(store: Store) -> None:
    people = {"kind": "people", "min_labels": 4, "deadline_hours": 48}
    keep_config(store, "demo", config(labelling={"labeller": people, "budget": 20}).round)
    patient = people | {"min_labels": 2, "deadline_hours": 96}
    changed = config(labelling={"labeller": patient, "budget": 30}).round
    keep_config(store, "demo", changed)
    kept = json.loads((store.lineage("demo") / "config.json").read_text())
    assert kept == changed.model_dump(mode="json")
    assert settled(changed) == settled(config(labelling={"labeller": people, "budget": 20}).round)


@pytest.mark.labels
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crew": "students"}, "round.labelling.labeller.crew was 'people', now 'students'"),
        ({"instructions": "Be kind."}, "round.labelling.labeller.instructions was"),
        ({"cost": 2.0}, "round.labelling.labeller.cost was 1.0, now 2.0"),
    ],
)
def test_other_people_are_another_config(store: Store, changes: dict[str, Any], message: str) -> None:
    keep_config(store, "demo", config(labelling={"labeller": {"kind": "people"}}).round)
    with pytest.raises(InputError) as refusal:
        keep_config(store, "demo", config(labelling={"labeller": {"kind": "people"} | changes}).round)
    assert message in str(refusal.value)


def test_more_rounds_are_no_other_config(store: Store) -> None:
    finish(store, 0)
    keep_config(store, "demo", config().round)
    longer = config().model_copy(update={"rounds": 9})
    keep_config(store, "demo", longer.round)
    assert first_unfinished(store, longer) == 1


def test_another_lineage_may_have_another_config(store: Store) -> None:
    keep_config(store, "demo", config().round)
    keep_config(store, "other", config(seed=7).round)
    assert (store.lineage("other") / "config.json").is_file()
