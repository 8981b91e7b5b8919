"""What is known already: used without asking anybody, and which earlier questions it answers."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import event

from cluster.errors import InputError
from tasks.labellers.ledger import Account, Ledger
from tasks.labellers.protocol import Answer, Question, Workplace

pytestmark = pytest.mark.labels

ONE, TWO = Account(lineage="one", round=2), Account(lineage="two", round=0)
NEXT = replace(ONE, round=3)

Make = Callable[[int], Question]


def says(annotator: str) -> Answer:
    return Answer(choice="tie", annotator=annotator)


@pytest.fixture
def questions(make_question: Make) -> list[Question]:
    return [make_question(index) for index in range(1, 5)]


@pytest.fixture
def closed(ledger: Ledger, people: Any, questions: list[Question], workplace: Workplace) -> Ledger:
    """A ledger in which a round asked for two answers to each question, got one to the first, and closed."""
    ledger.buy(questions, people(), ONE, workplace, repeats=2)
    ledger.answer(questions[0], "people", says("ann"))
    ledger.close("one", 2)
    return ledger


def test_what_is_known_is_charged_and_given_and_nobody_is_asked_for_the_rest(
    closed: Ledger, people: Any, questions: list[Question]
) -> None:
    closed.answer(questions[2], "people", says("bob"))
    labeller = people()
    labels = closed.use_known(questions, labeller, NEXT, repeats=2)
    assert [[label.annotator for label in answers] for answers in labels] == [["ann"], [], ["bob"], []]
    assert (labeller.asked, closed.open_questions()) == ([], [])
    spend, progress = closed.spend("one"), closed.progress("one", 3)
    assert (spend.num_labels, spend.cost, spend.num_pending) == (2, 2.0, 0)
    assert (progress.num_asked, progress.num_answered, progress.num_pending) == (1, 1, 0)
    assert closed.progress("one", 2).num_asked == 7


def test_what_another_lineage_bought_is_known_and_charged_at_what_it_costs(
    closed: Ledger, people: Any, questions: list[Question]
) -> None:
    ((label,), *others) = closed.use_known(questions, people(), TWO, repeats=2)
    assert (label.annotator, label.bought, others) == ("ann", False, [[]] * 3)
    assert (closed.spend("two").cost, closed.spend("two").paid, closed.spend("two").num_pending) == (1.0, 0.0, 0)
    assert [entry.annotator for entry in closed.entries("two")] == ["ann"]


def test_no_more_repetitions_are_used_than_are_wanted(closed: Ledger, people: Any, questions: list[Question]) -> None:
    closed.answer(questions[0], "people", says("bob"))
    assert [label.annotator for label in closed.use_known(questions, people(), TWO)[0]] == ["ann"]
    assert closed.spend("two").num_labels == 1


def test_what_is_known_is_not_used_beyond_the_budget(closed: Ledger, people: Any, questions: list[Question]) -> None:
    closed.answer(questions[2], "people", says("bob"))
    before = closed.spend()
    with pytest.raises(InputError, match=r"may spend 1\.5 on labels .*: 1 are charged .* asks for 1 answers at 1"):
        closed.use_known(questions, people(), replace(NEXT, budget=1.5), repeats=2)
    assert (closed.spend(), closed.progress("one", 3).num_asked) == (before, 0)


def test_pairs_of_which_nothing_is_known_stay_unknown(
    ledger: Ledger, people: Any, questions: list[Question], make_question: Make
) -> None:
    assert ledger.use_known(questions, people(), ONE) == [[]] * 4
    assert ledger.lineages() == []
    with pytest.raises(InputError, match="knows no pair"):
        ledger.answer(questions[0], "people", says("ann"))
    assert ledger.use_known([], people(), ONE) == []


def test_what_is_known_of_other_responses_is_not_used(closed: Ledger, people: Any, questions: list[Question]) -> None:
    with pytest.raises(InputError, match="other responses under the key"):
        closed.use_known([replace(questions[0], first="other")], people(), NEXT)


def test_an_amount_that_is_none_is_refused(sqlite_ledger: Ledger, people: Any, questions: list[Question]) -> None:
    with pytest.raises(InputError, match=r"labelling\.repeats is 0"):
        sqlite_ledger.use_known(questions, people(), ONE, repeats=0)
    with pytest.raises(InputError, match=r"labelling\.budget is -1"):
        sqlite_ledger.use_known(questions, people(), replace(ONE, budget=-1.0))


def test_questions_of_earlier_rounds_are_answered_whenever_their_answer_came(
    closed: Ledger, people: Any, questions: list[Question], make_question: Make, workplace: Workplace
) -> None:
    closed.answer(questions[2], "people", says("bob"))
    later = make_question(9)
    closed.buy([later], people(), NEXT, workplace)
    closed.answer(later, "people", says("ann"))
    in_time_and_late = {questions[0].key, questions[2].key}
    assert closed.answered("one", before=3) == in_time_and_late
    assert closed.answered("one", before=4) == {*in_time_and_late, later.key}
    assert closed.answered("one", before=2) == closed.answered("two", before=9) == set()
    closed.use_known(questions, people(), NEXT, repeats=2)
    assert closed.answered("one", before=3) == {questions[0].key}, "the other one is charged to this round now"


def test_which_questions_are_answered_is_found_without_reading_their_texts(closed: Ledger) -> None:
    statements: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    event.listen(closed.database.engine, "before_cursor_execute", note)
    try:
        closed.answered("one", before=3)
    finally:
        event.remove(closed.database.engine, "before_cursor_execute", note)
    assert [statement for statement in statements if "label_asks" in statement]
    assert not [statement for statement in statements if "label_pairs" in statement or "label_answers" in statement]


def test_only_paid_answers_asked_again_after_a_failure_may_have_been_paid_twice(
    ledger: Ledger, recorded: Any, people: Any, questions: list[Question], workplace: Workplace
) -> None:
    for cost in (0.5, 0.0):
        name = f"costs {cost:g}"
        with pytest.raises(ConnectionError):
            ledger.buy(questions, recorded(identity=name, cost=cost, chunk=1, fails_after=1), ONE, workplace)
        ledger.buy(questions, recorded(identity=name, cost=cost), ONE, workplace)
    for _ in range(2):
        ledger.buy(questions, people(), ONE, workplace)
    ledger.answer(questions[0], "people", says("ann"))
    assert (ledger.spend("one").num_bought, ledger.spend("one").num_repeated) == (9, 3)
