"""What annotators do at the labelling page, on the ledger alone: nothing of it is lost with the page or its server."""

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from hashlib import sha256

from tasks.labellers.ledger import Entry, Ledger, OpenQuestion, Receipt
from tasks.labellers.ledger.answers import TURNED
from tasks.labellers.protocol import Answer, Choice, Question

HOLD_SECONDS = 600.0
"""How long a question is left to the annotator who looks at it, while there are others to show."""
SEAL_LENGTH = 16
"""Digits by which a ticket tells annotators apart."""


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A question as one annotator sees it: `first` is on the left."""

    question: Question
    labeller: str
    annotator: str
    """Whose sight of it this is: others may see the two responses the other way round."""
    before: Choice | None = None
    """What the annotator has answered already, where it is asked again."""
    rationale: str = ""
    stamp: str = ""
    """When that was, so that nothing newer is overwritten by mistake."""

    @property
    def instructions(self) -> str:
        """What the labeller's identity says to its annotators."""
        try:
            parts = json.loads(self.labeller)
        except ValueError:
            return ""
        return str(parts.get("instructions", "")) if isinstance(parts, dict) else ""

    @property
    def ticket(self) -> str:
        """Names the question, who saw it, and the answer that stood under it."""
        return f"{self.question.key} {sha256(self.annotator.encode()).hexdigest()[:SEAL_LENGTH]} {self.stamp}"


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How far the round's answers are, and how many of them are the annotator's."""

    answered: int
    asked: int
    yours: int

    @property
    def complete(self) -> bool:
        """Whether every answer of the round is in."""
        return self.asked > 0 and self.answered >= self.asked


@dataclass(frozen=True, kw_only=True)
class Look:
    """What the ledger holds for one annotator at one moment."""

    annotator: str
    open: Sequence[OpenQuestion]
    """All open questions of the lineage, in the order asked."""
    given: Sequence[Entry]
    """The annotator's answers in force since the round's first question, oldest first."""
    standing: Standing

    @property
    def mine(self) -> list[OpenQuestion]:
        """Open questions that the annotator hasn't answered."""
        return [one for one in self.open if self.annotator not in one.annotators]

    def preceding(self, ticket: str = "") -> Sheet | None:
        """The annotator's answer before the one of this ticket, or the last one; None: there is none."""
        keys = [entry.key for entry in self.given]
        key = _key(ticket)
        before = self.given[: keys.index(key)] if key in keys else self.given
        return _again(before[-1], self.annotator) if before else None

    def find(self, ticket: str) -> Sheet | None:
        """The question of a ticket as it is now; None: nobody asks it, its answer is another, or its annotator is."""
        again = [_again(entry, self.annotator) for entry in self.given if entry.key == _key(ticket)]
        first_time = [_sheet(one, self.annotator) for one in self.mine if one.question.key == _key(ticket)]
        return next((sheet for sheet in [*again, *first_time] if sheet.ticket == ticket), None)


@dataclass(frozen=True, kw_only=True)
class Desk:
    """The open questions of a lineage, its annotators, and what each looks at."""

    ledger: Ledger
    lineage: str
    _held: dict[str, tuple[str, float]] = field(default_factory=dict, init=False, repr=False)
    """Key and moment of what each annotator looks at."""
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def look(self, annotator: str) -> Look:
        """Read the ledger for an annotator."""
        open_ones = self.ledger.open_questions(self.lineage)
        rounds = [one.round for one in open_ones] or [self.ledger.latest_round(self.lineage) or 0]
        progress = self.ledger.progress(self.lineage, max(rounds))
        given = [] if progress.asked_at is None else self._given(annotator, progress.asked_at)
        standing = Standing(answered=progress.num_answered, asked=progress.num_asked, yours=len(given))
        return Look(annotator=annotator, open=open_ones, given=given, standing=standing)

    def following(self, look: Look) -> Sheet | None:
        """The next question for an annotator: in the order asked, but first those that nobody else looks at."""
        with self._lock:
            self._let_go()
            free = [one for one in look.mine if one.wanted > self._lookers(one.question.key, look.annotator)]
            chosen = next(iter(free or look.mine), None)
            if chosen is None:
                return None
            self._held[look.annotator] = (chosen.question.key, time.monotonic())
            return _sheet(chosen, look.annotator)

    def answer(self, annotator: str, ticket: str, choice: Choice, *, rationale: str = "") -> Receipt | None:
        """Write the answer to the question of a ticket, `first` being the left one; None: `find` has none.

        Raises:
            InputError: the ledger can't take it; nothing was written.
        """
        with self._lock:
            sheet = self.look(annotator).find(ticket)
            if sheet is None:
                return None
            answer = Answer(choice=choice, annotator=annotator, rationale=rationale.strip())
            return self.ledger.answer(sheet.question, sheet.labeller, answer)

    def _given(self, annotator: str, since: datetime) -> list[Entry]:
        """An annotator's latest answer to each question, in the order in which they came."""
        latest: dict[str, Entry] = {}
        for entry in self.ledger.entries(self.lineage, annotator=annotator, since=since):
            latest.pop(entry.key, None)
            latest[entry.key] = entry
        return list(latest.values())

    def _let_go(self) -> None:
        """Forget whoever looked too long ago."""
        oldest = time.monotonic() - HOLD_SECONDS
        for name in [name for name, (_, at) in self._held.items() if at <= oldest]:
            del self._held[name]

    def _lookers(self, key: str, annotator: str) -> int:
        return sum(held == key for name, (held, _) in self._held.items() if name != annotator)


def is_turned(annotator: str, key: str) -> bool:
    """Decide by hash whether this annotator sees on the left what sorts last."""
    return bool(sha256(f"{annotator}:{key}".encode()).digest()[0] & 1)


def turn(choice: Choice, turned: bool) -> Choice:
    """The same choice where the two responses have changed places."""
    return TURNED[choice] if turned else choice


def _sheet(one: OpenQuestion, annotator: str) -> Sheet:
    return Sheet(question=_seen(one.question, annotator), labeller=one.labeller, annotator=annotator)


def _again(entry: Entry, annotator: str) -> Sheet:
    return Sheet(
        question=_seen(entry.question, annotator),
        labeller=entry.labeller,
        annotator=annotator,
        before=turn(entry.choice, is_turned(annotator, entry.key)),
        rationale=entry.rationale,
        stamp=entry.answered_at.isoformat(),
    )


def _seen(question: Question, annotator: str) -> Question:
    texts: Sequence[str] = sorted((question.first, question.second), reverse=is_turned(annotator, question.key))
    return replace(question, first=texts[0], second=texts[1])


def _key(ticket: str) -> str:
    return ticket.partition(" ")[0]
