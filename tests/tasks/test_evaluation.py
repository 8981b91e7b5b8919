"""Evaluation: win rates, means over prompts, and their standard errors, against numbers worked out by hand."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tasks.evaluation import (
    EvaluationConfig,
    evaluate_policy,
    gains,
    rewards_by_prompt,
    scores,
    style,
    summary,
    tokens_by_prompt,
    win_rate,
)
from tasks.feature_tables import features_schema
from tasks.guard_tables import GuardTables
from tasks.guards import length_controlled_win_rate
from tasks.labellers.rewards import Length
from tasks.promotion import PromotionConfig, decide
from tasks.stages import RoundContext, manifest_of
from tasks.tables import RESPONSES, SCORES, Table, read

CHARACTERS = Length(per="character", unit=1.0)
REWARDS = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=5).map(np.array)
ANSWERS = {
    "policy": {"p": ["aaaa", "aa"], "q": ["a", "a"]},
    "base": {"p": ["aa", "a"], "q": ["aaa", "aa"]},
    "previous": {"p": ["aaaa", "aaaaaa"], "q": ["a", "a"]},
}


@pytest.mark.parametrize(
    ("own", "against", "expected"),
    [
        ([1, 2], [0, 0], 1.0),
        ([0, 0], [1, 2], 0.0),
        ([1, 1], [1, 1], 0.5),
        ([4, 2], [2, 1], 0.875),  # 4 beats both, 2 ties one and beats the other
        ([3], [1, 2, 3, 4], 0.625),
    ],
)
def test_a_win_rate_is_the_share_of_pairings_won_and_ties_count_half(
    own: list[float], against: list[float], expected: float
) -> None:
    assert win_rate(np.array(own), np.array(against)) == expected


@given(REWARDS, REWARDS)
def test_what_one_policy_wins_the_other_loses(own: Any, against: Any) -> None:
    assert win_rate(own, against) + win_rate(against, own) == pytest.approx(1)
    assert win_rate(own, own) == pytest.approx(0.5)


@given(REWARDS, REWARDS)
def test_a_monotone_change_of_the_reward_leaves_the_win_rate(own: Any, against: Any) -> None:
    assert win_rate(own, against) == win_rate(np.exp(own) - 7, np.exp(against) - 7)


def test_scores_compare_prompt_by_prompt() -> None:
    rewards = {
        "policy": {"p": [4.0, 2.0], "q": [1.0, 1.0]},
        "base": {"q": [3.0, 2.0], "p": [2.0, 1.0]},
        "previous": {"p": [4.0, 6.0], "q": [1.0, 1.0]},
    }
    means = {"kl": {"p": 0.25, "q": 1.5}, "num_tokens": {"q": 8.0, "p": 3.0}, "num_tokens_base": {"q": 1.0, "p": 2.0}}
    columns = {
        "prompt_id": ["p", "q"],
        "reward": [3.0, 1.0],
        "reward_base": [1.5, 2.5],
        "reward_previous": [5.0, 1.0],
        "win_base": [0.875, 0.0],
        "win_previous": [0.125, 0.5],
        "kl": [0.25, 1.5],
        "num_tokens": [3.0, 8.0],
        "num_tokens_base": [2.0, 1.0],
        "judge": [None, None],
        "judge_base": [None, None],
    }
    assert scores(rewards, means) == [{name: values[row] for name, values in columns.items()} for row in (0, 1)]
    judged = scores(rewards, means | {"judge": {"p": -1.0, "q": -2.0}, "judge_base": {"p": 0.0, "q": 1.0}})
    assert [(row["judge"], row["judge_base"]) for row in judged] == [(-1.0, 0.0), (-2.0, 1.0)]


def test_the_summary_is_the_mean_with_the_standard_error_over_prompts() -> None:
    rows = [dict.fromkeys(SCORES.names[1:], value) for value in (0.0, 1.0, 2.0, 5.0)]
    found = summary(rows)
    assert set(found) == {name + end for name in SCORES.names[1:] for end in ("", "_se")}
    for name in SCORES.names[1:]:
        assert found[name] == 2.0
        assert found[f"{name}_se"] == pytest.approx(math.sqrt((4 + 1 + 0 + 9) / 3 / 4))


def test_columns_without_numbers_have_no_mean() -> None:
    rows = [dict.fromkeys(SCORES.names[1:], 1.0) | {"judge": None, "judge_base": None}] * 2
    assert not {"judge", "judge_base", "judge_se"} & set(summary(rows))


def test_gains_are_paired_over_prompts_and_a_judge_flags_hacking() -> None:
    gaps = [(3.0, -1.0), (4.0, -1.5), (5.0, -2.0)]
    rows = [{"reward": 9 + up, "reward_base": 9.0, "judge": 1 + down, "judge_base": 1.0} for up, down in gaps]
    error = 1 / math.sqrt(3)
    expected = {"reward_gain": 4.0, "reward_gain_se": error, "judge_gain": -1.5, "judge_gain_se": error / 2}
    assert gains(rows) == pytest.approx(expected | {"reward_hacking": 1.0})
    agreed = [row | {"judge_base": -1.0} for row in rows]
    assert gains(agreed)["reward_hacking"] == 0.0
    assert set(gains([row | {"judge": None} for row in rows])) == {"reward_gain", "reward_gain_se"}


def test_length_is_controlled_pairing_by_pairing_and_bigrams_are_counted_for_both() -> None:
    rewards = {"policy": {"p": [2.0, 1.0], "q": [3.0, 0.0]}, "base": {"q": [1.0, 2.0], "p": [2.0, 0.0]}}
    tokens = {
        "policy": {"p": [[1, 2, 3], [4]], "q": [[1, 2], [5, 5, 5, 5]]},
        "base": {"q": [[7, 8], [7, 8]], "p": [[9], [9, 9]]},
    }
    wins = np.array([[0.5, 1.0, 0.0, 1.0], [1.0, 1.0, 0.0, 0.0]])
    gaps = np.array([[2.0, 1.0, 0.0, -1.0], [0.0, 0.0, 2.0, 2.0]])
    controlled = length_controlled_win_rate(wins, gaps)
    assert style(rewards, tokens) == {
        "win_base_length_controlled": controlled.value,
        "win_base_length_controlled_se": controlled.error,
        "distinct_2": 3 / 6,
        "distinct_2_base": 2 / 3,
    }


def test_a_judge_that_is_the_reward_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"judge is the reward itself .*name another, or none"):
        EvaluationConfig(reward=Length(), judge=Length())
    assert EvaluationConfig(reward=Length(), judge=Length(per="character")).judge is not None


def test_one_prompt_alone_has_no_standard_error() -> None:
    assert math.isnan(summary([dict.fromkeys(SCORES.names[1:], 1.0)])["reward_se"])


def test_rewards_follow_the_index_of_the_responses(write_responses: Callable[..., Table]) -> None:
    answers = write_responses({"p": ["aaa", "", "a"], "q": ["aa"]})
    assert rewards_by_prompt(answers, CHARACTERS) == {"p": [3.0, 0.0, 1.0], "q": [2.0]}
    assert tokens_by_prompt(answers) == {"p": [[97] * 3, [], [97]], "q": [[97] * 2]}


def scored(write_table: Callable[..., Table], opinions: Sequence[float | None]) -> Table:
    """Features of the policy's answers, more likely than under the reference by 0.5, 1.5, 0 and -4 nats."""
    gaps = {"p-0": 0.5, "p-1": 1.5, "q-0": 0.0, "q-1": -4.0}
    rows = [
        {
            "response_id": name,
            "prompt_id": name[0],
            "valid": True,
            "num_tokens": 10 + number,
            "logp_policy": -3.0 + gap,
            "logp_reference": -3.0,
            "feature": [0.0],
            "proxy_score": opinions[number],
        }
        for number, (name, gap) in enumerate(gaps.items())
    ]
    return write_table(rows, features_schema(1))


