"""Answers from outside: what people and files say to questions that were asked."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from cluster.errors import InputError
from tasks.labellers.ledger.answers import answer_row, faults_of, put_in_force
from tasks.labellers.ledger.asks import check_texts, labeller_id
from tasks.labellers.ledger.records import Account, Receipt
from tasks.labellers.ledger.schema import ANSWERS, ASKS, CHARGES, PAIRS, RELEASED, RESERVED, SETTLED, in_force
from tasks.labellers.protocol import Answer, Question


@dataclass(frozen=True, kw_only=True)
class _Ask:
    """One repetition of the pair that is answered: who bought its answer, whose rounds wait for it or gave it up."""

    id: int
    price: float
    """What whoever asked first would have paid."""
    asker: Account
    is_answered: bool
    annotator: str | None
    cost: float | None
    buyer: Account
    waiting: Mapping[Account, float]
    """With what each has reserved."""
    given_up: Collection[Account]
    users: Collection[Account]
    """Who is charged for its answer."""


def record(connection: Connection, shown: Question, labeller: str, answer: Answer) -> Receipt:
    """Store an answer: in the place of the annotator's earlier one, else to the first repetition still open.

    Raises:
        InputError: the pair or the labeller was never asked, the texts are others, the answer is outside the scheme.
    """
    _check_answer(shown, answer)
    asks = _asks(connection, shown, labeller)
    own = next((ask for ask in asks if ask.is_answered and ask.annotator == answer.annotator), None)
    unanswered = [ask for ask in asks if not ask.is_answered]
    waited = next((ask for ask in unanswered if ask.waiting), None)
    if own is not None:
        return _replace(connection, own, shown, answer)
    if waited is not None:
        return _count(connection, waited, shown, answer)
    if unanswered:
        used_by = {account.lineage for ask in asks for account in ask.users}
        return _keep_late(connection, unanswered[0], shown, answer, used_by)
    return _keep_surplus(connection, asks[-1], shown, answer)


def _check_answer(shown: Question, answer: Answer) -> None:
    faults = faults_of(answer)
    if not answer.annotator:
        faults.append("it has no annotator, expected a name, which tells a second answer from a change of mind")
    if faults:
        raise InputError(f"the answer to {shown.key} can't be taken: {'; '.join(faults)}. Nothing was stored")


def _asks(connection: Connection, shown: Question, labeller: str) -> list[_Ask]:
    """All repetitions of a pair that the labeller was asked, in order."""
    pair = connection.execute(select(PAIRS.c.low, PAIRS.c.high).where(PAIRS.c.key == shown.key)).one_or_none()
    if pair is None:
        raise InputError(f"the ledger knows no pair {shown.key}: expected one that a round asked for")
    check_texts(shown, pair.low, pair.high)
    bought = (ANSWERS.c.lineage.label("buyer"), ANSWERS.c.round.label("buyer_round"))
    rows = connection.execute(
        select(ASKS, *ANSWERS.c["annotator", "cost"], *bought)
        .outerjoin(ANSWERS, in_force())
        .where(ASKS.c.key == shown.key, ASKS.c.labeller == labeller_id(connection, labeller))
        .order_by(ASKS.c.repetition)
    ).all()
    if not rows:
        raise InputError(f"labeller {labeller} was never asked {shown.key}: expected the identity of one that was")
    charges = connection.execute(
        select(CHARGES).where(CHARGES.c.ask.in_([row.id for row in rows])).order_by(CHARGES.c.asked_at)
    ).all()
    return [_ask(row, [charge for charge in charges if charge.ask == row.id]) for row in rows]


def _ask(row: Row[Any], charges: Sequence[Row[Any]]) -> _Ask:
    asker = Account(lineage=row.lineage, round=row.round)
    return _Ask(
        id=row.id,
        price=row.price,
        asker=asker,
        is_answered=row.answer is not None,
        annotator=row.annotator,
        cost=row.cost,
        buyer=asker if row.buyer is None else Account(lineage=row.buyer, round=row.buyer_round),
        waiting=_accounts(charges, RESERVED),
        given_up=_accounts(charges, RELEASED),
        users=_accounts(charges, SETTLED),
    )


def _accounts(charges: Sequence[Row[Any]], state: str) -> dict[Account, float]:
    """Who has charges in this state, in the order in which they asked, with their costs."""
    return {
        Account(lineage=charge.lineage, round=charge.round): charge.cost for charge in charges if charge.state == state
    }


def _row(ask: _Ask, shown: Question, answer: Answer, *, buyer: Account) -> dict[str, Any]:
    """What it may cost is what its buyer reserved; where nobody waits, what was paid before, or its price then."""
    limit = ask.waiting.get(buyer, ask.price) if ask.cost is None else ask.cost
    if answer.cost is not None and answer.cost > limit * (1 + 1e-9):
        raise InputError(
            f"the answer to {shown.key} costs {answer.cost:g}, expected {limit:g} at most, which is reserved for it "
            "or was paid for the answer that it replaces. Nothing was stored"
        )
    return answer_row(answer, shown, ask=ask.id, price=limit, buyer=buyer)


def _replace(connection: Connection, ask: _Ask, shown: Question, answer: Answer) -> Receipt:
    row = _row(ask, shown, answer, buyer=ask.buyer)
    number = connection.execute(insert(ANSWERS).returning(ANSWERS.c.id), [row]).scalar_one()
    connection.execute(update(ASKS).where(ASKS.c.id == ask.id).values(answer=number))
    dearer = update(CHARGES).where(CHARGES.c.ask == ask.id, CHARGES.c.state == SETTLED, CHARGES.c.cost > row["cost"])
    connection.execute(dearer.values(cost=row["cost"]))
    return Receipt(status="replaced", reason="it takes the place of your earlier answer, which stays in the history")


def _count(connection: Connection, ask: _Ask, shown: Question, answer: Answer) -> Receipt:
    """It is bought for the lineage that asked first, if that still waits, else for the first that does."""
    buyer = min(ask.waiting, key=lambda account: account.lineage != ask.asker.lineage)
    put_in_force(connection, [_row(ask, shown, answer, buyer=buyer)])
    return Receipt(status="counted", reason=f"it counts for {_names(ask.waiting)}")


def _keep_late(connection: Connection, ask: _Ask, shown: Question, answer: Answer, used_by: Collection[str]) -> Receipt:
    """It serves no lineage that uses another answer to the pair, which has its outcome there."""
    put_in_force(connection, [_row(ask, shown, answer, buyer=ask.asker)])
    serves = " and serves the next round" if not any(account.lineage in used_by for account in ask.given_up) else ""
    return Receipt(status="kept", reason=f"{_names(ask.given_up)} has closed: the answer is kept{serves}")


def _keep_surplus(connection: Connection, last: _Ask, shown: Question, answer: Answer) -> Receipt:
    """One repetition more than anybody asked for; whoever asks for it later has it at once."""
    same = select(*ASKS.c["key", "labeller", "lineage", "round", "price", "repetition"]).where(ASKS.c.id == last.id)
    values = dict(connection.execute(same).mappings().one())
    values["repetition"] += 1
    number = connection.execute(insert(ASKS).returning(ASKS.c.id), [values]).scalar_one()
    put_in_force(connection, [_row(replace(last, id=number, cost=None), shown, answer, buyer=last.asker)])
    return Receipt(status="kept", reason="nobody asks for more answers to this question: the answer is kept")


def _names(accounts: Collection[Account]) -> str:
    return ", ".join(f"round {account.round} of lineage {account.lineage!r}" for account in accounts)
