"""Parked rounds: what is kept of them, and when they are resumed."""

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State, StateType
from prefect.flow_engine import run_flow
from prefect.settings import PREFECT_API_URL, PREFECT_LOGGING_TO_API_ENABLED, temporary_settings
from prefect.states import AwaitingRetry, Cancelled, Cancelling, Paused, Pending, Running

from cluster.errors import InputError
from cluster.settings import Settings
from cluster.storage import PARKED, Store
from flows.config import LineageConfig
from flows.history import keep_config
from flows.lineage import in_force
from flows.parking import ParkedRound, first_start, forget, guide, note, parked_round, resume_ready, waits_elsewhere
from tasks.labellers.ledger import Account, Ledger, question_key
from tasks.labellers.people import PeopleLabeller
from tasks.labellers.protocol import Answer, Question, Workplace
from tasks.parking import Parked, require_answers

pytestmark = pytest.mark.labels

CREW = PeopleLabeller(review_queue=False)
QUESTIONS = [
    Question(
        key=question_key("say it", first=text, second="no"),
        messages=[{"role": None, "content": "say it"}],
        first=text,
        second="no",
    )
    for text in ("yes", "well")
]

Park = Callable[..., ParkedRound]


@pytest.fixture
def settings(make_home: Callable[[], Path]) -> Settings:
    home = make_home()
    return Settings(home=home, tracking_uri=f"sqlite:///{home / 'mlflow.db'}")


@pytest.fixture
def park(settings: Settings) -> Park:
    """Ask people two questions in a round of `demo`, and park it."""

    def run(flow_run: UUID | None = None, *, lineage: str = "demo", round_number: int = 0) -> ParkedRound:
        ledger = Ledger(url=settings.ledger)
        workplace = Workplace(settings=settings, lineage=lineage, round=round_number)
        ledger.buy(QUESTIONS, CREW, Account(lineage=lineage, round=round_number), workplace)
        with pytest.raises(Parked) as parked:
            require_answers(ledger, CREW.terms, lineage=lineage, round_number=round_number)
        record = ParkedRound(waiting=parked.value.waiting, until=round_number + 1, flow_run=flow_run)
        return note(Store(settings.store), record)

    return run


@pytest.fixture
def client(prefect_server: str) -> Iterator[SyncPrefectClient]:
    with temporary_settings({PREFECT_API_URL: prefect_server}), get_client(sync_client=True) as found:
        yield found


@pytest.fixture
def suspended(client: SyncPrefectClient) -> UUID:
    """A flow run of a deployment that was suspended, as the server knows it."""
    tuned = client.create_flow_from_name("tune")
    deployment = client.create_deployment(tuned, f"parked-{uuid4()}")
    run = client.create_flow_run_from_deployment(deployment)
    client.set_flow_run_state(run.id, Running(), force=True)
    client.set_flow_run_state(run.id, Paused(name="Waits for people", reschedule=True, pause_key="once"))
    return run.id


def config(*, labeller: PeopleLabeller, budget: float | None = None) -> LineageConfig:
    own = {
        "model": {"kind": "folder", "path": "/models/tiny"},
        "prompts": {"path": "/prompts.jsonl", "num_prompts": 4, "num_held_out": 2},
        "selection": {"budget": 2},
        "labelling": {"labeller": asdict(labeller), "budget": budget},
    }
    return LineageConfig.model_validate({"lineage": "demo", "round": own})


def answer(settings: Settings, number: int) -> None:
    ledger = Ledger(url=settings.ledger)
    for waiting in ledger.open_questions("demo")[:number]:
        ledger.answer(waiting.question, waiting.labeller, Answer(choice="first", annotator="ann"))


def test_a_parked_round_is_on_record_until_it_goes_on(settings: Settings, park: Park) -> None:
    store = Store(settings.store)
    assert parked_round(store, "demo") is None
    parked = park()
    assert parked_round(store, "demo") == parked
    forget(store, "demo")
    forget(store, "demo")
    assert parked_round(store, "demo") is None


def test_a_round_that_parks_again_is_counted(settings: Settings, park: Park) -> None:
    first = park()
    answer(settings, 1)
    again = park(uuid4())
    assert again.waiting.said == "waits for people: 1 of 2 answered"
    assert (again.flow_run is None, first.times, again.times) == (False, 1, 2)
    assert park(lineage="demo", round_number=1).times == 1


