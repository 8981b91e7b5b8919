"""Which entries of the ledger are read, in both databases."""

from collections.abc import Callable
from typing import Any

import pytest

from tasks.labellers.ledger import Account, Ledger
from tasks.labellers.protocol import Answer, Question, Workplace

pytestmark = pytest.mark.labels


def test_entries_of_one_annotator_since_a_moment_are_those_and_no_others(
    ledger: Ledger, people: Any, make_question: Callable[[int], Question], workplace: Workplace
) -> None:
    questions, names = [make_question(index) for index in range(3)], ["Zoë \ud800", "bob"]
    ledger.buy(questions, people(), Account(lineage="one", round=0), workplace, repeats=2)
    for question in questions:
        for name in names:
            ledger.answer(question, "people", Answer(choice="tie", annotator=name))
    everything = list(ledger.entries("one"))
    since = everything[2].answered_at
    for name in names:
        wanted = [entry for entry in everything if entry.annotator == name]
        assert list(ledger.entries("one", annotator=name)) == wanted
        assert list(ledger.entries("one", annotator=name, since=since)) == wanted[1:]
    assert list(ledger.entries(since=since)) == everything[2:]
    assert list(ledger.entries("one", annotator="eve")) == []


def test_the_latest_round_is_the_last_in_which_a_lineage_asked(
    ledger: Ledger, people: Any, make_question: Callable[[int], Question], workplace: Workplace
) -> None:
    assert ledger.latest_round("one") is None
    for number in (0, 2):
        ledger.buy([make_question(number)], people(), Account(lineage="one", round=number), workplace)
    ledger.close("one", 2)
    assert (ledger.latest_round("one"), ledger.latest_round("two")) == (2, None)
