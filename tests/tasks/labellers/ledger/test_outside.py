from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from cluster.errors import InputError
from tasks.labellers.ledger import Account, Ledger, OpenQuestion, shown
from tasks.labellers.protocol import Answer, Label, Question, Workplace

pytestmark = pytest.mark.labels

ONE, TWO = Account(lineage="one", round=2), Account(lineage="two", round=0)

Make = Callable[[int], Question]


def says(choice: Any, annotator: str = "ann", **changes: Any) -> Answer:
    return replace(Answer(choice=choice, annotator=annotator), **changes)


def turned(asked: Question) -> Question:
    return replace(asked, first=asked.second, second=asked.first)


@pytest.fixture
def questions(make_question: Make) -> list[Question]:
    return [make_question(index) for index in range(1, 6)]


@pytest.fixture
def ask(ledger: Ledger, people: Any, questions: list[Question], workplace: Workplace) -> Callable[..., Any]:
    """Have a lineage ask people, who leave everything open."""

    def buy(account: Account = ONE, repeats: int = 1) -> list[list[Label]]:
        return ledger.buy(questions, people(), account, workplace, repeats=repeats)

    return buy


def test_what_a_labeller_leaves_out_is_open_in_the_order_asked(
    ledger: Ledger, ask: Any, questions: list[Question]
) -> None:
    assert ask(repeats=2) == [[]] * 5
    ask(TWO)
    expected = [
        OpenQuestion(question=shown(asked), lineage="one", round=2, labeller="people", wanted=2, annotators=())
        for asked in questions
    ]
    assert ledger.open_questions("one") == expected
    assert ledger.open_questions("two") == [replace(waiting, lineage="two", round=0, wanted=1) for waiting in expected]
    assert len(ledger.open_questions()) == 10
    assert ledger.open_questions("three") == []


def test_an_answer_counts_for_every_lineage_that_waits(ledger: Ledger, ask: Any, questions: list[Question]) -> None:
    ask(ONE)
    ask(TWO)
    receipt = ledger.answer(shown(questions[0]), "people", says("first", rationale="better", probability=0.9))
    assert receipt.status == "counted"
    assert receipt.reason == "it counts for round 2 of lineage 'one', round 0 of lineage 'two'"
    spends = [ledger.spend(lineage) for lineage in ("one", "two")]
    assert [(spend.num_labels, spend.num_pending) for spend in spends] == [(1, 4), (1, 4)]
    assert [(spend.cost, spend.paid) for spend in spends] == [(1.0, 1.0), (1.0, 0.0)]
    ((label,), *others) = ask(ONE)
    is_first = shown(questions[0]).first == questions[0].first
    assert (label.choice, label.rationale, label.annotator) == ("first" if is_first else "second", "better", "ann")
    assert (label.bought, label.swapped) == (True, not is_first)
    assert label.probability == pytest.approx(0.9 if is_first else 0.1)
    assert others == [[]] * 4


@pytest.mark.parametrize("choice", ["first", "second", "tie", "abstain"])
def test_an_answer_speaks_of_the_order_in_which_the_question_was_shown(
    ledger: Ledger, ask: Any, questions: list[Question], choice: str
) -> None:
    ask()
    opposite = {"first": "second", "second": "first"}
    ledger.answer(questions[0], "people", says(choice))
    ledger.answer(turned(questions[1]), "people", says(choice))
    labels = ask()
    assert [labels[0][0].choice, labels[1][0].choice] == [choice, opposite.get(choice, choice)]
    assert [labels[0][0].swapped, labels[1][0].swapped] == [False, True]


def test_annotators_fill_different_repetitions_and_are_named(
    ledger: Ledger, ask: Any, questions: list[Question]
) -> None:
    ask(repeats=3)
    for annotator in ("ann", "bob"):
        assert ledger.answer(questions[0], "people", says("tie", annotator)).status == "counted"
    waiting = ledger.open_questions("one")[0]
    assert (waiting.wanted, waiting.annotators) == (1, ("ann", "bob"))
    labels = ask(repeats=3)[0]
    assert [(label.repetition, label.annotator) for label in labels] == [(0, "ann"), (1, "bob")]