@pytest.mark.parametrize("damage", [b'{"waiting": 1}', b"", b"\xff\xfe"])
def test_a_damaged_record_is_refused_with_what_to_do_and_the_other_lineages_go_on(
    settings: Settings, park: Park, damage: bytes
) -> None:
    park()
    park(lineage="other")
    (Store(settings.store).lineage("demo") / PARKED).write_bytes(damage)
    with pytest.raises(InputError, match=r"parked.json doesn't fit .* remove it and start the lineage again"):
        parked_round(Store(settings.store), "demo")
    bad, good = resume_ready(settings)
    assert (bad.lineage, bad.resumed, bad.trouble) == ("demo", False, True)
    assert bad.place == "the parked round of lineage demo"
    assert "remove it and start the lineage again" in bad.said
    assert (good.place, good.trouble) == ("round 0 of lineage other", False)
    assert good.said == "waits for people: 0 of 2 answered"


def test_nothing_is_resumed_where_nothing_is_parked(settings: Settings) -> None:
    assert resume_ready(settings) == resume_ready(settings, ["demo"]) == []


def test_a_round_that_lacks_answers_is_left_alone(settings: Settings, park: Park) -> None:
    park(uuid4())
    answer(settings, 1)
    (found,) = resume_ready(settings)
    assert (found.lineage, found.round, found.resumed, found.trouble) == ("demo", 0, False, False)
    assert found.said == "waits for people: 1 of 2 answered"


def test_a_round_that_no_deployment_ran_is_left_to_its_command(settings: Settings, park: Park) -> None:
    park()
    answer(settings, 2)
    (found,) = resume_ready(settings, ["demo"])
    assert not found.resumed
    assert "give the command again" in found.said


def test_a_suspended_flow_run_is_resumed_once_when_the_answers_are_in(
    settings: Settings, park: Park, client: SyncPrefectClient, suspended: UUID
) -> None:
    park(suspended)
    assert [one.resumed for one in resume_ready(settings)] == [False]
    assert client.read_flow_run(suspended).state.type == StateType.PAUSED
    answer(settings, 2)
    assert [one.resumed for one in resume_ready(settings)] == [True]
    assert client.read_flow_run(suspended).state.name == "Resuming"
    (again,) = resume_ready(settings)
    assert (again.resumed, again.trouble) == (False, False)
    assert "Resuming" in again.said


def test_only_the_named_lineages_are_looked_after(settings: Settings, park: Park) -> None:
    park()
    park(lineage="other")
    assert [one.lineage for one in resume_ready(settings, ["other", "unknown"])] == ["other"]
    assert [one.lineage for one in resume_ready(settings)] == ["demo", "other"]


def test_a_deadline_that_has_passed_resumes_with_enough_answers(
    settings: Settings, client: SyncPrefectClient, suspended: UUID, park: Park
) -> None:
    parked = park(suspended)
    terms = parked.waiting.terms.model_copy(update={"min_labels": 1, "deadline_hours": 1e-9})
    hurried = parked.model_copy(update={"waiting": parked.waiting.model_copy(update={"terms": terms})})
    note(Store(settings.store), hurried)
    assert [one.resumed for one in resume_ready(settings)] == [False]
    answer(settings, 1)
    assert [one.resumed for one in resume_ready(settings)] == [True]


def test_a_server_that_does_not_answer_loses_nothing(settings: Settings, park: Park) -> None:
    park(uuid4())
    answer(settings, 2)
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        (found,) = resume_ready(settings)
    assert (found.resumed, found.trouble) == (False, True)
    assert "Prefect can't be asked" in found.said
    assert parked_round(Store(settings.store), "demo") is not None


def test_a_flow_run_that_prefect_has_lost_is_said(settings: Settings, park: Park, client: SyncPrefectClient) -> None:
    parked = park(uuid4())
    answer(settings, 2)
    (found,) = resume_ready(settings)
    assert found.trouble
    assert "doesn't know its flow run" in found.said
    assert not waits_elsewhere(parked)


