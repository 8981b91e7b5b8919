"""What `pairwright labels status` says about labels that were paid for more than once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster.settings import Settings
from flows.label_report import bought_once
from tasks.labellers.ledger import Account, Ledger, question_key
from tasks.labellers.protocol import Answer, Answered, Ask, Question, Workplace

pytestmark = pytest.mark.labels


@dataclass
class Judge:
    """Breaks off after so many answers."""

    answers: int
    identity: str = "judge"

    def price(self, _: Question) -> float:
        return 0.5

    def __call__(self, asks: Sequence[Ask], _: Workplace) -> Iterator[Answered]:
        for index, ask in enumerate(asks):
            if index == self.answers:
                raise ConnectionError
            yield [(ask, Answer(choice="first"))]


def test_labels_that_were_asked_again_after_a_failure_are_said_to_be_perhaps_paid_twice(tmp_path: Path) -> None:
    ledger, account = Ledger.at(tmp_path / "ledger.sqlite"), Account(lineage="demo", round=0)
    place = Workplace(settings=Settings(home=tmp_path), lineage="demo", round=0)
    messages = [{"role": None, "content": "p"}]
    questions = [
        Question(key=question_key("p", first=first, second="b"), messages=messages, first=first, second="b")
        for first in "xyz"
    ]
    with pytest.raises(ConnectionError):
        ledger.buy(questions[:2], Judge(1), account, place)
    assert "paid twice" not in bought_once(ledger)
    ledger.buy(questions, Judge(3), account, place)
    assert "at most 1 were paid twice, asked again after a purchase broke off in between" in bought_once(ledger)
