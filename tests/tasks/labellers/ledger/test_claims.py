"""Two purchases at once: who asks what, who waits, and who takes over from the dead."""

import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from tasks.labellers.ledger import Account, Ledger, question_key
from tasks.labellers.protocol import Answer, Label, Question, Workplace

pytestmark = pytest.mark.labels

ONE, TWO = Account(lineage="one", round=0), Account(lineage="two", round=0)


@pytest.fixture
def questions(make_question: Callable[[int], Question]) -> list[Question]:
    return [make_question(index) for index in range(6)]


@pytest.fixture
def aside() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture
def waiting(recorded: Any) -> Callable[[], Any]:
    """A labeller that answers nothing until it is told to."""

    class Waiting(recorded):
        def __call__(self, asks: Any, _: Workplace) -> Any:
            self.asked += asks
            self.began.set()
            assert self.may_go_on.wait(60)
            for ask in asks if not self.leaves_open(asks[0]) else ():
                yield [(ask, replace(self.says(ask), annotator=self.name))]

    def make(name: str = "slow", **fields: Any) -> Any:
        labeller = Waiting(**fields)
        labeller.name, labeller.began, labeller.may_go_on = name, Event(), Event()
        return labeller

    return make


def test_what_another_lineage_asks_at_the_moment_is_waited_for_and_not_bought_again(
    ledger: Ledger, recorded: Any, questions: list[Question], workplace: Workplace, aside: Any, waiting: Any
) -> None:
    slow, fast = waiting(), recorded()
    first: Future[list[list[Label]]] = aside.submit(ledger.buy, questions[:4], slow, ONE, workplace)
    assert slow.began.wait(60)
    second: Future[list[list[Label]]] = aside.submit(ledger.buy, questions, fast, TWO, workplace)
    while ledger.spend("two").num_labels < 2:
        time.sleep(0.02)
    assert not second.done()
    slow.may_go_on.set()
    assert [[replace(label, bought=False)] for (label,) in first.result(60)] == second.result(60)[:4]
    assert [ask.question.key for ask in fast.asked] == [asked.key for asked in questions[4:]]
    assert ledger.spend("two").num_labels == ledger.spend().num_bought == 6


def test_a_labeller_that_takes_longer_than_the_lease_keeps_its_claims(
    ledger: Ledger, recorded: Any, questions: list[Question], workplace: Workplace, aside: Any, waiting: Any
) -> None:
    brief, slow, fast = replace(ledger, lease=1.5), waiting(), recorded()
    first = aside.submit(brief.buy, questions, slow, ONE, workplace)
    assert slow.began.wait(60)
    second = aside.submit(brief.buy, questions, fast, TWO, workplace)
    time.sleep(3.5)
    assert not second.done()
    slow.may_go_on.set()
    assert len(first.result(60)) == len(second.result(60)) == 6
    assert fast.asked == []


def test_what_a_failed_purchase_gives_up_is_asked_by_who_waits_for_it(
    ledger: Ledger, recorded: Any, questions: list[Question], workplace: Workplace, aside: Any, waiting: Any
) -> None:
    class Failing(type(waiting())):
        def says(self, _: Any) -> Answer:
            raise ConnectionError("gone")

    failing, fast = Failing(), recorded()
    failing.name, (failing.began, failing.may_go_on) = "failing", (Event(), Event())
    first = aside.submit(ledger.buy, questions, failing, ONE, workplace)
    assert failing.began.wait(60)
    second = aside.submit(ledger.buy, questions, fast, TWO, workplace)
    failing.may_go_on.set()
    with pytest.raises(ConnectionError):
        first.result(60)
    assert len(second.result(60)) == len(fast.asked) == 6
    assert (ledger.spend("one").num_labels, ledger.spend("one").num_bought) == (6, 0)
    assert [ledger.spend(lineage).num_repeated for lineage in ("one", "two")] == [0, 6]


def test_what_another_lineage_left_to_people_is_not_waited_for(
    ledger: Ledger, people: Any, questions: list[Question], workplace: Workplace
) -> None:
    ledger.buy(questions, people(), ONE, workplace)
    assert ledger.buy(questions, people(), TWO, workplace) == [[]] * 6


