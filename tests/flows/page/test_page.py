"""The labelling page in a real browser, by keyboard."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from cluster.storage import Store
from flows.parking import ParkedRound, note
from tasks.labellers.ledger import Entry
from tasks.parking import Terms, Waiting

pytestmark = pytest.mark.labels

PAIRS = [(f"prompt {number}", f"a good response {number}", f"a bad response {number}") for number in range(6)]


def said(entry: Entry) -> str:
    return {"first": entry.first, "second": entry.second}.get(entry.choice, entry.choice)


def in_force(labelling: Any) -> list[tuple[str, str]]:
    """What is said to each prompt, in the order in which it was said."""
    found = [entry for entry in labelling.ledger.entries("ours") if not entry.superseded]
    return [(str(entry.messages[0]["content"]), said(entry)) for entry in found]


def test_pairs_are_labelled_by_keyboard_through_undo_refresh_and_a_restart_of_the_server(
    open_labelling: Callable[..., Any], open_page: Callable[..., Any]
) -> None:
    labelling = open_labelling(PAIRS)
    ann = open_page(labelling.url, "Ann")
    wanted = []
    assert ann.text("#pw-count") == "0 of 6 answers in, 0 by you"

    wanted.append((ann.prompt, ann.sides[0]))
    ann.press("1")
    assert ann.text("#pw-notice").strip() == "Saved: left is better."
    wanted.append((ann.prompt, ann.sides[1]))
    ann.press("2")
    wanted.append((ann.prompt, "tie"))
    ann.press("0")
    assert in_force(labelling) == wanted
    assert ann.text("#pw-count") == "3 of 6 answers in, 3 by you"

    ann.press("u")
    assert ann.prompt == wanted[-1][0]
    assert "You said: a tie." in ann.text("#pw-notice")
    wanted[-1] = (ann.prompt, ann.sides[0])
    ann.press("1")
    assert in_force(labelling) == wanted
    assert len(list(labelling.ledger.entries("ours"))) == 4, "the history is kept"

    ann.press("u")
    open_one = ann.turn
    ann.press("Escape")
    assert ann.turn != open_one
    assert ann.prompt not in dict(wanted), "kept, and on to the open ones"

    before = ann.prompt
    ann.page.reload()
    ann.page.wait_for_selector("#pw-pair")
    assert (ann.text("#pw-annotator"), ann.prompt) == ("Ann", before)
    wanted.append((ann.prompt, "abstain"))
    ann.press("s")

    labelling.stop()
    labelling.start()
    ann.page.reload()
    ann.page.wait_for_selector("#pw-pair")
    assert ann.text("#pw-count") == "4 of 6 answers in, 4 by you"
    wanted.append((ann.prompt, ann.sides[1]))
    ann.press("2")
    assert in_force(labelling) == wanted
    assert [alarm for alarm in ann.alarms if "ERR_CONNECTION" not in alarm] == []
    assert {urlsplit(url).hostname for url in ann.requested} == {"127.0.0.1"}


def test_a_page_left_open_through_a_restart_goes_on_without_a_refresh(
    open_labelling: Callable[..., Any], open_page: Callable[..., Any]
) -> None:
    labelling = open_labelling(PAIRS[:2])
    ann = open_page(labelling.url, "Ann")
    labelling.stop()
    labelling.start()
    first = (ann.prompt, ann.sides[0])
    ann.press("1")
    assert in_force(labelling) == [first]


def test_two_annotators_at_once_fill_different_repetitions(
    open_labelling: Callable[..., Any], open_page: Callable[..., Any]
) -> None:
    labelling = open_labelling(PAIRS[:3], repeats=2)
    people = {name: open_page(labelling.url, name) for name in ("Ann", "Bob")}
    wanted = []
    for _ in range(3):
        for name, annotator in people.items():
            wanted.append((name, annotator.prompt, annotator.sides[0]))
            annotator.press("1")
    entries = list(labelling.ledger.entries("ours"))
    assert [(e.annotator, e.messages[0]["content"], said(e)) for e in entries] == wanted
    assert len({(entry.key, entry.repetition) for entry in entries}) == 6
    assert people["Bob"].text("#pw-rest h2") == "All answers are in. Thank you."
    people["Ann"].page.get_by_role("button", name="Look again").click()
    people["Ann"].page.get_by_text("All answers are in.").wait_for()
    assert people["Ann"].text("#pw-count") == "6 of 6 answers in, 3 by you"


def test_a_reason_is_typed_without_answering_and_kept_with_the_answer(
    open_labelling: Callable[..., Any], open_page: Callable[..., Any]
) -> None:
    labelling = open_labelling(PAIRS[:2])
    ann = open_page(labelling.url, "Ann")
    ann.page.keyboard.press("r")
    ann.page.keyboard.type("12 of 10 sure, u see")
    ann.page.keyboard.press("Escape")
    assert in_force(labelling) == []
    ann.press("1")
    assert [entry.rationale for entry in labelling.ledger.entries("ours")] == ["12 of 10 sure, u see"]
    assert ann.page.get_by_label("Why?").input_value() == ""
    ann.press("u")
    assert ann.page.get_by_label("Why?").input_value() == "12 of 10 sure, u see"


def test_two_presses_in_a_row_answer_one_question(
    open_labelling: Callable[..., Any], open_page: Callable[..., Any]
) -> None:
    labelling = open_labelling(PAIRS[:3])
    ann = open_page(labelling.url, "Ann")
    seen = (ann.prompt, ann.sides[0])
    ann.page.evaluate(
        "for (const key of ['1', '2', '2'])"
        " document.body.dispatchEvent(new KeyboardEvent('keydown', {key, code: `Digit${key}`, bubbles: true}))"
    )
    ann.page.wait_for_function("document.querySelector('#pw-count').textContent.startsWith('1 of 3')")
    ann.page.wait_for_timeout(1000)
    assert in_force(labelling) == [seen]


def test_a_prefect_server_that_is_down_when_the_round_is_complete_loses_no_answer(
    open_labelling: Callable[..., Any], open_page: Callable[..., Any]
) -> None:
    labelling = open_labelling(PAIRS[:1], command={"PREFECT_API_URL": "http://127.0.0.1:9/api"})
    waiting = Waiting(lineage="ours", round=0, num_wanted=1, terms=Terms(), said="waits")
    note(Store(labelling.settings.store), ParkedRound(waiting=waiting, until=1, flow_run=uuid4()))
    ann = open_page(labelling.url, "Ann")
    ann.press("1")
    assert ann.text("#pw-rest h2") == "All answers are in. Thank you."
    ann.page.wait_for_function("document.querySelector('#pw-notice').textContent.includes('Prefect')")
    assert "can't be asked to resume it" in ann.text("#pw-notice")
    assert len(in_force(labelling)) == 1
    labelling.stop()
    assert labelling.log.read_text(encoding="utf-8").splitlines() == [
        f"label at {labelling.url}",
        "everybody on this machine can label, under a name",
        "Ctrl-C stops the page",
        "stopped",
    ]


def test_who_labels_says_a_name_and_can_hand_over(
    open_labelling: Callable[..., Any], open_page: Callable[..., Any]
) -> None:
    labelling = open_labelling(PAIRS[:2])
    ann = open_page(labelling.url)
    ann.page.get_by_label("Your name").fill("   ")
    ann.page.get_by_role("button", name="Start").click()
    ann.page.get_by_text("a name has 1 to 64 characters").wait_for()
    ann.enter("  Ann  ")
    ann.press("1")
    ann.page.get_by_role("button", name="I am someone else").click()
    ann.enter("Bob <b>")
    ann.press("1")
    assert ann.text("#pw-annotator") == "Bob <b>"
    assert [entry.annotator for entry in labelling.ledger.entries("ours")] == ["Ann", "Bob <b>"]


def test_with_logins_nothing_is_shown_without_one_and_answers_carry_its_name(
    open_labelling: Callable[..., Any], open_page: Callable[..., Any]
) -> None:
    labelling = open_labelling(PAIRS[:2], logins="# who\nAnn:correct horse\nBob:battery staple\n")
    wrong = {"http_credentials": {"username": "Ann", "password": "battery staple"}}
    stranger = open_page(labelling.url, options=wrong)
    assert stranger.page.content().count("prompt") == 0
    right = {"http_credentials": {"username": "Ann", "password": "correct horse"}}
    ann = open_page(labelling.url, options=right)
    ann.page.wait_for_selector("#pw-pair")
    assert not ann.page.get_by_role("button", name="I am someone else").is_visible()
    ann.press("2")
    assert [entry.annotator for entry in labelling.ledger.entries("ours")] == ["Ann"]


def test_a_page_open_under_a_typed_name_answers_nothing_for_the_login_that_a_restart_asks_for(
    open_labelling: Callable[..., Any], open_page: Callable[..., Any], tmp_path: Path
) -> None:
    labelling = open_labelling(PAIRS)
    login = {"http_credentials": {"username": "Ann Smith", "password": "correct horse"}}
    ann = open_page(labelling.url, "ann", options=login)
    labelling.stop()
    labelling.logins = tmp_path / "logins"
    labelling.logins.touch(mode=0o600)
    labelling.logins.write_text("Ann Smith:correct horse\n", encoding="utf-8")
    labelling.start()
    ann.press("1")
    assert ann.text("#pw-notice").strip().startswith("Not saved")
    assert ann.text("#pw-annotator") == "Ann Smith"
    assert in_force(labelling) == []
    wanted = [(ann.prompt, ann.sides[0])]
    ann.press("1")
    assert in_force(labelling) == wanted
    assert [entry.annotator for entry in labelling.ledger.entries("ours")] == ["Ann Smith"]