def test_a_second_answer_of_an_annotator_replaces_the_first_and_both_are_remembered(
    ledger: Ledger, ask: Any, questions: list[Question]
) -> None:
    ask(repeats=2)
    ledger.answer(questions[0], "people", says("first", rationale="hasty"))
    receipt = ledger.answer(questions[0], "people", says("tie", cost=0.25))
    assert receipt.status == "replaced"
    assert [(label.choice, label.cost) for label in ask(repeats=2)[0]] == [("tie", 0.25)]
    assert (ledger.spend("one").num_labels, ledger.spend("one").cost, ledger.spend("one").paid) == (1, 0.25, 0.25)
    history = [(entry.rationale, entry.superseded) for entry in ledger.entries("one")]
    assert history == [("hasty", True), ("", False)]


def test_a_change_of_mind_costs_no_more_than_the_first_answer(
    ledger: Ledger, ask: Any, questions: list[Question]
) -> None:
    ask()
    ledger.answer(questions[0], "people", says("first", cost=0.5))
    with pytest.raises(InputError, match=r"costs 0\.75, expected 0\.5 at most, which is reserved for it or was paid"):
        ledger.answer(questions[0], "people", says("second", cost=0.75))
    ledger.answer(questions[0], "people", says("tie"))
    assert (ledger.spend("one").cost, ledger.spend("one").paid) == (0.5, 0.5)
    assert [entry.choice for entry in ledger.entries() if not entry.superseded] == ["tie"]


def test_an_answer_nobody_asks_for_is_kept_for_whoever_asks_for_more(
    ledger: Ledger, ask: Any, questions: list[Question]
) -> None:
    ask()
    ledger.answer(questions[0], "people", says("first", "ann"))
    receipt = ledger.answer(questions[0], "people", says("second", "bob"))
    assert (receipt.status, receipt.reason) == (
        "kept",
        "nobody asks for more answers to this question: the answer is kept",
    )
    assert [label.annotator for label in ask()[0]] == ["ann"]
    assert ledger.spend("one").num_labels == 1
    assert [label.annotator for label in ask(TWO, repeats=2)[0]] == ["ann", "bob"]
    assert (ledger.spend("two").num_labels, ledger.spend("two").num_pending) == (2, 8)


def test_what_comes_after_the_round_has_closed_is_kept_for_the_next(
    ledger: Ledger, ask: Any, questions: list[Question]
) -> None:
    ask(repeats=2)
    ledger.answer(questions[0], "people", says("first"))
    assert ledger.close("one", 2) == 9
    assert ledger.close("one", 2) == 0
    assert (ledger.open_questions(), ledger.spend("one").pending) == ([], 0.0)
    late = [(questions[3], "ann"), (questions[3], "bob"), (questions[0], "bob")]
    receipts = [ledger.answer(asked, "people", says("second", annotator)) for asked, annotator in late]
    assert {receipt.status for receipt in receipts} == {"kept"}
    kept = "round 2 of lineage 'one' has closed: the answer is kept"
    serves = f"{kept} and serves the next round"
    assert [receipt.reason for receipt in receipts] == [serves, serves, kept]
    assert ledger.spend("one").num_labels == 1


def test_buying_what_came_late_uses_it(
    ledger: Ledger, ask: Any, people: Any, questions: list[Question], workplace: Workplace
) -> None:
    ask()
    ledger.close("one", 2)
    ledger.answer(questions[3], "people", says("second", "bob"))
    ((label,),) = ledger.buy(questions[3:4], people(), replace(ONE, round=3, budget=1.0), workplace)
    assert (label.choice, label.annotator) == ("second", "bob")
    assert (ledger.spend("one").num_labels, ledger.spend("one").cost) == (1, 1.0)
    assert ledger.progress("one", 3).num_answered == 1


def test_a_closed_round_that_asks_again_opens_its_questions_again(ledger: Ledger, ask: Any) -> None:
    ask()
    ledger.close("one", 2)
    ask()
    assert (len(ledger.open_questions("one")), ledger.spend("one").num_pending) == (5, 5)


