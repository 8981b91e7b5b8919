"""A ledger that can't be used: what is said, and that nothing is half-written."""

import os
import socket
import sqlite3
from collections.abc import Callable
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from cluster.errors import InputError
from cluster.settings import Settings
from tasks.labellers.ledger import Account, Ledger
from tasks.labellers.protocol import Question, Workplace

pytestmark = pytest.mark.labels

ONE = Account(lineage="one", round=0)
Make = Callable[[int], Question]


@pytest.fixture
def fill(make_question: Make, recorded: Any, workplace: Workplace) -> Callable[..., Any]:
    """Buy answers, which writes."""

    def buy(ledger: Ledger, number: int = 1, chunk: int = 16) -> Any:
        questions = [make_question(index) for index in range(number)]
        return ledger.buy(questions, recorded(chunk=chunk), ONE, workplace)

    return buy


@contextmanager
def as_nobody() -> Any:
    """Root may write everywhere: be somebody else for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def public(tmp_path: Path) -> Path:
    """A folder that everybody can reach."""
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(folder.stat().st_mode | 0o055)
    return tmp_path


@pytest.mark.parametrize("content", [b"not a database", b"x" * 8192])
def test_a_file_of_another_kind_is_refused_by_name_and_left_alone(tmp_path: Path, fill: Any, content: bytes) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(content)
    for use in (fill, Ledger.spend):
        with pytest.raises(InputError, match=r"ledger\.sqlite can't be used \(file is not a database\): restore it"):
            use(Ledger.at(path))
    assert path.read_bytes() == content


def test_a_damaged_ledger_is_refused_by_name(sqlite_ledger: Ledger, fill: Any) -> None:
    fill(sqlite_ledger, 200)
    path = Path(sqlite_ledger.database.name)
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\0" * (len(content) - 4096))
    with pytest.raises(InputError, match=r"ledger\.sqlite can't be used \(.*\): restore it from a backup"):
        fill(sqlite_ledger, 200)


def test_a_locked_ledger_is_waited_for_and_then_refused(sqlite_ledger: Ledger, fill: Any) -> None:
    fill(sqlite_ledger)
    impatient = replace(sqlite_ledger, patience=0.2)
    with closing(sqlite3.connect(sqlite_ledger.database.name, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        for use in (fill, Ledger.spend):
            with pytest.raises(InputError, match=r"ledger\.sqlite can't be used \(database is locked\): another proc"):
                use(impatient)
    assert fill(impatient, 2)


def test_a_locked_postgres_is_waited_for_and_then_refused(postgres_database: str, fill: Any) -> None:
    ledger = Ledger(url=postgres_database, patience=0.2)
    with (
        ledger.database.writing(),
        pytest.raises(InputError, match=r"can't be used \(.*lock timeout.*\): another process holds it"),
    ):
        fill(ledger)
    assert fill(ledger, 2)


def test_a_read_only_ledger_can_be_read_but_not_written(public: Path, fill: Any) -> None:
    ledger = Ledger.at(public / "ledger.sqlite")
    fill(ledger, 3)
    Path(ledger.database.name).chmod(0o444)
    with as_nobody():
        assert ledger.spend().num_labels == 3
        with pytest.raises(InputError, match=r"\(attempt to write a readonly database\): mend the permissions"):
            fill(ledger, 4)
    assert ledger.spend().num_labels == 3


def test_a_folder_that_may_not_be_written_is_named(public: Path, fill: Any) -> None:
    (public / "folder").mkdir(mode=0o555)
    with as_nobody():
        with pytest.raises(InputError, match=r"folder/ledger\.sqlite can't be used \(unable to open database file\)"):
            fill(Ledger.at(public / "folder" / "ledger.sqlite"))
        with pytest.raises(InputError, match=r"the folder of the label ledger .* can't be made \(Permission denied\)"):
            fill(Ledger.at(public / "folder" / "inner" / "ledger.sqlite"))


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path, fill: Any) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="can't be made"):
        fill(Ledger.at(tmp_path / "file" / "ledger.sqlite"))


@pytest.fixture
def full_after(sqlite_ledger: Ledger) -> Any:
    """Let the ledger's disk fill after so many pages."""
    limits: list[int] = []

    def limit(connection: Any, _: Any) -> None:
        if limits:
            connection.execute(f"PRAGMA max_page_count = {limits[-1]}")

    event.listen(sqlite_ledger.database.engine, "connect", limit)
    yield limits
    event.remove(sqlite_ledger.database.engine, "connect", limit)


