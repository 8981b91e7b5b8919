from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from cluster.errors import InputError
from tasks.labellers.ledger import Account, Ledger
from tasks.labellers.protocol import Answer, Question, Workplace

pytestmark = pytest.mark.labels

Make = Callable[[int], Question]


def account(budget: float | None, round_number: int = 0) -> Account:
    return Account(lineage="one", round=round_number, budget=budget)


def test_a_budget_that_is_too_small_changes_nothing_and_says_what_to_change(
    ledger: Ledger, recorded: Any, people: Any, make_question: Make, workplace: Workplace
) -> None:
    ledger.buy([make_question(index) for index in range(4)], recorded(), account(10.0), workplace)
    ledger.buy([make_question(index) for index in range(3)], people(), account(10.0, 1), workplace)
    spend, labeller = ledger.spend(), recorded()
    with pytest.raises(InputError) as caught:
        ledger.buy([make_question(index) for index in range(9)], labeller, account(10.0, 2), workplace, repeats=2)
    said = str(caught.value)
    assert "lineage 'one' may spend 10 on labels" in said
    assert "2 are charged and 3 reserved for other answers, and round 2 asks for 14 answers at 7" in said
    assert "raise labelling.budget, which may change under a lineage, or start a lineage of another name" in said
    assert (labeller.asked, ledger.spend(), len(list(ledger.entries()))) == ([], spend, 4)


def test_a_budget_may_be_spent_to_the_last_cent(
    ledger: Ledger, recorded: Any, make_question: Make, workplace: Workplace
) -> None:
    questions = [make_question(index) for index in range(30)]
    ledger.buy(questions, recorded(cost=0.1), account(3.0), workplace)
    assert ledger.spend("one").cost == pytest.approx(3.0)
    with pytest.raises(InputError, match="may spend 3 on labels"):
        ledger.buy([make_question(30)], recorded(cost=0.1), account(3.0), workplace)


def test_a_budget_of_nothing_buys_what_costs_nothing(
    sqlite_ledger: Ledger, recorded: Any, make_question: Make, workplace: Workplace
) -> None:
    with pytest.raises(InputError, match="may spend 0 on labels"):
        sqlite_ledger.buy([make_question(0)], recorded(), account(0.0), workplace)
    assert sqlite_ledger.spend().num_labels == 0
    assert len(sqlite_ledger.buy([make_question(0)], recorded(cost=0.0), account(0.0), workplace)) == 1


@pytest.mark.parametrize("budget", [-1.0, float("nan"), float("inf")])
def test_a_budget_that_is_no_amount_is_refused(
    sqlite_ledger: Ledger, recorded: Any, make_question: Make, workplace: Workplace, budget: float
) -> None:
    with pytest.raises(InputError, match=f"labelling.budget is {budget}"):
        sqlite_ledger.buy([make_question(0)], recorded(), account(budget), workplace)


def test_known_answers_count_against_the_budget_at_what_they_cost(
    ledger: Ledger, recorded: Any, make_question: Make, workplace: Workplace
) -> None:
    class Cheap(recorded):
        def says(self, ask: Any) -> Answer:
            return replace(super().says(ask), cost=0.25)

    questions = [make_question(index) for index in range(4)]
    ledger.buy(questions, Cheap(cost=1.0), Account(lineage="two", round=0), workplace)
    assert (ledger.spend("two").cost, ledger.spend("two").paid) == (1.0, 1.0)
    ledger.buy(questions, Cheap(cost=1.0), account(1.0), workplace)
    assert (ledger.spend("one").cost, ledger.spend("one").paid) == (1.0, 0.0)
    with pytest.raises(InputError, match="1 are charged and 0 reserved"):
        ledger.buy([make_question(4)], Cheap(cost=1.0), account(1.0), workplace)


def test_what_is_reserved_becomes_what_was_charged(
    ledger: Ledger, recorded: Any, make_question: Make, workplace: Workplace
) -> None:
    seen = []

    class Cheap(recorded):
        def says(self, ask: Any) -> Answer:
            seen.append(ledger.spend("one"))
            return replace(super().says(ask), cost=0.25)

    ledger.buy([make_question(index) for index in range(3)], Cheap(cost=1.0, chunk=1), account(3.0), workplace)
    assert [(spend.cost, spend.pending) for spend in seen] == [(0.0, 3.0), (0.25, 2.0), (0.5, 1.0)]
    assert (ledger.spend("one").cost, ledger.spend("one").pending) == (0.75, 0.0)


