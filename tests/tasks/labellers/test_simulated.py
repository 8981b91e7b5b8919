"""The simulated labeller against its exact frequencies, and what its answers must not depend on."""

import json
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from cluster.errors import InputError
from cluster.settings import Settings
from tasks.labellers.protocol import Answer, Ask, Choice, Labeller, Question, Workplace
from tasks.labellers.rewards import Length, Sentiment
from tasks.labellers.simulated import Annotator, SimulatedLabeller

pytestmark = pytest.mark.labels

WORDS = Length(unit=1.0)
ALL = SimulatedLabeller(
    reward=WORDS,
    temperature=1.5,
    tie_rate=0.3,
    abstain_rate=0.1,
    annotators=(Annotator(name="ann", flip_probability=0.05), Annotator(name="bo", flip_probability=0.4)),
)
WORKPLACE = Workplace(settings=Settings(), lineage="demo", round=0)
TURNED: dict[Choice, Choice] = {"first": "second", "second": "first", "tie": "tie", "abstain": "abstain"}


def ask(first: str, second: str, *, prompt: str = "p", repetition: int = 0) -> Ask:
    key = json.dumps([prompt, *sorted((first, second))])
    question = Question(key=key, messages=[{"role": "user", "content": prompt}], first=first, second=second)
    return Ask(question=question, repetition=repetition)


def turned(asked: Ask) -> Ask:
    return replace(asked, question=replace(asked.question, first=asked.question.second, second=asked.question.first))


def pairs(first: str, second: str, *, times: int) -> list[Ask]:
    return [ask(first, second, prompt=str(index)) for index in range(times)]


def answers(labeller: SimulatedLabeller, asks: Sequence[Ask]) -> list[Answer]:
    """The labeller's answers, as the ledger would get them."""
    answered = [pair for chunk in labeller(asks, WORKPLACE) for pair in chunk]
    assert [asked for asked, _ in answered] == list(asks)
    return [answer for _, answer in answered]


def shares(found: Sequence[Answer]) -> dict[Choice, float]:
    counts = Counter(answer.choice for answer in found)
    return {choice: counts[choice] / len(found) for choice in TURNED}


def expect(found: float, expected: float, times: int) -> None:
    """By chance a share is four standard errors off in one seed of 16000; the draws are the same in every run."""
    assert abs(found - expected) <= 4 * math.sqrt(expected * (1 - expected) / times)


@pytest.mark.parametrize("flip", [0.0, 0.2])
@pytest.mark.parametrize("margin", [-2, -1, 0, 1, 3])
def test_label_frequencies_follow_bradley_terry(margin: int, flip: float) -> None:
    times, temperature = 4000, 1.5
    labeller = SimulatedLabeller(reward=WORDS, temperature=temperature, flip_probability=flip, seed=3)
    found = answers(labeller, pairs("a " * (4 + margin), "b " * 4, times=times))
    faithful = 1 / (1 + math.exp(-margin / temperature))
    expected = faithful * (1 - flip) + (1 - faithful) * flip
    expect(shares(found)["first"], expected, times)
    assert [answer.probability for answer in found] == pytest.approx([expected] * times)
    assert {answer.choice for answer in found} <= {"first", "second"}
    assert {answer.annotator for answer in found} == {""}


@pytest.mark.parametrize("margin", [-3, 0, 1])
def test_choices_follow_the_whole_channel(margin: int) -> None:
    """Abstention first, whatever the pair; then Davidson's ties, written with strengths; then the flips."""
    times, flip, abstain, nu = 8000, 0.2, 0.15, 2 * 0.3 / 0.7
    labeller = replace(ALL, annotators=(), flip_probability=flip, abstain_rate=abstain)
    found = shares(answers(labeller, pairs("a " * (4 + margin), "b " * 4, times=times)))
    first, second = math.exp(margin / 1.5), 1.0
    whole = first + second + nu * math.sqrt(first * second)
    expect(found["abstain"], abstain, times)
    expect(found["tie"], (1 - abstain) * (1 - (first + second) / whole), times)
    expect(found["first"], (1 - abstain) * (first * (1 - flip) + second * flip) / whole, times)
    expect(found["second"], (1 - abstain) * (second * (1 - flip) + first * flip) / whole, times)


def test_without_ties_and_abstentions_equals_are_decided_by_a_coin() -> None:
    found = shares(answers(SimulatedLabeller(reward=WORDS), pairs("a", "b", times=2000)))
    assert found["tie"] == found["abstain"] == 0
    expect(found["first"], 0.5, 2000)


def test_who_always_abstains_decides_nothing() -> None:
    assert shares(answers(replace(ALL, abstain_rate=1.0), pairs("a b", "c", times=100)))["abstain"] == 1


def test_the_draws_of_a_pair_are_independent() -> None:
    """Were they one draw, no pair that doesn't abstain would tie, and none that doesn't tie would go to the first."""
    times, even = 8000, SimulatedLabeller(reward=WORDS, tie_rate=0.5, abstain_rate=0.5)
    found = shares(answers(even, pairs("a", "b", times=times)))
    expect(found["abstain"], 0.5, times)
    expect(found["tie"], 0.25, times)
    expect(found["first"], 0.125, times)
    expect(found["second"], 0.125, times)


