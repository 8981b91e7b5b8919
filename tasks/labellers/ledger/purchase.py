"""A purchase: reserve, claim, ask, keep what comes, wait for what others ask."""

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from sqlalchemy import Connection

from tasks.labellers.ledger.accounts import reserve
from tasks.labellers.ledger.answers import faults_of, settle
from tasks.labellers.ledger.asks import AskState, Order, states
from tasks.labellers.ledger.claims import Claim
from tasks.labellers.ledger.database import Database
from tasks.labellers.protocol import Answered, Ask, Labeller, Workplace

POLL = 0.2
"""Seconds between looks at what another process is about to answer."""


@dataclass(frozen=True, kw_only=True)
class Purchase:
    """One lineage's round buying the answers of one order; it ends when nobody works on any of them."""

    database: Database
    order: Order
    claim: Claim
    labeller: Labeller
    workplace: Workplace
    put: set[int] = field(default_factory=set)
    """Asks that were put to the labeller."""

    def __call__(self) -> None:
        """Ask for what nobody has answered or is being asked for; wait for the rest; take over from the dead."""
        with self.database.writing() as connection:
            asks = reserve(connection, self.order)
            mine = [ask for ask in asks if ask.answer is None and ask.is_free(self.claim.account)]
            self.claim.take(connection, mine)
        self._work(mine)
        while waiting := self._unanswered():
            if any(ask.is_free(self.claim.account) for ask in waiting):
                self._work(self._take_over())
            else:
                time.sleep(POLL)

    def _unanswered(self) -> list[AskState]:
        with self.database.reading() as connection:
            return self._undone(connection)

    def _take_over(self) -> list[AskState]:
        with self.database.writing() as connection:
            mine = [ask for ask in self._undone(connection) if ask.is_free(self.claim.account)]
            self.claim.take(connection, mine)
        return mine

    def _undone(self, connection: Connection) -> list[AskState]:
        """Asks that somebody is about to answer or has given up, or that this labeller was never shown.

        What it was shown and anybody left open is not waited for.
        """
        unanswered = states(connection, self.order, unanswered=True)
        return [ask for ask in unanswered if not (ask.left_open and ask.id in self.put)]

    def _work(self, mine: Sequence[AskState]) -> None:
        if not mine:
            return
        self.put.update(state.id for state in mine)
        asks = [Ask(question=self.order.questions[state.key], repetition=state.repetition) for state in mine]
        ids = {(state.key, state.repetition): state.id for state in mine}
        with self._held(), self.claim.kept_alive(self.database):
            wanted = {(ask.question.key, ask.repetition): ask for ask in asks}
            for answered in _stopping(self.labeller(asks, self.workplace)):
                self._check(answered, wanted)
                with self.database.writing() as connection:
                    settle(connection, answered, ids, self.order)
                self._check_costs(answered)

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Give the claims back at the end; where the labeller just left asks out, they are open."""
        completed = False
        try:
            yield
            completed = True
        finally:
            with self.database.writing() as connection:
                self.claim.release(connection, left_open=completed)

    def _check(self, answered: Answered, wanted: dict[tuple[str, int], Ask]) -> None:
        """Take answered asks off the wanted ones; a labeller's fault is found before anything of it is kept."""
        for ask, answer in answered:
            key = (ask.question.key, ask.repetition)
            if wanted.pop(key, None) != ask:
                raise ValueError(
                    f"labeller {self.labeller.identity} answered {ask.question.key} (repetition {ask.repetition}), "
                    "which it was not asked in this order, or twice: expected one answer to an ask that it was given; "
                    "nothing of what it gave with it was kept"
                )
            if faults := faults_of(answer):
                raise ValueError(
                    f"labeller {self.labeller.identity} gave an answer to {ask.question.key} that is none: "
                    f"{'; '.join(faults)}; nothing of what it gave with it was kept"
                )

    def _check_costs(self, answered: Answered) -> None:
        """What costs more than was reserved is paid and kept all the same; the budget doesn't bound it."""
        for ask, answer in answered:
            price = self.order.prices[ask.question.key]
            if answer.cost is not None and answer.cost > price * (1 + 1e-9):
                raise ValueError(
                    f"labeller {self.labeller.identity} charged {answer.cost:g} for {ask.question.key}, above its "
                    f"price of {price:g}: expected price() to be the most that an answer can cost; the answer was kept"
                )


def _stopping(answers: Iterator[Answered]) -> Iterator[Answered]:
    """Chunks that hold something; a generator that is left early is told at once."""
    try:
        yield from (chunk for chunk in answers if chunk)
    finally:
        if isinstance(answers, Generator):
            answers.close()
