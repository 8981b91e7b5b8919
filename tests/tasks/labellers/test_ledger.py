import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cluster.errors import InputError
from tasks.labellers.ledger import Label, Ledger, Spend, question_key, shown_swapped
from tasks.labellers.protocol import Answer, Question
from tasks.labellers.rewards import Length
from tasks.labellers.simulated import SimulatedLabeller

SIMULATED = SimulatedLabeller(reward=Length(unit=1.0), temperature=3.0, cost=0.5)

BUYER = """
import sys, time
from dataclasses import dataclass
from pathlib import Path
from tasks.labellers.ledger import Ledger, question_key
from tasks.labellers.protocol import Question
from tasks.labellers.rewards import Length
from tasks.labellers.simulated import SimulatedLabeller

SIMULATED = SimulatedLabeller(reward=Length(unit=1.0), temperature=3.0, cost=0.5)
path, asked, go, lineage, number, pause = sys.argv[1:]

class Recorded:
    identity, cost = SIMULATED.identity, SIMULATED.cost
    def __call__(self, questions):
        with open(asked, "a") as file:
            file.writelines(question.key + "\\n" for question in questions)
        time.sleep(float(pause))
        return SIMULATED(questions)

def question(index):
    first, second = "a " * (index % 9), f"b {index}"
    return Question(key=question_key("p", first=first, second=second), prompt="p", first=first, second=second)

questions = [question(index) for index in range(int(number))]
Path(asked).touch()
while not Path(go).exists():
    time.sleep(0.01)
for label in Ledger(path=Path(path)).buy(questions, Recorded(), lineage=lineage, round_number=0, batch_size=10):
    print(label.key, label.preferred)
"""


@dataclass
class Recorded:
    """A labeller that writes down what it is shown."""

    labeller: SimulatedLabeller = SIMULATED
    shown: list[Question] = field(default_factory=list)

    @property
    def identity(self) -> str:
        return self.labeller.identity

    @property
    def cost(self) -> float:
        return self.labeller.cost

    def __call__(self, questions: Sequence[Question]) -> list[Answer]:
        self.shown += questions
        return self.labeller(questions)


def question(index: int) -> Question:
    first, second = "a " * (index % 9), f"b {index}"
    return Question(key=question_key("p", first=first, second=second), prompt="p", first=first, second=second)


def turned(asked: Question) -> Question:
    return replace(asked, first=asked.second, second=asked.first)


