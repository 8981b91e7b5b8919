"""A simulated labeller: Bradley-Terry over a reward, with ties, abstentions and annotators who err; reproducible."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from cluster.errors import InputError
from tasks.labellers.bradley_terry import tie_probability, win_probability
from tasks.labellers.protocol import Answer, Answered, Ask, Choice, Label, Question, Workplace
from tasks.labellers.rewards import AnyReward, Sentiment

ANSWERED_TOGETHER = 16
"""Answers that are given, and so kept, together."""


@dataclass(frozen=True, kw_only=True)
class Annotator:
    """One of several who answer for a simulated labeller; of what it decides, a share is turned round."""

    name: str
    flip_probability: float = 0.0

    def __post_init__(self) -> None:
        if not self.name:
            raise InputError("an annotator has an empty name: expected one that tells it from the others")
        _check_share(self.flip_probability, f"flip_probability of annotator {self.name!r}")


@dataclass(frozen=True, kw_only=True)
class SimulatedLabeller:
    """Prefers a to b with probability sigmoid((r_a - r_b) / temperature) (Bradley & Terry 1952), then errs.

    A margin of one temperature is preferred 73 times in 100. In this order, and each by a draw of its own:

    1. With probability `abstain_rate` there is no opinion, whatever the pair.
    2. With Davidson's (1970) probability it is a tie: `tie_rate` for two equals, and the less the further apart they
       are, see `tie_probability`; 0 is never. What does not tie is decided as without ties.
    3. With `flip_probability` the decision is turned round; where there are `annotators`, with that of whoever answers.

    A pair's repetitions go to different annotators, in an order drawn for the pair, and then round again. The draws
    are a hash of the labeller, the pair and the repetition, so an answer is the same in every run, order and machine,
    and for every lineage; another `seed` is another labeller. An answer's `probability` is that of preferring the
    first response, flips of its annotator included, given that it is neither tie nor abstention.
    """

    kind: Literal["simulated"] = "simulated"
    reward: Annotated[AnyReward, Field(discriminator="kind")] = field(default=Sentiment())
    temperature: float = 0.1
    flip_probability: float = 0.0
    tie_rate: float = 0.0
    abstain_rate: float = 0.0
    annotators: tuple[Annotator, ...] = ()
    seed: int = 0
    cost: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise InputError(f"temperature is {self.temperature}: expected a finite number above 0")
        if not 0 <= self.cost < math.inf:
            raise InputError(f"cost is {self.cost}: expected a finite number, 0 or more")
        _check_share(self.flip_probability, "flip_probability")
        _check_share(self.abstain_rate, "abstain_rate")
        if not 0 <= self.tie_rate < 1:
            raise InputError(f"tie_rate is {self.tie_rate}: expected a number in [0, 1)")
        self._check_annotators()

    @property
    def identity(self) -> str:
        """The kind and all fields as JSON, the same for 1 and 1.0."""
        return json.dumps(_canonical(asdict(self)), sort_keys=True)

    @property
    def repeats_itself(self) -> bool:
        """Each repetition has draws of its own."""
        return False

    def price(self, question: Question) -> float:  # noqa: ARG002 - the protocol's signature
        """Every answer costs the same, ties and abstentions too."""
        return self.cost

    def check(self) -> None:
        """It needs nothing, and can always be asked."""

    def __call__(self, asks: Sequence[Ask], workplace: Workplace) -> Iterator[Answered]:  # noqa: ARG002 - the protocol's signature
        """Answer all, some at a time and in order."""
        for start in range(0, len(asks), ANSWERED_TOGETHER):
            yield self.answers(asks[start : start + ANSWERED_TOGETHER])

    def answers(self, asks: Sequence[Ask]) -> Answered:
        """Answer all at once, in order."""
        texts = list(dict.fromkeys(text for ask in asks for text in (ask.question.first, ask.question.second)))
        rewards = dict(zip(texts, self.reward(texts), strict=True))
        identity = self.identity
        return [(ask, self._answer(ask, rewards, identity)) for ask in asks]

    def measures(self, labels: Sequence[Label]) -> Mapping[str, float]:  # noqa: ARG002 - the protocol's signature
        """Nothing: its identity says what it is."""
        return {}

    def _answer(self, ask: Ask, rewards: Mapping[str, float], identity: str) -> Answer:
        """Decide in the sorted order of the two texts, so that the order shown changes nothing."""
        draws, (annotator, flip) = _draws(identity, ask), self._annotator(ask, identity)
        first, second = sorted((ask.question.first, ask.question.second))
        turned, margin = first != ask.question.first, rewards[first] - rewards[second]
        faithful = win_probability(margin, self.temperature)
        probability = faithful * (1 - flip) + (1 - faithful) * flip
        choice: Choice = "first" if (draws.decision < probability) != turned else "second"
        if draws.tie < tie_probability(margin, self.temperature, self.tie_rate):
            choice = "tie"
        if draws.abstention < self.abstain_rate:
            choice = "abstain"
        return Answer(choice=choice, probability=1 - probability if turned else probability, annotator=annotator)

    def _annotator(self, ask: Ask, identity: str) -> tuple[str, float]:
        """Whose turn it is, and how often they flip: an order drawn for the pair, and another one every time round."""
        if not self.annotators:
            return "", self.flip_probability
        turn, place = divmod(ask.repetition, len(self.annotators))
        order = sorted(self.annotators, key=lambda one: _hash(identity, ask.question.key, turn, one.name))
        return order[place].name, order[place].flip_probability

    def _check_annotators(self) -> None:
        names = [annotator.name for annotator in self.annotators]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise InputError(f"annotators have the names {', '.join(twice)} more than once: expected each once")
        if self.annotators and self.flip_probability:
            raise InputError(
                f"flip_probability is {self.flip_probability} and there are annotators, who have their own: "
                "expected one or the other; leave flip_probability out"
            )


class _Draws(NamedTuple):
    """Independent uniform numbers in [0, 1), one for each thing that is left to chance."""

    abstention: float
    tie: float
    decision: float


def _draws(identity: str, ask: Ask) -> _Draws:
    digest = _hash(identity, ask.question.key, ask.repetition)
    return _Draws(*((int.from_bytes(digest[start : start + 8], "big") >> 11) / 2**53 for start in (0, 8, 16)))


def _hash(*parts: str | int) -> bytes:
    return sha256(json.dumps(parts).encode()).digest()


def _check_share(share: float, what: str) -> None:
    if not 0 <= share <= 1:
        raise InputError(f"{what} is {share}: expected a number in [0, 1]")


def _canonical(value: object) -> object:
    if isinstance(value, dict):
        return {key: _canonical(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