@pytest.fixture
def features(write_table: Callable[..., Table]) -> Table:
    """Features that no judge has scored."""
    return scored(write_table, [None] * 4)


def test_an_evaluation_reads_answers_and_features_and_keeps_its_summary(
    write_responses: Callable[..., Table], features: Table, here: RoundContext
) -> None:
    answers = {name: write_responses(texts) for name, texts in ANSWERS.items()}
    table = evaluate_policy.fn(answers, features, EvaluationConfig(reward=CHARACTERS), here)
    rows = read(table.path, SCORES).to_pylist()
    expected = {"reward": [3.0, 1.0], "win_base": [0.875, 0.0], "win_previous": [0.125, 0.5], "kl": [1.0, -2.0]}
    for name, values in expected.items():
        assert [row[name] for row in rows] == values
    assert [row["num_tokens"] for row in rows] == [10.5, 12.5]
    assert [row["num_tokens_base"] for row in rows] == [1.5, 2.5]
    metrics = here.tracker.client.get_run(here.run).data.metrics
    assert metrics["evaluation/win_base"] == manifest_of(table).measures["win_base"] == 0.4375
    assert metrics["evaluation/kl_se"] == pytest.approx(1.5)


def test_another_reward_is_another_evaluation(
    write_responses: Callable[..., Table], features: Table, here: RoundContext
) -> None:
    answers = {name: write_responses(texts) for name, texts in ANSWERS.items()}
    words = Length(per="word", unit=1.0)
    tables = [evaluate_policy.fn(answers, features, EvaluationConfig(reward=one), here) for one in (CHARACTERS, words)]
    assert [manifest_of(table).measures["win_base"] for table in tables] == [0.4375, 0.5]


