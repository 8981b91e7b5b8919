"""What every labeller is asked and what it answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Side = Literal["first", "second"]


@dataclass(frozen=True, kw_only=True)
class Question:
    """Two responses to a prompt, in the order they are shown; `key` names the pair whatever that order."""

    key: str
    prompt: str
    first: str
    second: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The response that is preferred, and the labeller's probability of preferring the first, where it has one."""

    preferred: Side
    probability: float | None = None


class Labeller(Protocol):
    """Whoever can be asked: a simulation, a model, a judge or people."""

    @property
    def identity(self) -> str:
        """Name everything that an answer depends on; labels are kept under it."""

    @property
    def cost(self) -> float:
        """Price of one label."""

    def __call__(self, questions: Sequence[Question]) -> list[Answer]:
        """Answer every question, in order."""
