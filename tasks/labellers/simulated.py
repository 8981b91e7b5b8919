"""A simulated labeller: Bradley-Terry over a reward, reproducible label by label."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from typing import Annotated, Literal

from pydantic import Field

from cluster.errors import InputError
from tasks.labellers.protocol import Answer, Question
from tasks.labellers.rewards import AnyReward, Sentiment


@dataclass(frozen=True, kw_only=True)
class SimulatedLabeller:
    """Prefers a to b with probability sigmoid((r_a - r_b) / temperature) (Bradley & Terry 1952), then errs.

    With probability `flip_probability` the answer is turned round. A margin of one temperature is preferred 73
    times in 100. The draw is a hash of the labeller and the pair, so a pair has one label in every run, order and
    machine; another `seed` is another labeller.
    """

    kind: Literal["simulated"] = "simulated"
    reward: Annotated[AnyReward, Field(discriminator="kind")] = field(default=Sentiment())
    temperature: float = 0.1
    flip_probability: float = 0.0
    seed: int = 0
    cost: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise InputError(f"temperature is {self.temperature}: expected a finite number above 0")
        if not 0 <= self.flip_probability <= 1:
            raise InputError(f"flip_probability is {self.flip_probability}: expected a number in [0, 1]")
        if not 0 <= self.cost < math.inf:
            raise InputError(f"cost is {self.cost}: expected a finite number, 0 or more")

    @property
    def identity(self) -> str:
        """The kind and all fields as JSON, the same for 1 and 1.0."""
        return json.dumps(_canonical(asdict(self)), sort_keys=True)

    def __call__(self, questions: Sequence[Question]) -> list[Answer]:
        """Answer every question, in order."""
        rewards = self.reward([text for question in questions for text in (question.first, question.second)])
        margins = [first - second for first, second in zip(rewards[::2], rewards[1::2], strict=True)]
        identity = self.identity
        return [
            self._answer(question, margin, draw=_uniform(identity, question.key))
            for question, margin in zip(questions, margins, strict=True)
        ]

    def _answer(self, question: Question, margin: float, *, draw: float) -> Answer:
        """Decide in the sorted order of the two texts, so that the order shown changes nothing."""
        turned = question.first > question.second
        probability = self._probability(-margin if turned else margin)
        first_preferred = (draw < probability) != turned
        return Answer(
            preferred="first" if first_preferred else "second",
            probability=1 - probability if turned else probability,
        )

    def _probability(self, margin: float) -> float:
        faithful = (1 + math.tanh(margin / (2 * self.temperature))) / 2
        return faithful * (1 - self.flip_probability) + (1 - faithful) * self.flip_probability


def _uniform(identity: str, key: str) -> float:
    """Hash to [0, 1)."""
    digest = sha256(json.dumps([identity, key]).encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def _canonical(value: object) -> object:
    if isinstance(value, dict):
        return {key: _canonical(inner) for key, inner in value.items()}
    return int(value) if isinstance(value, float) and value.is_integer() else value
