"""Answers of a file into the ledger: all of them or none, and none twice."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from cluster.errors import InputError
from tasks.labellers.formats.files import Faults
from tasks.labellers.formats.parts import Given, by_time
from tasks.labellers.ledger import Entry, Ledger, Receipt
from tasks.labellers.ledger.answers import TURNED
from tasks.labellers.ledger.outside import record
from tasks.labellers.names import matches, name_of

GIVEN_AT = "given_at"
"""Where an answer's detail says when it was given, if it came from a file that knows; ISO 8601."""


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """What became of a file's answers.

    Attributes:
        receipts: those that the ledger took in.
        held: those that it had already, and what the same annotator had said before.
        older: those whose annotators have changed their minds since.
    """

    receipts: list[tuple[Given, Receipt]] = field(default_factory=list)
    held: list[Given] = field(default_factory=list)
    older: list[Given] = field(default_factory=list)


def labeller_of(ledger: Ledger, lineage: str, name: str | None) -> str:
    """The identity of the labeller that a lineage has asked; `name` is a word that tells it from others.

    Raises:
        InputError: no such lineage, none of its labellers is called so, or several could be meant.
    """
    if lineage not in (lineages := ledger.lineages()):
        raise InputError(f"lineage {lineage!r} has asked for no labels: found {', '.join(lineages) or 'none that has'}")
    asked = [question.labeller for question in ledger.open_questions(lineage)]
    known = sorted({*asked, *(entry.labeller for entry in ledger.entries(lineage))})
    meant = [identity for identity in known if name is None or matches(identity, name)]
    if len(meant) != 1:
        called = "" if name is None else f" called {name!r}"
        listed = ", ".join(map(name_of, known)) or "none whose questions are open or answered"
        raise InputError(
            f"lineage {lineage!r} has {len(meant) or 'no'} labellers{called}, expected one: found {listed}: "
            "name one of them with --labeller"
        )
    return meant[0]


def deliver(ledger: Ledger, labeller: str, given: Sequence[Given], faults: Faults, *, annotator: str) -> Delivery:
    """Take a labeller's answers into the ledger in one transaction; where the file names no annotator, from this one.

    An annotator's answers to a pair are taken in their order: the last counts and the others are history. What the
    ledger had already is left out, so that a file can be delivered again.

    Raises:
        InputError: the file has faults, or answers pairs that the labeller was never asked, with other responses than
            theirs, as another labeller or at too high a cost; they are listed, and nothing was changed.
    """
    delivery, held = Delivery(), _in_force(ledger.entries(), labeller)
    named = [_named(one, annotator) for one in given if _is_own(one, labeller, faults)]
    new = [one for who, answers in _by_annotator(named) for one in _new(answers, held.get(who), delivery)]
    with ledger.database.writing() as connection:
        for one in new:
            try:
                delivery.receipts.append((one, record(connection, one.question, labeller, one.answer)))
            except InputError as error:
                faults.add(one.where, str(error))
        faults.refuse()
    return delivery


Who = tuple[str, str]
"""The key of a pair, and an annotator of it."""


def _is_own(given: Given, labeller: str, faults: Faults) -> bool:
    if given.labeller in {None, labeller}:
        return True
    faults.add(given.where, f"is of {name_of(str(given.labeller))}, expected an answer of {name_of(labeller)}")
    return False


def _named(given: Given, annotator: str) -> Given:
    answer = given.answer
    time = {} if given.answered_at is None else {GIVEN_AT: given.answered_at.isoformat()}
    return replace(
        given, answer=replace(answer, annotator=answer.annotator or annotator, detail={**time, **answer.detail})
    )


def _in_force(entries: Iterable[Entry], labeller: str) -> dict[Who, Entry]:
    own = (entry for entry in entries if entry.labeller == labeller and not entry.superseded)
    return {(entry.key, entry.annotator): entry for entry in own}


def _by_annotator(given: Iterable[Given]) -> Iterable[tuple[Who, list[Given]]]:
    """Each annotator's answers to each pair, in the order in which they were given."""
    found: dict[Who, list[Given]] = {}
    for one in given:
        found.setdefault((one.question.key, one.answer.annotator), []).append(one)
    return [(who, by_time(answers)) for who, answers in found.items()]


def _new(answers: Sequence[Given], held: Entry | None, delivery: Delivery) -> Sequence[Given]:
    """What an annotator said after the answer that the ledger holds."""
    if held is None:
        return answers
    same = [index for index, one in enumerate(answers) if _said(one) == (held.choice, held.rationale)]
    start = same[-1] + 1 if same else 0
    late = [one for one in answers[start:] if one.answered_at is None or one.answered_at > _time(held)]
    delivery.held.extend(answers[:start])
    delivery.older.extend(one for one in answers[start:] if one not in late)
    return late


def _said(given: Given) -> tuple[str, str]:
    """Choice, in the sorted order of the responses, and rationale."""
    choice, question = given.answer.choice, given.question
    return TURNED[choice] if question.first > question.second else choice, given.answer.rationale


def _time(entry: Entry) -> datetime:
    """When its annotator gave it."""
    given_at = entry.detail.get(GIVEN_AT)
    return datetime.fromisoformat(str(given_at)) if given_at else entry.answered_at
