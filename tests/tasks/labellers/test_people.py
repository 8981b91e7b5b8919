"""People as a labeller: what makes them who they are, how long a round waits for them, and what came too late."""

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cluster.errors import InputError
from cluster.settings import Settings
from cluster.storage import Store
from tasks.labellers.ledger import Account, Ledger, Progress, question_key
from tasks.labellers.people import PeopleLabeller
from tasks.labellers.protocol import Answer, Label, Question, Workplace
from tasks.labellers.terms import Terms
from tasks.parking import Parked, late_keys, require_answers

pytestmark = pytest.mark.labels

CREW = PeopleLabeller(crew="editors", min_labels=2, deadline_hours=24, cost=2.0, review_queue=False)
ASKED = datetime(2026, 11, 27, 8, tzinfo=UTC)
BEFORE, AFTER = ASKED + timedelta(hours=23), ASKED + timedelta(hours=25)
QUESTIONS = [
    Question(
        key=question_key(f"say {name}", first=name, second="something else"),
        messages=[{"role": None, "content": f"say {name}"}],
        first=name,
        second="something else",
    )
    for name in ("a", "b", "c", "d")
]


def progress(answered: int, abstained: int = 0, asked: int = 4) -> Progress:
    return Progress(
        num_asked=asked,
        num_answered=answered,
        num_abstained=abstained,
        num_pending=asked - answered,
        asked_at=ASKED,
    )


def ask(tmp_path: Path, labeller: PeopleLabeller = CREW, *, round_number: int = 0) -> list[list[Label]]:
    settings = Settings(home=tmp_path)
    workplace = Workplace(settings=settings, lineage="demo", round=round_number)
    account = Account(lineage="demo", round=round_number)
    return Ledger(url=settings.ledger).buy(QUESTIONS, labeller, account, workplace)


def answer(tmp_path: Path, number: int, *, by: str = "ann") -> None:
    """Answer this many of the open questions."""
    ledger = Ledger(url=Settings(home=tmp_path).ledger)
    for waiting in ledger.open_questions("demo")[:number]:
        ledger.answer(waiting.question, waiting.labeller, Answer(choice="first", annotator=by))


def test_a_crew_is_who_it_is_by_its_name_and_what_it_was_told() -> None:
    assert json.loads(CREW.identity) == {"kind": "people", "crew": "editors", "instructions": CREW.instructions}
    same = (
        replace(CREW, min_labels=None, deadline_hours=None),
        replace(CREW, cost=0.0),
        replace(CREW, review_queue=True),
    )
    assert {each.identity for each in same} == {CREW.identity}
    others = (replace(CREW, crew="students"), replace(CREW, instructions="Be kind."))
    assert len({CREW.identity, *(each.identity for each in others)}) == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"crew": " "}, "crew is empty"),
        ({"cost": -1.0}, "cost is -1.0"),
        ({"min_labels": 0, "deadline_hours": 1.0}, "min_labels is 0"),
        ({"min_labels": 1, "deadline_hours": 0.0}, "deadline_hours is 0.0"),
        ({"min_labels": 1}, "set both"),
        ({"deadline_hours": 1.0}, "set both"),
    ],
)
def test_a_crew_that_makes_no_sense_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PeopleLabeller(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("found", "now", "goes_on"),
    [
        (progress(4), BEFORE, True),
        (progress(3), BEFORE, False),
        (progress(3), AFTER, True),
        (progress(2), ASKED + timedelta(hours=24), True),
        (progress(1), AFTER, False),
        (progress(3, abstained=2), AFTER, False),
        (progress(4, abstained=4), BEFORE, True),
        (progress(1, asked=1), BEFORE, True),
    ],
)
def test_a_round_goes_on_with_all_answers_or_after_its_deadline_with_enough(
    found: Progress, now: datetime, goes_on: bool
) -> None:
    assert CREW.terms.ready(found, found.num_asked, now) is goes_on


def test_a_round_without_a_deadline_waits_for_all() -> None:
    terms = Terms()
    assert not terms.ready(progress(3), 4, ASKED + timedelta(days=1000))
    assert terms.closes_at(progress(3)) is None
    assert terms.ready(progress(4), 4, ASKED)


def test_more_labels_than_were_asked_for_are_not_waited_for() -> None:
    terms = Terms(min_labels=100, deadline_hours=24)
    assert not terms.ready(progress(3), 4, AFTER)
    assert terms.ready(progress(4), 4, BEFORE)


