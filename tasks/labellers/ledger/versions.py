"""Making the tables, and bringing ledgers of earlier releases up to date."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, insert, inspect, select

from cluster.errors import InputError
from tasks.labellers.ledger.schema import (
    ANSWERS,
    ASKS,
    CHARGES,
    LABELLERS,
    METADATA,
    SETTLED,
    VERSIONS,
)

VERSION = 2


def is_current(connection: Connection, name: str) -> bool:
    """Whether the tables are there in this release's form; False where they can be made or upgraded.

    Raises:
        InputError: the database is something else, or a newer release wrote it.
    """
    found, is_empty = _found(connection)
    if found > VERSION:
        raise InputError(
            f"the label ledger {name} was written by a newer release: found schema version {found}, "
            f"expected {VERSION} at most: use that release, or name another ledger in PAIRWRIGHT_LEDGER_URL"
        )
    if found == 0 and not is_empty:
        raise InputError(
            f"{name} holds tables but is not a label ledger: found schema version 0, expected {VERSION}: "
            "name another database in PAIRWRIGHT_LEDGER_URL"
        )
    return found == VERSION


def prepare(connection: Connection, name: str) -> None:
    """Make the tables, or upgrade them, within the transaction that is open.

    Raises:
        InputError: the database is something else, or a newer release wrote it.
    """
    if is_current(connection, name):
        return
    found, _ = _found(connection)
    METADATA.create_all(connection)
    if found == 1:
        _upgrade_labels(connection)
    connection.execute(insert(VERSIONS).values(version=VERSION))
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql(f"PRAGMA user_version = {VERSION}")


def _found(connection: Connection) -> tuple[int, bool]:
    """The version, and whether nothing is there that could be in the way."""
    if connection.dialect.name == "sqlite":
        (found,) = connection.exec_driver_sql("PRAGMA user_version").one()
        (num_tables,) = connection.exec_driver_sql("SELECT count(*) FROM sqlite_master").one()
        return found, num_tables == 0
    if not inspect(connection).has_table(VERSIONS.name):
        return 0, True
    return connection.execute(select(VERSIONS.c.version)).scalar_one_or_none() or 0, False


def _upgrade_labels(connection: Connection) -> None:
    """Version 1 had one table of labels, which knew responses by digest and charged only who bought."""
    old = connection.exec_driver_sql("SELECT * FROM labels ORDER BY bought_at, key").mappings().all()
    identities = list(dict.fromkeys(row["labeller"] for row in old))
    labellers = {identity: index + 1 for index, identity in enumerate(identities)}
    rows = {
        LABELLERS: [{"id": index, "identity": identity} for identity, index in labellers.items()],
        ASKS: [_old_ask(row, index, labellers[row["labeller"]]) for index, row in enumerate(old, start=1)],
        ANSWERS: [_old_answer(row, index) for index, row in enumerate(old, start=1)],
        CHARGES: [_old_charge(row, index) for index, row in enumerate(old, start=1)],
    }
    for table, values in rows.items():
        if values:
            connection.execute(insert(table), values)
    connection.exec_driver_sql("DROP TABLE labels")


def _old_ask(row: Any, index: int, labeller: int) -> dict[str, Any]:
    return {
        "id": index,
        "key": row["key"],
        "labeller": labeller,
        "repetition": 0,
        "lineage": row["lineage"],
        "round": row["round"],
        "price": row["cost"],
        "num_attempts": 1,
        "answer": index,
    }


def _old_answer(row: Any, index: int) -> dict[str, Any]:
    was_first, probability = row["preferred"] == row["shown_first"], row["probability"]
    return {
        "id": index,
        "ask": index,
        "choice": "first" if was_first else "second",
        "shown_first": row["shown_first"],
        "probability": probability if probability is None or was_first else 1 - probability,
        "annotator": "",
        "rationale": "",
        "cost": row["cost"],
        "lineage": row["lineage"],
        "round": row["round"],
        "answered_at": _time(row),
        "detail": {},
    }


def _old_charge(row: Any, index: int) -> dict[str, Any]:
    return {
        "lineage": row["lineage"],
        "ask": index,
        "round": row["round"],
        "cost": row["cost"],
        "state": SETTLED,
        "asked_at": _time(row),
    }


def _time(row: Any) -> datetime:
    return datetime.fromisoformat(row["bought_at"]).astimezone(UTC)