def test_each_annotator_flips_as_often_as_its_own_probability_says() -> None:
    times = 4000
    labeller = SimulatedLabeller(
        reward=WORDS,
        temperature=1e-3,
        annotators=tuple(Annotator(name=str(f), flip_probability=f) for f in (0, 0.3, 1)),
    )
    found = answers(labeller, pairs("a b", "c", times=3 * times))
    for name, flip in {"0": 0.0, "0.3": 0.3, "1": 1.0}.items():
        own = [answer for answer in found if answer.annotator == name]
        expect(len(own) / len(found), 1 / 3, len(found))
        expect(shares(own)["second"], flip, len(own))
        assert [answer.probability for answer in own] == pytest.approx([1 - flip] * len(own))


def test_repetitions_of_a_pair_go_to_different_annotators_while_they_last() -> None:
    names = ("ann", "bo", "cy", "di")
    labeller = replace(ALL, annotators=tuple(Annotator(name=name) for name in names))
    orders = Counter[tuple[str, ...]]()
    for prompt in range(300):
        found = answers(labeller, [ask("a b", "c", prompt=str(prompt), repetition=one) for one in range(8)])
        rounds = [tuple(answer.annotator for answer in found[start : start + 4]) for start in (0, 4)]
        assert [sorted(names) for _ in rounds] == [sorted(one) for one in rounds]
        orders.update(rounds)
    assert len(orders) == 24, "any of them may come first, and after any other"


def test_repetitions_are_answered_anew() -> None:
    labeller = SimulatedLabeller(reward=WORDS, temperature=2.0)
    times = 4000
    once, again = (
        answers(labeller, [replace(one, repetition=repetition) for one in pairs("a b", "c", times=times)])
        for repetition in (0, 1)
    )
    share = 1 / (1 + math.exp(-0.5))
    same = sum(one.choice == other.choice for one, other in zip(once, again, strict=True)) / times
    expect(same, share**2 + (1 - share) ** 2, times)


def test_turned_questions_get_turned_answers() -> None:
    asks = [ask("x " * (index % 7), f"y {index}", repetition=index % 3) for index in range(600)]
    there, back = answers(ALL, asks), answers(ALL, [turned(one) for one in asks])
    assert min(shares(there).values()) > 0.05, "every choice is among them"
    for answer, mirrored in zip(there, back, strict=True):
        assert mirrored.choice == TURNED[answer.choice]
        assert mirrored.annotator == answer.annotator
        assert answer.probability is not None
        assert mirrored.probability == pytest.approx(1 - answer.probability)


def test_an_answer_does_not_depend_on_its_company() -> None:
    asks = [replace(one, repetition=repetition) for one in pairs("a b", "c", times=100) for repetition in range(3)]
    expected = {
        (one.question.key, one.repetition): answer for one, answer in zip(asks, answers(ALL, asks), strict=True)
    }
    random.Random(0).shuffle(asks)
    again = replace(ALL)
    assert all(answers(again, [one]) == [expected[one.question.key, one.repetition]] for one in asks)


def test_another_lineage_and_another_round_get_the_same_answers() -> None:
    asks = pairs("a b", "c", times=100)
    elsewhere = replace(WORKPLACE, lineage="other", round=7)
    assert list(ALL(asks, elsewhere)) == list(ALL(asks, WORKPLACE))


def test_answers_come_some_at_a_time() -> None:
    chunks = [len(chunk) for chunk in ALL(pairs("a b", "c", times=40), WORKPLACE)]
    assert chunks == [16, 16, 8]
    assert list(ALL([], WORKPLACE)) == []


def test_another_seed_is_another_labeller() -> None:
    one, other = (SimulatedLabeller(reward=WORDS, temperature=5.0, seed=seed) for seed in (0, 1))
    asks = pairs("a b", "c", times=100)
    assert one.identity != other.identity
    assert answers(one, asks) != answers(other, asks)


@pytest.mark.parametrize(("temperature", "share"), [(1e-300, 1.0), (1e300, 0.5)])
def test_extreme_temperatures_decide_always_or_toss_a_coin(temperature: float, share: float) -> None:
    labeller = SimulatedLabeller(reward=WORDS, temperature=temperature, tie_rate=1e-9)
    expect(shares(answers(labeller, pairs("a b", "c", times=2000)))["first"], share, 2000)


def test_a_certain_flip_turns_every_label() -> None:
    labeller = SimulatedLabeller(reward=WORDS, temperature=1e-3, flip_probability=1.0)
    assert shares(answers(labeller, pairs("a b", "c", times=100)))["second"] == 1


