"""Rates that votes tell, against a labeller whose flips are known."""

import math
from collections.abc import Sequence

import pytest

from tasks.labellers.aggregation import DawidSkene, Majority, Verdict
from tasks.labellers.protocol import Ask, Label, Question
from tasks.labellers.rewards import Length
from tasks.labellers.simulated import Annotator, SimulatedLabeller
from tasks.objectives.pairs import flip_rate, label_flip_rate

pytestmark = pytest.mark.labels


def labelled(labeller: SimulatedLabeller, *, words: int, num_pairs: int) -> tuple[list[Question], list[list[Label]]]:
    """Three answers to each of many pairs, one of whose responses is so many words longer, the better one therefore."""
    longer, shorter = "a " * (words + 1), "b"
    questions = [
        Question(
            key=f"{place:05}",
            messages=[{"role": None, "content": str(place)}],
            first=shorter if place % 2 else longer,
            second=longer if place % 2 else shorter,
        )
        for place in range(num_pairs)
    ]
    answers = labeller.answers([Ask(question=one, repetition=number) for one in questions for number in range(3)])
    labels = [
        Label(
            key=ask.question.key,
            repetition=ask.repetition,
            choice=answer.choice,
            probability=answer.probability,
            swapped=False,
            annotator=answer.annotator,
            rationale="",
            cost=1.0,
            bought=True,
            detail={},
        )
        for ask, answer in answers
    ]
    return questions, [labels[start : start + 3] for start in range(0, len(labels), 3)]


def votes_of(verdicts: Sequence[Verdict]) -> list[tuple[int, int]]:
    return [(one.votes_first, one.votes_second) for one in verdicts]


def share_wrong(verdicts: Sequence[Verdict]) -> float:
    better = ("first", "second")
    return sum(one.choice != better[place % 2] for place, one in enumerate(verdicts)) / len(verdicts)


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.2, 0.35])
def test_known_flips_of_clear_pairs_are_found(rate: float) -> None:
    labeller = SimulatedLabeller(reward=Length(unit=1.0), flip_probability=rate, temperature=0.1)
    verdicts = Majority()(*labelled(labeller, words=9, num_pairs=2000))
    assert flip_rate(votes_of(verdicts)) == pytest.approx(rate, abs=0.02)


@pytest.mark.parametrize(("margin", "expected"), [(1, 0.361), (2, 0.272), (4, 0.211)])
def test_honest_disagreement_adds_as_much_as_is_written(margin: int, expected: float) -> None:
    labeller = SimulatedLabeller(reward=Length(unit=1.0), flip_probability=0.2, temperature=1.0)
    verdicts = Majority()(*labelled(labeller, words=margin, num_pairs=4000))
    assert (1 - 0.6 * math.tanh(margin / 2)) / 2 == pytest.approx(expected, abs=5e-4)
    assert flip_rate(votes_of(verdicts)) == pytest.approx(expected, abs=0.02)


def test_majorities_are_flipped_as_often_as_votes_foretell() -> None:
    labeller = SimulatedLabeller(reward=Length(unit=1.0), flip_probability=0.2, temperature=0.1)
    verdicts = Majority()(*labelled(labeller, words=9, num_pairs=2000))
    votes = votes_of(verdicts)
    told = label_flip_rate(flip_rate(votes), [abs(one - other) for one, other in votes])
    assert told == pytest.approx(3 * 0.2**2 * 0.8 + 0.2**3, abs=0.01)
    assert told == pytest.approx(share_wrong(verdicts), abs=0.02)


def test_chances_of_dawid_skene_tell_how_often_its_verdicts_are_flipped() -> None:
    rates = {"ann": 0.05, "bob": 0.1, "cleo": 0.2, "dan": 0.5, "eve": 0.5}
    annotators = tuple(Annotator(name=name, flip_probability=rate) for name, rate in rates.items())
    labeller = SimulatedLabeller(reward=Length(unit=1.0), annotators=annotators, temperature=0.1)
    data = labelled(labeller, words=9, num_pairs=2000)
    verdicts = DawidSkene()(*data)
    told = sum(min(one.probability, 1 - one.probability) for one in verdicts if one.probability is not None)
    assert share_wrong(verdicts) < share_wrong(Majority()(*data)) - 0.02
    assert told / len(verdicts) == pytest.approx(share_wrong(verdicts), abs=0.02)
