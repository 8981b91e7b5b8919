from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from cluster.errors import InputError
from tasks.labellers.ledger import Account, Ledger, Spend, question_key
from tasks.labellers.protocol import Answer, Label, Question, Workplace

pytestmark = pytest.mark.labels

ONE, TWO = Account(lineage="one", round=2), Account(lineage="two", round=0)
NOTHING = Spend(num_labels=0, cost=0.0, num_pending=0, pending=0.0, num_bought=0, paid=0.0, num_repeated=0)

Make = Callable[[int], Question]


def turned(asked: Question) -> Question:
    return replace(asked, first=asked.second, second=asked.first)


def flat(labels: list[list[Label]]) -> list[Label]:
    assert all(len(answers) == 1 for answers in labels)
    return [answers[0] for answers in labels]


def test_labels_come_in_the_order_and_orientation_of_the_questions(
    ledger: Ledger, recorded: Any, make_question: Make, workplace: Workplace
) -> None:
    questions = [make_question(index) for index in range(100)]
    labels = flat(ledger.buy(questions, recorded(), ONE, workplace))
    for asked, label in zip(questions, labels, strict=True):
        longer = len(asked.first) - len(asked.second)
        assert label.key == asked.key
        assert label.choice == ("tie" if longer == 0 else "first" if longer > 0 else "second")
        assert label.probability == pytest.approx((1 + len(asked.first)) / (2 + len(asked.first + asked.second)))
        assert (label.bought, label.cost, label.annotator) == (True, 0.5, "annotator 0")
        assert label.detail == {"length": float(len(asked.first + asked.second))}


def test_an_answer_is_bought_once_and_charged_to_every_lineage_that_uses_it(
    ledger: Ledger, recorded: Any, make_question: Make, workplace: Workplace
) -> None:
    assert ledger.spend() == NOTHING
    labeller, questions = recorded(), [make_question(index) for index in range(50)]
    first = ledger.buy(questions[:30], labeller, ONE, workplace)
    second = ledger.buy(questions[::-1], labeller, TWO, workplace)
    assert sorted(ask.question.key for ask in labeller.asked) == sorted(asked.key for asked in questions)
    assert [[replace(label, bought=True)] for label in flat(second)][::-1][:30] == first
    assert [label.bought for label in flat(second)] == [True] * 20 + [False] * 30
    assert ledger.spend("one") == replace(NOTHING, num_labels=30, cost=15.0, num_bought=30, paid=15.0)
    assert ledger.spend("two") == replace(NOTHING, num_labels=50, cost=25.0, num_bought=20, paid=10.0)
    assert ledger.spend("three") == NOTHING
    assert ledger.spend() == replace(NOTHING, num_labels=80, cost=40.0, num_bought=50, paid=25.0)
    assert ledger.lineages() == ["one", "two"]


def test_a_round_that_is_run_again_gets_the_same_labels_and_is_charged_once(
    ledger: Ledger, recorded: Any, make_question: Make, workplace: Workplace
) -> None:
    questions = [make_question(index) for index in range(10)]
    labels = ledger.buy(questions, recorded(), ONE, workplace)
    spend = ledger.spend("one")
    again = recorded()
    assert ledger.buy(questions, again, ONE, workplace) == labels
    assert (again.asked, ledger.spend("one")) == ([], spend)


def test_labellers_have_their_own_labels(
    ledger: Ledger, recorded: Any, make_question: Make, workplace: Workplace
) -> None:
    one, other = recorded(), recorded(identity="other")
    for labeller in (one, other):
        ledger.buy([make_question(0)], labeller, ONE, workplace)
    assert (len(one.asked), len(other.asked), ledger.spend().num_labels) == (1, 1, 2)


def test_a_pair_asked_twice_in_one_call_is_bought_once(
    ledger: Ledger, recorded: Any, make_question: Make, workplace: Workplace
) -> None:
    labeller, asked = recorded(), make_question(3)
    labels = flat(ledger.buy([asked, turned(asked), asked], labeller, ONE, workplace))
    assert len(labeller.asked) == 1
    assert [label.bought for label in labels] == [True, False, False]
    assert labels[0].choice == labels[2].choice != labels[1].choice


def test_turned_questions_get_turned_labels(
    ledger: Ledger, recorded: Any, make_question: Make, workplace: Workplace
) -> None:
    labeller, questions = recorded(), [make_question(index) for index in range(60)]
    labels = flat(ledger.buy(questions, labeller, ONE, workplace))
    mirrored = flat(ledger.buy([turned(asked) for asked in questions], labeller, ONE, workplace))
    assert len(labeller.asked) == 60
    opposite = {"first": "second", "second": "first", "tie": "tie"}
    for label, mirror in zip(labels, mirrored, strict=True):
        assert mirror.choice == opposite[label.choice]
        assert mirror.swapped != label.swapped
        assert mirror.probability == pytest.approx(1 - label.probability)
    assert {label.choice for label in labels} == {"first", "second", "tie"}


