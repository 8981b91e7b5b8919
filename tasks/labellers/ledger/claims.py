"""Claims: who works on which asks, until when."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Thread

from sqlalchemy import Connection, update

from cluster.errors import InputError
from tasks.labellers.ledger.asks import AskState, chunks
from tasks.labellers.ledger.database import Database
from tasks.labellers.ledger.records import Account
from tasks.labellers.ledger.schema import ASKS, UNCLAIMED

RENEWALS_PER_LEASE = 4


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One purchase's hold on asks: it lasts `lease` seconds after its last sign of life."""

    token: str
    account: Account
    lease: float

    def take(self, connection: Connection, asks: Sequence[AskState]) -> None:
        """Claim asks, each of which is going to be put to the labeller once."""
        values = {
            "claim": self.token,
            "claim_lineage": self.account.lineage,
            "claim_round": self.account.round,
            "claim_until": time.time() + self.lease,
            "num_attempts": ASKS.c.num_attempts + 1,
        }
        for ids in chunks(ask.id for ask in asks):
            connection.execute(update(ASKS).where(ASKS.c.id.in_(ids)).values(values))

    def renew(self, connection: Connection) -> None:
        """Give a sign of life."""
        mine = update(ASKS).where(ASKS.c.claim == self.token)
        connection.execute(mine.values(claim_until=time.time() + self.lease))

    def release(self, connection: Connection, *, left_open: bool) -> None:
        """Give the claims back; `left_open` marks what the labeller left to be answered from outside."""
        mine = update(ASKS).where(ASKS.c.claim == self.token)
        if left_open:
            connection.execute(mine.where(ASKS.c.answer.is_(None)).values(left_open=True))
        connection.execute(mine.values(UNCLAIMED))

    @contextmanager
    def kept_alive(self, database: Database) -> Iterator[None]:
        """Renew from a thread while the block runs, for one question may take a labeller longer than a lease."""
        done = Event()
        thread = Thread(target=self._renew_until, args=(done, database), name="ledger lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _renew_until(self, done: Event, database: Database) -> None:
        while not done.wait(self.lease / RENEWALS_PER_LEASE):
            try:
                with database.writing() as connection:
                    self.renew(connection)
            except InputError:
                continue  # a ledger that can't be reached stops the purchase at its next answer, not here
