"""The tables of the ledger, the same in SQLite and Postgres."""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    Boolean,
    Column,
    Connection,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    false,
    func,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.types import TypeDecorator

RESERVED, SETTLED, RELEASED = "reserved", "settled", "released"
"""States of a charge: asked for; answered and used; given up before the answer came."""

UNCLAIMED: dict[str, Any] = dict.fromkeys(("claim", "claim_lineage", "claim_round", "claim_until"))
"""Values of an ask on which nobody works."""

CHUNK = 1000
"""Keys in one statement; SQLite takes 32,766 values, Postgres 65,535."""


class Exact(TypeDecorator[Any]):
    """A JSON-able value as ASCII text, so that no database stumbles over a NUL or a lone surrogate in it."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, _: Dialect) -> str:
        """Write."""
        return json.dumps(value)

    def process_result_value(self, value: Any, _: Dialect) -> Any:
        """Read; where a join found nothing, nothing."""
        return None if value is None else json.loads(value)


class Moment(TypeDecorator[datetime]):
    """A time in UTC, in databases that know time zones and those that don't."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, _: Dialect) -> datetime | None:
        """Write."""
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, _: Dialect) -> datetime | None:
        """Read."""
        if value is None or value.tzinfo is not None:
            return None if value is None else value.astimezone(UTC)
        return value.replace(tzinfo=UTC)


METADATA = MetaData()

VERSIONS = Table("label_version", METADATA, Column("version", Integer, primary_key=True))
"""One row; SQLite's own `user_version` says the same, for releases that know no table of versions."""

PAIRS = Table(
    "label_pairs",
    METADATA,
    Column("key", Text, primary_key=True),
    Column("messages", Exact, nullable=False),
    Column("low", Exact, nullable=False),  # the response that sorts first
    Column("high", Exact, nullable=False),
)

LABELLERS = Table(
    "label_labellers",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("identity", Text, nullable=False, unique=True),
)

ASKS = Table(
    "label_asks",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("key", Text, nullable=False),
    Column("labeller", ForeignKey(LABELLERS.c.id), nullable=False),
    Column("repetition", Integer, nullable=False),
    Column("lineage", Text, nullable=False),  # who asked first
    Column("round", Integer, nullable=False),
    Column("price", Float, nullable=False),
    Column("claim", Text),  # the purchase that works on it
    Column("claim_lineage", Text),
    Column("claim_round", Integer),
    Column("claim_until", Float),  # seconds since 1970
    Column("num_attempts", Integer, nullable=False, default=0),  # times that a labeller was given it
    Column("left_open", Boolean, nullable=False, default=False, server_default=false()),
    Column("answer", Integer),  # the answer in force
    UniqueConstraint("key", "labeller", "repetition"),
)

ANSWERS = Table(
    "label_answers",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("ask", ForeignKey(ASKS.c.id), nullable=False, index=True),
    Column("choice", Text, nullable=False),  # in the order shown
    Column("shown_first", Text, nullable=False),  # SHA-256 of the response shown first
    Column("probability", Float),  # of preferring that one
    Column("annotator", Exact, nullable=False),
    Column("rationale", Exact, nullable=False),
    Column("cost", Float, nullable=False),
    Column("lineage", Text, nullable=False, index=True),  # for whom it was bought
    Column("round", Integer, nullable=False),
    Column("answered_at", Moment, nullable=False),
    Column("detail", Exact, nullable=False),
)

CHARGES = Table(
    "label_charges",
    METADATA,
    Column("lineage", Text, primary_key=True),
    Column("ask", ForeignKey(ASKS.c.id), primary_key=True, index=True),
    Column("round", Integer, nullable=False),
    Column("cost", Float, nullable=False),
    Column("state", Text, nullable=False),
    Column("asked_at", Moment, nullable=False),
)

Index(
    "label_asks_claim",
    ASKS.c.claim,
    sqlite_where=ASKS.c.claim.is_not(None),
    postgresql_where=ASKS.c.claim.is_not(None),
)

Index(
    "label_asks_unanswered",
    ASKS.c.labeller,
    sqlite_where=ASKS.c.answer.is_(None),
    postgresql_where=ASKS.c.answer.is_(None),
)

_INSERT: dict[str, Callable[[Table], Any]] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


def insert_new(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert the rows whose unique columns the table doesn't hold yet."""
    if rows:
        connection.execute(_INSERT[connection.dialect.name](table).on_conflict_do_nothing(), list(rows))


def upsert_charges(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert charges, or put them in the place of the lineage's present ones."""
    if rows:
        insert = _INSERT[connection.dialect.name](CHARGES)
        changed = {name: insert.excluded[name] for name in ("round", "cost", "state", "asked_at")}
        statement = insert.on_conflict_do_update(index_elements=["lineage", "ask"], set_=changed)
        connection.execute(statement, list(rows))


def in_force() -> Any:
    """The condition that an answer is the one of its ask that counts."""
    return ASKS.c.answer == ANSWERS.c.id


def total(column: Any) -> Any:
    """A sum that is 0.0 over nothing."""
    return func.coalesce(func.sum(column), 0.0)
