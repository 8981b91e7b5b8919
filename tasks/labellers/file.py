"""Answers from elsewhere: a file that holds them already, written by us or exported from Label Studio."""

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

from cluster.errors import InputError
from cluster.storage import digest_of_file
from tasks.labellers.formats import FORMATS, read_answers
from tasks.labellers.formats.files import Faults
from tasks.labellers.formats.parts import Given, turned_answer
from tasks.labellers.protocol import Answer, Answered, Ask, Label, Question, Workplace


@dataclass(frozen=True, kw_only=True)
class FileLabeller:
    """Looks up what a file says of a pair, whatever the order of its responses.

    In the format `answers` (JSONL, CSV or Parquet) a row has `first`, `second` (texts), `choice` (first, second, tie or
    abstain) and `prompt` (plain text, or a list of messages) or `key`; `annotator`, `probability` (of the first),
    `rationale` and `repetition` are read where they are there, see `AnswerRow`. Answers of several annotators to a
    pair serve its repetitions, in their order; of several answers by one annotator the last counts. Another content of
    the file makes another labeller, the file's place does not.
    """

    kind: Literal["file"] = "file"
    path: Path
    format: Literal["answers", "label-studio", "preference", "unpaired"] = "answers"
    missing: Literal["refuse", "abstain"] = "refuse"
    """What becomes of pairs that the file doesn't answer: the round is refused, or the labeller abstains."""
    cost: float = 0.0
    """Price of one answer."""

    def __post_init__(self) -> None:
        if not 0 <= self.cost < math.inf:
            raise InputError(f"cost is {self.cost}: expected a finite number, 0 or more")

    @property
    def identity(self) -> str:
        """The content of the file and all fields but its place, as JSON.

        Raises:
            InputError: no such file.
        """
        fields = {"kind": self.kind, "format": self.format, "missing": self.missing, "cost": self.cost}
        return json.dumps({**fields, "digest": _digest(*self._stamp())}, sort_keys=True)

    @property
    def repeats_itself(self) -> bool:
        """Several annotators' answers serve several repetitions."""
        return False

    def price(self, question: Question) -> float:  # noqa: ARG002 - all are worth the same
        """What each answer costs."""
        return self.cost

    def check(self) -> None:
        """Read the file.

        Raises:
            InputError: no such file, an unreadable one, or rows that give no answer; all of them are listed.
        """
        _answers(*self._stamp(), self.format)

    def __call__(self, asks: Sequence[Ask], workplace: Workplace) -> Iterator[Answered]:  # noqa: ARG002
        """Answer all asks together.

        Raises:
            InputError: the file lacks some of them, and `missing` is refuse.
            InputError: it holds a pair with other responses.
        """
        held = _answers(*self._stamp(), self.format)
        found = [(ask, held[ask.question.key][ask.repetition]) for ask in asks if self._holds(held, ask)]
        lacking = [ask for ask in asks if not self._holds(held, ask)]
        if lacking and self.missing == "refuse":
            raise InputError(self._lack(lacking, len(asks), held))
        answers = [(ask, _turned(given, ask.question, self.path)) for ask, given in found]
        abstentions = [(ask, Answer(choice="abstain", rationale="not in the file")) for ask in lacking]
        if answers or abstentions:
            yield answers + abstentions

    def measures(self, labels: Sequence[Label]) -> dict[str, float]:
        """How many annotators the file names."""
        return {"num_annotators": float(len({label.annotator for label in labels}))}

    def _stamp(self) -> tuple[Path, int, int]:
        try:
            stat = self.path.stat()
        except OSError as error:
            raise InputError(
                f"the file of answers {self.path} can't be read ({error.strerror}): check labelling.labeller.path"
            ) from error
        return self.path, stat.st_mtime_ns, stat.st_size

    @staticmethod
    def _holds(held: Mapping[str, Sequence[Given]], ask: Ask) -> bool:
        return ask.repetition < len(held.get(ask.question.key, ()))

    def _lack(self, lacking: Sequence[Ask], num_asks: int, held: Mapping[str, Sequence[Given]]) -> str:
        first = lacking[0]
        num_held = len(held.get(first.question.key, ()))
        return (
            f"{self.path} has no answer to {len(lacking)} of {num_asks} asks, the first of them number "
            f"{first.repetition + 1} to {first.question.prompt[:60]!r} (key {first.question.key[:12]}..., found "
            f"{num_held} answers): add them to the file, or set labelling.labeller.missing to abstain"
        )


@lru_cache(maxsize=4)
def _digest(path: Path, time: int, size: int) -> str:  # noqa: ARG001 - time and size tell versions of a file apart
    return digest_of_file(path)


@lru_cache(maxsize=4)
def _answers(path: Path, time: int, size: int, form: str) -> Mapping[str, Sequence[Given]]:  # noqa: ARG001 - as above
    """The answers that count, by key."""
    faults = Faults(path)
    given = read_answers(path, FORMATS[form], faults)
    faults.refuse()
    latest = {_whose(one, index): one for index, one in enumerate(given) if not one.superseded}
    by_key = defaultdict(list)
    for one in latest.values():
        by_key[one.question.key].append(one)
    return {key: sorted(answers, key=lambda one: one.repetition or 0) for key, answers in by_key.items()}


def _whose(given: Given, index: int) -> tuple[object, ...]:
    """What two answers share of which the later counts; without annotator and repetition every answer stands alone."""
    named = given.answer.annotator or given.repetition is not None
    who = (given.labeller, given.answer.annotator, given.repetition) if named else (index,)
    return given.question.key, *who


def _turned(given: Given, question: Question, path: Path) -> Answer:
    """The answer in the order of the question."""
    own = given.question
    if {own.first, own.second} != {question.first, question.second}:
        raise InputError(
            f"{path}, {given.where} has other responses than the pair {question.key[:12]}... that it names: "
            "correct its key, or give the prompt in its place"
        )
    answer = replace(given.answer, cost=None)
    return answer if own.first == question.first else turned_answer(answer)
