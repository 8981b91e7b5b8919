"""A round from its pool to its policy, whose labels are given by keyboard in a real browser."""

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from cluster.rendering import plain_text
from cluster.settings import Settings
from flows.history import STAGES, recorded
from flows.page.texts import readable
from tasks.tables import PREFERENCES, read

pytestmark = [pytest.mark.labels, pytest.mark.timeout(1200)]


def seen(text: str) -> str:
    """What the page shows of a response of a random model; it says so of those without text."""
    return readable(text) if text.strip() else ""


def test_a_round_parks_is_labelled_by_keyboard_and_trains_on_what_was_said(
    make_desk: Callable[[str], Any], serve_labelling: Callable[..., Any], open_page: Callable[..., Any]
) -> None:
    desk = make_desk("by-keyboard")
    values = yaml.safe_load(desk.config.read_text(encoding="utf-8"))
    values["rounds"] = 1
    values["round"]["selection"]["budget"] = 5
    values["round"]["labelling"] = {"labeller": {"kind": "people", "review_queue": False}}
    desk.config.write_text(yaml.safe_dump(values), encoding="utf-8")

    assert "waits for people: 0 of 5 answered" in desk.run("run")
    assert "training" not in recorded(desk.store, "by-keyboard", 0)

    labelling = serve_labelling(Settings(home=desk.home), "by-keyboard")
    ann, chosen, prompts = open_page(labelling.url, "Ann"), set(), []
    for key in ("1", "2", "0", "s", "1"):
        prompts.append(ann.prompt)
        if key in "12":
            chosen.add(ann.sides[int(key) - 1])
        ann.press(key)
    assert ann.text("#pw-rest h2") == "All answers are in. Thank you."
    ann.page.get_by_text("give the command again").wait_for()
    labelling.stop()

    assert "1 run, 0 found finished" in desk.run("run")
    tables = recorded(desk.store, "by-keyboard", 0)
    assert tuple(tables) == STAGES
    rows = read(tables["preferences"].path, PREFERENCES).to_pylist()
    assert {seen(row["chosen_text"]) for row in rows if row["outcome"] == "preferred"} == chosen
    assert sorted(plain_text(row["messages"]).removeprefix("user: ") for row in rows) == sorted(prompts)
    assert [row["outcome"] for row in rows].count("tie") == 1