def test_a_disk_that_fills_loses_nothing_and_half_writes_nothing(
    sqlite_ledger: Ledger, fill: Any, full_after: list[int]
) -> None:
    fill(sqlite_ledger, 20)
    before = list(sqlite_ledger.entries())
    pages = Path(sqlite_ledger.database.name).stat().st_size // 4096
    for more in (1, 4, 16, 32):
        full_after.append(pages + more)
        with pytest.raises(InputError, match=r"\(database or disk is full\): free some space and try again"):
            fill(sqlite_ledger, 2000, chunk=10)
        entries = list(sqlite_ledger.entries())
        assert entries[:20] == before
        spend = sqlite_ledger.spend()
        assert spend.num_labels == spend.num_bought == len(entries)
        with closing(sqlite3.connect(sqlite_ledger.database.name)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    full_after.clear()
    labels = fill(sqlite_ledger, 2000)
    assert sum(len(answers) for answers in labels) == sqlite_ledger.spend().num_labels == 2000


def test_a_disk_that_fills_between_two_answers_keeps_the_first(
    sqlite_ledger: Ledger, recorded: Any, make_question: Make, workplace: Workplace, full_after: list[int]
) -> None:
    class Filling(recorded):
        def says(self, ask: Any) -> Any:
            if len(self.asked) == 5:
                full_after.append(Path(sqlite_ledger.database.name).stat().st_size // 4096)
            return replace(super().says(ask), rationale="long " * 1000)

    questions, labeller = [make_question(index) for index in range(10)], Filling(chunk=1)
    with pytest.raises(InputError, match="database or disk is full"):
        sqlite_ledger.buy(questions, labeller, ONE, workplace)
    kept = sqlite_ledger.spend().num_labels
    assert kept == len(labeller.asked) - 1
    full_after.clear()
    resumed = recorded()
    sqlite_ledger.buy(questions, resumed, ONE, workplace)
    assert (kept, len(resumed.asked)) == (4, 6)


def test_an_unreachable_server_is_named_without_its_password(fill: Any) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"postgresql+psycopg://ann:secret@127.0.0.1:{probe.getsockname()[1]}/labels"
        for use in (fill, Ledger.spend):
            with pytest.raises(InputError, match=r"ann:\*\*\*@127\.0\.0\.1.*[Cc]onnection refused") as caught:
                use(Ledger(url=url, patience=1.0))
            assert "secret" not in str(caught.value)


def test_a_wrong_password_and_a_wrong_database_are_named(postgres_server: str) -> None:
    wrong = postgres_server.replace("open%20sesame", "secret")
    with pytest.raises(InputError, match=r"authentication failed.*PAIRWRIGHT_LEDGER_URL") as caught:
        Ledger(url=f"{wrong}/postgres").spend()
    assert "secret" not in str(caught.value)
    with pytest.raises(InputError, match=r'database "nowhere" does not exist') as caught:
        Ledger(url=f"{postgres_server}/nowhere").spend()
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "mysql://ann:secret@host/labels",
        "sqlite://",
        "sqlite:///:memory:",
        "postgresql+asyncpg://ann:secret@host/labels",
        "secret",
        "",
    ],
)
def test_an_address_that_is_none_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(InputError, match=r"expected sqlite:////absolute/path or postgresql\+psycopg://") as caught:
        Ledger(url=url).spend()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("change", [{"lease": 0.0}, {"patience": float("nan")}, {"patience": float("inf")}])
def test_times_that_are_none_are_refused(sqlite_ledger: Ledger, change: dict[str, float]) -> None:
    with pytest.raises(InputError, match="expected a finite number above 0"):
        replace(sqlite_ledger, **change)


def test_the_ledger_lies_in_the_store_unless_a_setting_names_a_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PAIRWRIGHT_LEDGER_URL", raising=False)
    home = tmp_path / "50%20 off"
    assert Ledger(url=Settings(home=home).ledger).database.name == str(home / "store" / "ledger.sqlite")
    monkeypatch.setenv("PAIRWRIGHT_LEDGER_URL", "postgresql+psycopg://ann:secret@host/labels")
    settings = Settings(home=home)
    assert settings.ledger == "postgresql+psycopg://ann:secret@host/labels"
    assert "secret" not in repr(settings) + repr(Ledger(url=settings.ledger))
