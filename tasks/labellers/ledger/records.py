"""What goes into the ledger and what comes out of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from cluster.rendering import Message
from tasks.labellers.protocol import Choice, Question


@dataclass(frozen=True, kw_only=True)
class Account:
    """Who pays for answers."""

    lineage: str
    round: int
    budget: float | None = None
    """The most that the lineage may be charged in all its rounds; None: no limit."""


@dataclass(frozen=True, kw_only=True)
class Spend:
    """What a lineage, or all of them together, was charged and paid.

    Every lineage is charged in its own account for each answer that it uses, whoever bought it. An answer is paid
    once, by the lineage for which it was bought first, at the cost of the answer in force.
    """

    num_labels: int
    """Answers charged; ties and abstentions count."""
    cost: float
    """Their cost."""
    num_pending: int
    """Answers asked for and not there yet."""
    pending: float
    """What is reserved for them."""
    num_bought: int
    """Answers bought for this lineage first."""
    paid: float
    """Their cost: what was really paid."""
    num_repeated: int
    """Of these, such as cost something and were put to their labeller again after a purchase had ended without them:
    at most so many were paid twice, for the labeller may have been at work on them then."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far the answers are that one round of one lineage asked for, and is charged for."""

    num_asked: int
    num_answered: int
    """Abstentions and ties count."""
    num_abstained: int
    num_pending: int
    asked_at: datetime | None
    """When the first of them was asked for, UTC."""


@dataclass(frozen=True, kw_only=True)
class OpenQuestion:
    """A question that its labeller left open, to be answered from outside."""

    question: Question
    """In the order in which the ledger shows it."""
    lineage: str
    round: int
    labeller: str
    """The labeller's identity."""
    wanted: int
    """Repetitions still open."""
    annotators: tuple[str, ...]
    """Who has answered it already."""


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What became of an answer from outside; it is stored in any case."""

    status: Literal["counted", "replaced", "kept"]
    """`replaced`: it takes the place of the annotator's earlier answer. `kept`: nobody uses it for now."""
    reason: str
    """A sentence for the annotator."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One answer with everything; its texts stand in sorted order, and its choice speaks of that order."""

    key: str
    messages: Sequence[Message]
    first: str
    second: str
    labeller: str
    """The labeller's identity."""
    repetition: int
    choice: Choice
    probability: float | None
    """The labeller's probability of preferring the first response."""
    swapped: bool
    """Whether the second response was shown first."""
    annotator: str
    rationale: str
    cost: float
    lineage: str
    """For whom it was bought."""
    round: int
    """In which round of that lineage."""
    answered_at: datetime
    """UTC."""
    superseded: bool
    """Whether another answer to the same ask is in force."""
    detail: Mapping[str, float | str]

    @property
    def question(self) -> Question:
        """What was asked, in the sorted order of the texts."""
        return Question(key=self.key, messages=self.messages, first=self.first, second=self.second)
