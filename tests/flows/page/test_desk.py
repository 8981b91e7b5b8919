"""What annotators do, on a real ledger and without a browser."""

import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from cluster.settings import Settings
from flows.page import desk as desks
from flows.page.desk import Desk, Sheet
from flows.page.view import Press, answered, opening, undone
from tasks.labellers.ledger import Account, Entry, Ledger, question_key
from tasks.labellers.people import PeopleLabeller
from tasks.labellers.protocol import Choice, Question, Workplace

pytestmark = pytest.mark.labels

MakeDesk = Callable[..., Desk]


@dataclass(frozen=True, kw_only=True)
class WatchedLedger(Ledger):
    """A ledger that takes note of the answers that are read."""

    read: list[Entry] = field(default_factory=list)

    def entries(self, lineage: str | None = None, **which: Any) -> Iterator[Entry]:
        for entry in super().entries(lineage, **which):
            self.read.append(entry)
            yield entry


def question(number: int) -> Question:
    prompt, first, second = f"prompt {number}", f"good {number}", f"bad {number}"
    messages = [{"role": "user", "content": prompt}]
    return Question(
        key=question_key(f"user: {prompt}", first=first, second=second), messages=messages, first=first, second=second
    )


@pytest.fixture
def make_desk(tmp_path: Path) -> MakeDesk:
    """A desk whose lineage has asked people this many questions."""

    def make(num_questions: int = 3, *, repeats: int = 1, round_number: int = 0, skip: int = 0) -> Desk:
        ledger = Ledger.at(tmp_path / "ledger.sqlite")
        place = Workplace(settings=Settings(), lineage="ours", round=round_number)
        asked = [question(number) for number in range(skip, skip + num_questions)]
        labeller = PeopleLabeller(instructions="Prefer what is true.", review_queue=False)
        ledger.buy(asked, labeller, Account(lineage="ours", round=round_number), place, repeats=repeats)
        return Desk(ledger=ledger, lineage="ours")

    return make


def see(desk: Desk, annotator: str) -> Sheet:
    sheet = opening(desk, annotator).sheet
    assert sheet is not None
    return sheet


def press(desk: Desk, annotator: str, sheet: Sheet, choice: Choice) -> str:
    return answered(desk, Press(annotator=annotator, ticket=sheet.ticket, choice=choice)).said


def label_all(desk: Desk, annotator: str, choices: Sequence[Choice]) -> list[Sheet]:
    seen = []
    for choice in choices:
        seen.append(see(desk, annotator))
        press(desk, annotator, seen[-1], choice)
    return seen


def preferred(entry: Entry) -> str:
    return {"first": entry.first, "second": entry.second}.get(entry.choice, entry.choice)


def entries(desk: Desk) -> list[Entry]:
    return list(desk.ledger.entries("ours"))


def test_what_the_ledger_holds_is_the_text_that_was_on_the_side_chosen(make_desk: MakeDesk) -> None:
    desk = make_desk(12)
    seen = label_all(desk, "ann", ["first", "second"] * 6)
    wanted = [(s.question.first, s.question.second)[number % 2] for number, s in enumerate(seen)]
    assert [preferred(entry) for entry in entries(desk)] == wanted
    assert {entry.annotator for entry in entries(desk)} == {"ann"}


def test_sides_are_shuffled_anew_for_every_annotator_and_stay_for_one(make_desk: MakeDesk) -> None:
    desk = make_desk(12, repeats=2)
    lefts = {name: [s.question.first for s in label_all(desk, name, ["tie"] * 12)] for name in ("ann", "bob")}
    good = {name: [left.startswith("good") for left in texts] for name, texts in lefts.items()}
    assert all(0 < sum(sides) < 12 for sides in good.values())
    assert good["ann"] != good["bob"]
    again = undone(desk, "ann", "").sheet
    assert again is not None
    assert again.question.first == lefts["ann"][-1]


def test_nobody_is_shown_what_they_have_answered(make_desk: MakeDesk) -> None:
    desk = make_desk(2, repeats=2)
    label_all(desk, "ann", ["first", "first"])
    assert opening(desk, "ann").sheet is None
    label_all(desk, "bob", ["first", "first"])
    assert desk.look("bob").standing.complete
    assert sorted(entry.repetition for entry in entries(desk)) == [0, 0, 1, 1]


def test_annotators_at_once_look_at_different_questions_while_there_are_enough(make_desk: MakeDesk) -> None:
    desk = make_desk(2)
    assert see(desk, "ann").question.key == see(desk, "ann").question.key
    assert see(desk, "ann").question.key != see(desk, "bob").question.key
    assert see(desk, "eve").question.key == see(desk, "ann").question.key, "better one more answer than none"


def test_many_annotators_at_once_lose_no_answer(make_desk: MakeDesk) -> None:
    desk, names = make_desk(6, repeats=3), ["ann", "bob", "eve"]
    gate = threading.Barrier(len(names))

    def work(name: str) -> None:
        gate.wait()
        label_all(desk, name, ["first"] * 6)

    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [(entry.key, entry.annotator) for entry in entries(desk) if not entry.superseded]
    assert len(found) == len(set(found)) == 18