@pytest.mark.parametrize(
    ("found", "now", "said"),
    [
        (progress(1), BEFORE, "waits for people: 1 of 4 answered; 2 are enough from 2026-11-28 08:00 UTC on"),
        (
            progress(2, abstained=1),
            AFTER,
            "waits for people: 2 of 4 answered, 1 of them skipped; its deadline passed at 2026-11-28 08:00 UTC, "
            "and it goes on with 2 answers that are no skips",
        ),
        (progress(2), AFTER, "has its answers: 2 of 4"),
    ],
)
def test_what_a_round_waits_for_is_said(found: Progress, now: datetime, said: str) -> None:
    assert CREW.terms.waits(found, found.num_asked, now) == said


def test_asking_people_opens_their_questions_and_answers_none(tmp_path: Path) -> None:
    assert ask(tmp_path) == [[], [], [], []]
    ledger = Ledger(url=Settings(home=tmp_path).ledger)
    assert [waiting.question.key for waiting in ledger.open_questions("demo")] == [each.key for each in QUESTIONS]
    assert {waiting.labeller for waiting in ledger.open_questions("demo")} == {CREW.identity}
    assert ledger.spend("demo").pending == 8.0


def test_what_was_answered_is_not_asked_again(tmp_path: Path) -> None:
    ask(tmp_path)
    answer(tmp_path, 3)
    labels = ask(tmp_path)
    assert [len(each) for each in labels] == [1, 1, 1, 0]
    ledger = Ledger(url=Settings(home=tmp_path).ledger)
    assert [waiting.question.key for waiting in ledger.open_questions("demo")] == [QUESTIONS[3].key]
    assert (ledger.spend("demo").num_bought, ledger.spend("demo").paid) == (3, 6.0)


def test_a_round_is_parked_until_its_answers_are_in(tmp_path: Path) -> None:
    ask(tmp_path)
    ledger = Ledger(url=Settings(home=tmp_path).ledger)
    with pytest.raises(Parked, match=r"waits for people: 0 of 4 answered; 2 are enough from") as parked:
        require_answers(ledger, CREW.terms, lineage="demo", round_number=0)
    waiting = parked.value.waiting
    assert (waiting.lineage, waiting.round, waiting.num_wanted) == ("demo", 0, 4)
    assert not waiting.ready(ledger)
    answer(tmp_path, 4)
    assert waiting.ready(ledger)
    assert waiting.now(ledger) == "has its answers: 4 of 4"
    require_answers(ledger, CREW.terms, lineage="demo", round_number=0)


def test_how_many_people_answered_is_measured(tmp_path: Path) -> None:
    ask(tmp_path)
    answer(tmp_path, 2, by="ann")
    answer(tmp_path, 1, by="bob")
    given = [label for each in ask(tmp_path) for label in each]
    assert CREW.measures(given) == {"num_annotators": 2.0}
    assert CREW.measures([]) == {"num_annotators": 0.0}


def late(tmp_path: Path, unanswered: Sequence[str], round_number: int = 1) -> list[str]:
    settings = Settings(home=tmp_path)
    return late_keys(
        Ledger(url=settings.ledger),
        unanswered,
        store=Store(settings.store),
        lineage="demo",
        round_number=round_number,
    )


def test_late_answers_are_taken_in_by_the_next_round_and_decided_once(tmp_path: Path) -> None:
    ask(tmp_path)
    ledger = Ledger(url=Settings(home=tmp_path).ledger)
    ledger.close("demo", 0)
    unanswered = [each.key for each in QUESTIONS]
    assert late(tmp_path, [], round_number=1) == []
    ledger.answer(QUESTIONS[2], CREW.identity, Answer(choice="tie", annotator="ann"))
    assert late(tmp_path, unanswered, round_number=1) == [], "the round has decided before"
    assert late(tmp_path, unanswered, round_number=2) == [QUESTIONS[2].key]
    ledger.answer(QUESTIONS[3], CREW.identity, Answer(choice="first", annotator="ann"))
    assert late(tmp_path, unanswered, round_number=2) == [QUESTIONS[2].key]


def test_an_answer_that_came_while_its_round_was_closing_is_not_lost(tmp_path: Path) -> None:
    ask(tmp_path)
    answer(tmp_path, 1)
    ledger = Ledger(url=Settings(home=tmp_path).ledger)
    ledger.close("demo", 0)
    unanswered = [each.key for each in QUESTIONS]
    assert late(tmp_path, unanswered) == [QUESTIONS[0].key]
