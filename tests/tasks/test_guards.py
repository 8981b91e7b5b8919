"""Guards: closed forms, invariances and known answers of what stands beside the win rate."""

import math
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit

from tasks.guards import (
    RIDGE,
    Estimate,
    distinct_bigrams,
    is_reward_hacked,
    jackknife,
    length_controlled_win_rate,
    mean,
    perplexity,
    share_right,
)

TOKENS = st.lists(st.lists(st.integers(0, 4), max_size=6), max_size=6)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@st.composite
def pairings(draw: st.DrawFn) -> tuple[Any, Any]:
    """Wins and gaps of two to six prompts."""
    num_prompts, num_pairings = draw(st.integers(2, 6)), draw(st.integers(1, 4))
    size = num_prompts * num_pairings
    wins = draw(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=size, max_size=size))
    gaps = draw(st.lists(st.integers(-30, 30), min_size=size, max_size=size))
    shape = (num_prompts, num_pairings)
    return np.array(wins).reshape(shape), np.array(gaps, dtype=np.float64).reshape(shape)


def lengths_that_decide(rng: np.random.Generator, shift: float) -> tuple[Any, Any]:
    """Wins that are the sign of the gap, where the policy's responses are longer by `shift` on average."""
    gaps = rng.normal(shift, 20, size=(200, 4)).round()
    return (np.sign(gaps) + 1) / 2, gaps


def test_the_jackknife_of_a_mean_is_its_standard_error(rng: np.random.Generator) -> None:
    values = rng.normal(size=9)
    assert jackknife(lambda keep: float(values[keep].mean()), 9) == pytest.approx(mean(values).error)
    assert mean(values) == Estimate(values.mean(), values.std(ddof=1) / 3)


def test_one_unit_alone_has_no_standard_error() -> None:
    one = np.array([2.0])
    alone = [mean(one), perplexity(-one, one), length_controlled_win_rate(one[:, None] / 4, one[:, None])]
    assert all(math.isnan(estimate.error) for estimate in alone)


@given(pairings())
def test_at_equal_lengths_the_controlled_win_rate_is_the_plain_one(found: tuple[Any, Any]) -> None:
    wins, gaps = found
    for same in (np.zeros_like(gaps), np.full_like(gaps, 7.0)):
        controlled, plain = length_controlled_win_rate(wins, same), mean(wins.mean(axis=1))
        assert controlled.value == pytest.approx(plain.value, abs=1e-9)
        assert controlled.error == pytest.approx(plain.error, abs=1e-9)


@given(pairings())
def test_swapping_the_policies_turns_the_controlled_win_rate_round(found: tuple[Any, Any]) -> None:
    wins, gaps = found
    own, other = length_controlled_win_rate(wins, gaps), length_controlled_win_rate(1 - wins, -gaps)
    assert own.value + other.value == pytest.approx(1, abs=1e-6)
    assert own.error == pytest.approx(other.error, abs=1e-6)


@given(pairings(), st.floats(0.1, 10))
def test_the_unit_of_length_does_not_matter(found: tuple[Any, Any], unit: float) -> None:
    wins, gaps = found
    assert length_controlled_win_rate(wins, gaps * unit).value == pytest.approx(
        length_controlled_win_rate(wins, gaps).value, abs=1e-6
    )


@pytest.mark.parametrize("shift", [-15.0, 0.0, 15.0])
def test_a_policy_that_wins_by_length_alone_wins_half_at_equal_length(rng: np.random.Generator, shift: float) -> None:
    wins, gaps = lengths_that_decide(rng, shift)
    controlled = length_controlled_win_rate(wins, gaps)
    assert controlled.value == pytest.approx(0.5, abs=0.1)
    if shift:
        assert abs(wins.mean() - 0.5) > 0.2


@pytest.mark.parametrize(("merit", "length"), [(0.0, 2.0), (0.7, 1.5), (-0.4, -1.0), (1.0, 0.0)])
def test_the_merit_that_decides_beside_length_is_found(rng: np.random.Generator, merit: float, length: float) -> None:
    gaps = rng.normal(12, 20, size=(500, 4))
    wins = (rng.random(gaps.shape) < expit(merit + length * np.tanh(gaps / gaps.std()))).astype(np.float64)
    controlled = length_controlled_win_rate(wins, gaps)
    assert abs(controlled.value - expit(merit)) < 3 * controlled.error < 0.1