def test_an_answer_above_its_price_is_kept_charged_and_reported(
    sqlite_ledger: Ledger, recorded: Any, make_question: Make, workplace: Workplace
) -> None:
    class Dear(recorded):
        def says(self, ask: Any) -> Answer:
            return replace(super().says(ask), cost=2.0)

    with pytest.raises(ValueError, match=r"charged 2 for .* above its price of 0\.5"):
        sqlite_ledger.buy([make_question(0)], Dear(), account(1.0), workplace)
    assert (sqlite_ledger.spend("one").num_labels, sqlite_ledger.spend("one").cost) == (1, 2.0)


def test_a_reservation_follows_the_price(
    ledger: Ledger, people: Any, make_question: Make, workplace: Workplace
) -> None:
    questions = [make_question(index) for index in range(3)]
    ledger.buy(questions, people(), account(9.0), workplace)
    assert ledger.spend("one").pending == 3.0
    ledger.buy(questions, replace(people(), cost=2.0), account(9.0), workplace)
    assert (ledger.spend("one").num_pending, ledger.spend("one").pending) == (3, 6.0)
    with pytest.raises(InputError, match="0 are charged and 0 reserved for other answers"):
        ledger.buy(questions, replace(people(), cost=4.0), account(9.0), workplace)
    assert ledger.spend("one").pending == 6.0


def test_who_waits_for_an_answer_is_charged_no_more_than_it_has_reserved(
    ledger: Ledger, people: Any, make_question: Make, workplace: Workplace
) -> None:
    two, cheap = Account(lineage="two", round=0), replace(people(), cost=0.25)
    ledger.buy([make_question(0)], people(), account(1.0), workplace)
    ledger.buy([make_question(0)], cheap, replace(two, budget=0.25), workplace)
    ledger.answer(make_question(0), "people", Answer(choice="first", annotator="ann", cost=0.75))
    assert [ledger.spend(lineage).cost for lineage in ("one", "two")] == [0.75, 0.25]
    assert [ledger.spend(lineage).paid for lineage in ("one", "two")] == [0.75, 0.0]


def test_who_still_waits_pays_what_it_has_reserved_and_not_what_another_would_have_paid(
    ledger: Ledger, people: Any, make_question: Make, workplace: Workplace
) -> None:
    questions, two = [make_question(0), make_question(1)], Account(lineage="two", round=0, budget=2.0)
    ledger.buy(questions, replace(people(), cost=2.0), account(4.0), workplace)
    ledger.buy(questions, people(), two, workplace)
    ledger.close("one", 0)
    with pytest.raises(InputError, match=r"costs 1\.5, expected 1 at most, which is reserved for it"):
        ledger.answer(questions[0], "people", Answer(choice="first", annotator="ann", cost=1.5))
    ledger.answer(questions[0], "people", Answer(choice="first", annotator="ann", cost=0.75))
    ledger.answer(questions[1], "people", Answer(choice="first", annotator="ann"))
    assert (ledger.spend("two").cost, ledger.spend("two").paid, ledger.spend("two").pending) == (1.75, 1.75, 0.0)


@pytest.mark.parametrize("price", [-1.0, float("nan"), float("inf")])
def test_a_price_that_is_no_amount_is_refused(
    sqlite_ledger: Ledger, recorded: Any, make_question: Make, workplace: Workplace, price: float
) -> None:
    with pytest.raises(ValueError, match=f"labeller recorded asks {price}"):
        sqlite_ledger.buy([make_question(0)], recorded(cost=price), account(None), workplace)


def test_no_repetitions_are_refused(
    sqlite_ledger: Ledger, recorded: Any, make_question: Make, workplace: Workplace
) -> None:
    with pytest.raises(InputError, match=r"labelling\.repeats is 0"):
        sqlite_ledger.buy([make_question(0)], recorded(), account(None), workplace, repeats=0)
