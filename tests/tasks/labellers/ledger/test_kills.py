"""Purchases of two lineages and two rounds at once, killed anywhere: nothing is paid twice, lost or overspent."""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from tasks.labellers.ledger import Ledger
from tasks.labellers.ledger.schema import ASKS, PAIRS

pytestmark = pytest.mark.labels

BUDGETS = {"one": 14.0, "two": None}
SLOTS = [("one", 0), ("one", 1), ("two", 0)]
PLAN = st.fixed_dictionaries(
    {
        "questions": st.tuples(st.integers(0, 6), st.integers(7, 14)),
        "repeats": st.integers(1, 2),
        "chunk": st.integers(1, 4),
        "kills": st.lists(st.floats(0.0, 0.25), max_size=3),
    }
)
PLANS = st.tuples(PLAN, PLAN, PLAN)
PROPERTY = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]}


@pytest.fixture
def order(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def make(ledger: Ledger, slot: tuple[str, int], plan: dict[str, Any], log: Path) -> dict[str, Any]:
        lineage, round_number = slot
        return {
            "ledger": {"url": ledger.url, "lease": 60.0, "patience": 60.0},
            "account": {"lineage": lineage, "round": round_number, "budget": BUDGETS[lineage]},
            "labeller": {"log": str(log), "chunk": plan["chunk"], "pause": 0.005},
            "questions": plan["questions"],
            "repeats": plan["repeats"],
        }

    return make


@contextmanager
def watched(ledger: Ledger, budgets: Mapping[str, float | None] = BUDGETS) -> Any:
    """Look at the accounts all the time: no budget exceeded, no answer lost."""
    done, faults, looks = Event(), [], []

    def look() -> None:
        held = Counter[str]()
        while not done.is_set():
            for lineage, budget in budgets.items():
                spend = ledger.spend(lineage)
                looks.append(spend)
                if budget is not None and spend.cost + spend.pending > budget + 1e-6:
                    faults.append(f"{lineage} exceeds {budget}: {spend}")
                if spend.num_labels < held[lineage]:
                    faults.append(f"{lineage} had {held[lineage]} labels: {spend}")
                held[lineage] = spend.num_labels

    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(look)
        try:
            yield
        finally:
            done.set()
    looking.result()
    assert looks
    assert faults == []


def run(nursery: Any, order: dict[str, Any], kills: list[float]) -> tuple[int, int]:
    """A round that is killed after so many seconds each time, and then left alone: its end, and how often it died."""
    num_killed = 0
    for seconds in kills:
        pid = nursery.start(order)
        time.sleep(seconds)
        num_killed += nursery.kill(pid) < 0
    return nursery.wait(nursery.start(order)), num_killed


def wanted(plan: dict[str, Any]) -> set[tuple[int, int]]:
    return {(index, repetition) for index in range(*plan["questions"]) for repetition in range(plan["repeats"])}


def check(ledger: Ledger, log: Path, plans: tuple[Any, ...], ends: list[tuple[int, int]]) -> None:
    assert {end for end, _ in ends} <= {0, 3}
    asked = Counter(log.read_text().splitlines() if log.exists() else [])
    entries = list(ledger.entries())
    answered = [f"{entry.key} {entry.repetition}" for entry in entries]
    assert len(answered) == len(set(answered))
    assert set(asked) == set(answered)
    with ledger.database.reading() as connection:
        rows = connection.execute(select(ASKS, PAIRS.c.low).join(PAIRS, PAIRS.c.key == ASKS.c.key)).all()
    for row in rows:
        assert asked[f"{row.key} {row.repetition}"] <= row.num_attempts
        assert row.claim is None
    assert sum(times > 1 for times in asked.values()) <= ledger.spend().num_repeated
    in_flight = sum(num_killed * plan["chunk"] for plan, (_, num_killed) in zip(plans, ends, strict=True))
    assert asked.total() - len(asked) <= in_flight
    assert sum(ledger.spend(lineage).paid for lineage in BUDGETS) == sum(entry.cost for entry in entries)
    for lineage in BUDGETS:
        parts = [
            wanted(plan)
            for plan, slot, end in zip(plans, SLOTS, ends, strict=True)
            if slot[0] == lineage and not end[0]
        ]
        spend, number = ledger.spend(lineage), len(set().union(*parts))
        assert (spend.num_labels, spend.cost, spend.num_pending) == (number, number / 2, 0)


def play(nursery: Any, order: Any, ledger: Ledger, log: Path, plans: tuple[Any, ...]) -> None:
    with watched(ledger), ThreadPoolExecutor(len(SLOTS)) as pool:
        runs = [
            pool.submit(run, nursery, order(ledger, slot, plan, log), plan["kills"])
            for slot, plan in zip(SLOTS, plans, strict=True)
        ]
        ends = [each.result() for each in runs]
    check(ledger, log, plans, ends)


@settings(**PROPERTY, max_examples=10)
@given(plans=PLANS)
def test_kills_anywhere_buy_nothing_twice_lose_nothing_and_overspend_nothing(
    nursery: Any, order: Any, tmp_path: Path, plans: tuple[Any, ...]
) -> None:
    name = uuid4().hex
    play(nursery, order, Ledger.at(tmp_path / f"{name}.sqlite"), tmp_path / f"{name}.log", plans)


@settings(**PROPERTY, max_examples=4)
@given(plans=PLANS)
def test_kills_anywhere_do_no_harm_in_postgres(
    nursery: Any, order: Any, tmp_path: Path, new_database: Callable[[], str], plans: tuple[Any, ...]
) -> None:
    play(nursery, order, Ledger(url=new_database()), tmp_path / f"{uuid4().hex}.log", plans)


@pytest.mark.parametrize("attempt", range(3))
def test_of_rounds_at_once_that_exceed_the_budget_together_one_is_served(
    nursery: Any, order: Any, ledger: Ledger, tmp_path: Path, attempt: int
) -> None:
    plans = [{"questions": (start, start + 100), "repeats": 1, "chunk": 50} for start in (0, 200, 400, 600)]
    known = {"questions": (900, 901), "repeats": 1, "chunk": 1}  # so that nobody waits for tables or the labeller's row
    assert nursery.wait(nursery.start(order(ledger, ("two", 0), known, tmp_path / "other log"))) == 0
    with watched(ledger, {"one": 140.0}):
        pids = []
        for number, plan in enumerate(plans):
            wanted = order(ledger, ("one", number), plan, tmp_path / "log")
            wanted["account"]["budget"] = 140.0
            pids.append(nursery.start({**wanted, "go": str(tmp_path / "go")}))
        (tmp_path / "go").touch()
        ends = [nursery.wait(pid) for pid in pids]
    assert sorted(ends) == [0, 3, 3, 3]
    spend = ledger.spend("one")
    assert (spend.num_labels, spend.cost, spend.num_pending) == (100, 50.0, 0)
    assert len((tmp_path / "log").read_text().splitlines()) == 100


def test_a_purchase_waits_for_another_transaction(nursery: Any, order: Any, ledger: Ledger, tmp_path: Path) -> None:
    plan, log = {"questions": (0, 2), "repeats": 1, "chunk": 1}, tmp_path / "log"
    with ledger.database.writing():
        pid = nursery.start(order(ledger, ("one", 0), plan, log))
        time.sleep(1.0)
        assert not log.exists()
    assert nursery.wait(pid) == 0
    assert len(log.read_text().splitlines()) == 2