def start_buyer(folder: Path, *, lineage: str, number: int, pause: float) -> subprocess.Popen[str]:
    paths = [str(folder / name) for name in ("labels.db", f"asked-{lineage}", "go")]
    command = [sys.executable, "-c", BUYER, *paths, lineage, str(number), str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def wait_for_lines(path: Path, number: int) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() or len(path.read_text().splitlines()) < number:
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(path=tmp_path / "new" / "labels.db")


def buy(ledger: Ledger, questions: Sequence[Question], labeller: Recorded, lineage: str = "one") -> list[Label]:
    return ledger.buy(questions, labeller, lineage=lineage, round_number=2, batch_size=16)


def test_labels_come_in_the_order_and_orientation_of_the_questions(ledger: Ledger) -> None:
    questions = [question(index) for index in range(100)]
    labels = buy(ledger, questions, Recorded())
    expected = SIMULATED(questions)
    assert [label.key for label in labels] == [asked.key for asked in questions]
    assert [label.preferred for label in labels] == [answer.preferred for answer in expected]
    assert [label.probability for label in labels] == pytest.approx([answer.probability for answer in expected])
    assert all(label.bought and label.cost == 0.5 for label in labels)


def test_a_label_is_bought_once_over_all_calls(ledger: Ledger) -> None:
    labeller, questions = Recorded(), [question(index) for index in range(50)]
    first = buy(ledger, questions[:30], labeller)
    second = buy(ledger, questions[::-1], labeller, lineage="two")
    assert sorted(asked.key for asked in labeller.shown) == sorted(asked.key for asked in questions)
    assert [replace(label, bought=True) for label in second[::-1]][:30] == first
    assert [label.bought for label in second] == [True] * 20 + [False] * 30


def test_spend_is_counted_for_the_lineage_that_bought(ledger: Ledger) -> None:
    assert ledger.spend() == Spend(num_labels=0, cost=0.0)
    questions = [question(index) for index in range(30)]
    buy(ledger, questions[:20], Recorded())
    buy(ledger, questions, Recorded(), lineage="two")
    assert ledger.spend("one") == Spend(num_labels=20, cost=10.0)
    assert ledger.spend("two") == Spend(num_labels=10, cost=5.0)
    assert ledger.spend("three") == Spend(num_labels=0, cost=0.0)
    assert ledger.spend() == Spend(num_labels=30, cost=15.0)


def test_labellers_have_their_own_labels(ledger: Ledger) -> None:
    other = Recorded(replace(SIMULATED, seed=1))
    for labeller in (Recorded(), other):
        buy(ledger, [question(0)], labeller)
    assert len(other.shown) == 1
    assert ledger.spend().num_labels == 2


def test_a_pair_asked_twice_in_one_call_is_bought_once(ledger: Ledger) -> None:
    labeller, asked = Recorded(), question(3)
    labels = buy(ledger, [asked, turned(asked), asked], labeller)
    assert len(labeller.shown) == 1
    assert [label.bought for label in labels] == [True, False, False]
    assert labels[0].preferred == labels[2].preferred != labels[1].preferred


def test_turned_questions_get_turned_labels(ledger: Ledger) -> None:
    labeller, questions = Recorded(), [question(index) for index in range(60)]
    labels = buy(ledger, questions, labeller)
    mirrored = buy(ledger, [turned(asked) for asked in questions], labeller)
    assert len(labeller.shown) == 60
    for label, mirror in zip(labels, mirrored, strict=True):
        assert label.preferred != mirror.preferred
        assert label.swapped != mirror.swapped
        assert label.probability is not None
        assert mirror.probability == pytest.approx(1 - label.probability)


def test_the_order_shown_is_shuffled_recorded_and_the_same_for_every_asker(tmp_path: Path) -> None:
    questions = [question(index) for index in range(200)]
    one, other, reseeded = Recorded(), Recorded(), Recorded()
    labels = buy(Ledger(path=tmp_path / "one.db"), questions, one)
    buy(Ledger(path=tmp_path / "other.db"), [turned(asked) for asked in questions], other)
    buy(Ledger(path=tmp_path / "reseeded.db", seed=1), questions, reseeded)
    assert one.shown == other.shown != reseeded.shown
    assert [label.swapped for label in labels] == [
        shown.first != asked.first for shown, asked in zip(one.shown, questions, strict=True)
    ]
    assert 60 < sum(label.swapped for label in labels) < 140


def test_a_label_without_a_probability_is_kept(ledger: Ledger) -> None:
    class Silent(Recorded):
        def __call__(self, questions: Sequence[Question]) -> list[Answer]:
            return [Answer(preferred="second") for _ in questions]

    bought = buy(ledger, [question(0)], Silent())
    assert bought == [replace(label, bought=True) for label in buy(ledger, [question(0)], Silent())]
    assert bought[0].probability is None


def test_a_missing_answer_is_refused_and_nothing_recorded(ledger: Ledger) -> None:
    class Forgetful(Recorded):
        def __call__(self, questions: Sequence[Question]) -> list[Answer]:
            return super().__call__(questions)[1:]

    with pytest.raises(ValueError, match="gave 2 answers to 3 questions"):
        buy(ledger, [question(index) for index in range(3)], Forgetful())
    assert ledger.spend().num_labels == 0


def test_labels_bought_before_a_labeller_fails_are_kept(ledger: Ledger) -> None:
    class Failing(Recorded):
        def __call__(self, questions: Sequence[Question]) -> list[Answer]:
            if len(self.shown) >= 32:
                raise ConnectionError("gone")
            return super().__call__(questions)

    with pytest.raises(ConnectionError, match="gone"):
        buy(ledger, [question(index) for index in range(64)], Failing())
    assert ledger.spend().num_labels == 32


def test_rows_say_when_and_in_which_round_they_were_bought(ledger: Ledger) -> None:
    buy(ledger, [question(0)], Recorded())
    connection = sqlite3.connect(ledger.path)
    ((round_number, bought_at),) = connection.execute("SELECT round, bought_at FROM labels").fetchall()
    connection.close()
    assert round_number == 2
    assert datetime.fromisoformat(bought_at).utcoffset() == timedelta(0)


@pytest.mark.parametrize("content", [b"not a database", b"x" * 8192])
def test_a_file_of_another_kind_is_refused_by_name_and_left_alone(ledger: Ledger, content: bytes) -> None:
    ledger.path.parent.mkdir()
    ledger.path.write_bytes(content)
    with pytest.raises(InputError, match=r"labels\.db can't be used as a label ledger \(file is not a database\)"):
        buy(ledger, [question(0)], Recorded())
    assert ledger.path.read_bytes() == content


def test_a_damaged_ledger_is_refused_by_name(ledger: Ledger) -> None:
    buy(ledger, [question(index) for index in range(200)], Recorded())
    content = ledger.path.read_bytes()
    ledger.path.write_bytes(content[:4096] + b"\0" * (len(content) - 4096))
    with pytest.raises(InputError, match=r"labels\.db can't be used as a label ledger"):
        buy(ledger, [question(index) for index in range(200)], Recorded())


@pytest.mark.parametrize(("statement", "found"), [("PRAGMA user_version = 7", 7), ("CREATE TABLE other (x)", 0)])
def test_another_schema_is_refused_with_both_versions(ledger: Ledger, statement: str, found: int) -> None:
    ledger.path.parent.mkdir()
    connection = sqlite3.connect(ledger.path)
    connection.execute(statement)
    connection.commit()
    connection.close()
    with pytest.raises(InputError, match=f"found schema version {found}, expected 1"):
        ledger.spend()


def test_a_key_that_is_not_of_the_content_is_noticed(ledger: Ledger) -> None:
    buy(ledger, [replace(question(0), key="k")], Recorded())
    with pytest.raises(InputError, match="label for k prefers neither response"):
        buy(ledger, [replace(question(1), key="k", first="c")], Recorded())


def test_an_empty_batch_size_is_refused(ledger: Ledger) -> None:
    with pytest.raises(InputError, match="batch_size is 0"):
        ledger.buy([question(0)], SIMULATED, lineage="one", round_number=0, batch_size=0)


def test_two_processes_asking_at_once_buy_each_label_once(tmp_path: Path) -> None:
    buyers = [start_buyer(tmp_path, lineage=lineage, number=200, pause=0.01) for lineage in ("one", "two")]
    asked = [tmp_path / f"asked-{lineage}" for lineage in ("one", "two")]
    for path in asked:
        wait_for_lines(path, 0)
    (tmp_path / "go").touch()
    outputs = [buyer.communicate(timeout=120)[0] for buyer in buyers]
    assert [buyer.returncode for buyer in buyers] == [0, 0]
    assert outputs[0] == outputs[1]
    keys = [key for path in asked for key in path.read_text().splitlines()]
    assert len(keys) == len(set(keys)) == 200
    ledger = Ledger(path=tmp_path / "labels.db")
    assert ledger.spend().num_labels == 200
    assert [ledger.spend(path.name.removeprefix("asked-")).num_labels for path in asked] == [
        len(path.read_text().splitlines()) for path in asked
    ]


def test_a_killed_purchase_repeats_at_most_the_batch_in_flight(tmp_path: Path) -> None:
    questions = [question(index) for index in range(100)]
    (tmp_path / "go").touch()
    with start_buyer(tmp_path, lineage="one", number=100, pause=0.05) as buyer:
        wait_for_lines(tmp_path / "asked-one", 35)
        buyer.send_signal(signal.SIGKILL)
    asked_before = (tmp_path / "asked-one").read_text().split()
    assert len(asked_before) < 100
    ledger, resumed = Ledger(path=tmp_path / "labels.db"), Recorded()
    assert len(asked_before) - ledger.spend().num_labels <= 10
    labels = ledger.buy(questions, resumed, lineage="one", round_number=0, batch_size=10)
    undisturbed = Ledger(path=tmp_path / "undisturbed.db").buy(
        questions, Recorded(), lineage="one", round_number=0, batch_size=10
    )
    assert [replace(label, bought=True) for label in labels] == undisturbed
    assert len(asked_before) + len(resumed.shown) <= 110
    assert ledger.spend("one").num_labels == 100


@given(st.text(), st.text(), st.text())
def test_a_key_ignores_the_order_of_the_responses(prompt: str, first: str, second: str) -> None:
    key = question_key(prompt, first=first, second=second)
    assert key == question_key(prompt, first=second, second=first)
    assert len(key) == 64


SHORT = st.text(alphabet='ab",', max_size=4)


@given(st.tuples(SHORT, SHORT, SHORT), st.tuples(SHORT, SHORT, SHORT))
def test_a_key_tells_contents_apart(one: tuple[str, str, str], other: tuple[str, str, str]) -> None:
    assume((one[0], sorted(one[1:])) != (other[0], sorted(other[1:])))
    assert question_key(one[0], first=one[1], second=one[2]) != question_key(other[0], first=other[1], second=other[2])


def test_half_of_the_keys_are_shown_swapped_and_a_seed_changes_which() -> None:
    keys = [question(index).key for index in range(1000)]
    swapped = [shown_swapped(key, 0) for key in keys]
    assert swapped == [shown_swapped(key, 0) for key in keys] != [shown_swapped(key, 1) for key in keys]
    assert 400 < sum(swapped) < 600
