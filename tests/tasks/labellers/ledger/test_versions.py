import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import InputError
from tasks.labellers.ledger import Account, Ledger, question_key
from tasks.labellers.protocol import Question, Workplace

pytestmark = pytest.mark.labels

FIRST_VERSION = """
CREATE TABLE labels (
    key TEXT NOT NULL,
    labeller TEXT NOT NULL,
    preferred TEXT NOT NULL,
    shown_first TEXT NOT NULL,
    probability REAL,
    cost REAL NOT NULL,
    lineage TEXT NOT NULL,
    round INTEGER NOT NULL,
    bought_at TEXT NOT NULL,
    PRIMARY KEY (key, labeller)
);
PRAGMA user_version = 1;
"""
ONE = Account(lineage="one", round=0)


def digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def asked(index: int) -> Question:
    first, second = f"a {index}", f"b {index}"
    return Question(
        key=question_key("p", first=first, second=second),
        messages=[{"role": None, "content": "p"}],
        first=first,
        second=second,
    )


def row(index: int) -> tuple[Any, ...]:
    """Pair 0 prefers `a 0`, shown first; pair 1 `b 1`, shown first; pair 2 `b 2`, shown second, without probability."""
    question = asked(index)
    preferred = question.first if index == 0 else question.second
    shown = question.second if index == 1 else question.first
    probability = None if index == 2 else 0.75
    when = f"2026-0{index + 1}-01T00:00:00+00:00"
    lineage = "two" if index == 2 else "one"
    return question.key, "recorded", digest(preferred), digest(shown), probability, 0.5, lineage, index, when


@pytest.fixture
def old_ledger(tmp_path: Path) -> Ledger:
    path = tmp_path / "ledger.sqlite"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript(FIRST_VERSION)
        connection.executemany("INSERT INTO labels VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", [row(i) for i in range(3)])
    return Ledger.at(path)


def test_a_ledger_of_the_first_version_keeps_its_labels_and_accounts(
    old_ledger: Ledger, recorded: Any, workplace: Workplace
) -> None:
    one, two = old_ledger.spend("one"), old_ledger.spend("two")
    assert (one.num_labels, one.cost, one.num_bought, one.paid) == (2, 1.0, 2, 1.0)
    assert (two.num_labels, two.cost, two.num_bought, two.paid) == (1, 0.5, 1, 0.5)
    labeller = recorded()
    labels = old_ledger.buy([asked(index) for index in range(4)], labeller, ONE, workplace)
    assert [ask.question.key for ask in labeller.asked] == [asked(3).key]
    found = [(label.choice, label.probability, label.swapped, label.bought) for (label,) in labels[:3]]
    assert found == [("first", 0.75, False, True), ("second", 0.25, True, False), ("second", None, False, False)]


def test_answers_without_texts_appear_among_the_entries_once_their_pair_is_asked_again(
    old_ledger: Ledger, recorded: Any, workplace: Workplace
) -> None:
    assert list(old_ledger.entries()) == []
    old_ledger.buy([asked(1)], recorded(), ONE, workplace)
    (entry,) = old_ledger.entries()
    assert (entry.first, entry.second, entry.choice, entry.round) == ("a 1", "b 1", "second", 1)
    assert entry.answered_at.isoformat() == "2026-02-01T00:00:00+00:00"


def test_a_label_of_the_first_version_that_prefers_neither_response_is_noticed(
    old_ledger: Ledger, recorded: Any, workplace: Workplace
) -> None:
    wrong = replace(asked(0), first="c", second="d")
    with pytest.raises(InputError, match=f"other responses under the key {wrong.key}"):
        old_ledger.buy([wrong], recorded(), ONE, workplace)


def test_an_upgrade_that_fails_leaves_the_first_version_as_it_was(old_ledger: Ledger) -> None:
    path = Path(old_ledger.database.name)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE labels SET bought_at = 'yesterday' WHERE round = 2")
    content = path.read_bytes()
    with pytest.raises(ValueError, match="yesterday"):
        old_ledger.spend()
    assert path.read_bytes() == content


def test_an_empty_ledger_of_the_first_version_is_upgraded(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as connection:
        connection.executescript(FIRST_VERSION)
    assert Ledger.at(tmp_path / "ledger.sqlite").spend().num_labels == 0


def test_a_release_that_knows_the_first_version_only_sees_a_newer_one(
    sqlite_ledger: Ledger, recorded: Any, make_question: Callable[[int], Question], workplace: Workplace
) -> None:
    sqlite_ledger.buy([make_question(0)], recorded(), ONE, workplace)
    with closing(sqlite3.connect(sqlite_ledger.database.name)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)


@pytest.mark.parametrize("use", ["read", "write"])
def test_a_newer_ledger_is_refused_with_both_versions_and_left_alone(tmp_path: Path, use: str) -> None:
    path = tmp_path / "ledger.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 7")
    content, ledger = path.read_bytes(), Ledger.at(path)
    with pytest.raises(InputError, match=r"ledger\.sqlite was written by a newer release: found schema version 7, ex"):
        ledger.spend() if use == "read" else ledger.close("one", 0)
    assert path.read_bytes() == content


def test_a_newer_ledger_in_postgres_is_refused_with_both_versions(postgres_database: str) -> None:
    import psycopg

    ledger = Ledger(url=postgres_database)
    ledger.close("one", 0)
    with psycopg.connect(postgres_database.replace("+psycopg", "")) as connection:
        connection.execute("UPDATE label_version SET version = 7")
    with pytest.raises(InputError, match="found schema version 7, expected 2 at most") as caught:
        ledger.spend()
    assert "open" not in str(caught.value)


def test_a_database_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE other (x)")
    content = path.read_bytes()
    with pytest.raises(InputError, match=r"other\.sqlite holds tables but is not a label ledger"):
        Ledger.at(path).close("one", 0)
    assert path.read_bytes() == content


def test_a_postgres_database_may_hold_other_things_too(postgres_database: str) -> None:
    import psycopg

    with psycopg.connect(postgres_database.replace("+psycopg", "")) as connection:
        connection.execute("CREATE TABLE other (x integer)")
    ledger = Ledger(url=postgres_database)
    ledger.close("one", 0)
    assert ledger.spend().num_labels == 0
