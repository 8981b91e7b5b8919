import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from cluster.errors import InputError
from tasks.labellers.aggregation import (
    AGGREGATIONS,
    AnyAggregation,
    DawidSkene,
    Majority,
    NoisyBradleyTerry,
    Verdict,
    agreement,
)
from tasks.labellers.protocol import Choice, Label, Question

pytestmark = pytest.mark.labels

Round = tuple[list[Question], list[list[Label]]]
ALL = [aggregation() for aggregation in AGGREGATIONS.values()]
MODELS = [DawidSkene(), NoisyBradleyTerry()]
SHORT: dict[str, Choice] = {"1": "first", "2": "second", "t": "tie", "-": "abstain"}
OPPOSITE: dict[Choice, Choice] = {"first": "second", "second": "first", "tie": "tie", "abstain": "abstain"}


def question(key: str, *, first: str | None = None, second: str | None = None) -> Question:
    messages = [{"role": None, "content": "prompt"}]
    return Question(key=key, messages=messages, first=first or f"{key} a", second=second or f"{key} b")


def label(choice: Choice, *, key: str = "k", repetition: int = 0, annotator: str = "", swapped: bool = False) -> Label:
    return Label(
        key=key,
        repetition=repetition,
        choice=choice,
        probability=None,
        swapped=swapped,
        annotator=annotator,
        rationale="",
        cost=1.0,
        bought=True,
        detail={},
    )


def labelled(*written: str) -> Round:
    """One question a word, whose letters are the answers of annotators 0, 1, ...; a space is none at all."""
    keys = [f"{place:04}" for place in range(len(written))]
    answers = [
        [
            label(SHORT[letter], key=key, repetition=repetition, annotator=str(repetition))
            for repetition, letter in enumerate(word)
            if letter != " "
        ]
        for key, word in zip(keys, written, strict=True)
    ]
    return [question(key) for key in keys], answers


def turned(one: Question, answers: Sequence[Label]) -> tuple[Question, list[Label]]:
    """The same with the responses the other way round."""
    return replace(one, first=one.second, second=one.first), [
        replace(
            answer,
            choice=OPPOSITE[answer.choice],
            swapped=not answer.swapped,
            probability=None if answer.probability is None else 1 - answer.probability,
        )
        for answer in answers
    ]


@st.composite
def rounds(draw: st.DrawFn) -> Round:
    """Questions over few responses, some shared, answered by few annotators, in any order shown."""
    pairs = draw(st.lists(st.sampled_from(list(combinations("abcde", 2))), min_size=1, max_size=6, unique=True))
    choices = st.sampled_from(list(OPPOSITE))
    answers = [
        [
            label(
                draw(choices),
                key="".join(pair),
                repetition=repetition,
                annotator=draw(st.sampled_from(["", "ann", "bob"])),
                swapped=draw(st.booleans()),
            )
            for repetition in range(draw(st.integers(0, 4)))
        ]
        for pair in pairs
    ]
    return [question("".join(pair), first=pair[0], second=pair[1]) for pair in pairs], answers


def simulated(reliability: Sequence[float], *, num_questions: int, num_votes: int, seed: int = 0) -> Round:
    """Votes of annotators who are right with these chances; the first response is the better one of every question."""
    rng = np.random.default_rng(seed)
    questions = [question(f"{place:04}") for place in range(num_questions)]
    answers = [
        [
            label(
                "first" if rng.random() < reliability[annotator] else "second",
                key=one.key,
                repetition=repetition,
                annotator=str(annotator),
                swapped=swapped,
            )
            for repetition, annotator in enumerate(rng.choice(len(reliability), num_votes, replace=False))
        ]
        for one in questions
        for swapped in [bool(rng.random() < 0.5)]
    ]
    return questions, answers


def share_right(verdicts: Sequence[Verdict]) -> float:
    return sum((one.choice == "first" and one.outcome == "preferred") for one in verdicts) / len(verdicts)


def test_a_majority_is_counted_and_ties_and_abstentions_are_no_votes_for_either() -> None:
    verdicts = Majority()(*labelled("112", "22t", "12", "t1", "tt", "--", "", "2-", "12t"))
    found = [(one.outcome, one.choice, one.probability, one.votes_first, one.votes_second) for one in verdicts]
    assert found == [
        ("preferred", "first", 2 / 3, 2, 1),
        ("preferred", "second", 0.5 / 3, 0, 2),
        ("tie", "first", 0.5, 1, 1),
        ("preferred", "first", 0.75, 1, 0),
        ("tie", "first", 0.5, 0, 0),
        ("abstained", "first", None, 0, 0),
        ("abstained", "first", None, 0, 0),
        ("preferred", "second", None, 0, 1),
        ("tie", "first", 0.5, 1, 1),
    ]
    assert [one.num_answers for one in verdicts] == [3, 3, 2, 2, 2, 2, 0, 2, 3]


