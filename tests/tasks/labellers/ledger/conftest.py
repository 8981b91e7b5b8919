"""Ledgers in SQLite and in a private Postgres, labellers that write down what they are asked, and mortal purchases."""

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import pytest

from cluster.settings import Settings
from tasks.labellers.ledger import Ledger, question_key
from tasks.labellers.protocol import Answer, Answered, Ask, Question, Workplace

PASSWORD = "open sesame"


@dataclass
class Recorded:
    """Prefers the longer response, is surer the longer it is, and abstains or leaves open where it is told to."""

    identity: str = "recorded"
    cost: float = 0.5
    chunk: int = 16
    leaves_open: Callable[[Ask], bool] = lambda _: False
    fails_after: int | None = None
    asked: list[Ask] = field(default_factory=list)

    def price(self, _: Question) -> float:
        return self.cost

    def __call__(self, asks: Sequence[Ask], _: Workplace) -> Iterator[Answered]:
        for start in range(0, len(asks), self.chunk):
            if self.fails_after is not None and len(self.asked) >= self.fails_after:
                raise ConnectionError("gone")
            batch = asks[start : start + self.chunk]
            self.asked += batch
            yield [(ask, self.says(ask)) for ask in batch if not self.leaves_open(ask)]

    def says(self, ask: Ask) -> Answer:
        first, second = len(ask.question.first), len(ask.question.second)
        choice = "tie" if first == second else "first" if first > second else "second"
        return Answer(
            choice=choice,
            probability=(1 + first) / (2 + first + second),
            annotator=f"annotator {ask.repetition}",
            rationale=f"{first} against {second}",
            detail={"length": float(first + second)},
        )


@dataclass
class Nursery:
    """Purchases in processes of their own, see nursery.py."""

    process: subprocess.Popen[str]
    lock: Lock = field(default_factory=Lock)

    def start(self, order: dict[str, Any]) -> int:
        return int(self._tell(order))

    def wait(self, pid: int) -> int:
        deadline = time.monotonic() + 120
        while (code := self._tell({"wait": pid})) is None:
            assert time.monotonic() < deadline, "a purchase hangs"
            time.sleep(0.01)
        return int(code)

    def kill(self, pid: int) -> int:
        os.kill(pid, signal.SIGKILL)
        return self.wait(pid)

    def _tell(self, order: dict[str, Any]) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with self.lock:
            print(json.dumps(order), file=self.process.stdin, flush=True)
            return json.loads(self.process.stdout.readline())


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    command = [sys.executable, str(Path(__file__).with_name("nursery.py"))]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[4])}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        yield Nursery(process)


@pytest.fixture
def recorded() -> type[Recorded]:
    return Recorded


@pytest.fixture
def people() -> Callable[[], Recorded]:
    """A labeller that leaves everything open."""
    return lambda: Recorded(identity="people", cost=1.0, leaves_open=lambda _: True)


@pytest.fixture
def make_question() -> Callable[[int], Question]:
    def make(index: int) -> Question:
        messages = [{"role": "user", "content": f"prompt {index}"}]
        first, second = "a " * (index % 9), f"b {index}"
        key = question_key(f"user: prompt {index}", first=first, second=second)
        return Question(key=key, messages=messages, first=first, second=second)

    return make


@pytest.fixture
def workplace(tmp_path: Path) -> Workplace:
    return Workplace(settings=Settings(home=tmp_path), lineage="one", round=0)


@pytest.fixture(params=["sqlite", "postgres"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Ledger:
    """An empty ledger in each of the two databases."""
    if request.param == "sqlite":
        return Ledger.at(tmp_path / "new folder" / "ledger.sqlite")
    return Ledger(url=request.getfixturevalue("postgres_database"))


@pytest.fixture
def sqlite_ledger(tmp_path: Path) -> Ledger:
    return Ledger.at(tmp_path / "ledger.sqlite")


@pytest.fixture
def postgres_database(new_database: Callable[[], str]) -> str:
    return new_database()


@pytest.fixture
def new_database(postgres_server: str) -> Callable[[], str]:
    """Empty the one database; gives its address."""
    import psycopg

    def make() -> str:
        address = f"{postgres_server}/labels"
        with psycopg.connect(address.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute("DROP SCHEMA public CASCADE")
            connection.execute("CREATE SCHEMA public")
        return address

    return make


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """A Postgres of our own on loopback, with a password; as the user postgres where root may not run one."""
    import psycopg

    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    initdb = shutil.which("initdb") or (installed[-1] if installed else None)
    if initdb is None:
        pytest.skip("no Postgres server is installed (initdb not found)")
    programs, folder, port = Path(initdb).parent, Path(tempfile.mkdtemp(prefix="ledger-postgres-")), _free_port()
    user = _unprivileged(folder)
    (folder / "password").write_text(PASSWORD)
    (folder / "password").chmod(0o644)
    data, log = str(folder / "data"), str(folder / "log")
    control = [str(programs / "pg_ctl"), "-D", data, "-w"]
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    as_admin = ["-U", "admin", "-A", "scram-sha-256", f"--pwfile={folder / 'password'}", "-E", "UTF8", "--no-sync"]
    _run([str(initdb), "-D", data, *as_admin], user, folder)
    _run([*control, "-l", log, "-o", options, "start"], user, folder)
    address = f"postgresql+psycopg://admin:{PASSWORD.replace(' ', '%20')}@127.0.0.1:{port}"
    with psycopg.connect(f"{address}/postgres".replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("CREATE DATABASE labels")
    try:
        yield address
    finally:
        _run([*control, "-m", "immediate", "stop"], user, folder)
        shutil.rmtree(folder)


def _unprivileged(folder: Path) -> str | None:
    if os.geteuid() != 0:
        return None
    try:
        user = pwd.getpwnam("postgres")
    except KeyError:
        pytest.skip("root may not run Postgres, and there is no user postgres")
    os.chown(folder, user.pw_uid, user.pw_gid)
    return user.pw_name


def _run(command: list[str], user: str | None, folder: Path) -> None:
    # A file, not a pipe: the server inherits it and would keep a pipe open.
    with (folder / "setup").open("wb") as output:
        done = subprocess.run(command, user=user, cwd=folder, stdout=output, stderr=output, timeout=120, check=False)
    assert done.returncode == 0, (folder / "setup").read_text()


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
