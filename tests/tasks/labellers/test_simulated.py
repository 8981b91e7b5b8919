import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from cluster.errors import InputError
from tasks.labellers import LABELLERS
from tasks.labellers.ledger import question_key
from tasks.labellers.protocol import Answer, Labeller, Question
from tasks.labellers.rewards import Length, Sentiment
from tasks.labellers.simulated import SimulatedLabeller

WORDS = Length(unit=1.0)


def ask(first: str, second: str, *, prompt: str = "p") -> Question:
    return Question(key=question_key(prompt, first=first, second=second), prompt=prompt, first=first, second=second)


def turned(question: Question) -> Question:
    return replace(question, first=question.second, second=question.first)


def repeated(first: str, second: str, *, times: int) -> list[Question]:
    return [ask(first, second, prompt=str(index)) for index in range(times)]


def share_of_first(answers: Sequence[Answer]) -> float:
    return sum(answer.preferred == "first" for answer in answers) / len(answers)


@pytest.mark.parametrize("flip", [0.0, 0.2])
@pytest.mark.parametrize("margin", [-2, -1, 0, 1, 3])
def test_label_frequencies_follow_bradley_terry(margin: int, flip: float) -> None:
    times, temperature = 4000, 1.5
    labeller = SimulatedLabeller(reward=WORDS, temperature=temperature, flip_probability=flip, seed=3)
    answers = labeller(repeated("a " * (4 + margin), "b " * 4, times=times))
    faithful = 1 / (1 + math.exp(-margin / temperature))
    expected = faithful * (1 - flip) + (1 - faithful) * flip
    assert abs(share_of_first(answers) - expected) < 3 * math.sqrt(expected * (1 - expected) / times)
    assert [answer.probability for answer in answers] == pytest.approx([expected] * times)


def test_turned_questions_get_turned_answers() -> None:
    labeller = SimulatedLabeller(reward=WORDS, temperature=2.0)
    questions = [ask("x " * (index % 7), f"y {index}") for index in range(300)]
    for answer, mirrored in zip(labeller(questions), labeller([turned(q) for q in questions]), strict=True):
        assert answer.preferred != mirrored.preferred
        assert answer.probability is not None
        assert mirrored.probability == pytest.approx(1 - answer.probability)


def test_a_label_does_not_depend_on_its_company() -> None:
    labeller = SimulatedLabeller(reward=WORDS, temperature=5.0)
    questions = repeated("a b", "c", times=200)
    expected = dict(zip([question.key for question in questions], labeller(questions), strict=True))
    random.Random(0).shuffle(questions)
    again = replace(labeller)
    assert all(again([question]) == [expected[question.key]] for question in questions)


def test_another_seed_is_another_labeller() -> None:
    one, other = (SimulatedLabeller(reward=WORDS, temperature=5.0, seed=seed) for seed in (0, 1))
    questions = repeated("a b", "c", times=100)
    assert one.identity != other.identity
    assert one(questions) != other(questions)


def test_a_low_temperature_always_prefers_the_higher_reward() -> None:
    labeller = SimulatedLabeller(reward=WORDS, temperature=1e-300)
    assert share_of_first(labeller(repeated("a b", "c", times=200))) == 1
    assert share_of_first(labeller(repeated("a", "b c", times=200))) == 0


def test_a_high_temperature_tosses_a_coin() -> None:
    labeller = SimulatedLabeller(reward=WORDS, temperature=1e300)
    assert abs(share_of_first(labeller(repeated("a b", "c", times=2000))) - 0.5) < 3 * math.sqrt(0.25 / 2000)


def test_a_certain_flip_turns_every_label() -> None:
    labeller = SimulatedLabeller(reward=WORDS, temperature=1e-3, flip_probability=1.0)
    assert share_of_first(labeller(repeated("a b", "c", times=100))) == 0


@given(st.text(), st.text())
def test_probabilities_of_the_two_orders_add_up_to_one(first: str, second: str) -> None:
    labeller = SimulatedLabeller(reward=Length(per="character"), temperature=0.01)
    there, back = labeller([ask(first, second), turned(ask(first, second))])
    assert there.probability is not None
    assert back.probability is not None
    assert there.probability + back.probability == pytest.approx(1)


def test_identity_is_stable_and_names_every_field() -> None:
    labeller = SimulatedLabeller(reward=WORDS, temperature=1, cost=2)
    assert labeller.identity == SimulatedLabeller(reward=Length(unit=1), temperature=1.0, cost=2.0).identity
    assert json.loads(labeller.identity) == {
        "kind": "simulated",
        "reward": {"kind": "length", "per": "word", "unit": 1},
        "temperature": 1,
        "flip_probability": 0,
        "seed": 0,
        "cost": 2,
    }
    assert (
        len({labeller.identity, replace(labeller, cost=3).identity, replace(labeller, reward=Sentiment()).identity})
        == 3
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SimulatedLabeller(temperature=0.0), "temperature is 0.0"),
        (lambda: SimulatedLabeller(temperature=math.inf), "temperature is inf"),
        (lambda: SimulatedLabeller(flip_probability=1.1), "flip_probability is 1.1"),
        (lambda: SimulatedLabeller(cost=-1.0), "cost is -1.0"),
    ],
)
def test_values_out_of_range_are_refused(make: Callable[[], SimulatedLabeller], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


@dataclass(frozen=True, kw_only=True)
class Other:
    """A second member, as the union will have."""

    kind: Literal["other"] = "other"


CONFIG: TypeAdapter[SimulatedLabeller | Other] = TypeAdapter(
    Annotated[SimulatedLabeller | Other, Field(discriminator="kind")], config=ConfigDict(extra="forbid")
)


def test_a_config_chooses_labeller_and_reward_by_kind() -> None:
    written = {"kind": "simulated", "reward": {"kind": "length", "per": "character"}, "temperature": 2}
    labeller = CONFIG.validate_python(written)
    assert labeller == SimulatedLabeller(reward=Length(per="character"), temperature=2.0)
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
    ],
)
def test_a_wrong_config_is_refused_where_it_is_wrong(written: dict[str, object], location: str) -> None:
    with pytest.raises(ValidationError) as refused:
        CONFIG.validate_python(written)
    assert [".".join(map(str, error["loc"])) for error in refused.value.errors()] == [location]


@pytest.mark.parametrize("kind", LABELLERS)
def test_every_labeller_can_be_asked(kind: str) -> None:
    labeller: Labeller = LABELLERS[kind]()
    assert labeller.cost >= 0
    assert kind in labeller.identity
    assert [answer.preferred for answer in labeller([ask("great", "awful")])] == ["first"]
    assert labeller([]) == []