def test_what_another_lineage_shows_to_its_people_at_the_moment_is_shown_to_ones_own_after_that(
    ledger: Ledger, people: Any, questions: list[Question], workplace: Workplace, aside: Any, waiting: Any
) -> None:
    slow, own = waiting(identity="people", leaves_open=lambda _: True), people()
    first = aside.submit(ledger.buy, questions[:4], slow, ONE, workplace)
    assert slow.began.wait(60)
    second = aside.submit(ledger.buy, questions, own, TWO, workplace)
    while ledger.spend("two").num_pending < 6:
        time.sleep(0.02)
    assert not second.done()
    slow.may_go_on.set()
    assert (first.result(60), second.result(60)) == ([[]] * 4, [[]] * 6)
    assert [ask.question.key for ask in own.asked] == [asked.key for asked in questions[4:] + questions[:4]]
    assert len(slow.asked) == 4


@pytest.fixture
def die(nursery: Any, tmp_path: Path) -> Callable[[Ledger, Account], None]:
    """Leave a ledger as a purchase of six answers does that is killed: reserved, claimed, unanswered."""

    def buy(ledger: Ledger, account: Account) -> None:
        order = {
            "ledger": {"url": ledger.url, "lease": ledger.lease},
            "account": {"lineage": account.lineage, "round": account.round},
            "labeller": {"log": str(tmp_path / "log"), "chunk": 6, "pause": 0.0, "dies": True},
            "questions": [0, 6],
            "repeats": 1,
        }
        assert nursery.wait(nursery.start(order)) == -signal.SIGKILL

    return buy


@pytest.fixture
def left() -> list[Question]:
    """What the dead were asked."""
    messages = [{"role": None, "content": "p"}]
    pairs = [(f"a {index}", f"b {index}") for index in range(6)]
    return [
        Question(key=question_key("p", first=first, second=second), messages=messages, first=first, second=second)
        for first, second in pairs
    ]


def test_a_lineage_goes_on_at_once_where_its_round_was_killed(
    ledger: Ledger, recorded: Any, left: list[Question], workplace: Workplace, die: Any
) -> None:
    die(ledger, ONE)
    assert (ledger.spend("one").num_pending, ledger.open_questions()) == (6, [])
    began = time.monotonic()
    labeller = recorded(identity="logging")
    assert len(ledger.buy(left, labeller, ONE, workplace)) == len(labeller.asked) == 6
    assert time.monotonic() - began < ledger.lease / 2


@pytest.mark.parametrize("account", [TWO, replace(ONE, round=1)])
def test_others_take_over_from_the_dead_when_the_lease_has_ended(
    ledger: Ledger, recorded: Any, left: list[Question], workplace: Workplace, die: Any, account: Account
) -> None:
    brief, labeller = replace(ledger, lease=2.0), recorded(identity="logging")
    died = time.monotonic()
    die(brief, ONE)
    assert len(brief.buy(left, labeller, account, workplace)) == len(labeller.asked) == 6
    assert time.monotonic() - died > 2.0
    assert ledger.spend("one").num_pending == 0


def test_an_answer_that_comes_twice_counts_once_and_is_remembered(
    ledger: Ledger, recorded: Any, questions: list[Question], workplace: Workplace, aside: Any, waiting: Any
) -> None:
    stalled, fast = waiting("stalled"), recorded()
    first = aside.submit(ledger.buy, questions, stalled, ONE, workplace)
    assert stalled.began.wait(60)
    ledger.buy(questions, fast, ONE, workplace)  # the same round again: the first is taken for dead
    stalled.may_go_on.set()
    assert [label.annotator for (label,) in first.result(60)] == ["annotator 0"] * 6
    assert ledger.spend().num_labels == ledger.spend().num_bought == 6
    assert [(entry.annotator, entry.superseded) for entry in ledger.entries()] == [
        ("annotator 0", False),
    ] * 6 + [("stalled", True)] * 6