def test_undo_goes_back_and_the_latest_answer_counts_with_the_history_kept(make_desk: MakeDesk) -> None:
    desk = make_desk(3)
    one, two = label_all(desk, "ann", ["first", "tie"])
    view = undone(desk, "ann", see(desk, "ann").ticket)
    assert view.sheet is not None
    assert (view.sheet.question, view.sheet.before) == (two.question, "tie")
    earlier = undone(desk, "ann", view.sheet.ticket).sheet
    assert earlier is not None
    assert (earlier.question, earlier.before) == (one.question, "first")
    assert press(desk, "ann", earlier, "second") == "Changed: right is better."

    history = [entry for entry in entries(desk) if entry.key == one.question.key]
    assert [preferred(entry) for entry in history] == [one.question.first, one.question.second]
    assert [entry.superseded for entry in history] == [True, False]
    standing = desk.look("ann").standing
    assert (standing.answered, standing.asked, standing.yours) == (2, 3, 2)


def test_undo_with_nothing_before_it_says_so_and_keeps_the_question(make_desk: MakeDesk) -> None:
    desk = make_desk(1)
    shown = see(desk, "ann")
    view = undone(desk, "ann", shown.ticket)
    assert view.sheet == shown
    assert "nothing before this" in view.said


def test_undo_does_not_reach_into_an_earlier_round(make_desk: MakeDesk) -> None:
    label_all(make_desk(1), "ann", ["first"])
    desk = make_desk(1, round_number=1, skip=1)
    assert undone(desk, "ann", see(desk, "ann").ticket).sheet == see(desk, "ann")
    assert desk.look("ann").standing.yours == 0


def test_a_second_press_for_one_sight_of_a_question_changes_nothing(make_desk: MakeDesk) -> None:
    desk = make_desk(2)
    shown = see(desk, "ann")
    press(desk, "ann", shown, "first")
    assert press(desk, "ann", shown, "second").startswith("Not saved")
    (entry,) = entries(desk)
    assert preferred(entry) == shown.question.first


def test_a_press_under_another_name_than_the_pair_was_shown_to_changes_nothing(make_desk: MakeDesk) -> None:
    desk = make_desk(12, repeats=2)
    for shown in label_all(desk, "ann", ["tie"] * 12):
        assert press(desk, "Ann Smith", shown, "first").startswith("Not saved")
    assert {entry.annotator for entry in entries(desk)} == {"ann"}
    assert desk.look("Ann Smith").find(see(desk, "Ann Smith").ticket) is not None


def test_a_question_of_another_lineage_is_not_answered(make_desk: MakeDesk) -> None:
    desk = make_desk(1)
    shown = see(replace(desk, lineage="ours"), "ann")
    other = Desk(ledger=desk.ledger, lineage="theirs")
    assert press(other, "ann", shown, "first").startswith("Not saved")
    assert entries(desk) == []


def test_an_answer_for_a_round_that_has_closed_is_not_taken_from_an_old_page(make_desk: MakeDesk) -> None:
    desk = make_desk(2)
    shown = see(desk, "ann")
    desk.ledger.close("ours", 0)
    view = answered(desk, Press(annotator="ann", ticket=shown.ticket, choice="first"))
    assert view.sheet is None


def test_a_ledger_that_takes_no_answer_is_told_of_and_the_question_stays(make_desk: MakeDesk, tmp_path: Path) -> None:
    desk = make_desk(1)
    shown = see(desk, "ann")
    hurried = Desk(ledger=replace(desk.ledger, patience=0.2), lineage="ours")
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        view = answered(hurried, Press(annotator="ann", ticket=shown.ticket, choice="first", rationale="as it is true"))
    assert view.sheet == replace(shown, rationale="as it is true"), "what was typed is not lost"
    assert view.said.startswith("Not saved: ")
    assert view.fault
    assert entries(desk) == []


def test_the_answer_that_completes_a_round_is_known_as_that(make_desk: MakeDesk) -> None:
    desk = make_desk(2)
    views = [answered(desk, Press(annotator="ann", ticket=see(desk, "ann").ticket, choice="abstain")) for _ in range(2)]
    assert [view.completes for view in views] == [False, True]


def test_of_what_is_answered_a_look_reads_the_annotators_own_answers_of_the_round(make_desk: MakeDesk) -> None:
    label_all(make_desk(2), "ann", ["first"] * 2)
    desk = make_desk(3, repeats=2, round_number=1, skip=2)
    label_all(desk, "ann", ["first"] * 3)
    label_all(desk, "bob", ["first"] * 2)
    watched = WatchedLedger(url=desk.ledger.url)
    standing = replace(desk, ledger=watched).look("bob").standing
    assert (standing.answered, standing.asked, standing.yours) == (5, 6, 2)
    assert [(entry.annotator, entry.round) for entry in watched.read] == [("bob", 1)] * 2


def test_where_nothing_is_open_the_last_round_is_told_of(make_desk: MakeDesk) -> None:
    label_all(make_desk(1), "ann", ["first"])
    desk = make_desk(2, round_number=1, skip=1)
    label_all(desk, "ann", ["tie"] * 2)
    standing = desk.look("ann").standing
    assert (standing.answered, standing.asked, standing.yours) == (2, 2, 2)


def test_whoever_left_is_forgotten(make_desk: MakeDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = make_desk(3)
    left = see(desk, "ann")
    assert see(desk, "bob").question.key != left.question.key
    monkeypatch.setattr(desks, "HOLD_SECONDS", 0.0)
    assert see(desk, "eve").question.key == left.question.key
    assert list(desk._held) == ["eve"]


def test_instructions_are_the_labellers(make_desk: MakeDesk) -> None:
    assert see(make_desk(1), "ann").instructions == "Prefer what is true."
    assert replace(see(make_desk(1), "ann"), labeller="not JSON").instructions == ""