def test_closing_a_round_leaves_other_rounds_and_lineages_alone(
    ledger: Ledger, ask: Any, people: Any, make_question: Make, workplace: Workplace
) -> None:
    ask(ONE)
    ask(TWO)
    ledger.buy([make_question(9)], people(), replace(ONE, round=3), workplace)
    assert ledger.close("one", 2) == 5
    assert (len(ledger.open_questions("one")), len(ledger.open_questions("two"))) == (1, 5)


def test_progress_counts_the_answers_of_one_round(ledger: Ledger, ask: Any, questions: list[Question]) -> None:
    before = datetime.now(UTC)
    ask(repeats=2)
    asked_at = ledger.progress("one", 2).asked_at
    assert asked_at is not None
    assert before <= asked_at <= datetime.now(UTC)
    ledger.answer(questions[0], "people", says("abstain"))
    ledger.answer(questions[0], "people", says("tie", "bob"))
    ledger.answer(questions[1], "people", says("first"))
    ask(repeats=2)
    progress = ledger.progress("one", 2)
    assert (progress.num_asked, progress.num_answered, progress.num_abstained, progress.num_pending) == (10, 3, 1, 7)
    assert progress.asked_at == asked_at
    ledger.close("one", 2)
    progress = ledger.progress("one", 2)
    assert (progress.num_asked, progress.num_answered, progress.num_pending) == (10, 3, 0)
    assert ledger.progress("one", 1).num_asked == ledger.progress("two", 2).num_asked == 0


@pytest.mark.parametrize(
    ("change", "answer", "message"),
    [
        ({"key": "unknown"}, says("first"), "knows no pair unknown"),
        ({"first": "other"}, says("first"), "other responses under the key"),
        ({}, says("left"), "its choice is 'left', expected one of first, second, tie, abstain"),
        ({}, says("first", ""), "it has no annotator"),
        ({}, says("first", probability=2.0), "its probability is 2.0"),
        ({}, says("first", cost=1.5), r"costs 1\.5, expected 1 at most"),
    ],
)
def test_an_answer_that_does_not_fit_is_refused_and_stores_nothing(
    ledger: Ledger, ask: Any, questions: list[Question], change: Any, answer: Answer, message: str
) -> None:
    ask()
    with pytest.raises(InputError, match=message):
        ledger.answer(replace(questions[0], **change), "people", answer)
    assert list(ledger.entries()) == []
    assert ledger.spend("one").num_pending == 5


def test_an_answer_for_a_labeller_that_was_never_asked_is_refused(
    ledger: Ledger, ask: Any, questions: list[Question]
) -> None:
    ask()
    with pytest.raises(InputError, match="labeller others was never asked"):
        ledger.answer(questions[0], "others", says("first"))


def test_a_round_that_failed_does_not_leave_its_questions_to_people(
    ledger: Ledger, recorded: Any, questions: list[Question], workplace: Workplace
) -> None:
    with pytest.raises(ConnectionError):
        ledger.buy(questions, recorded(fails_after=0), ONE, workplace)
    assert ledger.open_questions() == []


def test_an_answer_that_comes_while_the_round_looks_for_answers_counts_once(
    ledger: Ledger, recorded: Any, questions: list[Question], workplace: Workplace
) -> None:
    class Queue(recorded):
        def __call__(self, asks: Any, _: Workplace) -> Any:
            ledger.answer(asks[0].question, self.identity, says("first", "page"))
            yield [(asks[0], says("second", "queue")), (asks[1], says("second", "queue"))]

    labels = ledger.buy(questions, Queue(), ONE, workplace)
    assert [[label.annotator for label in answers] for answers in labels] == [["page"], ["queue"], [], [], []]
    assert [(entry.annotator, entry.superseded) for entry in ledger.entries()] == [
        ("page", False),
        ("queue", True),
        ("queue", False),
    ]
    assert ledger.spend("one").num_labels == ledger.spend("one").num_bought == 2
