"""Lessons: which labels teach, what is known of them, and what they weigh; and what is refused before training."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import InputError
from cluster.models import Policy
from tasks.feature_tables import features_schema
from tasks.lessons import Explored, Lessons, Syllabus, WeightsConfig, taught
from tasks.objectives import BestOfN, Dpo, Robust, Rwr, SoftDpo
from tasks.objectives.weights import SigmoidUtility
from tasks.tables import PREFERENCES, Table

BASE = Policy(digest="base", model=Path("model"))
Row = dict[str, Any]
MakeLessons = Callable[..., Lessons]


def label(chosen: str, rejected: str, *, prompt: str = "p", **columns: Any) -> Row:
    return {
        "pair_id": f"{chosen}>{rejected}",
        "prompt_id": prompt,
        "messages": [{"role": None, "content": "say"}],
        "chosen": chosen,
        "rejected": rejected,
        "chosen_text": chosen,
        "rejected_text": rejected,
        "chosen_token_ids": [ord(letter) for letter in chosen],
        "rejected_token_ids": [ord(letter) for letter in rejected],
        "outcome": "preferred",
        "swapped": False,
        "probability": None,
        "votes_chosen": 1,
        "votes_rejected": 0,
        "num_answers": 1,
        "labeller": "by hand",
        "weight": None,
    } | columns


@pytest.fixture
def make_lessons(write_table: Callable[..., Table]) -> MakeLessons:
    """Labels of some rounds, and what features say of responses: (reward, log-probability under the reference)."""

    def make(*rounds: Sequence[Row], **known: tuple[float | None, float]) -> Lessons:
        rows = [
            {
                "response_id": name,
                "prompt_id": "p",
                "valid": True,
                "fault": None,
                "num_tokens": 1,
                "logp_policy": -1.0,
                "logp_reference": logp,
                "feature": [0.0],
                "proxy_score": reward,
            }
            for name, (reward, logp) in known.items()
        ]
        features = [write_table(rows, features_schema(1))] if rows else []
        tables = [write_table(rows, PREFERENCES) for rows in rounds]
        return Lessons(BASE, BASE, BASE, tables, features, features)

    return make


def syllabus(objective: Any = None, **parts: Any) -> Syllabus:
    return Syllabus(objective=objective or Dpo(), **{"weights": WeightsConfig(), **parts})


def test_labels_meet_what_is_known_of_their_responses(make_lessons: MakeLessons) -> None:
    found = taught(make_lessons([label("a", "b"), label("a", "c")], a=(1.0, -5.0), b=(0.5, -6.0)), syllabus())
    rows = found.rows.to_pylist()
    assert [row["pair_id"] for row in rows] == ["a>b", "a>c"]
    assert rows[0]["chosen_token_ids"] == [97]
    assert (rows[0]["chosen_reference_logp"], rows[0]["rejected_reference_logp"]) == (-5.0, -6.0)
    assert (rows[0]["chosen_reward"], rows[0]["rejected_reward"]) == (1.0, 0.5)
    assert (rows[1]["rejected_reference_logp"], rows[1]["rejected_reward"]) == (None, None)
    assert [row["weight"] for row in rows] == [1.0, 1.0]
    assert found.measures["effective_sample_size"] == found.measures["num_pairs"] == 2


def test_a_prompts_pairs_share_the_references_first_response_that_says_anything(
    make_lessons: MakeLessons, write_responses: Callable[[dict[str, list[str]]], Table]
) -> None:
    lessons = make_lessons([label("a", "b"), label("c", "d", prompt="q")], **{"p-1": (None, -4.0)})
    explored = Explored(write_responses({"p": ["zero", "one"]}), lessons.features[0])
    rows = taught(replace(lessons, explored=explored), syllabus()).rows.to_pylist()
    assert (rows[0]["explored_token_ids"], rows[0]["explored_reference_logp"]) == (list(b"one"), -4.0)
    assert (rows[1]["explored_token_ids"], rows[1]["explored_reference_logp"]) == (None, None)


def test_factors_of_a_weight_are_kept_apart(make_lessons: MakeLessons) -> None:
    rows = [label("a", "b", weight=2.0, probability=0.9), label("b", "a", probability=0.5)]
    weights = WeightsConfig(utility=SigmoidUtility(beta_2=2.0), confidence=True)
    found = taught(make_lessons(rows, a=(1.0, -1.0), b=(0.0, -1.0)), syllabus(weights=weights)).rows.to_pylist()
    sigmoid = 1 / (1 + 2.718281828459045**-2)
    for row, selection, utility, confidence in zip(found, (2, 1), (sigmoid, 1 - sigmoid), (0.8, 0), strict=True):
        assert row["weight_selection"] == selection
        assert row["weight_utility"] == pytest.approx(utility)
        assert row["weight_confidence"] == pytest.approx(confidence)
        assert row["weight"] == pytest.approx(selection * utility * confidence)


def test_weights_of_the_selection_can_be_ignored_or_asked_for(make_lessons: MakeLessons) -> None:
    rows = [label("a", "b", weight=2.0), label("b", "a")]
    lessons = make_lessons(rows)
    ignored = taught(lessons, syllabus(weights=WeightsConfig(selection="none"))).rows.to_pylist()
    assert [(row["weight_selection"], row["weight"]) for row in ignored] == [(None, 1.0)] * 2
    with pytest.raises(InputError, match=r"1 of 2 labelled pairs: pair 'b>a' has no weight: choose a selector"):
        taught(lessons, syllabus(weights=WeightsConfig(selection="required")))


@pytest.mark.parametrize("odd", [-1.0, float("nan"), float("inf")])
def test_a_weight_that_is_none_is_refused(make_lessons: MakeLessons, odd: float) -> None:
    with pytest.raises(InputError, match=rf"training\.weights: weight 'selection' of pair number 1 is {odd}"):
        taught(make_lessons([label("a", "b"), label("b", "a", weight=odd)]), syllabus())


def test_the_newest_labels_of_a_prompt_take_the_place_of_older_ones(make_lessons: MakeLessons) -> None:
    first = [label("a", "b", prompt="p"), label("c", "d", prompt="q")]
    second = [label("e", "f", prompt="p"), label("f", "g", prompt="p")]
    lessons = make_lessons(first, second)
    assert taught(lessons, syllabus()).rows["pair_id"].to_pylist() == ["a>b", "c>d", "e>f", "f>g"]
    newest = taught(lessons, syllabus(newest=True))
    assert newest.rows["pair_id"].to_pylist() == ["c>d", "e>f", "f>g"]


def test_no_pair_within_the_gap_teaches(make_lessons: MakeLessons) -> None:
    lessons = make_lessons(
        [label("a", "b"), label("c", "a"), label("b", "c")], a=(0.0, 0.0), b=(0.25, 0.0), c=(1.0, 0.0)
    )
    kept = taught(lessons, syllabus(min_reward_gap=0.25))
    assert kept.rows["pair_id"].to_pylist() == ["c>a", "b>c"]
    assert (kept.measures["num_labels"], kept.measures["num_pairs"]) == (3, 2)
    with pytest.raises(InputError, match=r"none of 3 labelled pairs is left to learn from: lower training\.min_reward"):
        taught(lessons, syllabus(min_reward_gap=5.0))


def test_the_best_of_a_prompt_teaches_alone(make_lessons: MakeLessons) -> None:
    rows = [label("a", "b"), label("c", "b"), label("c", "a"), label("d", "e", prompt="q")]
    known = {"a": (0.5, 0.0), "b": (0.0, 0.0), "c": (1.0, 0.0), "d": (-3.0, 0.0), "e": (-4.0, 0.0)}
    found = taught(make_lessons(rows, **known), syllabus(BestOfN()))
    assert found.rows["pair_id"].to_pylist() == ["c>b", "d>e"]


def test_a_flip_rate_is_estimated_from_pairs_labelled_twice(make_lessons: MakeLessons) -> None:
    rows = [label("a", "b"), label("a", "b"), label("c", "d"), label("c", "d"), label("e", "f")]
    rows += [label("g", "h"), label("h", "g")]
    found = taught(make_lessons(rows), syllabus(Robust(flip_rate="estimated")))
    assert isinstance(found.objective, Robust)
    assert found.objective.flip_rate == found.measures["flip_rate"] == pytest.approx((1 - (1 / 3) ** 0.5) / 2)
    with pytest.raises(InputError, match=r"training\.objective robust: .*no pair was labelled twice"):
        taught(make_lessons(rows[4:5]), syllabus(Robust(flip_rate="estimated")))
    with pytest.raises(InputError, match=r"flip_rate is 0\.5: expected a number in \[0, 0\.5\)"):
        taught(make_lessons(rows[5:]), syllabus(Robust(flip_rate="estimated")))


def test_labels_of_several_answers_are_flipped_more_rarely_than_an_answer(make_lessons: MakeLessons) -> None:
    rows = [label("a", "b", votes_chosen=3), label("c", "d", votes_chosen=2, votes_rejected=1)]
    found = taught(make_lessons(rows), syllabus(Robust(flip_rate="estimated")))
    answers = (1 - (2 * 4 / 6 - 1) ** 0.5) / 2
    assert found.measures["answer_flip_rate"] == pytest.approx(answers)
    odds = (1 - answers) / answers
    assert found.measures["flip_rate"] == pytest.approx((1 / (1 + odds**3) + 1 / (1 + odds)) / 2)


def test_only_preferences_teach_and_ties_too_where_odds_do(make_lessons: MakeLessons) -> None:
    rows = [
        label("a", "b", probability=0.9),
        label("c", "d", outcome="tie"),
        label("e", "f", outcome="abstained"),
        label("g", "h", outcome="unanswered"),
    ]
    lessons = make_lessons(rows)
    assert taught(lessons, syllabus()).rows["pair_id"].to_pylist() == ["a>b"]
    odds = taught(lessons, syllabus(SoftDpo())).rows.to_pylist()
    assert [(row["pair_id"], row["probability"]) for row in odds] == [("a>b", 0.9), ("c>d", 0.5)]
    nothing = taught(make_lessons(rows[1:]), syllabus(Robust(flip_rate="estimated")))
    assert (nothing.rows.num_rows, nothing.measures) == (0, {"num_labels": 0, "num_pairs": 0})


def test_answers_that_disagree_tell_of_flips_though_their_pair_is_a_tie(make_lessons: MakeLessons) -> None:
    agreed = [label(letter, "z", votes_chosen=2) for letter in "abcdefghij"]
    torn = [label(letter, "y", outcome="tie", votes_chosen=1, votes_rejected=1) for letter in "abcd"]
    robust = syllabus(Robust(flip_rate="estimated"))
    assert taught(make_lessons(agreed), robust).measures["flip_rate"] == 0.0
    measures = taught(make_lessons(agreed + torn), robust).measures
    answers = (1 - (2 * 10 / 14 - 1) ** 0.5) / 2
    assert measures["answer_flip_rate"] == pytest.approx(answers)
    assert measures["flip_rate"] == pytest.approx(1 / (1 + ((1 - answers) / answers) ** 2))


def test_a_late_label_is_of_the_round_that_asked(make_lessons: MakeLessons) -> None:
    first = [label("a", "b"), label("c", "d", outcome="unanswered"), label("e", "f", prompt="q", outcome="unanswered")]
    second = [label("g", "h", prompt="q"), label("c", "d"), label("e", "f", prompt="q")]
    newest = taught(make_lessons(first, second), syllabus(newest=True))
    assert newest.rows["pair_id"].to_pylist() == ["a>b", "g>h", "c>d"]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"objective": SoftDpo()}, r"soft_dpo .*1 of 1 labelled pairs: pair 'a>b' has no probability of its label"),
        ({"objective": Rwr()}, r"rwr .*pair 'a>b' has no reward: set features\.proxy"),
        ({"min_reward_gap": 0.1}, r"pair 'a>b' has no reward"),
        ({"weights": WeightsConfig(confidence=True)}, r"pair 'a>b' has no probability"),
        ({"weights": WeightsConfig(utility=SigmoidUtility())}, r"pair 'a>b' has no reward"),
    ],
)
def test_what_is_asked_for_has_to_be_there(make_lessons: MakeLessons, parts: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        taught(make_lessons([label("a", "b")], a=(1.0, 0.0)), syllabus(**parts))
