"""Rounds as a user runs them: the command in a process of its own, against a real Prefect server."""

import copy
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from cluster.storage import Store

if TYPE_CHECKING:
    from playwright.sync_api import Browser

BIN = Path(sys.executable).parent


@dataclass
class Desk:
    """A home, its config, and the server that its commands talk to."""

    home: Path
    config: Path
    prefect: str
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def store(self) -> Store:
        return Store(self.home / "store")

    @property
    def environment(self) -> dict[str, str]:
        own = {
            "PAIRWRIGHT_HOME": str(self.home),
            "PREFECT_API_URL": self.prefect,
            "PREFECT_HOME": str(self.home / "prefect"),
        }
        return {**os.environ, **own, **self.extra}

    @property
    def log(self) -> Path:
        """What its commands printed."""
        return self.home / "commands.log"

    def start(self, *arguments: str) -> "subprocess.Popen[bytes]":
        command = [str(BIN / "pairwright"), arguments[0], str(self.config), *arguments[1:]]
        with self.log.open("ab") as log:
            return subprocess.Popen(command, env=self.environment, stdout=log, stderr=subprocess.STDOUT)

    def run(self, *arguments: str) -> str:
        before = self.log.stat().st_size if self.log.exists() else 0
        code = self.start(*arguments).wait(timeout=400)
        output = self.log.read_bytes()[before:].decode()
        assert code == 0, output
        return output


@pytest.fixture(scope="session")
def make_desk(tiny_values: dict[str, Any], make_home: Callable[[], Path], prefect_server: str) -> Callable[[str], Desk]:
    """Make a desk for a lineage of this name on the tiny model, with a home of its own."""

    def make(lineage: str) -> Desk:
        home = make_home()
        config = home / "lineage.yaml"
        config.write_text(yaml.safe_dump(copy.deepcopy(tiny_values) | {"lineage": lineage}), encoding="utf-8")
        return Desk(home, config, prefect_server)

    return make


@pytest.fixture(scope="session")
def undisturbed(make_desk: Callable[[str], Desk]) -> Desk:
    """A desk whose lineage has run its first round, from prompts to promotion, with nothing in its way."""
    desk = make_desk("undisturbed")
    desk.run("round", "--round", "0")
    return desk


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """The system's Chromium without a window."""
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome")
    path = next((found for name in names if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(names)} is installed")
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium has none for root
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=sandbox)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def shots() -> Path:
    """Folder of screenshots, for people to look at."""
    folder = Path(__file__).parents[2] / ".artifacts"
    folder.mkdir(exist_ok=True)
    return folder
