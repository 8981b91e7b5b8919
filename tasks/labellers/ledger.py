"""The ledger: every label is bought once, by whichever run asks first, and kept through kills."""

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from filelock import FileLock

from cluster.errors import InputError
from tasks.labellers.protocol import Answer, Labeller, Question, Side

SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE labels (
    key TEXT NOT NULL,
    labeller TEXT NOT NULL,
    preferred TEXT NOT NULL,    -- SHA-256 of the preferred response
    shown_first TEXT NOT NULL,  -- SHA-256 of the response shown first
    probability REAL,           -- the labeller's, of preferring what it preferred
    cost REAL NOT NULL,
    lineage TEXT NOT NULL,
    round INTEGER NOT NULL,
    bought_at TEXT NOT NULL,    -- UTC
    PRIMARY KEY (key, labeller)
)
"""


@dataclass(frozen=True, kw_only=True)
class Label:
    """A label in the orientation of the question it answers."""

    key: str
    preferred: Side
    probability: float | None
    """The labeller's probability of preferring the first response."""
    swapped: bool
    """Whether the labeller saw the second response first."""
    cost: float
    """What it cost when it was bought."""
    bought: bool
    """Whether this purchase paid for it; False where the ledger had it."""


@dataclass(frozen=True, kw_only=True)
class Spend:
    """What was bought."""

    num_labels: int
    cost: float


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """A row of the ledger, which knows responses by content only."""

    key: str
    preferred: str
    shown_first: str
    probability: float | None
    cost: float


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """The labels of all lineages in one SQLite file; `seed` shuffles which response is shown first."""

    path: Path
    seed: int = 0

    def buy(
        self,
        questions: Sequence[Question],
        labeller: Labeller,
        *,
        lineage: str,
        round_number: int,
        batch_size: int = 64,
    ) -> list[Label]:
        """Label every question in its own orientation, asking the labeller only what the ledger doesn't know.

        Batches are committed whole under a lock between processes: a kill loses at most the batch in flight, and
        two lineages never buy one label twice.

        Raises:
            InputError: the file is not a ledger of this version.
            InputError: a known label prefers neither response of the question.
        """
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}: expected 1 or more")
        labels: list[Label] = []
        for start in range(0, len(questions), batch_size):
            batch = questions[start : start + batch_size]
            with self._locked() as connection:
                known = _look_up(connection, batch, labeller.identity)
                new = _ask(labeller, _unknown(batch, known), seed=self.seed)
                _record(connection, new, buyer=(labeller.identity, lineage, round_number))
            labels += _labels(batch, known, new)
        return labels

    def spend(self, lineage: str | None = None) -> Spend:
        """Add up the labels that a lineage bought, or all of them."""
        query = "SELECT count(*), total(cost) FROM labels WHERE ?1 IS NULL OR lineage = ?1"
        with self._locked() as connection:
            num_labels, cost = connection.execute(query, (lineage,)).fetchone()
        return Spend(num_labels=num_labels, cost=cost)

    @contextmanager
    def _locked(self) -> Iterator[sqlite3.Connection]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(f"{self.path}.lock"), closing(sqlite3.connect(self.path)) as connection:
                _check_schema(connection, self.path)
                yield connection
        except sqlite3.DatabaseError as error:
            raise InputError(
                f"{self.path} can't be used as a label ledger ({error}): restore it, or move it away to start a new one"
            ) from error


def question_key(prompt: str, *, first: str, second: str) -> str:
    """Hash a pair by content, whichever response comes first."""
    texts = [_encode(text) for text in (prompt, *sorted((first, second)))]
    return sha256(b"".join(len(text).to_bytes(8, "big") + text for text in texts)).hexdigest()


def shown_swapped(key: str, seed: int) -> bool:
    """Decide by hash whether the response that sorts last is shown first."""
    return bool(sha256(f"{seed}:{key}".encode()).digest()[0] & 1)