@pytest.mark.parametrize("aggregation", ALL, ids=lambda one: one.kind)
def test_one_label_a_pair_comes_out_as_itself_with_the_labellers_own_probability(aggregation: AnyAggregation) -> None:
    questions, answers = labelled("1", "2", "t", "-", "")
    told = [[replace(answer, probability=0.3) for answer in one] for one in answers]
    for given_labels, probability in ((answers, None), (told, 0.3)):
        verdicts = aggregation(questions, given_labels)
        assert [one.outcome for one in verdicts] == ["preferred", "preferred", "tie", "abstained", "abstained"]
        assert [one.choice for one in verdicts[:2]] == ["first", "second"]
        assert [one.probability for one in verdicts] == [probability] * 3 + [None, None]


@pytest.mark.parametrize("aggregation", ALL, ids=lambda one: one.kind)
def test_labels_in_a_circle_come_out_as_themselves(aggregation: AnyAggregation) -> None:
    questions = [question(pair, first=pair[0], second=pair[1]) for pair in ("ab", "bc", "ca")]
    verdicts = aggregation(questions, [[label("first", key=one.key)] for one in questions])
    assert [one.choice for one in verdicts] == ["first"] * 3


@pytest.mark.parametrize("aggregation", ALL, ids=lambda one: one.kind)
def test_annotators_who_agree_are_followed(aggregation: AnyAggregation) -> None:
    verdicts = aggregation(*labelled("111", "222", "111", "222", "22-"))
    assert [one.choice for one in verdicts] == ["first", "second", "first", "second", "second"]
    assert all(abs((one.probability or 0) - 0.5) > 0.2 for one in verdicts)


@pytest.mark.parametrize("aggregation", ALL, ids=lambda one: one.kind)
def test_as_many_votes_of_equal_annotators_for_either_are_a_tie(aggregation: AnyAggregation) -> None:
    verdicts = aggregation(*labelled("12", "21", "--"))
    assert [one.outcome for one in verdicts] == ["tie", "tie", "abstained"]
    assert [one.probability for one in verdicts] == [pytest.approx(0.5), pytest.approx(0.5), None]


@pytest.mark.parametrize("aggregation", ALL, ids=lambda one: one.kind)
@settings(deadline=None, max_examples=50)
@given(data=rounds(), turns=st.lists(st.booleans(), min_size=6, max_size=6))
def test_turning_questions_turns_their_verdicts_and_no_others(
    aggregation: AnyAggregation, data: Round, turns: list[bool]
) -> None:
    pairs = [turned(*one) if turn else one for *one, turn in zip(*data, turns, strict=False)]
    for plain, other, turn in zip(
        aggregation(*data),
        aggregation([one for one, _ in pairs], [answers for _, answers in pairs]),
        turns,
        strict=False,
    ):
        assert other.outcome == plain.outcome
        assert (other.choice == plain.choice) != (turn and plain.outcome == "preferred")
        assert (other.votes_first, other.votes_second)[:: -1 if turn else 1] == (plain.votes_first, plain.votes_second)
        if plain.probability is None:
            assert other.probability is None
        else:
            expected = 1 - plain.probability if turn else plain.probability
            assert other.probability == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("aggregation", ALL, ids=lambda one: one.kind)
@settings(deadline=None, max_examples=50)
@given(data=rounds(), seed=st.integers(0, 1000))
def test_neither_the_order_of_questions_nor_of_answers_means_anything(
    aggregation: AnyAggregation, data: Round, seed: int
) -> None:
    shuffler, both = random.Random(seed), list(zip(*data, strict=True))
    shuffler.shuffle(both)
    shuffled = [shuffler.sample(answers, len(answers)) for _, answers in both]
    expected = dict(zip([one.key for one in data[0]], aggregation(*data), strict=True))
    found = aggregation([one for one, _ in both], shuffled)
    assert dict(zip([one.key for one, _ in both], found, strict=True)) == expected
    assert agreement(shuffled) == agreement(data[1])


@pytest.mark.parametrize("model", MODELS, ids=lambda one: one.kind)
def test_without_names_and_with_one_a_model_is_a_majority(model: AnyAggregation) -> None:
    questions, answers = labelled("111", "112", "221", "222", "122", "211", "12")
    for name in ("", "judge"):
        unnamed = [[replace(answer, annotator=name) for answer in one] for one in answers]
        found = [(one.outcome, one.choice) for one in model(questions, unnamed)]
        assert found == [(one.outcome, one.choice) for one in Majority()(questions, unnamed)]


def test_a_random_and_a_contrary_annotator_are_found_out_by_dawid_skene() -> None:
    for seed in range(3):
        data = simulated([0.9, 0.85, 0.9, 0.5, 0.15], num_questions=300, num_votes=3, seed=seed)
        assert share_right(DawidSkene()(*data)) > share_right(Majority()(*data)) + 0.08