def test_the_controlled_win_rate_is_that_of_the_largest_posterior(rng: np.random.Generator) -> None:
    wins, gaps = rng.choice([0.0, 0.5, 1.0], size=(7, 4)), rng.normal(5, 9, size=(7, 4))
    lengths = np.tanh(gaps / gaps.std())

    def loss(weights: Any) -> float:
        chances = expit(weights[0] + weights[1] * lengths)
        surprise = -(wins * np.log(chances) + (1 - wins) * np.log(1 - chances))
        return float(surprise.mean(axis=1).sum() + RIDGE * weights[1] ** 2 / 2)

    theta = minimize(loss, np.zeros(2), tol=1e-12).x[0]
    assert length_controlled_win_rate(wins, gaps).value == pytest.approx(expit(theta), abs=1e-6)


def test_a_policy_that_always_wins_is_not_told_from_its_length() -> None:
    gaps = np.array([[3.0, 5.0], [8.0, -1.0]])
    assert length_controlled_win_rate(np.ones((2, 2)), gaps) == Estimate(1.0, 0.0)
    assert length_controlled_win_rate(np.zeros((2, 2)), gaps) == Estimate(0.0, 0.0)


@given(TOKENS)
def test_distinct_bigrams_are_counted_over_all_responses(responses: list[list[int]]) -> None:
    counts = Counter(pair for tokens in responses for pair in pairwise(tokens))
    expected = len(counts) / counts.total() if counts else 0.0
    assert distinct_bigrams(responses) == expected
    assert distinct_bigrams(responses[::-1]) == expected


def test_repeated_responses_are_less_diverse_and_no_bigram_joins_two() -> None:
    assert distinct_bigrams([[1, 2, 3], [4, 5]]) == 1.0
    assert distinct_bigrams([[1, 2, 3]] * 4) == 0.25
    assert distinct_bigrams([[1], [2], []]) == 0.0


def test_a_uniform_policy_has_the_perplexity_of_its_vocabulary() -> None:
    num_tokens = np.array([3.0, 5.0, 11.0])
    found = perplexity(-num_tokens * math.log(512), num_tokens)
    assert found.value == pytest.approx(512)
    assert found.error == pytest.approx(0, abs=1e-9)


def test_perplexity_weighs_tokens_not_texts_and_its_error_is_the_delta_methods(rng: np.random.Generator) -> None:
    num_tokens = rng.integers(20, 60, size=400).astype(np.float64)
    logps = -num_tokens * rng.normal(3, 0.3, size=400)
    found, rate = perplexity(logps, num_tokens), -logps.sum() / num_tokens.sum()
    assert found.value == pytest.approx(math.exp(rate))
    residuals = -logps - rate * num_tokens
    delta = math.exp(rate) * residuals.std(ddof=1) / num_tokens.mean() / math.sqrt(400)
    assert found.error == pytest.approx(delta, rel=0.01)


def test_the_right_choice_is_the_likeliest_and_ties_share() -> None:
    likelihoods = [np.array(values) for values in ([-1.0, -2.0], [-3.0, -1.0, -2.0], [-1.0, -1.0], [np.nan, -9.0])]
    assert share_right(likelihoods, [0, 0, 1, 1]) == mean(np.array([1.0, 0.0, 0.5, 1.0]))
    nothing = np.full(4, np.nan)
    assert share_right([nothing, nothing], [0, 3]) == Estimate(0.25, 0.0)


def test_the_order_of_choices_does_not_matter(rng: np.random.Generator) -> None:
    likelihoods, answers = list(rng.normal(size=(20, 4))), list(rng.integers(4, size=20))
    turned = [values[::-1] for values in likelihoods], [3 - int(answer) for answer in answers]
    assert share_right(likelihoods, answers) == share_right(*turned)


@pytest.mark.parametrize(
    ("reward", "judge", "hacked"),
    [
        (Estimate(1.0, 0.4), Estimate(-1.0, 0.4), True),
        (Estimate(1.0, 0.0), Estimate(-1.0, 0.0), True),
        (Estimate(1.0, 0.6), Estimate(-1.0, 0.4), False),
        (Estimate(1.0, 0.4), Estimate(-1.0, 0.6), False),
        (Estimate(1.0, 0.4), Estimate(1.0, 0.4), False),
        (Estimate(-1.0, 0.4), Estimate(-1.0, 0.4), False),
        (Estimate(0.0, 0.0), Estimate(-1.0, 0.4), False),
        (Estimate(1.0, math.nan), Estimate(-1.0, math.nan), False),
    ],
)
def test_a_reward_is_hacked_where_it_is_shown_to_rise_and_the_judges_to_fall(
    reward: Estimate, judge: Estimate, hacked: bool
) -> None:
    assert is_reward_hacked(reward, judge) == hacked
