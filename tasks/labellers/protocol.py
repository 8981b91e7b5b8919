"""What every labeller is asked, what it answers, and what it may use."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from cluster.rendering import Message, plain_text
from cluster.settings import Settings
from cluster.tracking import Tracker

Side = Literal["first", "second"]
Choice = Literal["first", "second", "tie", "abstain"]
"""The response that is preferred, none of both, or no opinion."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """Two responses to a prompt; `key` names the pair by content, whatever the order."""

    key: str
    messages: Sequence[Message]
    """The prompt, as the policy got it."""
    first: str
    second: str

    @property
    def prompt(self) -> str:
        """The prompt as text that a person can read."""
        return plain_text(self.messages)


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One answer that is wanted: a question in the order in which it is shown, and which of its repetitions."""

    question: Question
    repetition: int = 0


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a labeller says to a question, in the order in which it was shown."""

    choice: Choice
    probability: float | None = None
    """Its probability of preferring the first response, where it has one."""
    annotator: str = ""
    """Who of the labeller said so, where it is several."""
    rationale: str = ""
    cost: float | None = None
    """What it cost; None: its price."""
    detail: Mapping[str, float | str] = field(default_factory=dict)
    """What else the labeller wants to find again, such as tokens used."""


Answered = Sequence[tuple[Ask, Answer]]
"""Answers that came together, and are paid and kept together."""


@dataclass(frozen=True, kw_only=True)
class Label:
    """An answer as the ledger holds it, in the orientation of the question that it answers."""

    key: str
    repetition: int
    choice: Choice
    probability: float | None
    """The labeller's probability of preferring the first response."""
    swapped: bool
    """Whether the second response was shown first."""
    annotator: str
    rationale: str
    cost: float
    """What it cost when it was bought."""
    bought: bool
    """Whether this lineage and round paid for it; False where another had bought it before."""
    detail: Mapping[str, float | str]


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """What a labeller may use while it works: hardware, and the round's MLflow run."""

    settings: Settings
    lineage: str
    round: int
    tracker: Tracker | None = None
    run: str | None = None


class Labeller(Protocol):
    """Whoever can be asked: a simulation, a model, a judge or people. Members of the union are frozen dataclasses."""

    @property
    def identity(self) -> str:
        """Name everything that an answer depends on; answers are kept under it."""

    @property
    def repeats_itself(self) -> bool:
        """Whether another repetition can only have the same answer, so that nobody should ask for one."""

    def price(self, question: Question) -> float:
        """The most that one answer can cost; it is reserved before the labeller is asked."""

    def check(self) -> None:
        """See that it can be asked, before anything expensive.

        Raises:
            InputError: it can't.
        """

    def __call__(self, asks: Sequence[Ask], workplace: Workplace) -> Iterator[Answered]:
        """Answer, some asks at a time and in any order; an ask left out stays open, to be answered later."""

    def measures(self, labels: Sequence[Label]) -> Mapping[str, float]:
        """What its answers tell about the labeller itself, such as a judge's position bias."""