def test_a_judge_and_guards_are_told_beside_the_rest_and_make_another_evaluation(
    write_responses: Callable[..., Table], write_table: Callable[..., Table], features: Table, here: RoundContext
) -> None:
    answers = {name: write_responses(texts) for name, texts in ANSWERS.items()}
    plain = evaluate_policy.fn(answers, features, EvaluationConfig(reward=CHARACTERS), here)
    config = EvaluationConfig(reward=CHARACTERS, judge=Length(per="word", unit=0.5))
    judged, base = (scored(write_table, opinions) for opinions in ([2.0, 4.0, 1.0, 2.0], [5.0, 3.0, 4.0, 2.0]))
    given = read(write_responses({"p": ["aaaa", "aa"], "q": ["a", "a"]}).path, RESPONSES).to_pylist()
    texts = write_table([row | {"sampling": '{"answer": null}'} for row in given], RESPONSES)
    tables = GuardTables(texts, features, base)
    table = evaluate_policy.fn(answers, judged, config, here, guards=tables)
    rows = read(table.path, SCORES).to_pylist()
    assert [(row["judge"], row["judge_base"]) for row in rows] == [(3.0, 4.0), (1.5, 3.0)]
    found, before = manifest_of(table).measures, manifest_of(plain).measures
    assert {name: found[name] for name in before} == before
    assert found["judge_gain"] == -1.25
    assert found["reward_hacking"] == 0.0
    assert found["perplexity"] == pytest.approx(math.exp((12 + 2) / (10 + 11 + 12 + 13)))
    assert found["perplexity_base"] == pytest.approx(math.exp(12 / 46))
    assert not {"judge", "perplexity", "capability", "reward_hacking"} & set(before)
    unread = evaluate_policy.fn(answers, judged, config, here)
    assert len({plain.digest, table.digest, unread.digest}) == 3


def test_an_evaluation_on_one_prompt_promotes_nothing(
    write_responses: Callable[..., Table], features: Table, here: RoundContext
) -> None:
    answers = {name: write_responses({"p": texts["p"]}) for name, texts in ANSWERS.items()}
    table = evaluate_policy.fn(answers, features, EvaluationConfig(reward=CHARACTERS), here)
    assert not decide(manifest_of(table), PromotionConfig())["promoted"]
