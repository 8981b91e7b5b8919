"""Asks: which answers an order wants, and how each of them stands."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import TypeVar

from sqlalchemy import Connection, and_, select

from cluster.errors import InputError
from tasks.labellers.ledger.contents import digest
from tasks.labellers.ledger.records import Account
from tasks.labellers.ledger.schema import ANSWERS, ASKS, CHARGES, CHUNK, LABELLERS, PAIRS, in_force, insert_new
from tasks.labellers.protocol import Question

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Order:
    """What one purchase wants: `repeats` answers to each question, for an account."""

    questions: Mapping[str, Question]
    """By key, in the order shown."""
    labeller: str
    prices: Mapping[str, float]
    account: Account
    repeats: int


@dataclass(frozen=True, kw_only=True)
class AskState:
    """One ask as it stands: claimed or not, answered or not, charged to the order's lineage or not."""

    id: int
    key: str
    repetition: int
    left_open: bool
    claim: str | None
    claim_lineage: str | None
    claim_round: int | None
    claim_until: float | None
    answer: int | None
    answer_cost: float | None
    shown_first: str | None
    charge_state: str | None
    charge_cost: float | None
    charge_round: int | None
    charge_asked_at: datetime | None

    def is_free(self, account: Account) -> bool:
        """Whether nobody works on it; what the same round of the same lineage claimed, it left behind when it died."""
        is_own = (self.claim_lineage, self.claim_round) == (account.lineage, account.round)
        return self.claim is None or is_own or (self.claim_until or 0.0) < time.time()


def keep_texts(connection: Connection, questions: Mapping[str, Question]) -> None:
    """Store the texts of pairs that are new.

    Raises:
        InputError: a key stands for other responses already.
    """
    rows = [
        {"key": key, "messages": [dict(message) for message in question.messages], "low": low, "high": high}
        for key, question in questions.items()
        for low, high in [sorted((question.first, question.second))]
    ]
    insert_new(connection, PAIRS, rows)
    for keys in chunks(questions):
        held = connection.execute(select(PAIRS.c.key, PAIRS.c.low, PAIRS.c.high).where(PAIRS.c.key.in_(keys)))
        for key, low, high in held:
            check_texts(questions[key], low, high)


def check_texts(question: Question, low: str, high: str) -> None:
    """See that a question has the responses for which its key stands.

    Raises:
        InputError: it has others.
    """
    if sorted((question.first, question.second)) != [low, high]:
        raise _other_responses(question.key)


def labeller_id(connection: Connection, identity: str) -> int | None:
    """The number under which the ledger knows a labeller."""
    found = connection.execute(select(LABELLERS.c.id).where(LABELLERS.c.identity == identity)).scalar_one_or_none()
    return None if found is None else int(found)


def keep_asks(connection: Connection, order: Order) -> None:
    """Make a row for every answer that is wanted and was never asked for."""
    insert_new(connection, LABELLERS, [{"identity": order.labeller}])
    labeller = labeller_id(connection, order.labeller)
    rows = [
        {
            "key": key,
            "labeller": labeller,
            "repetition": repetition,
            "lineage": order.account.lineage,
            "round": order.account.round,
            "price": price,
        }
        for key, price in order.prices.items()
        for repetition in range(order.repeats)
    ]
    insert_new(connection, ASKS, rows)


def states(connection: Connection, order: Order, *, unanswered: bool = False) -> list[AskState]:
    """All asks of an order, or those without an answer, in the order of its questions.

    Raises:
        InputError: an answer was given to other responses than the question's.
    """
    labeller, lineage = labeller_id(connection, order.labeller), order.account.lineage
    statement = (
        select(
            *ASKS.c["id", "key", "repetition", "left_open", "answer"],
            *ASKS.c["claim", "claim_lineage", "claim_round", "claim_until"],
            ANSWERS.c.cost.label("answer_cost"),
            ANSWERS.c.shown_first,
            CHARGES.c.state.label("charge_state"),
            CHARGES.c.cost.label("charge_cost"),
            CHARGES.c.round.label("charge_round"),
            CHARGES.c.asked_at.label("charge_asked_at"),
        )
        .outerjoin(ANSWERS, in_force())
        .outerjoin(CHARGES, and_(CHARGES.c.ask == ASKS.c.id, CHARGES.c.lineage == lineage))
        .where(ASKS.c.labeller == labeller, ASKS.c.repetition < order.repeats)
        .order_by(ASKS.c.repetition)
    )
    if unanswered:
        statement = statement.where(ASKS.c.answer.is_(None))
    found: dict[str, list[AskState]] = {key: [] for key in order.questions}
    for keys in chunks(order.questions):
        for row in connection.execute(statement.where(ASKS.c.key.in_(keys))):
            found[row.key].append(AskState(**row._mapping))
    for key, asks in found.items():
        _check_answers(order.questions[key], asks)
    return [ask for asks in found.values() for ask in asks]


def _check_answers(question: Question, asks: Sequence[AskState]) -> None:
    """Ledgers of the first version hold digests of the responses, but no texts."""
    known = {digest(question.first), digest(question.second)}
    if not {ask.shown_first for ask in asks if ask.shown_first is not None} <= known:
        raise _other_responses(question.key)


def _other_responses(key: str) -> InputError:
    return InputError(
        f"the ledger holds other responses under the key {key}: "
        "expected a key made of the prompt and both responses; make it with question_key"
    )


def chunks(values: Iterable[T]) -> Iterator[list[T]]:
    """Lists of as many values as one statement takes."""
    iterator = iter(values)
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk
