"""What the page makes of what comes from a browser, on a real ledger and without a browser."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.settings import Settings
from flows.page.blocks import page
from flows.page.desk import Desk
from flows.page.parts import MAX_RATIONALE
from flows.page.view import STALE
from tasks.labellers.ledger import Account, Ledger, question_key
from tasks.labellers.people import PeopleLabeller
from tasks.labellers.protocol import Question, Workplace

pytestmark = pytest.mark.labels

ANN, LOGIN = "ann", "Ann Smith"


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """Of a lineage that asks people about one pair."""
    key = question_key("prompt", first="a good one", second="a bad one")
    messages = [{"role": None, "content": "prompt"}]
    asked = Question(key=key, messages=messages, first="a good one", second="a bad one")
    place = Workplace(settings=Settings(), lineage="ours", round=0)
    ledger = Ledger.at(tmp_path / "ledger.sqlite")
    ledger.buy([asked], PeopleLabeller(review_queue=False), Account(lineage="ours", round=0), place)
    return ledger


def act(ledger: Ledger, name: str, *values: str, login: str | None) -> str:
    """Do one of the things that the page's buttons do, and give all that changes on it."""

    async def in_a_loop() -> str:
        """Without one, Gradio makes some and leaves them open."""
        import gradio as gr

        found: list[Callable[..., Any]] = [each.fn for each in page(ledger, "ours").fns.values() if each.name == name]
        changes = found[0](*values, gr.Request(username=login))
        return str([list(one.values()) for one in (changes if isinstance(changes, Iterator) else [changes])])

    return asyncio.run(in_a_loop())


def ticket_of(ledger: Ledger, annotator: str) -> str:
    desk = Desk(ledger=ledger, lineage="ours")
    sheet = desk.following(desk.look(annotator))
    assert sheet is not None
    return sheet.ticket


def test_whoever_has_logged_in_begins_under_that_name_whatever_is_typed(ledger: Ledger) -> None:
    seen = act(ledger, "enter", "Bob", login=LOGIN)
    assert f'dir="auto">{LOGIN}</b>' in seen
    assert "Bob" not in seen
    assert 'dir="auto">Bob</b>' in act(ledger, "enter", " Bob ", login=None)


def test_a_page_drawn_for_a_name_takes_no_answer_of_a_login_that_came_later(ledger: Ledger) -> None:
    drawn = ticket_of(ledger, ANN)
    seen = act(ledger, "choose", ANN, drawn, "", login=LOGIN)
    assert STALE in seen
    assert f'dir="auto">{LOGIN}</b>' in seen
    assert list(ledger.entries()) == []
    act(ledger, "choose", ANN, ticket_of(ledger, LOGIN), "", login=LOGIN)
    assert [entry.annotator for entry in ledger.entries()] == [LOGIN]


def test_a_reason_is_kept_as_far_as_the_page_takes_one(ledger: Ledger) -> None:
    act(ledger, "choose", ANN, ticket_of(ledger, ANN), "x" * (MAX_RATIONALE + 1), login=None)
    assert [entry.rationale for entry in ledger.entries()] == ["x" * MAX_RATIONALE]