def test_a_round_waits_elsewhere_while_its_flow_run_lives(
    park: Park, client: SyncPrefectClient, suspended: UUID
) -> None:
    parked = park(suspended)
    assert waits_elsewhere(parked)
    client.set_flow_run_state(suspended, Cancelled(), force=True)
    assert not waits_elsewhere(parked)
    assert not waits_elsewhere(park())


def test_a_flow_run_that_is_to_run_by_itself_is_waited_for(
    park: Park, client: SyncPrefectClient, suspended: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    parked = park(suspended)
    client.resume_flow_run(suspended)
    assert waits_elsewhere(parked)
    for state in (AwaitingRetry(), Pending()):
        client.set_flow_run_state(suspended, state, force=True)
        assert waits_elsewhere(parked)
    monkeypatch.setattr("flows.parking.STARTING", timedelta(0))
    assert not waits_elsewhere(parked)


@pytest.mark.parametrize("state", [Running(), Cancelling()], ids=["running", "cancelling"])
def test_a_flow_run_whose_process_died_does_not_hold_up_a_new_start(
    park: Park, client: SyncPrefectClient, suspended: UUID, state: State[Any]
) -> None:
    parked = park(suspended)
    for next_state in (Running(), state):
        client.set_flow_run_state(suspended, next_state, force=True)
    assert client.read_flow_run(suspended).state.type == state.type
    assert not waits_elsewhere(parked)


def test_terms_that_changed_under_a_parked_round_are_in_force(
    settings: Settings, client: SyncPrefectClient, suspended: UUID, park: Park
) -> None:
    store = Store(settings.store)
    keep_config(store, "demo", config(labeller=CREW).round)
    park(suspended)
    answer(settings, 1)
    assert [one.resumed for one in resume_ready(settings)] == [False]
    hurried = replace(CREW, min_labels=1, deadline_hours=1e-9)
    keep_config(store, "demo", config(labeller=hurried).round)
    parked = parked_round(store, "demo")
    assert parked is not None
    assert parked.waiting.terms == hurried.terms
    assert [one.resumed for one in resume_ready(settings)] == [True]


def test_a_flow_run_that_goes_on_takes_what_has_changed_since_it_started(settings: Settings) -> None:
    store = Store(settings.store)
    old, new = config(labeller=CREW), config(labeller=replace(CREW, min_labels=1, deadline_hours=2.0), budget=9.0)
    keep_config(store, "demo", old.round)
    began = datetime.now(UTC) + timedelta(seconds=1)
    assert in_force(new, store, began=None) == new
    assert in_force(new, store, began=began) == new
    keep_config(store, "demo", new.round)
    os.utime(store.lineage("demo") / "config.json", (began.timestamp() + 1,) * 2)
    assert in_force(old, store, began=None) == old
    assert in_force(old, store, began=began) == new
    other = old.model_copy(update={"round": old.round.model_copy(update={"seed": 7})})
    assert in_force(other, store, began=began) == other


def test_a_flow_run_that_was_suspended_knows_when_it_first_started(client: SyncPrefectClient, suspended: UUID) -> None:
    look = flow(first_start)
    now = datetime.now(UTC)
    client.resume_flow_run(suspended)
    before = client.read_flow_run(suspended)
    with temporary_settings({PREFECT_LOGGING_TO_API_ENABLED: False}):
        fresh = run_flow(look, flow_run=client.create_flow_run(look))
        assert run_flow(look, flow_run=before) == before.start_time < now
    assert fresh is None or fresh >= now


def test_a_config_on_record_of_another_release_is_refused_with_what_to_do(settings: Settings, park: Park) -> None:
    park()
    (Store(settings.store).lineage("demo") / "config.json").write_text('{"sed": 1}')
    with pytest.raises(InputError, match=r"config.json doesn't fit .* a new lineage name"):
        parked_round(Store(settings.store), "demo")


def test_a_guide_says_how_many_wait_where_they_are_labelled_and_how_it_goes_on(settings: Settings, park: Park) -> None:
    by_hand = guide(park(), settings)
    assert by_hand[0] == "Round 0 of lineage demo waits for people: 0 of 2 answered."
    assert "pairwright label demo" in by_hand[1]
    assert settings.label_url in by_hand[1]
    assert "the same command again" in by_hand[-1]
    suspended = uuid4()
    assert f"Its flow run {suspended} goes on" in guide(park(suspended), settings)[-1]
