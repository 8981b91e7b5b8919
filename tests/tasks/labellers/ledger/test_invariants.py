"""Whatever happens in whatever order, the ledger's accounts are those of a book kept by hand."""

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cluster.errors import InputError
from cluster.settings import Settings
from tasks.labellers.ledger import Account, Ledger, Spend, question_key
from tasks.labellers.protocol import Answer, Answered, Ask, Question, Workplace

NUM_PAIRS = 3
BUDGETS = {"one": 6.0, "two": None}
PRICES = {"robot": 1.0, "people": 0.5}
CHOICES = ["first", "second", "tie", "abstain"]

AskKey = tuple[str, int, int]
"""Labeller, pair, repetition."""

lineages, rounds = st.sampled_from(sorted(BUDGETS)), st.integers(0, 1)
pairs = st.lists(st.integers(0, NUM_PAIRS - 1), min_size=1, max_size=4)


def question(index: int) -> Question:
    first, second = f"a {index}", f"b {index}"
    key = question_key("p", first=first, second=second)
    return Question(key=key, messages=[{"role": None, "content": "p"}], first=first, second=second)


@dataclass
class Scripted:
    """A robot that answers until it fails, or people who leave everything open."""

    identity: str
    fails_after: int
    asked: list[Ask] = field(default_factory=list)

    def price(self, _: Question) -> float:
        return PRICES[self.identity]

    def __call__(self, asks: Sequence[Ask], _: Workplace) -> Iterator[Answered]:
        for ask in asks if self.identity == "robot" else ():
            if len(self.asked) == self.fails_after:
                raise ConnectionError
            self.asked.append(ask)
            yield [(ask, Answer(choice="tie", annotator=f"robot {ask.repetition}", cost=0.25))]


@dataclass
class Book:
    """What the ledger should hold, one thing after the other."""

    answers: dict[AskKey, tuple[str, str, float, str] | None] = field(default_factory=dict)
    """Annotator, choice, cost, lineage for which it was bought."""
    first: dict[AskKey, str] = field(default_factory=dict)
    left_open: set[AskKey] = field(default_factory=set)
    charges: dict[tuple[str, AskKey], tuple[int, str, float]] = field(default_factory=dict)
    """Round, state, cost."""
    attempts: Counter[AskKey] = field(default_factory=Counter)

    def reserve(self, lineage: str, round_number: int, asks: Sequence[AskKey]) -> bool:
        charges = dict(self.charges)
        for ask in asks:
            answer, state = self.answers.get(ask), charges.get((lineage, ask), (0, "", 0.0))[1]
            if state != "settled":
                pending = (round_number, "reserved", PRICES[ask[0]])
                charges[lineage, ask] = pending if answer is None else (round_number, "settled", answer[2])
        budget = BUDGETS[lineage]
        spent = sum(
            cost for (payer, _), (_, state, cost) in charges.items() if payer == lineage and state != "released"
        )
        if budget is not None and spent > budget and charges != self.charges:
            return False
        self.charges = charges
        for ask in asks:
            self.answers.setdefault(ask, None)
            self.first.setdefault(ask, lineage)
        return True

    def put(self, ask: AskKey, answer: tuple[str, str, float, str]) -> None:
        self.answers[ask] = answer
        for (lineage, charged), (round_number, state, _) in list(self.charges.items()):
            if charged == ask and state == "reserved":
                self.charges[lineage, ask] = (round_number, "settled", answer[2])

    def spend(self, lineage: str | None) -> Spend:
        mine = [charge for (payer, _), charge in self.charges.items() if lineage in {None, payer}]
        settled, reserved = ([cost for _, state, cost in mine if state == name] for name in ("settled", "reserved"))
        mine_first = {ask: answer for ask, answer in self.answers.items() if answer and lineage in {None, answer[3]}}
        bought = [cost for _, _, cost, _ in mine_first.values()]
        return Spend(
            num_labels=len(settled),
            cost=sum(settled),
            num_pending=len(reserved),
            pending=sum(reserved),
            num_bought=len(bought),
            paid=sum(bought),
            num_repeated=sum(self.attempts[ask] > 1 and ask not in self.left_open for ask in mine_first),
        )


