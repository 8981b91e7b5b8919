"""A reward model as labeller: a sequence classifier scores the responses, over Ray Data actors; soft preferences."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from cluster.actors import Residence, resident
from cluster.classifiers import Classifier, TorchClassifier, classifier
from cluster.errors import InputError
from cluster.models import hub_folder
from cluster.session import ray_session
from cluster.shards import Shard, each_shard
from tasks.labellers.bradley_terry import win_probability
from tasks.labellers.protocol import Answer, Answered, Ask, Choice, Label, Question, Workplace


@dataclass(frozen=True, kw_only=True)
class RewardModelLabeller:
    """Prefers a to b with probability sigmoid((s_a - s_b) / temperature), and says so: the likelier is its choice.

    The scores s are a sequence classifier's, as `cluster.classifiers` has them. It lies in the local folder `path`, or
    is the model `name` at `revision` of the Hugging Face hub. Scores that differ by `tie_margin` or less are a tie; at
    0 those are equal scores alone. It tosses no coin, so repetitions have the same answer.

    `shard_size` pairs are scored together and their answers kept together, `batch_size` responses in one forward pass;
    a response that stands in several pairs is scored once. Neither changes an answer, but for rounding. Nothing else
    is kept of unfinished work, for the ledger holds what is finished: a killed run scores at most the shards in flight
    again, and what their pairs and later ones share with finished ones.
    """

    kind: Literal["reward_model"] = "reward_model"
    path: Path | None = None
    name: str | None = None
    revision: str = "main"
    temperature: float = 1.0
    tie_margin: float = 0.0
    max_length: int | None = None
    batch_size: int = 16
    shard_size: int = 64
    cost: float = 0.0

    def __post_init__(self) -> None:
        if (self.path is None) == (self.name is None):
            found = "neither" if self.path is None else "both"
            raise InputError(f"a reward model has a path, a folder, or a name on the hub: found {found}, expected one")
        if not 0 < self.temperature < math.inf:
            raise InputError(f"temperature is {self.temperature}: expected a finite number above 0")
        for setting, number in {"tie_margin": self.tie_margin, "cost": self.cost}.items():
            if not 0 <= number < math.inf:
                raise InputError(f"{setting} is {number}: expected a finite number, 0 or more")
        for setting, count in {"batch_size": self.batch_size, "shard_size": self.shard_size}.items():
            if count < 1:
                raise InputError(f"{setting} is {count}: expected 1 or more")
        if self.max_length is not None and self.max_length < 1:
            raise InputError(f"max_length of the reward model is {self.max_length}: expected 1 or more tokens, or null")

    @property
    def identity(self) -> str:
        """The checkpoint's bytes, wherever they lie, and what else decides an answer, as JSON.

        Raises:
            InputError: no such checkpoint.
        """
        facts = {
            "kind": self.kind,
            "digest": self.resolve().digest,
            "temperature": float(self.temperature),
            "tie_margin": float(self.tie_margin),
            "max_length": self.max_length,
        }
        return json.dumps(facts, sort_keys=True)

    def resolve(self) -> Classifier:
        """Find the checkpoint, on the hub too, and check it.

        Raises:
            InputError: the hub can't give it, or the folder holds no sequence classifier with one or two labels.
        """
        if self.path is not None:
            return classifier(self.path, self.max_length, setting="labelling.labeller.path")
        return classifier(_snapshot(str(self.name), self.revision), self.max_length, setting="labelling.labeller.name")

    @property
    def repeats_itself(self) -> bool:
        """It tosses no coin."""
        return True

    def price(self, question: Question) -> float:  # noqa: ARG002 - the protocol's signature
        """Every answer costs the same."""
        return self.cost

    def check(self) -> None:
        """Look at the checkpoint, without loading it.

        Raises:
            InputError: as `resolve` does.
        """
        self.resolve()

    def __call__(self, asks: Sequence[Ask], workplace: Workplace) -> Iterator[Answered]:
        """Answer all, as shards are finished.

        Raises:
            InputError: a score is no finite number; what had been answered before stands.
        """
        if not asks:
            return
        job, torch = ScoringJob(shards_of(asks, self.shard_size), self.batch_size), workplace.settings.torch
        # On a CPU they reserve none: what outlives a stage must leave CPUs to the next.
        residence = Residence(torch.num_actors, 0, torch.num_gpus)
        with (
            ray_session(workplace.settings),
            resident(TorchClassifier, (self.resolve(), torch), residence) as classifiers,
        ):
            numbers = [{"shard": number} for number in range(len(job.shards))]
            yield from self._answers(asks, job, each_shard(numbers, score_shard, job=job, actors=classifiers))

    def measures(self, labels: Sequence[Label]) -> Mapping[str, float]:
        """How far apart the two scores are, on average."""
        gaps = [abs(float(label.detail["score_first"]) - float(label.detail["score_second"])) for label in labels]
        return {"mean_score_gap": sum(gaps) / len(gaps)} if gaps else {}

    def _answers(self, asks: Sequence[Ask], job: "ScoringJob", rows: Iterator[dict[str, Any]]) -> Iterator[Answered]:
        needing, scores = _needing(asks, job.shards), dict[Conversation, float]()
        for row in rows:
            scores |= zip(job.shards[row["shard"]], row["scores"], strict=True)
            answered = []
            for ask in needing[row["shard"]]:
                first, second = conversations(ask.question)
                if first in scores and second in scores:
                    answered.append((ask, self._answer(ask.question, scores[first], scores[second])))
            if answered:
                yield answered

    def _answer(self, question: Question, first: float, second: float) -> Answer:
        if not (math.isfinite(first) and math.isfinite(second)):
            raise InputError(
                f"the reward model in {self.resolve().model} scores the responses of pair {question.key} with {first} "
                f"and {second}: expected finite numbers. Check the model with long and empty texts, or take another; "
                "pairs that had been labelled before stay so"
            )
        probability = win_probability(first - second, self.temperature)
        choice: Choice = "first" if first > second else "second"
        if abs(first - second) <= self.tie_margin:
            choice = "tie"
        return Answer(choice=choice, probability=probability, detail={"score_first": first, "score_second": second})


class Conversation(NamedTuple):
    """A prompt, as JSON, and a response to it: what is scored."""

    prompt: str
    response: str


@dataclass(frozen=True)
class ScoringJob:
    """What is scored, shard by shard, and how many in one forward pass; a conversation is in one shard alone."""

    shards: Sequence[Sequence[Conversation]]
    batch_size: int


def conversations(question: Question) -> tuple[Conversation, Conversation]:
    """The first response and the second one, each after the prompt."""
    prompt = json.dumps([dict(message) for message in question.messages], sort_keys=True)
    return Conversation(prompt, question.first), Conversation(prompt, question.second)


def score_shard(shard: Shard, job: ScoringJob, classifier: Any) -> dict[str, Any]:
    """Have the reward model score one shard; gives its number and its scores."""
    import ray

    own = job.shards[shard["shard"]]
    prompts, responses = [json.loads(one.prompt) for one in own], [one.response for one in own]
    scores, _ = ray.get(classifier.score.remote(prompts, responses, job.batch_size))
    return {"shard": shard["shard"], "scores": scores}


def shards_of(asks: Sequence[Ask], size: int) -> list[list[Conversation]]:
    """Cut the pairs into shards; each has those of its conversations that no earlier one has."""
    pairs = list({ask.question.key: conversations(ask.question) for ask in asks}.values())
    seen: set[Conversation] = set()
    shards = []
    for start in range(0, len(pairs), size):
        together = dict.fromkeys(one for pair in pairs[start : start + size] for one in pair)
        if new := [one for one in together if one not in seen]:
            shards.append(new)
            seen |= set(new)
    return shards


def _needing(asks: Sequence[Ask], shards: Sequence[Sequence[Conversation]]) -> list[list[Ask]]:
    """For every shard the asks that need it; some need two, and can be answered when both are there."""
    home = {one: number for number, shard in enumerate(shards) for one in shard}
    needing: list[list[Ask]] = [[] for _ in shards]
    for ask in asks:
        for number in {home[one] for one in conversations(ask.question)}:
            needing[number].append(ask)
    return needing


@lru_cache
def _snapshot(name: str, revision: str) -> Path:
    """Ask the hub once a process: it must not change the model under a run."""
    return hub_folder(name, revision, instead="labeller: {kind: reward_model, path: ...}")
