"""The ledger as its users see it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Self
from urllib.parse import quote
from uuid import uuid4

from cluster.errors import InputError
from tasks.labellers.ledger import accounts, outside, reports
from tasks.labellers.ledger.answers import labels_of
from tasks.labellers.ledger.asks import Order
from tasks.labellers.ledger.claims import Claim
from tasks.labellers.ledger.contents import shown
from tasks.labellers.ledger.database import Database
from tasks.labellers.ledger.purchase import Purchase
from tasks.labellers.ledger.records import Account, Entry, OpenQuestion, Progress, Receipt, Spend
from tasks.labellers.protocol import Answer, Label, Labeller, Question, Workplace


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """The answers of all lineages in one database.

    Every method raises an InputError, and leaves the database as it was, where that is locked, read-only, full,
    damaged, unreachable, not a ledger or one of a newer release.
    """

    url: str = field(repr=False)
    """`sqlite:////absolute/path` or `postgresql+psycopg://user:password@host/name`."""
    seed: int = 0
    """Shuffles which response is shown first."""
    lease: float = 120.0
    """Seconds after its last sign of life in which a purchase's claims on unanswered asks may not be taken over."""
    patience: float = 20.0
    """Seconds to wait for another process's transaction, or for the server."""

    def __post_init__(self) -> None:
        for name, value in {"lease": self.lease, "patience": self.patience}.items():
            if not 0 < value < math.inf:
                raise InputError(f"the ledger's {name} is {value} seconds: expected a finite number above 0")

    @classmethod
    def at(cls, path: Path, *, seed: int = 0) -> Self:
        """The ledger in a SQLite file, which is made when the first answer is asked for."""
        return cls(url=f"sqlite:///{quote(str(path.absolute()))}", seed=seed)

    @property
    def database(self) -> Database:
        """Where it is."""
        return Database(self.url, self.patience)

    def buy(
        self,
        questions: Sequence[Question],
        labeller: Labeller,
        account: Account,
        workplace: Workplace,
        *,
        repeats: int = 1,
    ) -> list[list[Label]]:
        """Get `repeats` answers to every question, asking the labeller only for what the ledger doesn't hold.

        The whole order is charged to the account before anybody is asked: what is known at its cost, what isn't at
        its price. The labeller is called once with what nobody has answered or is working on, and whatever it yields
        is committed at once, so that a kill loses at most what it hasn't yielded yet. What another lineage is asking
        for at the moment is waited for. Asks that the labeller leaves out stay open, to be answered from outside:
        their questions get fewer labels than `repeats`. The labels are in each question's own orientation.

        Raises:
            InputError: `repeats` is below 1, or the account's budget doesn't suffice; nothing was changed.
            InputError: the ledger holds other responses under a question's key; nothing was changed.
            ValueError: the labeller broke the protocol.
        """
        order = self._order(questions, labeller, account, repeats)
        if not questions:
            return []
        claim = Claim(token=uuid4().hex, account=account, lease=self.lease)
        Purchase(database=self.database, order=order, claim=claim, labeller=labeller, workplace=workplace)()
        with self.database.reading() as connection:
            return labels_of(connection, order, questions)

    def use_known(
        self, questions: Sequence[Question], labeller: Labeller, account: Account, *, repeats: int = 1
    ) -> list[list[Label]]:
        """Get the answers to the questions that the ledger holds, as `buy` does: charge them, and no others.

        Nobody is asked and nothing is reserved, so that questions have as few labels as there are answers, or none.

        Raises:
            InputError: `repeats` is below 1, or the account's budget doesn't suffice; nothing was changed.
            InputError: the ledger holds other responses under a question's key; nothing was changed.
        """
        order = self._order(questions, labeller, account, repeats)
        if not questions:
            return []
        with self.database.writing() as connection:
            accounts.use_known(connection, order)
            return labels_of(connection, order, questions)

    def answer(self, shown: Question, labeller: str, answer: Answer) -> Receipt:
        """Take in an answer from outside to a question, in the order in which that was shown.

        It replaces the annotator's earlier answer to the question, if there is one; else it answers the first
        repetition still open; else it is kept beyond what is asked for. `labeller` is the identity that was asked.

        Raises:
            InputError: the labeller was never asked this pair, or the texts are others.
            InputError: the answer is outside the scheme, has no annotator, or costs more than was reserved for it.
        """
        with self.database.writing() as connection:
            return outside.record(connection, shown, labeller, answer)

    def open_questions(self, lineage: str | None = None) -> list[OpenQuestion]:
        """Questions that their labeller left open and a round waits for, in the order in which they were asked.

        Where several lineages wait for a question, each has its own entry.
        """
        with self.database.reading() as connection:
            return reports.open_questions(connection, lineage, self.seed)

    def close(self, lineage: str, round_number: int) -> int:
        """Release what a round reserved for unanswered asks; gives how many. Answers to them are kept from now on."""
        with self.database.writing() as connection:
            return accounts.close(connection, lineage, round_number)

    def answered(self, lineage: str, *, before: int) -> set[str]:
        """Keys of questions that a lineage asked in rounds before this one and that have an answer by now.

        It may have come in time, while its round was closing, or after that.
        """
        with self.database.reading() as connection:
            return reports.answered(connection, lineage, before)

    def progress(self, lineage: str, round_number: int) -> Progress:
        """How far the answers are that a round was the last of its lineage to ask for.

        What a closed round gave up counts as asked, and neither as answered nor as pending.
        """
        with self.database.reading() as connection:
            return reports.progress(connection, lineage, round_number)

    def spend(self, lineage: str | None = None, round_number: int | None = None) -> Spend:
        """What a lineage, or all of them together, was charged and paid; in one round alone, if that is named."""
        with self.database.reading() as connection:
            return reports.spend(connection, lineage, round_number)

    def lineages(self) -> list[str]:
        """All lineages that have an account, by name."""
        with self.database.reading() as connection:
            return reports.lineages(connection)

    def latest_round(self, lineage: str) -> int | None:
        """The last round in which a lineage asked anything; None: it never did."""
        with self.database.reading() as connection:
            return reports.latest_round(connection, lineage)

    def entries(
        self, lineage: str | None = None, *, annotator: str | None = None, since: datetime | None = None
    ) -> Iterator[Entry]:
        """Every answer charged to a lineage, or every answer, with those that were superseded, as they came.

        With `annotator` only that annotator's; with `since` those that came at that moment or later.

        Ledgers of the first version kept no texts: answers from such a one appear once their pair is asked again.
        """
        last = 0
        while page := self._page(lineage, after=last, annotator=annotator, since=since):
            yield from (entry for _, entry in page)
            last = page[-1][0]

    def _page(
        self, lineage: str | None, *, after: int, annotator: str | None, since: datetime | None
    ) -> Sequence[tuple[int, Entry]]:
        with self.database.reading() as connection:
            return reports.entries(connection, lineage, after=after, annotator=annotator, since=since)

    def _order(self, questions: Sequence[Question], labeller: Labeller, account: Account, repeats: int) -> Order:
        """Each pair once, as labellers see it.

        Raises:
            InputError: the repetitions or the budget are no such numbers.
        """
        if repeats < 1:
            raise InputError(f"labelling.repeats is {repeats}: expected 1 or more")
        if account.budget is not None and not 0 <= account.budget < math.inf:
            raise InputError(f"labelling.budget is {account.budget}: expected a finite number, 0 or more")
        unique = {question.key: shown(question, self.seed) for question in questions}
        prices = {key: labeller.price(question) for key, question in unique.items()}
        for key, price in prices.items():
            if not 0 <= price < math.inf:
                raise ValueError(
                    f"labeller {labeller.identity} asks {price} for {key}: expected a finite price, 0 or more"
                )
        return Order(questions=unique, labeller=labeller.identity, prices=prices, account=account, repeats=repeats)
