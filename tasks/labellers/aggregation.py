"""Aggregation: the answers to a question become one verdict; and how far they agree.

Annotators are told apart by `Label.annotator`; answers without a name count as those of one. Abstentions don't vote.
Nothing depends on the order of questions, of answers, or of the two responses of a question. Noisy Bradley-Terry learns
of each annotator's sides as that annotator saw them. To Dawid-Skene and to the agreement, the sides of a question are
those of its lowest repetition: where annotators see them in orders of their own, as people do at the labelling page, a
liking for one side looks like chance.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Literal, TypeVar, get_args

import numpy as np

from cluster.errors import InputError
from tasks.labellers.crowd import (
    FIRST,
    SECOND,
    TIE,
    Bouts,
    FloatArray,
    IntArray,
    Votes,
    alpha,
    dawid_skene,
    noisy_bradley_terry,
)
from tasks.labellers.protocol import Choice, Label, Question, Side

T = TypeVar("T", str, tuple[str, str])

_EVEN = 1e-4
"""Difference of two chances, found in steps, that is none."""

_TRUST = 0.9
"""Share of an annotator's answers that look at the responses, before any is known."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the answers to one question come to.

    Attributes:
        outcome: whether a response is preferred; abstained: nobody had an opinion.
        choice: the response that is preferred; "first" where none is.
        probability: that it is the first; of a single vote the labeller's own. None: not known.
        votes_first: answers for the first response.
        votes_second: answers for the second.
        num_answers: all answers, with ties and abstentions.
    """

    outcome: Literal["preferred", "tie", "abstained"]
    choice: Side
    probability: float | None
    votes_first: int
    votes_second: int
    num_answers: int


@dataclass(frozen=True, kw_only=True)
class Majority:
    """The response with more votes than the other; a tie where both have as many.

    The probability is the share of votes for the first response, ties half.
    """

    kind: Literal["majority"] = "majority"

    def __call__(self, questions: Sequence[Question], labels: Sequence[Sequence[Label]]) -> list[Verdict]:
        """Give one verdict a question, in order."""
        return [_counted(answers) for _, answers in zip(questions, labels, strict=True)]


@dataclass(frozen=True, kw_only=True)
class DawidSkene:
    """The most probable answer, where every annotator has a confusion matrix of its own (Dawid & Skene 1979).

    Good annotators count for more, those who answer at random for nothing, and those who answer the contrary are turned
    round, as long as the others outweigh them. It takes tens of answers of each to know; until then it is a majority,
    since everyone is taken to have answered well before: `right` and `wrong` larger, and it takes longer. With one
    annotator, or without names, it remains one: there is nobody to compare. It takes disagreement about near-ties for
    errors. Where no question has two votes, labels are their own verdicts; where some have, the model speaks of all,
    also of those with one.

    The probability is that of the first response being the better one, and half of that of a tie. It tells how sure the
    verdict is, not how many people would agree.

    Attributes:
        right: right answers that an annotator is taken to have given before, for each true answer.
        wrong: the same of wrong ones.
    """

    kind: Literal["dawid_skene"] = "dawid_skene"
    right: float = 8.0
    wrong: float = 2.0

    def __post_init__(self) -> None:
        _require_positive("right", self.right)
        _require_positive("wrong", self.wrong)

    def __call__(self, questions: Sequence[Question], labels: Sequence[Sequence[Label]]) -> list[Verdict]:
        """Give one verdict a question, in order."""
        counted = Majority()(questions, labels)
        if not _repeated(labels):
            return counted
        turned = _turned(labels)
        chances = dawid_skene(_votes(labels, turned), right=self.right, wrong=self.wrong)
        return [
            _most_probable(verdict, row[[SECOND, FIRST, TIE]] if other else row)
            for verdict, row, other in zip(counted, chances, turned, strict=True)
        ]


@dataclass(frozen=True, kw_only=True)
class NoisyBradleyTerry:
    """The response with the higher score, where annotators now and then look at sides alone (Bugakova et al. 2019).

    Answers follow a Bradley-Terry model of the responses' scores, or else the annotator's liking for the side that is
    shown first; both, and how often which, are learnt. Questions that share a response tell of each other. A tie is
    half a vote for either. An annotator who answers the contrary is taken for one who doesn't look. Where no question
    has two votes, labels are their own verdicts; where some have, the model speaks of all, also of those with one.

    The probability is that of the model for the first response, by an annotator who looks.

    Attributes:
        spread: standard deviation of the scores before any answer is known, logits.
    """

    kind: Literal["noisy_bradley_terry"] = "noisy_bradley_terry"
    spread: float = 2.0

    def __post_init__(self) -> None:
        _require_positive("spread", self.spread)

    def __call__(self, questions: Sequence[Question], labels: Sequence[Sequence[Label]]) -> list[Verdict]:
        """Give one verdict a question, in order."""
        counted = Majority()(questions, labels)
        if not _repeated(labels):
            return counted
        items = _items(questions)
        scores = noisy_bradley_terry(_bouts(items, labels), spread=self.spread, trust=_TRUST)
        margins = scores[items[:, 0]] - scores[items[:, 1]]
        chances = 1 / (1 + np.exp(-np.stack([margins, -margins, np.full(len(margins), -inf)], axis=1)))
        return [_most_probable(verdict, row) for verdict, row in zip(counted, chances, strict=True)]


AnyAggregation = Majority | DawidSkene | NoisyBradleyTerry
"""The one place to add an aggregation."""

AGGREGATIONS = {aggregation.kind: aggregation for aggregation in get_args(AnyAggregation)}


def agreement(labels: Sequence[Sequence[Label]]) -> float | None:
    """Krippendorff's alpha, nominal, of the answers to each question: 1 is full agreement, 0 that of chance.

    Kinds of answers are the side that was shown first in the question's lowest repetition, the other side, and ties;
    abstentions are missing. Annotators who always take the first that is shown agree by chance alone.

    Returns:
        None where it is not defined: no question has two votes, or all of theirs are of one kind.
    """
    return alpha(_votes(labels, _turned(labels)))


def _counted(answers: Sequence[Label]) -> Verdict:
    votes = [label for label in answers if label.choice != "abstain"]
    first, second = (sum(label.choice == side for label in votes) for side in ("first", "second"))
    ties = len(votes) - first - second
    own = votes[0].probability if votes else None
    return Verdict(
        outcome="abstained" if not votes else "tie" if first == second else "preferred",
        choice="second" if second > first else "first",
        probability=(first + ties / 2) / len(votes) if len(votes) > 1 else own,
        votes_first=first,
        votes_second=second,
        num_answers=len(answers),
    )


def _most_probable(counted: Verdict, chances: FloatArray) -> Verdict:
    """The verdict of a model's chances of first, second and tie, (3,); nobody's vote remains an abstention."""
    if counted.outcome == "abstained":
        return counted
    first, second, tie = chances.tolist()
    even = tie >= max(first, second) or abs(first - second) <= _EVEN
    return replace(
        counted,
        outcome="tie" if even else "preferred",
        choice="second" if second > first and not even else "first",
        probability=first + tie / 2,
    )


def _repeated(labels: Sequence[Sequence[Label]]) -> bool:
    """Whether any question has two votes."""
    return any(sum(label.choice != "abstain" for label in answers) > 1 for answers in labels)


def _turned(labels: Sequence[Sequence[Label]]) -> list[bool]:
    """Whether the second response of each question was shown first, in its lowest repetition."""
    return [min(((label.repetition, label.swapped) for label in answers), default=(0, False))[1] for answers in labels]


def _votes(labels: Sequence[Sequence[Label]], turned: Sequence[bool]) -> Votes:
    """All votes by the sides of their question; put into an order of their own, since sums of floats depend on it."""
    sides: dict[Choice, int] = {"first": FIRST, "second": SECOND, "tie": TIE}
    opposite = {FIRST: SECOND, SECOND: FIRST, TIE: TIE}
    found = []
    for place, (answers, other) in enumerate(zip(labels, turned, strict=True)):
        for label in answers:
            if label.choice != "abstain":
                side = sides[label.choice]
                found.append((label.annotator, label.key, label.repetition, opposite[side] if other else side, place))
    found.sort()
    names = _numbered(row[0] for row in found)
    return Votes(
        question=np.array([row[4] for row in found], dtype=np.intp),
        annotator=np.array([names[row[0]] for row in found], dtype=np.intp),
        choice=np.array([row[3] for row in found], dtype=np.intp),
        num_questions=len(labels),
    )


def _items(questions: Sequence[Question]) -> IntArray:
    """Numbers of the responses of each question, (n, 2); a response is its prompt and its text."""
    texts = [[(question.prompt, text) for text in (question.first, question.second)] for question in questions]
    numbers = _numbered(item for pair in texts for item in pair)
    return np.array([[numbers[item] for item in pair] for pair in texts], dtype=np.intp)


def _bouts(items: IntArray, labels: Sequence[Sequence[Label]]) -> Bouts:
    """All votes as comparisons, a tie as two of half the weight; in an order of their own, like votes."""
    outcomes: dict[Choice, Sequence[tuple[float, float]]] = {
        "first": [(1.0, 1.0)],
        "second": [(-1.0, 1.0)],
        "tie": [(-1.0, 0.5), (1.0, 0.5)],
        "abstain": [],
    }
    found = sorted(
        (label.annotator, *((second, first) if label.swapped else (first, second)), -sign if label.swapped else sign, w)
        for (first, second), answers in zip(items.tolist(), labels, strict=True)
        for label in answers
        for sign, w in outcomes[label.choice]
    )
    names = _numbered(row[0] for row in found)
    return Bouts(
        items=np.array([row[1:3] for row in found], dtype=np.intp),
        annotator=np.array([names[row[0]] for row in found], dtype=np.intp),
        sign=np.array([row[3] for row in found]),
        weight=np.array([row[4] for row in found]),
        num_items=int(items.max()) + 1,
    )


def _numbered(values: Iterable[T]) -> dict[T, int]:
    """Numbers from 0 of the distinct values, in sorted order."""
    return {value: number for number, value in enumerate(sorted(set(values)))}


def _require_positive(name: str, value: float) -> None:
    if not 0 < value < inf:
        raise InputError(f"{name} is {value}: expected a finite number above 0")
