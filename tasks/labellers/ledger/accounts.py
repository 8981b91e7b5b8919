"""Accounts: what a lineage is charged, reserves and gives up, and the budget that bounds it."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, select, update

from cluster.errors import InputError
from tasks.labellers.ledger.asks import AskState, Order, keep_asks, keep_texts, states
from tasks.labellers.ledger.records import Account
from tasks.labellers.ledger.schema import CHARGES, RELEASED, RESERVED, SETTLED, total, upsert_charges

_ROUNDING = 1e-9
"""Sums of prices such as 0.1 may exceed a budget by their rounding."""


def reserve(connection: Connection, order: Order) -> list[AskState]:
    """Charge an order to its account: what is known at its cost, what is not at its price; gives the order's asks.

    Raises:
        InputError: the account's budget doesn't suffice.
        InputError: a question's key stands for other responses.
    """
    keep_texts(connection, order.questions)
    keep_asks(connection, order)
    asks = states(connection, order)
    _put_on_account(connection, asks, order)
    return asks


def use_known(connection: Connection, order: Order) -> None:
    """Charge the answers to an order that are in force, and nothing else.

    Raises:
        InputError: the account's budget doesn't suffice.
        InputError: a question's key stands for other responses.
    """
    asks = [ask for ask in states(connection, order) if ask.answer is not None]
    keep_texts(connection, {ask.key: order.questions[ask.key] for ask in asks})
    _put_on_account(connection, asks, order)


def close(connection: Connection, lineage: str, round_number: int) -> int:
    """Release what a round reserved for asks without an answer; gives how many."""
    reserved = (CHARGES.c.lineage == lineage, CHARGES.c.round == round_number, CHARGES.c.state == RESERVED)
    return connection.execute(update(CHARGES).where(*reserved).values(state=RELEASED)).rowcount


def _put_on_account(connection: Connection, asks: Sequence[AskState], order: Order) -> None:
    now = datetime.now(UTC)
    charges = [charge for ask in asks if (charge := _charge(ask, order, now)) is not None]
    _check_budget(connection, asks, charges, order.account)
    upsert_charges(connection, charges)


def _charge(ask: AskState, order: Order, now: datetime) -> dict[str, Any] | None:
    """The charge as it has to be; None where it is so already."""
    account = order.account
    if ask.charge_state == SETTLED:
        return None
    is_pending = ask.charge_state == RESERVED and ask.charge_round == account.round
    return {
        "lineage": account.lineage,
        "ask": ask.id,
        "round": account.round,
        "cost": order.prices[ask.key] if ask.answer is None else ask.answer_cost,
        "state": RESERVED if ask.answer is None else SETTLED,
        "asked_at": ask.charge_asked_at if is_pending else now,
    }


def _check_budget(
    connection: Connection, asks: Sequence[AskState], charges: Sequence[dict[str, Any]], account: Account
) -> None:
    if account.budget is None or not charges:
        return
    again = math.fsum(ask.charge_cost or 0.0 for ask in asks if ask.charge_state == RESERVED)
    charged, reserved = _charged(connection, account.lineage)
    reserved, wanted = max(0.0, reserved - again), math.fsum(charge["cost"] for charge in charges)
    if charged + reserved + wanted > account.budget + _ROUNDING * max(1.0, account.budget):
        raise InputError(
            f"lineage {account.lineage!r} may spend {account.budget:g} on labels (labelling.budget): {charged:g} "
            f"are charged and {reserved:g} reserved for other answers, and round {account.round} asks for "
            f"{len(charges)} answers at {wanted:g}. Nothing was bought: "
            "raise labelling.budget, which may change under a lineage, or start a lineage of another name that asks "
            "for fewer answers"
        )


def _charged(connection: Connection, lineage: str) -> tuple[float, float]:
    """What a lineage is charged, and what it has reserved."""
    query = select(CHARGES.c.state, total(CHARGES.c.cost).label("total")).where(CHARGES.c.lineage == lineage)
    sums = {row.state: row.total for row in connection.execute(query.group_by(CHARGES.c.state))}
    return sums.get(SETTLED, 0.0), sums.get(RESERVED, 0.0)
