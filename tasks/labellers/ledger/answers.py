"""Answers: writing them down as they come, and reading them as labels."""

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, get_args

from sqlalchemy import Connection, Row, and_, bindparam, case, func, insert, select, update

from tasks.labellers.ledger.asks import Order, chunks, labeller_id
from tasks.labellers.ledger.contents import digest
from tasks.labellers.ledger.records import Account
from tasks.labellers.ledger.schema import ANSWERS, ASKS, CHARGES, RESERVED, SETTLED, UNCLAIMED, in_force
from tasks.labellers.protocol import Answer, Answered, Choice, Label, Question

TURNED: dict[Choice, Choice] = {"first": "second", "second": "first", "tie": "tie", "abstain": "abstain"}


def faults_of(answer: Answer) -> list[str]:
    """What is wrong with an answer's choice, probability and cost."""
    found = []
    if answer.choice not in get_args(Choice):
        found.append(f"its choice is {answer.choice!r}, expected one of {', '.join(get_args(Choice))}")
    if answer.probability is not None and not 0 <= answer.probability <= 1:
        found.append(f"its probability is {answer.probability}, expected a number in [0, 1]")
    if answer.cost is not None and not 0 <= answer.cost < math.inf:
        found.append(f"its cost is {answer.cost}, expected a finite number, 0 or more")
    return found


def answer_row(answer: Answer, shown: Question, *, ask: int, price: float, buyer: Account) -> dict[str, Any]:
    """An answer as the ledger keeps it."""
    return {
        "ask": ask,
        "choice": answer.choice,
        "shown_first": digest(shown.first),
        "probability": answer.probability,
        "annotator": answer.annotator,
        "rationale": answer.rationale,
        "cost": price if answer.cost is None else answer.cost,
        "lineage": buyer.lineage,
        "round": buyer.round,
        "answered_at": datetime.now(UTC),
        "detail": dict(answer.detail),
    }


def settle(connection: Connection, answered: Answered, ids: Mapping[tuple[str, int], int], order: Order) -> None:
    """Keep answers that came together, and charge all lineages that wait for them.

    An ask that another process has answered meanwhile keeps that answer; this one becomes history.
    """
    rows = [
        answer_row(
            answer,
            ask.question,
            ask=ids[ask.question.key, ask.repetition],
            price=order.prices[ask.question.key],
            buyer=order.account,
        )
        for ask, answer in answered
    ]
    put_in_force(connection, rows)


def put_in_force(connection: Connection, rows: Sequence[dict[str, Any]]) -> None:
    """Store answers to different asks; each is in force where its ask has none yet, and settles what is reserved."""
    connection.execute(insert(ANSWERS), list(rows))
    newest = select(func.max(ANSWERS.c.id)).where(ANSWERS.c.ask == ASKS.c.id).scalar_subquery()
    connection.execute(
        update(ASKS).where(ASKS.c.id == bindparam("of"), ASKS.c.answer.is_(None)).values(answer=newest, **UNCLAIMED),
        [{"of": row["ask"]} for row in rows],
    )
    _settle_charges(connection, rows)


def _settle_charges(connection: Connection, rows: Sequence[dict[str, Any]]) -> None:
    """Charge the buyer what answers cost, and others who wait for them no more than they have reserved."""
    is_above = and_(CHARGES.c.lineage != bindparam("buyer"), CHARGES.c.cost < bindparam("paid"))
    connection.execute(
        update(CHARGES)
        .where(CHARGES.c.ask == bindparam("of"), CHARGES.c.state == RESERVED)
        .values(state=SETTLED, cost=case((is_above, CHARGES.c.cost), else_=bindparam("paid"))),
        [{"of": row["ask"], "paid": row["cost"], "buyer": row["lineage"]} for row in rows],
    )


def labels_of(connection: Connection, order: Order, questions: Sequence[Question]) -> list[list[Label]]:
    """The answers to every question, in its own orientation; bought once, however often the question stands there."""
    rows: dict[str, list[Any]] = {key: [] for key in order.questions}
    statement = (
        select(ASKS.c.key, ASKS.c.repetition, ANSWERS)
        .join(ANSWERS, in_force())
        .where(ASKS.c.labeller == labeller_id(connection, order.labeller), ASKS.c.repetition < order.repeats)
        .order_by(ASKS.c.repetition)
    )
    for keys in chunks(order.questions):
        for row in connection.execute(statement.where(ASKS.c.key.in_(keys))):
            rows[row.key].append(row)
    seen: set[str] = set()
    labels = []
    for question in questions:
        is_first = question.key not in seen
        labels.append([_label(question, row, order.account, is_first=is_first) for row in rows[question.key]])
        seen.add(question.key)
    return labels


def _label(question: Question, row: Row[Any], account: Account, *, is_first: bool) -> Label:
    choice, probability, swapped = oriented(row, question.first)
    return Label(
        key=question.key,
        repetition=row.repetition,
        choice=choice,
        probability=probability,
        swapped=swapped,
        annotator=row.annotator,
        rationale=row.rationale,
        cost=row.cost,
        bought=is_first and (row.lineage, row.round) == (account.lineage, account.round),
        detail=row.detail,
    )


def oriented(row: Row[Any], first: str) -> tuple[Choice, float | None, bool]:
    """An answer's choice and probability where `first` is the first response, and whether it was shown second."""
    swapped = bool(row.shown_first != digest(first))
    choice, probability = row.choice, row.probability
    if not swapped:
        return choice, probability, False
    return TURNED[choice], None if probability is None else 1 - probability, True