class Accounting(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.ledger = Ledger.at(Path(self.folder.name) / "ledger.sqlite")
        self.book = Book()
        self.num_entries = 0

    def teardown(self) -> None:
        self.folder.cleanup()

    @rule(lineage=lineages, round_number=rounds, chosen=pairs, repeats=st.integers(1, 2), fails=st.integers(0, 6))
    def robots(self, lineage: str, round_number: int, chosen: list[int], repeats: int, fails: int) -> None:
        self._buy(
            "robot", Account(lineage=lineage, round=round_number, budget=BUDGETS[lineage]), chosen, repeats, fails
        )

    @rule(lineage=lineages, round_number=rounds, chosen=pairs, repeats=st.integers(1, 2))
    def people(self, lineage: str, round_number: int, chosen: list[int], repeats: int) -> None:
        self._buy("people", Account(lineage=lineage, round=round_number, budget=BUDGETS[lineage]), chosen, repeats, 99)

    def _buy(self, name: str, account: Account, chosen: list[int], repeats: int, fails: int) -> None:
        unique = list(dict.fromkeys(chosen))
        asks = [(name, index, repetition) for index in unique for repetition in range(repeats)]
        unanswered = [ask for ask in asks if self.book.answers.get(ask) is None]
        is_allowed = self.book.reserve(account.lineage, account.round, asks)
        labeller, folder = Scripted(name, fails), Path(self.folder.name)
        place = Workplace(settings=Settings(home=folder), lineage=account.lineage, round=account.round)
        try:
            labels = self.ledger.buy([question(i) for i in chosen], labeller, account, place, repeats=repeats)
        except InputError:
            assert not is_allowed
            assert labeller.asked == []
            return
        except ConnectionError:
            labels = None
        assert is_allowed
        self.book.attempts.update(unanswered)
        answered = unanswered[:fails] if name == "robot" else []
        assert [(ask.question.key, ask.repetition) for ask in labeller.asked] == [
            (question(index).key, repetition) for _, index, repetition in answered
        ]
        self.num_entries += len(answered)
        for ask in answered:
            self.book.put(ask, (f"robot {ask[2]}", "tie", 0.25, account.lineage))
        if labels is None:
            assert len(answered) < len(unanswered)
            return
        self.book.left_open |= {ask for ask in unanswered if self.book.answers[ask] is None}
        for index, found in zip(chosen, labels, strict=True):
            expected = [self.book.answers[name, index, repetition] for repetition in range(repeats)]
            assert [(label.annotator, label.choice, label.cost) for label in found] == [
                answer[:3] for answer in expected if answer
            ]

    @rule(name=st.sampled_from(sorted(PRICES)), lineage=lineages, round_number=rounds, chosen=pairs)
    def what_is_known_is_used(self, name: str, lineage: str, round_number: int, chosen: list[int]) -> None:
        asks = [(name, index, repetition) for index in dict.fromkeys(chosen) for repetition in range(2)]
        known = [ask for ask in asks if self.book.answers.get(ask)]
        account = Account(lineage=lineage, round=round_number, budget=BUDGETS[lineage])
        is_allowed, labeller = self.book.reserve(lineage, round_number, known), Scripted(name, 99)
        try:
            labels = self.ledger.use_known([question(i) for i in chosen], labeller, account, repeats=2)
        except InputError:
            assert not is_allowed
            return
        assert is_allowed
        assert [len(found) for found in labels] == [sum(ask[1] == index for ask in known) for index in chosen]

    @rule(index=st.integers(0, NUM_PAIRS - 1), annotator=st.sampled_from("xyz"), choice=st.sampled_from(CHOICES))
    def somebody_answers(self, index: int, annotator: str, choice: Any) -> None:
        asks = sorted(ask for ask in self.book.answers if ask[:2] == ("people", index))
        answer = Answer(choice=choice, annotator=annotator)
        if not asks:
            with pytest.raises(InputError):
                self.ledger.answer(question(index), "people", answer)
            return
        receipt = self.ledger.answer(question(index), "people", answer)
        self.num_entries += 1
        own = next((ask for ask in asks if (self.book.answers[ask] or [""])[0] == annotator), None)
        unanswered = [ask for ask in asks if self.book.answers[ask] is None]
        waited = next((ask for ask in unanswered if self._waiting(ask)), None)
        if own:
            buyer = self.book.answers[own][3]
            assert receipt.status == "replaced"
        elif waited:
            waiting = self._waiting(waited)
            buyer = self.book.first[waited] if self.book.first[waited] in waiting else waiting[0]
            assert receipt.status == "counted"
        else:
            assert receipt.status == "kept"
            buyer = self.book.first[unanswered[0] if unanswered else asks[-1]]
        ask = own or waited or (unanswered[0] if unanswered else ("people", index, len(asks)))
        self.book.first.setdefault(ask, buyer)
        self.book.put(ask, (annotator, choice, PRICES["people"], buyer))

    def _waiting(self, ask: AskKey) -> list[str]:
        return [
            lineage
            for (lineage, charged), (_, state, _) in self.book.charges.items()
            if charged == ask and state == "reserved"
        ]

    @rule(lineage=lineages, round_number=rounds)
    def a_round_closes(self, lineage: str, round_number: int) -> None:
        given_up = [
            key
            for key, (number, state, _) in self.book.charges.items()
            if key[0] == lineage and (number, state) == (round_number, "reserved")
        ]
        assert self.ledger.close(lineage, round_number) == len(given_up)
        for key in given_up:
            self.book.charges[key] = (round_number, "released", 0.0)

    @invariant()
    def every_account_is_as_in_the_book(self) -> None:
        for lineage in (None, *BUDGETS):
            assert self.ledger.spend(lineage) == self.book.spend(lineage)
        for lineage, budget in BUDGETS.items():
            spend = self.ledger.spend(lineage)
            assert budget is None or spend.cost + spend.pending <= budget
            for round_number in (0, 1):
                states = [
                    state
                    for (payer, _), (number, state, _) in self.book.charges.items()
                    if (payer, number) == (lineage, round_number)
                ]
                progress = self.ledger.progress(lineage, round_number)
                found = (progress.num_asked, progress.num_answered, progress.num_pending)
                assert found == (len(states), states.count("settled"), states.count("reserved"))

    @invariant()
    def open_questions_and_all_answers_are_as_in_the_book(self) -> None:
        for lineage in BUDGETS:
            mine = [(ask, state) for (payer, ask), (_, state, _) in self.book.charges.items() if payer == lineage]
            for before in (1, 2):
                asked = [
                    ask
                    for (payer, ask), (number, *_) in self.book.charges.items()
                    if (payer == lineage and number < before)
                ]
                assert self.ledger.answered(lineage, before=before) == {
                    question(ask[1]).key for ask in asked if self.book.answers[ask]
                }
            waiting = [ask for ask, state in mine if state == "reserved" and ask in self.book.left_open]
            waiting = [ask for ask in waiting if self.book.answers[ask] is None]
            assert sum(each.wanted for each in self.ledger.open_questions(lineage)) == len(waiting)
        in_force = [entry for entry in self.ledger.entries() if not entry.superseded]
        assert len(in_force) == sum(answer is not None for answer in self.book.answers.values())
        assert len(list(self.ledger.entries())) == self.num_entries
        assert sum(entry.cost for entry in in_force) == sum(self.ledger.spend(lineage).paid for lineage in BUDGETS)


Accounting.TestCase.settings = settings(max_examples=15, stateful_step_count=12, deadline=None)


@pytest.mark.labels
class TestAccounting(Accounting.TestCase):
    pass