def test_the_order_shown_is_shuffled_recorded_and_the_same_for_every_asker(
    tmp_path: Path, recorded: Any, make_question: Make, workplace: Workplace
) -> None:
    questions = [make_question(index) for index in range(200)]
    one, other, reseeded = recorded(), recorded(), recorded()
    labels = flat(Ledger.at(tmp_path / "one").buy(questions, one, ONE, workplace))
    Ledger.at(tmp_path / "other").buy([turned(asked) for asked in questions], other, TWO, workplace)
    Ledger.at(tmp_path / "reseeded", seed=1).buy(questions, reseeded, ONE, workplace)
    assert one.asked == other.asked != reseeded.asked
    assert [label.swapped for label in labels] == [
        ask.question.first != asked.first for ask, asked in zip(one.asked, questions, strict=True)
    ]
    assert 60 < sum(label.swapped for label in labels) < 140


def test_repetitions_are_bought_as_far_as_they_are_not_there(
    ledger: Ledger, recorded: Any, make_question: Make, workplace: Workplace
) -> None:
    labeller, questions = recorded(), [make_question(index) for index in range(4)]
    ledger.buy(questions[:2], labeller, ONE, workplace)
    labels = ledger.buy(questions, labeller, TWO, workplace, repeats=3)
    assert [[label.repetition for label in answers] for answers in labels] == [[0, 1, 2]] * 4
    assert len(labeller.asked) == len({(ask.question.key, ask.repetition) for ask in labeller.asked}) == 12
    assert [label.bought for label in labels[0]] == [False, True, True]
    assert (ledger.spend("two").num_labels, ledger.spend("two").num_bought) == (12, 10)
    assert [len(answers) for answers in ledger.buy(questions, labeller, TWO, workplace, repeats=2)] == [2] * 4
    assert len(labeller.asked) == 12


def test_every_character_comes_back(ledger: Ledger, recorded: Any, workplace: Workplace) -> None:
    odd = "a\0b \ud800 \U0001f600 \u202eright \u200b 'quoted' \\ % \n"
    asked = Question(
        key=question_key(odd, first=odd, second=""), messages=[{"role": None, "content": odd}], first=odd, second=""
    )

    class Odd(recorded):
        def says(self, _: Any) -> Answer:
            return Answer(choice="abstain", annotator=odd, rationale=odd, detail={"odd": odd, "nan": 0.1})

    (label,) = flat(ledger.buy([asked], Odd(), ONE, workplace))
    (entry,) = ledger.entries()
    assert (label.choice, label.probability, label.annotator, label.rationale) == ("abstain", None, odd, odd)
    assert (entry.messages, {entry.first, entry.second}) == (asked.messages, {odd, ""})
    assert entry.detail == label.detail == {"odd": odd, "nan": 0.1}


@pytest.mark.parametrize("change", ["another question", "another repetition", "turned", "twice"])
def test_an_answer_to_what_was_not_asked_is_refused_and_its_chunk_not_kept(
    ledger: Ledger, recorded: Any, make_question: Make, workplace: Workplace, change: str
) -> None:
    class Confused(recorded):
        def __call__(self, asks: Any, _: Workplace) -> Any:
            yield [(asks[0], self.says(asks[0]))]
            wrong = {
                "another question": replace(asks[1], question=make_question(7)),
                "another repetition": replace(asks[1], repetition=1),
                "turned": replace(asks[1], question=turned(asks[1].question)),
                "twice": asks[0],
            }
            yield [(ask, self.says(ask)) for ask in (asks[2], wrong[change])]

    with pytest.raises(ValueError, match="which it was not asked"):
        ledger.buy([make_question(index) for index in range(3)], Confused(), ONE, workplace)
    assert (ledger.spend().num_labels, ledger.spend().num_pending) == (1, 2)
    assert ledger.open_questions() == []


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (Answer(choice="both"), "its choice is 'both'"),
        (Answer(choice="first", probability=1.5), "its probability is 1.5"),
        (Answer(choice="first", probability=float("nan")), "its probability is nan"),
        (Answer(choice="first", cost=-1.0), "its cost is -1.0"),
        (Answer(choice="first", cost=float("inf")), "its cost is inf"),
    ],
)
def test_an_answer_that_is_none_is_refused_and_not_kept(
    sqlite_ledger: Ledger, recorded: Any, make_question: Make, workplace: Workplace, answer: Answer, fault: str
) -> None:
    class Wrong(recorded):
        def says(self, _: Any) -> Answer:
            return answer

    with pytest.raises(ValueError, match=f"labeller recorded gave an answer.*{fault}"):
        sqlite_ledger.buy([make_question(0)], Wrong(), ONE, workplace)
    assert sqlite_ledger.spend().num_labels == 0


