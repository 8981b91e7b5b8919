"""People label while the round waits: nothing is held meanwhile, and nothing that they said is lost or asked again.

One lineage goes through it all (see conftest.py); every test tells of one thing that happened on the way.
"""

from typing import Any

import pytest
from prefect.client.schemas.objects import StateType

from flows.history import STAGES, recorded
from flows.parking import SUSPENDED, round_on_record
from tasks.parking import WAITING
from tasks.tables import PREFERENCES, UNANSWERED, read

pytestmark = [pytest.mark.labels, pytest.mark.timeout(1500)]


def preferences(story: Any, number: int) -> list[dict[str, Any]]:
    table = recorded(story.desk.store, story.lineage, number)["preferences"]
    return list(read(table.path, PREFERENCES).to_pylist())


@pytest.mark.parametrize("command", ["run", "round"])
def test_a_command_without_a_deployment_ends_well_and_says_what_it_waits_for(story: Any, command: str) -> None:
    said = " ".join(story.said[command].split())
    assert f"Round 0 of lineage {story.lineage} waits for people: 0 of {story.budget} answered" in said
    assert f"pairwright label {story.lineage}" in said
    assert "Give the same command again to go on" in said


def test_a_parked_round_lets_go_of_everything(story: Any) -> None:
    look = story.looks["parked"]
    assert look.run.state is not None
    assert (look.run.state.type, look.run.state.name) == (StateType.PAUSED, SUSPENDED)
    assert (look.run.state.message or "").startswith(f"waits for people: 0 of {story.budget} answered")
    assert look.children == 0
    assert look.is_free
    assert look.tracked == "SCHEDULED"


def test_a_parked_round_is_on_record_with_the_flow_run_that_goes_on(story: Any) -> None:
    parked = story.looks["parked"].parked
    assert parked is not None
    assert (parked.flow_run, parked.until, parked.waiting.round) == (story.looks["parked"].run.id, 2, 0)
    assert len(story.looks["parked"].open) == story.budget


def test_prefect_says_where_to_label(story: Any) -> None:
    assert f"pairwright label {story.lineage}" in story.artifact
    assert "review-queue" in story.artifact


def test_nothing_of_a_parked_round_is_red(story: Any) -> None:
    assert set(story.states[f"{story.lineage}-r000 label pairs"]) == {WAITING, "Completed", "Reused"}
    assert sorted(story.states[f"{story.lineage}-r000"]) == [*["Completed"], *["Failed"], *[WAITING] * 4]
    assert sorted(story.states[f"{story.lineage}-r001"]) == ["Completed", WAITING]


def test_a_resume_that_comes_too_early_parks_again(story: Any) -> None:
    before, after = story.looks["parked"], story.looks["too early"]
    assert after.run.state is not None
    assert (after.run.state.type, after.run.state.name) == (StateType.PAUSED, SUSPENDED)
    assert after.children == 0
    assert after.is_free
    assert before.parked is not None
    assert after.parked is not None
    assert after.parked.times == before.parked.times + 1
    assert after.pool == before.pool
    assert (after.progress.num_asked, after.progress.num_answered) == (story.budget, 1)
    assert len(after.open) == story.budget - 1


def test_another_start_leaves_the_round_to_the_flow_run_that_waits(story: Any) -> None:
    waiting = story.looks["parked"]
    assert story.second_start.startswith(f"{WAITING}: round 0 of lineage {story.lineage} waits for people")
    assert str(waiting.run.id) in story.second_start
    assert story.looks["too early"].parked.flow_run == waiting.run.id


def test_terms_that_another_start_brings_hold_for_the_flow_run_that_waits(story: Any) -> None:
    parked = [story.looks[moment].parked for moment in ("parked", "too early")]
    assert [one.waiting.terms.min_labels for one in parked] == [3, 2]
    kept = round_on_record(story.desk.store, story.lineage)
    assert kept is not None
    assert kept.labelling.labeller.terms.min_labels == 2


def test_the_poller_resumes_after_a_power_cut_once_the_deadline_passed_with_enough(story: Any) -> None:
    look = story.looks["failed"]
    assert look.progress.num_answered == 2
    assert "preferences" in recorded(story.desk.store, story.lineage, 0)
    outcomes = [row["outcome"] for row in preferences(story, 0)]
    assert sorted(outcomes) == ["preferred", "preferred", *[UNANSWERED] * 2]


def test_a_round_that_closed_reserves_nothing(story: Any) -> None:
    look = story.looks["failed"]
    assert (look.spend.num_labels, look.spend.cost, look.spend.pending) == (2, 1.0, 0.0)
    assert look.open == []


def test_a_retry_behind_the_labels_asks_nobody(story: Any) -> None:
    assert story.looks["failed"].run.state is not None
    assert story.looks["failed"].run.state.type == StateType.FAILED
    after = story.looks["next"]
    assert {each.round for each in after.open} == {1}
    assert tuple(recorded(story.desk.store, story.lineage, 0)) == STAGES
    asked = {question.question.key for question in story.looks["parked"].open}
    assert not asked & {question.question.key for question in after.open}


def test_a_late_answer_is_kept_and_serves_the_next_round(story: Any) -> None:
    (receipt,) = story.receipts["late"]
    assert (receipt.status, "next round" in receipt.reason) == ("kept", True)
    assert (story.looks["next"].progress.num_asked, story.looks["next"].progress.num_answered) == (story.budget, 0)
    late = {row["pair_id"] for row in preferences(story, 0) if row["outcome"] == UNANSWERED}
    taken = [row for row in preferences(story, 1) if row["pair_id"] in late]
    assert [row["outcome"] for row in taken] == ["preferred"]
    assert len(preferences(story, 1)) == story.budget + 1


def test_the_lineage_ends_as_any_other(story: Any) -> None:
    look = story.looks["done"]
    assert look.run.state is not None
    assert look.run.state.type == StateType.COMPLETED
    assert look.parked is None
    assert look.tracked == "FINISHED"
    assert all(tuple(recorded(story.desk.store, story.lineage, number)) == STAGES for number in (0, 1))


def test_every_answer_was_paid_once(story: Any) -> None:
    assert len(story.entries) == story.budget + 3
    spend = story.looks["done"].spend
    assert (spend.num_labels, spend.num_bought, spend.paid, spend.pending) == (
        story.budget + 3,
        story.budget + 3,
        3.5,
        0.0,
    )
    assert all(
        receipt.status == "counted" for moment in ("one", "in the dark", "all") for receipt in story.receipts[moment]
    )
