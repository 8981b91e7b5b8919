"""People at the labelling page: a ledger that asks, a server in a process of its own, a browser for each of them."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cluster.settings import Settings
from flows.page.server import Place, serve_page
from tasks.labellers.ledger import Account, Ledger, question_key
from tasks.labellers.people import PeopleLabeller
from tasks.labellers.protocol import Question, Workplace

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PAIRWRIGHT = Path(sys.executable).with_name("pairwright")
SIGHT = "#pw-pair, #pw-rest"
"""What an annotator looks at: a pair, or that there is none."""
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["gradio", "flows.page.server"])


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@dataclass
class Labelling:
    """A lineage whose round asks people, and the server of its page."""

    settings: Settings
    port: int = field(default_factory=free_port)
    lineage: str = "ours"
    logins: Path | None = None
    command: dict[str, str] | None = None
    """Variables of the command that serves the page; None: it is served in a fork, which starts sooner."""
    server: Any = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    @property
    def ledger(self) -> Ledger:
        return Ledger(url=self.settings.ledger)

    @property
    def log(self) -> Path:
        """What the command printed."""
        return self.settings.home / "label.log"

    def start(self) -> None:
        """Serve the page in a process of its own."""
        self.server = self._forked() if self.command is None else self._commanded(self.command)
        deadline = time.monotonic() + 90
        while not self._answers():
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def stop(self) -> None:
        os.kill(self.server.pid, signal.SIGTERM)
        code = self.server.wait(timeout=30) if self.command is not None else self.server.join(timeout=30)
        assert (self.server.exitcode if self.command is None else code) == 0

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            self.server.kill()

    def _forked(self) -> Any:
        server = FORKS.Process(
            target=serve_page, args=(self.lineage, Place(port=self.port, login=self.logins), self.settings), daemon=True
        )
        server.start()
        return server

    def _commanded(self, variables: dict[str, str]) -> "subprocess.Popen[bytes]":
        environment = {**os.environ, **variables, "PAIRWRIGHT_HOME": str(self.settings.home)}
        with self.log.open("wb") as log:
            return subprocess.Popen(
                [PAIRWRIGHT, "label", self.lineage, "--port", str(self.port)], env=environment, stdout=log, stderr=log
            )

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(self.url, timeout=30).close()
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True


@dataclass
class Annotator:
    """Somebody at the page."""

    page: "Page"
    requested: list[str] = field(default_factory=list)
    """Addresses of everything that the browser asked for."""
    alarms: list[str] = field(default_factory=list)
    """Dialogs, errors and complaints of the browser."""

    def watch(self) -> None:
        """Take note of what the page does."""
        self.page.on("request", lambda request: self.requested.append(request.url))
        self.page.on("pageerror", lambda error: self.alarms.append(f"error: {error}"))
        self.page.on("console", lambda line: self.alarms.append(line.text) if line.type == "error" else None)

        def dismiss(dialog: Any) -> None:
            self.alarms.append(f"dialog: {dialog.message}")
            dialog.dismiss()

        self.page.on("dialog", dismiss)

    def enter(self, name: str) -> None:
        """Say who is there, by keyboard."""
        self.page.get_by_label("Your name").fill(name)
        self.page.keyboard.press("Enter")
        self.page.wait_for_selector(SIGHT)

    def press(self, key: str) -> None:
        """Press a key and wait for what it brings."""
        turn = self.turn
        self.page.keyboard.press(key)
        self.page.wait_for_function(f"turn => document.querySelector('{SIGHT}')?.dataset.turn !== turn", arg=turn)

    def text(self, part: str) -> str:
        """The text of a part of the page, exactly."""
        return str(self.page.evaluate("id => document.querySelector(id)?.textContent ?? ''", part))

    @property
    def turn(self) -> str | None:
        return self.page.get_attribute(SIGHT, "data-turn")

    @property
    def prompt(self) -> str:
        return self.text(".pw-prompt .pw-text")

    @property
    def sides(self) -> tuple[str, str]:
        return self.text("#pw-left .pw-text"), self.text("#pw-right .pw-text")


def asked(prompt: str, one: str, other: str) -> Question:
    """A question as a chat."""
    key = question_key(f"user: {prompt}", first=one, second=other)
    return Question(key=key, messages=[{"role": "user", "content": prompt}], first=one, second=other)


@pytest.fixture
def open_labelling(tmp_path: Path) -> Iterator[Callable[..., Labelling]]:
    """Ask people about pairs of (prompt, response, response), and serve the page where they answer."""
    opened: list[Labelling] = []

    def start(
        pairs: Sequence[tuple[str, str, str]],
        *,
        repeats: int = 1,
        logins: str = "",
        command: dict[str, str] | None = None,
    ) -> Labelling:
        settings = Settings(home=tmp_path / f"home-{len(opened)}")
        settings.store.mkdir(parents=True)
        labelling = Labelling(settings, command=command)
        place = Workplace(settings=settings, lineage="ours", round=0)
        people = PeopleLabeller(review_queue=False)
        account = Account(lineage="ours", round=0)
        labelling.ledger.buy([asked(*pair) for pair in pairs], people, account, place, repeats=repeats)
        if logins:
            labelling.logins = tmp_path / "logins"
            labelling.logins.touch(mode=0o600)
            labelling.logins.write_text(logins, encoding="utf-8")
        opened.append(labelling)
        labelling.start()
        return labelling

    yield start
    for labelling in opened:
        labelling.kill()


@pytest.fixture
def open_page(browser: "Browser") -> Iterator[Callable[..., Annotator]]:
    """Open an address in a browser of one's own, so to speak; `options` are those of Playwright's contexts."""
    contexts = []

    def start(url: str, name: str = "", *, width: int = 1280, options: dict[str, Any] | None = None) -> Annotator:
        size: Any = {"width": width, "height": 800 if width > 720 else 844}
        contexts.append(browser.new_context(viewport=size, **(options or {})))
        contexts[-1].set_default_timeout(60_000)
        annotator = Annotator(contexts[-1].new_page())
        annotator.watch()
        annotator.page.goto(url)
        if name:
            annotator.enter(name)
        return annotator

    yield start
    for context in contexts:
        context.close()


@pytest.fixture
def serve_labelling() -> Iterator[Callable[..., Labelling]]:
    """Serve the page of a lineage that a round has brought into being."""
    served: list[Labelling] = []

    def start(settings: Settings, lineage: str) -> Labelling:
        served.append(Labelling(settings, lineage=lineage))
        served[-1].start()
        return served[-1]

    yield start
    for labelling in served:
        labelling.kill()
