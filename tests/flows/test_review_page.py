"""MLflow's review queue in a real browser, against a real server: what is said there enters the ledger."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cluster.errors import InputError
from cluster.preflight import reachable
from cluster.reviews import Reviews
from cluster.settings import Settings
from cluster.tracking import Tracker
from tasks.labellers.ledger import Account, Ledger, question_key, shown
from tasks.labellers.people import PeopleLabeller
from tasks.labellers.protocol import Label, Question, Workplace
from tasks.review_queue import PLACE_TAG, take_in

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.labels

BEACON = "http://127.0.0.1:9"
"""Nobody listens there; a request for it would be seen."""
HOSTILE = (
    f"<script>alert('ran')</script>\n<img src='{BEACON}/a.png' onerror=\"alert('ran')\">\n<b>bold</b> &lt;",
    f"![picture]({BEACON}/b.png) [link](javascript:alert('ran')) {BEACON}/c\n\n# Head\n- item\n```\ncode\n```\n  *in*",
)
SECONDS = 60_000
"""The most that a page may take to show something, milliseconds; cores may be busy."""


@pytest.fixture(scope="module")
def tracker(tracking_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tracker]:
    """A real server on loopback."""
    folder = tmp_path_factory.mktemp("review-server")
    path = shutil.copy(tracking_template, folder)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", port, "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{path}", "--artifacts-destination", f"{folder}/artifacts"]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log) as server,
    ):
        try:
            address = f"http://127.0.0.1:{port}"
            _await(address, server)
            yield Tracker(tracking_uri=address, experiment="people")
        finally:
            server.terminate()


def _await(address: str, server: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            return reachable(address, attempts=1)
        except InputError:
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)


def question(first: str, second: str) -> Question:
    bare = Question(key="", messages=[{"role": "user", "content": "What is rain?"}], first=first, second=second)
    return replace(bare, key=question_key(bare.prompt, first=first, second=second))


@dataclass(frozen=True)
class Round:
    """A round whose people are asked some pairs."""

    ledger: Ledger
    workplace: Workplace
    questions: list[Question]

    @property
    def tracker(self) -> Tracker:
        assert self.workplace.tracker is not None
        return self.workplace.tracker

    def labels(self) -> list[list[Label]]:
        account = Account(lineage=self.workplace.lineage, round=self.workplace.round)
        return self.ledger.buy(self.questions, PeopleLabeller(), account, self.workplace)

    def take_in(self) -> list[str]:
        intake = take_in(self.ledger, self.tracker, self.workplace.lineage)
        return [receipt.status for receipt in intake.receipts] + list(intake.refused)

    def address(self, asked: Question | None = None) -> str:
        """Where the whole round is labelled, or one of its pairs."""
        if asked is None:
            return self.tracker.tags_of_round(self.workplace.lineage, self.workplace.round)[PLACE_TAG]
        reviews = Reviews(tracker=self.tracker)
        (item,) = reviews.read({"pairwright.key": asked.key})
        return reviews.address(item.queue).replace("startReview=true", f"selectedItemId={item.trace}")


def ask(tracker: Tracker, lineage: str, home: Path, questions: list[Question]) -> Round:
    settings = Settings(home=home)
    run = tracker.open_round(tracker.open_lineage(lineage, {}), lineage, round_number=0, tags={})
    workplace = Workplace(settings=settings, lineage=lineage, round=0, tracker=tracker, run=run)
    asked = Round(Ledger(url=settings.ledger), workplace, questions)
    assert asked.labels() == [[] for _ in questions]
    return asked


@dataclass
class Visit:
    """A page, and what happened on it."""

    page: "Page"
    dialogs: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def choose(self, option: str, rationale: str = "") -> None:
        self.page.get_by_role("combobox").first.click(timeout=SECONDS)
        self.page.get_by_role("option", name=option, exact=True).click()
        if rationale:
            self.page.get_by_placeholder("Rationale (optional)").fill(rationale)

    def press(self, button: str, answer: str) -> None:
        """Press a button and wait for what the page says then."""
        self.page.get_by_role("button", name=button).click()
        self.page.get_by_text(answer).wait_for(timeout=SECONDS)


@pytest.fixture
def visit(browser: "Browser") -> Iterator[Visit]:
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    visit = Visit(page)
    page.on("dialog", lambda dialog: (visit.dialogs.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: visit.requests.append(request.url))
    yield visit
    page.close()


def test_what_is_chosen_and_typed_in_the_browser_enters_the_ledger(
    tracker: Tracker, visit: Visit, tmp_path: Path, shots: Path
) -> None:
    short, long = (
        "Water that falls from clouds.",
        "Drops of water that condense in clouds and fall when they are heavy.",
    )
    asked = ask(tracker, "browser", tmp_path, [question(short, long)])
    visit.page.goto(asked.address())
    visit.page.get_by_text(long).wait_for(timeout=SECONDS)
    visit.choose("B", "It is to the point.")
    visit.page.screenshot(path=shots / "review-queue.png")
    visit.press("Submit", "All items in this queue have been reviewed")
    assert asked.take_in() == ["counted"]
    ((label,),) = asked.labels()
    assert getattr(asked.questions[0], label.choice) == shown(asked.questions[0]).second
    assert (label.rationale, label.annotator) == ("It is to the point.", "default")

    visit.page.goto("about:blank")
    visit.page.goto(asked.address(asked.questions[0]))
    visit.choose("tie")
    visit.press("Save changes", "Changes saved")
    assert asked.take_in() == ["replaced"]
    ((label,),) = asked.labels()
    assert (label.choice, label.rationale) == ("tie", "It is to the point.")
    assert asked.take_in() == []


def test_responses_are_text_whatever_they_hold(tracker: Tracker, visit: Visit, tmp_path: Path, shots: Path) -> None:
    asked = ask(tracker, "hostile", tmp_path, [question(*HOSTILE)])
    visit.page.goto(asked.address())
    visit.page.get_by_text("bold").wait_for(timeout=SECONDS)
    read = visit.page.get_by_text("bold").locator("xpath=ancestor::div[contains(., 'picture')][1]").inner_text()
    for response in HOSTILE:
        assert _seen(response) in _seen(read)
    assert visit.page.locator("img[src*='127.0.0.1:9'], a[href*='127.0.0.1:9'], a[href^='javascript']").count() == 0
    visit.page.screenshot(path=shots / "review-queue-hostile.png")
    visit.page.get_by_text("View full trace").click()
    visit.page.get_by_role("tab", name="Attributes").click(timeout=SECONDS)
    visit.page.get_by_text("pairwright.content").first.wait_for(timeout=SECONDS)
    visit.page.wait_for_timeout(500)
    assert visit.dialogs == []
    assert {url for url in visit.requests if not url.startswith((tracker.tracking_uri, "data:", "blob:"))} == set()


def test_the_address_of_a_server_keeps_its_password(tracker: Tracker, tmp_path: Path) -> None:
    secret = replace(tracker, tracking_uri=tracker.tracking_uri.replace("://", "://ann:secret@") + "/")
    asked = ask(secret, "password", tmp_path, [question("a", "b")])
    page = rf"{re.escape(tracker.tracking_uri)}/#/experiments/\d+/review-queue\?selectedQueueId=rq-\w+&startReview=true"
    assert re.fullmatch(page, asked.address())


def _seen(text: str) -> str:
    """What a reader can tell apart: lines without the spaces around them, and no joiners."""
    lines = text.replace("\N{WORD JOINER}", "").replace("\N{NO-BREAK SPACE}", " ").split("\n")
    return "\n".join(line.strip() for line in lines)