@given(st.text(), st.text(), st.text(max_size=2), st.integers(0, 5))
def test_any_two_texts_are_answered_alike_in_both_orders(first: str, second: str, prompt: str, repetition: int) -> None:
    labeller = replace(ALL, reward=Length(per="character", unit=1.0))
    asked = ask(first, second, prompt=prompt, repetition=repetition)
    [there], [back] = answers(labeller, [asked]), answers(labeller, [turned(asked)])
    assert back.choice == (TURNED[there.choice] if first != second else there.choice)
    assert there.probability is not None
    assert back.probability is not None
    assert there.probability + back.probability == pytest.approx(1)


def test_its_price_is_its_cost_and_it_needs_and_tells_nothing() -> None:
    labeller: Labeller = replace(ALL, cost=0.25)
    assert labeller.price(ask("a", "b").question) == 0.25
    assert labeller.check() is None
    assert labeller.measures([]) == {}


def test_identity_is_stable_and_names_every_field() -> None:
    named = replace(ALL, temperature=1, cost=2)
    assert named.identity == replace(ALL, reward=Length(unit=1), temperature=1.0, cost=2.0).identity
    assert json.loads(named.identity) == {
        "kind": "simulated",
        "reward": {"kind": "length", "per": "word", "unit": 1},
        "temperature": 1,
        "flip_probability": 0,
        "tie_rate": 0.3,
        "abstain_rate": 0.1,
        "annotators": [{"name": "ann", "flip_probability": 0.05}, {"name": "bo", "flip_probability": 0.4}],
        "seed": 0,
        "cost": 2,
    }
    others = [replace(named, cost=3), replace(named, reward=Sentiment()), replace(named, annotators=())]
    assert len({named.identity, *(other.identity for other in others)}) == 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SimulatedLabeller(temperature=0.0), "temperature is 0.0"),
        (lambda: SimulatedLabeller(temperature=math.inf), "temperature is inf"),
        (lambda: SimulatedLabeller(flip_probability=1.1), "flip_probability is 1.1"),
        (lambda: SimulatedLabeller(tie_rate=1.0), r"tie_rate is 1.0: expected a number in \[0, 1\)"),
        (lambda: SimulatedLabeller(abstain_rate=-0.1), "abstain_rate is -0.1"),
        (lambda: SimulatedLabeller(abstain_rate=math.nan), "abstain_rate is nan"),
        (lambda: SimulatedLabeller(cost=-1.0), "cost is -1.0"),
        (lambda: Annotator(name=""), "an annotator has an empty name"),
        (lambda: Annotator(name="ann", flip_probability=2.0), "flip_probability of annotator 'ann' is 2.0"),
        (
            lambda: SimulatedLabeller(annotators=(Annotator(name="ann"), Annotator(name="bo"), Annotator(name="ann"))),
            "annotators have the names ann more than once",
        ),
        (
            lambda: SimulatedLabeller(flip_probability=0.1, annotators=(Annotator(name="ann"),)),
            "flip_probability is 0.1 and there are annotators, who have their own: expected one or the other",
        ),
    ],
)
def test_values_out_of_range_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


@dataclass(frozen=True, kw_only=True)
class Other:
    """A second member, as the union has."""

    kind: Literal["other"] = "other"


CONFIG: TypeAdapter[SimulatedLabeller | Other] = TypeAdapter(
    Annotated[SimulatedLabeller | Other, Field(discriminator="kind")], config=ConfigDict(extra="forbid")
)


def test_a_config_chooses_labeller_reward_and_annotators() -> None:
    people = [{"name": "ann", "flip_probability": 0.1}, {"name": "bo"}]
    written = {"kind": "simulated", "reward": {"kind": "length", "per": "character"}, "annotators": people}
    labeller = CONFIG.validate_python(written)
    crew = (Annotator(name="ann", flip_probability=0.1), Annotator(name="bo"))
    assert labeller == SimulatedLabeller(reward=Length(per="character"), annotators=crew)
    assert CONFIG.validate_json(CONFIG.dump_json(labeller)) == labeller
    assert CONFIG.validate_python({"kind": "simulated"}) == SimulatedLabeller()
    assert CONFIG.validate_python({"kind": "other"}) == Other()


@pytest.mark.parametrize(
    ("written", "location"),
    [
        ({"kind": "simulated", "temprature": 1}, "simulated.temprature"),
        ({"kind": "simulated", "reward": {"kind": "length", "units": 1}}, "simulated.reward.length.units"),
        ({"kind": "simulated", "reward": {"kind": "rudeness"}}, "simulated.reward"),
        ({"kind": "simulated", "temperature": 0}, "simulated"),
        ({"kind": "simulated", "annotators": [{"name": "ann"}, {"name": ""}]}, "simulated.annotators.1"),
        ({"kind": "simulated", "annotators": [{"name": "ann", "flips": 1}]}, "simulated.annotators.0.flips"),
    ],
)
def test_a_wrong_config_is_refused_where_it_is_wrong(written: dict[str, object], location: str) -> None:
    with pytest.raises(ValidationError) as refused:
        CONFIG.validate_python(written)
    assert [".".join(map(str, error["loc"])) for error in refused.value.errors()] == [location]
