"""The database of a ledger: whole transactions, one writer at a time, errors that say what to do."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.pool import NullPool

from cluster.errors import InputError
from tasks.labellers.ledger.faults import fault
from tasks.labellers.ledger.versions import is_current, prepare

DRIVERS = {
    "sqlite": "sqlite",
    "sqlite+pysqlite": "sqlite",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}
_WRITER = 0x7061_6972_7772  # "pairwr": the advisory lock that Postgres's writers take
_SNAPSHOT: dict[str, dict[str, Any]] = {
    "sqlite": {"begin": "BEGIN"},
    "postgresql+psycopg": {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True},
}


@dataclass(frozen=True)
class Database:
    """Transactions that hold whole or not at all; `patience` is how many seconds to wait for another's."""

    url: str
    patience: float

    @property
    def name(self) -> str:
        """The file, or the address without its password."""
        url = _checked_url(self.url)
        return str(url.database) if url.drivername == "sqlite" else url.render_as_string(hide_password=True)

    @property
    def engine(self) -> Engine:
        """Connects anew for every transaction, so that it may be used after a fork."""
        return _engine(self.url, self.patience)

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Hold the ledger against all other writers until the block ends; an exception leaves it as it was.

        Raises:
            InputError: the database can't be used: locked, read-only, full, damaged, unreachable, not a ledger.
        """
        with self._faults():
            self._make_folder()
            with self.engine.connect() as connection, connection.begin():
                self._wait_for_writers(connection)
                prepare(connection, self.name)
                yield connection

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """See one state of the ledger; a ledger that isn't there yet is an empty one, and isn't made.

        Raises:
            InputError: the database can't be used: locked, damaged, unreachable, not a ledger.
        """
        with self._faults():
            if self._is_missing():
                with _nothing() as connection:
                    yield connection
                return
            self._bring_up_to_date()
            with self._snapshot() as connection:
                yield connection

    def _bring_up_to_date(self) -> None:
        with self._snapshot() as connection:
            current = is_current(connection, self.name)
        if not current:
            with self.writing():
                pass

    @contextmanager
    def _snapshot(self) -> Iterator[Connection]:
        options = _SNAPSHOT[_checked_url(self.url).drivername]
        with self.engine.connect() as plain:
            connection = plain.execution_options(**options)
            with connection.begin():
                yield connection

    def _wait_for_writers(self, connection: Connection) -> None:
        """SQLite has waited when its transaction begins."""
        if connection.dialect.name == "postgresql":
            connection.execute(text(f"SET LOCAL lock_timeout = {int(1000 * self.patience)}"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _WRITER})

    @property
    def _file(self) -> Path | None:
        url = _checked_url(self.url)
        return Path(str(url.database)) if url.drivername == "sqlite" else None

    def _is_missing(self) -> bool:
        return self._file is not None and not self._file.exists()

    def _make_folder(self) -> None:
        if self._file is not None:
            try:
                self._file.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(
                    f"the folder of the label ledger {self.name} can't be made ({error.strerror}): "
                    "mend its permissions or name another ledger in PAIRWRIGHT_LEDGER_URL"
                ) from error

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            advice = fault(error)
            if advice is None:
                raise
            password = _checked_url(self.url).password
            said = str(error.orig).strip().replace(str(password), "***") if password else str(error.orig).strip()
            raise InputError(f"the label ledger {self.name} can't be used ({said}): {advice}") from error


def _checked_url(address: str) -> URL:
    """The address with the driver that is used; its password is never part of a message."""
    try:
        url = make_url(address)
    except ArgumentError as error:
        raise InputError(
            "PAIRWRIGHT_LEDGER_URL is not an address of a database (not shown, since it may hold a password): "
            "expected sqlite:////absolute/path or postgresql+psycopg://user:password@host/name"
        ) from error
    driver = DRIVERS.get(url.drivername)
    if driver is None or (driver == "sqlite" and url.database in {None, "", ":memory:"}):
        raise InputError(
            f"the label ledger {url.render_as_string(hide_password=True)} can't be used: "
            "expected sqlite:////absolute/path or postgresql+psycopg://user:password@host/name"
        )
    return url.set(drivername=driver)


@lru_cache(maxsize=16)
def _engine(address: str, patience: float) -> Engine:
    url = _checked_url(address)
    timeout: dict[str, Any] = {"timeout": patience} if url.drivername == "sqlite" else {}
    if not timeout:
        timeout["connect_timeout"] = max(1, int(patience))
    try:
        engine = create_engine(url, poolclass=NullPool, connect_args=timeout)
    except (ImportError, NoSuchModuleError) as error:
        raise InputError(
            f"the label ledger {url.render_as_string(hide_password=True)} needs a driver that is not installed "
            f"({error}): pip install 'pairwright[postgres]'"
        ) from error
    if url.drivername == "sqlite":
        event.listen(engine, "connect", _leave_transactions_to_us)
        event.listen(engine, "begin", _begin)
    return engine


def _leave_transactions_to_us(connection: Any, _: Any) -> None:
    """Keep the driver from beginning transactions of its own, late and without the writer's lock."""
    connection.isolation_level = None


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN IMMEDIATE"))


@contextmanager
def _nothing() -> Iterator[Connection]:
    engine = create_engine("sqlite://")
    with closing(engine.connect()) as connection:
        prepare(connection, "empty")
        yield connection
    engine.dispose()
