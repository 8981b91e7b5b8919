"""Answers of a file into the ledger: all of them or none, and none twice."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from sqlalchemy import Connection

from cluster.errors import InputError
from tasks.labellers.formats.files import Faults
from tasks.labellers.formats.parts import Given, by_time
from tasks.labellers.ledger import Entry, Ledger, Receipt
from tasks.labellers.ledger.answers import TURNED
from tasks.labellers.ledger.outside import record
from tasks.labellers.ledger.reports import entries
from tasks.labellers.names import matches, name_of

GIVEN_AT = "given_at"
"""Where an answer's detail says when it was given, if it came from a file that knows; ISO 8601."""


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """What became of a file's answers.

    Attributes:
        receipts: those that the ledger took in.
        held: those that it had already, and what the same annotator had said before.
        older: those whose annotators have changed their minds since, or had said so before and no time tells.
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
    ledger had already is left out, so that a file can be delivered again; an answer without a time is left out, too,
    where its annotator has said so at any time before: it may be older than what they say now. So is one without a
    reason where the same choice stands with one.

    Raises:
        InputError: the file has faults, or answers pairs that the labeller was never asked, with other responses than
            theirs, as another labeller or at too high a cost; they are listed, and nothing was changed.
    """
    delivery = Delivery()
    named = [_named(one, annotator) for one in given if _is_own(one, labeller, faults)]
    with ledger.database.writing() as connection:
        held = _held(connection, labeller, {one.answer.annotator for one in named})
        for one in (one for who, answers in _by_annotator(named) for one in _new(answers, held.get(who), delivery)):
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


def _held(connection: Connection, labeller: str, annotators: Iterable[str]) -> dict[Who, list[Entry]]:
    """All that annotators have ever answered to a labeller's questions, in the order in which it came."""
    found: dict[Who, list[Entry]] = {}
    for annotator in sorted(annotators):
        page = entries(connection, None, after=0, annotator=annotator)
        while page:
            for entry in (entry for _, entry in page if entry.labeller == labeller):
                found.setdefault((entry.key, annotator), []).append(entry)
            page = entries(connection, None, after=page[-1][0], annotator=annotator)
    return found


def _by_annotator(given: Iterable[Given]) -> Iterable[tuple[Who, list[Given]]]:
    """Each annotator's answers to each pair, in the order in which they were given."""
    found: dict[Who, list[Given]] = {}
    for one in given:
        found.setdefault((one.question.key, one.answer.annotator), []).append(one)
    return [(who, by_time(answers)) for who, answers in found.items()]


def _new(answers: Sequence[Given], held: Sequence[Entry] | None, delivery: Delivery) -> Sequence[Given]:
    """What an annotator said after the answer in force, as far as times tell; else what they had never said before."""
    if not held:
        return answers
    standing = ([entry for entry in held if not entry.superseded] or held)[-1]
    start = _end([_repeats(one, standing) for one in answers])
    known = _end([one.answered_at is None and any(_repeats(one, entry) for entry in held) for one in answers])
    rest = list(enumerate(answers))[start:]
    new = [
        index
        for index, one in rest
        if (index >= known if one.answered_at is None else one.answered_at > _time(standing))
    ]
    delivery.held.extend(answers[:start])
    delivery.older.extend(one for index, one in rest if index not in new)
    return [answers[index] for index in new]


def _end(flags: Sequence[bool]) -> int:
    """The place after the last that is true."""
    return max((place for place, flag in enumerate(flags, start=1) if flag), default=0)


def _repeats(given: Given, entry: Entry) -> bool:
    """Whether it says what the entry says, and gives no other reason for it."""
    choice, question = given.answer.choice, given.question
    in_sorted_order = TURNED[choice] if question.first > question.second else choice
    return in_sorted_order == entry.choice and given.answer.rationale in {"", entry.rationale}


def _time(entry: Entry) -> datetime:
    """When its annotator gave it."""
    given_at = entry.detail.get(GIVEN_AT)
    return datetime.fromisoformat(str(given_at)) if given_at else entry.answered_at