def test_what_was_bought_before_a_labeller_fails_is_kept_and_not_asked_again(
    ledger: Ledger, recorded: Any, make_question: Make, workplace: Workplace
) -> None:
    questions = [make_question(index) for index in range(64)]
    with pytest.raises(ConnectionError, match="gone"):
        ledger.buy(questions, recorded(fails_after=32), ONE, workplace)
    spend = ledger.spend("one")
    assert (spend.num_labels, spend.cost, spend.num_pending, spend.pending) == (32, 16.0, 32, 16.0)
    assert ledger.open_questions() == []
    resumed = recorded()
    assert len(flat(ledger.buy(questions, resumed, ONE, workplace))) == 64
    assert [ask.question.key for ask in resumed.asked] == [asked.key for asked in questions[32:]]
    assert ledger.spend("one") == replace(NOTHING, num_labels=64, cost=32.0, num_bought=64, paid=32.0, num_repeated=32)


def test_a_labeller_that_is_left_early_is_told_at_once(
    sqlite_ledger: Ledger, recorded: Any, make_question: Make, workplace: Workplace
) -> None:
    told = []

    class Careful(recorded):
        def __call__(self, asks: Any, _: Workplace) -> Any:
            try:
                yield [(asks[0], Answer(choice="nonsense"))]
            finally:
                told.append("closed")

    with pytest.raises(ValueError, match="nonsense"):
        sqlite_ledger.buy([make_question(0)], Careful(), ONE, workplace)
    assert told == ["closed"]


def test_entries_say_everything_in_sorted_order(
    ledger: Ledger, recorded: Any, make_question: Make, workplace: Workplace
) -> None:
    before = datetime.now(UTC)
    questions = [make_question(index) for index in range(30)]
    ledger.buy(questions[:20], recorded(), ONE, workplace, repeats=2)
    ledger.buy(questions[10:], recorded(), TWO, workplace)
    entries = list(ledger.entries())
    assert len(entries) == 50
    assert len(list(ledger.entries("one"))) == 40
    assert [entry.key for entry in ledger.entries("two")] == [asked.key for asked in questions[10:]]
    asked = {question.key: question for question in questions}
    for entry in entries:
        first, second = sorted((asked[entry.key].first, asked[entry.key].second))
        assert (entry.first, entry.second, entry.messages) == (first, second, asked[entry.key].messages)
        lengths = len(first) - len(second)
        assert entry.choice == ("tie" if lengths == 0 else "first" if lengths > 0 else "second")
        assert entry.probability == pytest.approx((1 + len(first)) / (2 + len(first + second)))
        assert (entry.labeller, entry.cost, entry.superseded) == ("recorded", 0.5, False)
        assert before <= entry.answered_at <= datetime.now(UTC)
    assert {(entry.lineage, entry.round) for entry in entries} == {("one", 2), ("two", 0)}
    assert {entry.swapped for entry in entries} == {True, False}


def test_reading_a_ledger_that_is_not_there_makes_none(tmp_path: Path) -> None:
    ledger = Ledger.at(tmp_path / "folder" / "ledger.sqlite")
    assert (ledger.spend(), ledger.lineages(), list(ledger.entries())) == (NOTHING, [], [])
    assert ledger.answered("one", before=1) == set()
    assert ledger.progress("one", 0).asked_at is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["with space", "50%20", "what?", "a#b", "ü"])
def test_a_ledger_lies_in_the_file_that_is_named(
    tmp_path: Path, recorded: Any, make_question: Make, workplace: Workplace, name: str
) -> None:
    Ledger.at(tmp_path / name).buy([make_question(0)], recorded(), ONE, workplace)
    assert (tmp_path / name).exists()


def test_a_key_that_is_not_of_the_content_is_noticed(
    ledger: Ledger, recorded: Any, make_question: Make, workplace: Workplace
) -> None:
    ledger.buy([replace(make_question(0), key="k")], recorded(), ONE, workplace)
    with pytest.raises(InputError, match="other responses under the key k"):
        ledger.buy([replace(make_question(1), key="k", first="c"), make_question(2)], recorded(), ONE, workplace)
    assert ledger.spend().num_labels == 1


def test_no_questions_are_no_purchase(tmp_path: Path, recorded: Any, workplace: Workplace) -> None:
    assert Ledger.at(tmp_path / "ledger.sqlite").buy([], recorded(), ONE, workplace) == []
    assert list(tmp_path.iterdir()) == []


def test_the_number_of_statements_does_not_grow_with_the_questions(
    ledger: Ledger, recorded: Any, make_question: Make, workplace: Workplace
) -> None:
    statements: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    ledger.close("one", 0)  # makes the tables
    event.listen(ledger.database.engine, "before_cursor_execute", note)
    try:
        for number in (10, 900):
            ledger.buy([make_question(index) for index in range(number)], recorded(chunk=1000), ONE, workplace)
            assert len(statements) < 60
            statements.clear()
    finally:
        event.remove(ledger.database.engine, "before_cursor_execute", note)