def test_dawid_skene_loses_little_where_all_annotators_are_alike() -> None:
    for size in (20, 60, 300):
        rounds_of = [simulated([0.8] * 5, num_questions=size, num_votes=3, seed=seed) for seed in range(8)]
        found = [[share_right(one(*data)) for data in rounds_of] for one in (Majority(), DawidSkene())]
        assert np.mean(found[1]) > np.mean(found[0]) - 0.01


def test_dawid_skene_loses_little_where_one_side_is_always_right() -> None:
    for reliability in ([0.8] * 3, [0.95, 0.8, 0.65], [0.9, 0.85, 0.9, 0.5, 0.15]):
        for size in (20, 200):
            questions, answers = simulated(reliability, num_questions=size, num_votes=3)
            unturned = [[replace(one, swapped=False) for one in given_answers] for given_answers in answers]
            found = [share_right(one(questions, unturned)) for one in (Majority(), DawidSkene())]
            assert found[1] > found[0] - 0.03


def test_dawid_skene_tells_a_liking_for_a_side_from_a_judgement() -> None:
    """Two annotators take whatever is shown first, and outvote the one who looks."""
    questions, answers = simulated([0.95, 0.9, 0.5, 0.5], num_questions=200, num_votes=4)
    lazy = [
        [
            replace(one, choice="second" if one.swapped else "first") if one.annotator in {"2", "3"} else one
            for one in given_answers
        ]
        for given_answers in answers
    ]
    assert share_right(Majority()(questions, lazy)) < 0.75
    assert share_right(DawidSkene()(questions, lazy)) > 0.9


def test_noisy_bradley_terry_joins_pairs_that_share_responses_and_discounts_those_who_do_not_look() -> None:
    rng, scores = np.random.default_rng(0), np.linspace(3, -3, 12)
    pairs = list(combinations(range(12), 2))
    questions = [question(f"{a:02}{b:02}", first=f"{a:02}", second=f"{b:02}") for a, b in pairs]
    looks = {"ann": 1.0, "bob": 0.9, "lazy": 0.1, "idle": 0.0}
    answers = []
    for one, (a, b) in zip(questions, pairs, strict=True):
        swapped, given_answers = bool(rng.random() < 0.5), []
        for repetition, (name, share) in enumerate(looks.items()):
            fair = rng.random() < 1 / (1 + np.exp(scores[b] - scores[a]))
            shown_first = rng.random() < 0.9
            first = fair if rng.random() < share else shown_first != swapped
            given_answers.append(
                label(
                    "first" if first else "second", key=one.key, repetition=repetition, annotator=name, swapped=swapped
                )
            )
        answers.append(given_answers)
    assert share_right(NoisyBradleyTerry()(questions, answers)) > share_right(Majority()(questions, answers)) + 0.1


def test_some_repeated_pairs_teach_of_annotators_who_answer_alone() -> None:
    questions, answers = simulated([0.95, 0.9, 0.9, 0.05], num_questions=200, num_votes=4)
    alone = [*answers[:100], *([one[-1]] for one in answers[100:])]
    contrary = [place for place in range(100, 200) if alone[place][0].annotator == "3"]
    verdicts = DawidSkene()(questions, alone)
    assert len(contrary) > 10
    assert share_right([verdicts[place] for place in contrary]) > 0.8


def test_agreement_is_alpha_of_what_was_answered() -> None:
    assert agreement(labelled("11-", "1t", "222", "2", "--")[1]) == pytest.approx(1 - 6 * 2 / 30), "by hand"
    assert agreement(labelled("1-", "t")[1]) is None


def test_annotators_who_take_what_is_shown_first_do_not_agree_more_than_chance() -> None:
    questions, answers = simulated([0.5, 0.5, 0.5], num_questions=2000, num_votes=3)
    rng = np.random.default_rng(1)
    lazy = [
        [replace(one, choice="first" if (rng.random() < 0.95) != one.swapped else "second") for one in given_answers]
        for given_answers in answers
    ]
    assert agreement(lazy) == pytest.approx(0, abs=0.05)
    both = [turned(*pair)[1] if place % 2 else pair[1] for place, pair in enumerate(zip(questions, lazy, strict=True))]
    assert agreement(both) == agreement(lazy)


def test_as_many_questions_as_lists_of_labels_are_expected() -> None:
    questions, answers = labelled("1", "2")
    for aggregation in ALL:
        with pytest.raises(ValueError, match="zip"):
            aggregation(questions, answers[:1])


def test_a_config_names_an_aggregation_and_bad_numbers_are_refused() -> None:
    adapter: TypeAdapter[AnyAggregation] = TypeAdapter(AnyAggregation)
    for kind in ("majority", "dawid_skene", "noisy_bradley_terry"):
        assert adapter.validate_python({"kind": kind}) == AGGREGATIONS[kind]()
    for make in (lambda: DawidSkene(right=0), lambda: DawidSkene(wrong=-1), lambda: NoisyBradleyTerry(spread=np.nan)):
        with pytest.raises(InputError, match=r"expected a finite number above 0"):
            make()
    with pytest.raises(ValidationError):
        adapter.validate_python({"kind": "median"})
