"""What the ledger tells: spend, progress, open questions, what was answered, every entry."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, case, false, func, select, true

from tasks.labellers.ledger.answers import oriented
from tasks.labellers.ledger.contents import shown
from tasks.labellers.ledger.records import Entry, OpenQuestion, Progress, Spend
from tasks.labellers.ledger.schema import (
    ANSWERS,
    ASKS,
    CHARGES,
    LABELLERS,
    PAIRS,
    RESERVED,
    SETTLED,
    in_force,
    total,
)
from tasks.labellers.protocol import Question

PAGE = 1000
"""Entries read in one transaction, so that a slow reader holds up no writer."""


def spend(connection: Connection, lineage: str | None, round_number: int | None = None) -> Spend:
    """What a lineage, or all of them together, was charged and paid, in all rounds or in one."""
    charged = select(CHARGES.c.state, func.count(), total(CHARGES.c.cost)).group_by(CHARGES.c.state)
    is_repeated = and_(ASKS.c.num_attempts > 1, ASKS.c.left_open == false(), ANSWERS.c.cost > 0)
    bought = select(func.count(), total(ANSWERS.c.cost), _count(is_repeated)).join(ASKS, in_force())
    if lineage is not None:
        charged, bought = charged.where(CHARGES.c.lineage == lineage), bought.where(ANSWERS.c.lineage == lineage)
    if round_number is not None:
        charged, bought = charged.where(CHARGES.c.round == round_number), bought.where(ANSWERS.c.round == round_number)
    sums = {state: (number, cost) for state, number, cost in connection.execute(charged)}
    num_labels, cost = sums.get(SETTLED, (0, 0.0))
    num_pending, pending = sums.get(RESERVED, (0, 0.0))
    num_bought, paid, num_repeated = connection.execute(bought).one()
    return Spend(
        num_labels=num_labels,
        cost=cost,
        num_pending=num_pending,
        pending=pending,
        num_bought=num_bought,
        paid=paid,
        num_repeated=num_repeated,
    )


def progress(connection: Connection, lineage: str, round_number: int) -> Progress:
    """How far the answers are for which a round is charged."""
    is_settled = CHARGES.c.state == SETTLED
    counts = connection.execute(
        select(
            func.count(),
            _count(is_settled),
            _count(and_(is_settled, ANSWERS.c.choice == "abstain")),
            _count(CHARGES.c.state == RESERVED),
            func.min(CHARGES.c.asked_at, type_=CHARGES.c.asked_at.type),
        )
        .select_from(CHARGES)
        .join(ASKS, ASKS.c.id == CHARGES.c.ask)
        .outerjoin(ANSWERS, in_force())
        .where(CHARGES.c.lineage == lineage, CHARGES.c.round == round_number)
    ).one()
    num_asked, num_answered, num_abstained, num_pending, asked_at = counts
    return Progress(
        num_asked=num_asked,
        num_answered=num_answered,
        num_abstained=num_abstained,
        num_pending=num_pending,
        asked_at=asked_at,
    )


def _count(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return func.coalesce(func.sum(case((condition, 1), else_=0)), 0)


def open_questions(connection: Connection, lineage: str | None, seed: int) -> list[OpenQuestion]:
    """Questions left open for which a lineage waits, in the order in which they were asked."""
    waited = (
        select(
            CHARGES.c.lineage,
            CHARGES.c.round,
            ASKS.c.labeller.label("number"),
            LABELLERS.c.identity,
            PAIRS,
            func.count().label("wanted"),
        )
        .select_from(CHARGES)
        .join(ASKS, ASKS.c.id == CHARGES.c.ask)
        .join(LABELLERS, LABELLERS.c.id == ASKS.c.labeller)
        .join(PAIRS, PAIRS.c.key == ASKS.c.key)
        .where(CHARGES.c.state == RESERVED, ASKS.c.answer.is_(None), ASKS.c.left_open == true(), _of(lineage))
        .group_by(CHARGES.c.lineage, CHARGES.c.round, ASKS.c.labeller, LABELLERS.c.identity, *PAIRS.c)
        .order_by(func.min(ASKS.c.id), CHARGES.c.lineage)
    )
    annotators = _annotators(connection)
    return [_open_question(row, seed, annotators.get((row.key, row.number), ())) for row in connection.execute(waited)]


def _annotators(connection: Connection) -> dict[tuple[str, int], tuple[str, ...]]:
    """Who has answered a question of which other repetitions are open."""
    waiting = ASKS.alias()
    rows = connection.execute(
        select(ASKS.c.key, ASKS.c.labeller, ANSWERS.c.annotator)
        .select_from(waiting)
        .join(ASKS, and_(ASKS.c.key == waiting.c.key, ASKS.c.labeller == waiting.c.labeller))
        .join(ANSWERS, in_force())
        .where(waiting.c.answer.is_(None), waiting.c.left_open == true())
        .group_by(ASKS.c.key, ASKS.c.labeller, ANSWERS.c.annotator, ASKS.c.repetition)
        .order_by(ASKS.c.repetition)
    )
    found: dict[tuple[str, int], tuple[str, ...]] = {}
    for key, labeller, annotator in rows:
        found[key, labeller] = (*found.get((key, labeller), ()), annotator)
    return found


def _open_question(row: Row[Any], seed: int, annotators: tuple[str, ...]) -> OpenQuestion:
    question = Question(key=row.key, messages=row.messages, first=row.low, second=row.high)
    return OpenQuestion(
        question=shown(question, seed),
        lineage=row.lineage,
        round=row.round,
        labeller=row.identity,
        wanted=row.wanted,
        annotators=annotators,
    )


def _of(lineage: str | None) -> ColumnElement[bool]:
    return true() if lineage is None else CHARGES.c.lineage == lineage


def answered(connection: Connection, lineage: str, before: int) -> set[str]:
    """Keys of questions that a lineage asked in rounds before this one and to which an answer is in force."""
    query = (
        select(ASKS.c.key)
        .join(CHARGES, CHARGES.c.ask == ASKS.c.id)
        .where(CHARGES.c.lineage == lineage, CHARGES.c.round < before, ASKS.c.answer.is_not(None))
        .distinct()
    )
    return set(connection.execute(query).scalars())


def lineages(connection: Connection) -> list[str]:
    """All lineages that have an account, by name."""
    return list(connection.execute(select(CHARGES.c.lineage).distinct().order_by(CHARGES.c.lineage)).scalars())


def latest_round(connection: Connection, lineage: str) -> int | None:
    """The last round in which a lineage asked anything; None: it never did."""
    last = select(func.max(CHARGES.c.round)).where(CHARGES.c.lineage == lineage)
    return connection.execute(last).scalar_one_or_none()


def entries(
    connection: Connection,
    lineage: str | None,
    *,
    after: int,
    annotator: str | None = None,
    since: datetime | None = None,
) -> Sequence[tuple[int, Entry]]:
    """A page of answers with their numbers, from the first whose number is above `after`."""
    query = (
        select(
            ANSWERS,
            ASKS.c.repetition,
            (ASKS.c.answer != ANSWERS.c.id).label("superseded"),
            LABELLERS.c.identity,
            PAIRS,
        )
        .join(ASKS, ASKS.c.id == ANSWERS.c.ask)
        .join(LABELLERS, LABELLERS.c.id == ASKS.c.labeller)
        .join(PAIRS, PAIRS.c.key == ASKS.c.key)
        .where(ANSWERS.c.id > after)
        .order_by(ANSWERS.c.id)
        .limit(PAGE)
    )
    if lineage is not None:
        is_charged = and_(CHARGES.c.ask == ASKS.c.id, CHARGES.c.lineage == lineage, CHARGES.c.state == SETTLED)
        query = query.join(CHARGES, is_charged)
    if annotator is not None:
        query = query.where(ANSWERS.c.annotator == annotator)
    if since is not None:
        query = query.where(ANSWERS.c.answered_at >= since)
    return [(row.id, _entry(row)) for row in connection.execute(query)]


def _entry(row: Row[Any]) -> Entry:
    choice, probability, swapped = oriented(row, row.low)
    return Entry(
        key=row.key,
        messages=row.messages,
        first=row.low,
        second=row.high,
        labeller=row.identity,
        repetition=row.repetition,
        choice=choice,
        probability=probability,
        swapped=swapped,
        annotator=row.annotator,
        rationale=row.rationale,
        cost=row.cost,
        lineage=row.lineage,
        round=row.round,
        answered_at=row.answered_at,
        superseded=row.superseded,
        detail=row.detail,
    )