def _check_schema(connection: sqlite3.Connection, path: Path) -> None:
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    (num_tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if found == 0 and num_tables == 0:
        connection.executescript(f"BEGIN; {SCHEMA}; PRAGMA user_version = {SCHEMA_VERSION}; COMMIT")
    elif found != SCHEMA_VERSION:
        raise InputError(
            f"{path} is not a label ledger of this version: found schema version {found}, expected {SCHEMA_VERSION}: "
            "name another file, or use the release that wrote it"
        )


def _look_up(connection: sqlite3.Connection, questions: Sequence[Question], identity: str) -> dict[str, _Entry]:
    keys = json.dumps([question.key for question in questions])
    rows = connection.execute(
        "SELECT key, preferred, shown_first, probability, cost FROM labels"
        " WHERE labeller = ? AND key IN (SELECT value FROM json_each(?))",
        (identity, keys),
    )
    return {
        key: _Entry(key=key, preferred=preferred, shown_first=shown_first, probability=probability, cost=cost)
        for key, preferred, shown_first, probability, cost in rows
    }


def _unknown(questions: Sequence[Question], known: dict[str, _Entry]) -> list[Question]:
    return list({question.key: question for question in questions if question.key not in known}.values())


def _ask(labeller: Labeller, questions: Sequence[Question], *, seed: int) -> dict[str, _Entry]:
    shown = [_shown(question, seed) for question in questions]
    answers = labeller(shown) if shown else []
    if len(answers) != len(shown):
        raise ValueError(
            f"labeller {labeller.identity} gave {len(answers)} answers to {len(shown)} questions: "
            "expected one each, in order; none of them was recorded"
        )
    pairs = zip(shown, answers, strict=True)
    return {question.key: _entry(question, answer, cost=labeller.cost) for question, answer in pairs}


def _shown(question: Question, seed: int) -> Question:
    """Start from the sorted order, so that the order shown doesn't depend on who asks."""
    first, second = sorted((question.first, question.second), reverse=shown_swapped(question.key, seed))
    return Question(key=question.key, prompt=question.prompt, first=first, second=second)


def _entry(shown: Question, answer: Answer, *, cost: float) -> _Entry:
    first, second = _digest(shown.first), _digest(shown.second)
    is_first = answer.preferred == "first"
    return _Entry(
        key=shown.key,
        preferred=first if is_first else second,
        shown_first=first,
        probability=_of(answer.probability, turned=not is_first),
        cost=cost,
    )


def _record(connection: sqlite3.Connection, entries: dict[str, _Entry], *, buyer: tuple[str, str, int]) -> None:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    rows = [
        (entry.key, entry.preferred, entry.shown_first, entry.probability, entry.cost, *buyer, now)
        for entry in entries.values()
    ]
    with connection:
        connection.executemany(
            "INSERT INTO labels (key, preferred, shown_first, probability, cost, labeller, lineage, round, bought_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            rows,
        )


def _labels(questions: Sequence[Question], known: dict[str, _Entry], new: dict[str, _Entry]) -> list[Label]:
    """Mark a new label as bought once, however often the batch asks for it."""
    paid, labels = set(known), []
    for question in questions:
        entry = known.get(question.key) or new[question.key]
        labels.append(_oriented(question, entry, bought=question.key not in paid))
        paid.add(question.key)
    return labels


def _oriented(question: Question, entry: _Entry, *, bought: bool) -> Label:
    first, second = _digest(question.first), _digest(question.second)
    if entry.preferred not in {first, second}:
        raise InputError(
            f"the ledger's label for {question.key} prefers neither response of this question: "
            "expected a key made of the prompt and both responses; make it with question_key"
        )
    return Label(
        key=question.key,
        preferred="first" if entry.preferred == first else "second",
        probability=_of(entry.probability, turned=entry.preferred != first),
        swapped=entry.shown_first != first,
        cost=entry.cost,
        bought=bought,
    )


def _of(probability: float | None, *, turned: bool) -> float | None:
    return 1 - probability if probability is not None and turned else probability


def _digest(text: str) -> str:
    return sha256(_encode(text)).hexdigest()


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
