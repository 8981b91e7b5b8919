"""Regeneration: how many prompts get a new pool, which, and what their ranking hangs on."""

import math
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import InputError
from tasks.regeneration import Fresh, LowestReward, RandomShare, StoredScores, lowest, stored_reward, stored_scores

SHARES = st.integers(1, 100).map(lambda percent: percent / 100)
WHOLE = st.integers(-64, 64).map(float)
POOLS = st.sampled_from([1, 2, 4]).flatmap(
    lambda num: st.lists(st.lists(WHOLE, min_size=2, max_size=2), min_size=num, max_size=num)
)
"""The pools of one prompt: whole scores, and a power of 2 of them, so that means and shifts are exact."""


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def row(name: str, score: float | None, **changes: Any) -> dict[str, Any]:
    """Features of the response `prompt-number`."""
    return {
        "response_id": name,
        "prompt_id": name.partition("-")[0],
        "valid": True,
        "fault": None,
        "num_tokens": 1,
        "logp_policy": 0.0,
        "logp_reference": 0.0,
        "feature": [0.0],
        "proxy_score": score,
    } | changes


def of_pools(pools: Sequence[Sequence[float]]) -> StoredScores:
    return StoredScores(newest=pools[-1], history=[score for pool in pools for score in pool])


def ranking(prompts: Sequence[StoredScores], *, centred: bool, seed: int = 0) -> list[int]:
    rewards = [stored_reward(scores, "mean", centred=centred) for scores in prompts]
    return lowest(rewards, len(rewards), generator(seed))


@given(SHARES, st.integers(1, 500), st.integers(1, 9))
def test_a_later_round_regenerates_the_share_rounded_up_and_a_first_one_everything(
    rho: float, total: int, number: int
) -> None:
    for way in (LowestReward(rho=rho), RandomShare(rho=rho)):
        assert way.part(total, number) == -(-total * round(100 * rho) // 100)
        assert way.part(total, 0) == total
    assert Fresh().part(total, number) == total


def test_a_share_is_the_decimal_number_of_the_config() -> None:
    assert math.ceil(0.07 * 100) == 8
    assert LowestReward(rho=0.07).part(100, 1) == 7
    assert Fraction(str(0.07)) == Fraction(7, 100)


@pytest.mark.parametrize("rho", [0.0, -0.5, 1.01, math.inf, math.nan])
@pytest.mark.parametrize("way", [LowestReward, RandomShare])
def test_a_share_outside_its_limits_is_refused(way: Any, rho: float) -> None:
    with pytest.raises(InputError, match=f"rho is {rho}: expected a share above 0, at most 1"):
        way(rho=rho)


@given(st.lists(st.tuples(POOLS, WHOLE), min_size=2, max_size=8), st.integers(0, 99))
def test_a_shift_of_a_prompts_rewards_leaves_the_centred_ranking(prompts: list[Any], seed: int) -> None:
    plain = [of_pools(pools) for pools, _ in prompts]
    shifted = [of_pools([[score + shift for score in pool] for pool in pools]) for pools, shift in prompts]
    assert ranking(plain, centred=True, seed=seed) == ranking(shifted, centred=True, seed=seed)


def test_a_shift_of_a_prompts_rewards_changes_the_plain_ranking() -> None:
    pools = [[[4.0, 6.0], [2.0, 4.0]], [[0.0, 2.0], [5.0, 7.0]]]
    prompts = [of_pools(own) for own in pools]
    shifted = [prompts[0], of_pools([[score - 8.0 for score in pool] for pool in pools[1]])]
    assert (ranking(prompts, centred=False), ranking(shifted, centred=False)) == ([0, 1], [1, 0])
    assert (ranking(prompts, centred=True), ranking(shifted, centred=True)) == ([0, 1], [0, 1])


def test_the_statistics_are_mean_maximum_and_mean_of_the_chosen() -> None:
    scores = StoredScores(newest=(1.0, 5.0, 3.0), chosen=(5.0, 3.0), history=(0.0, 0.0, 0.0, 1.0, 5.0, 3.0))
    for statistic, value in (("mean", 3.0), ("max", 5.0), ("chosen", 4.0)):
        assert stored_reward(scores, statistic, centred=False) == value
        assert stored_reward(scores, statistic, centred=True) == value - 1.5
    assert stored_reward(StoredScores(newest=(1.0, 2.0), history=(1.0, 2.0)), "chosen", centred=False) == 1.5


def test_a_prompt_without_a_valid_response_comes_first() -> None:
    prompts = [of_pools([[-9.0]]), StoredScores(history=(99.0,)), of_pools([[3.0]])]
    assert [ranking(prompts, centred=centred)[0] for centred in (False, True)] == [1, 1]


def test_scores_are_those_of_the_newest_pool_and_of_valid_responses_alone(past_round: Any) -> None:
    invalid = row("b-2", 99.0, valid=False)
    first = past_round([row("a-0", 1.0), row("a-1", 2.0), row("b-0", 3.0), row("b-1", 4.0), invalid], [("a-1", "a-0")])
    second = past_round([row("b-3", 7.0), row("b-4", 5.0)], [("b-4", "b-3")], recalled=[row("a-0", 50.0)])
    third = past_round([row("c-0", 0.0, valid=False)], [])
    assert stored_scores([first, second, third]) == {
        "a": StoredScores(newest=(1.0, 2.0), chosen=(2.0,), history=(1.0, 2.0)),
        "b": StoredScores(newest=(7.0, 5.0), chosen=(5.0,), history=(3.0, 4.0, 7.0, 5.0)),
        "c": StoredScores(),
    }
    assert stored_scores([first])["b"] == StoredScores(newest=(3.0, 4.0), history=(3.0, 4.0))


def test_a_label_of_an_older_pool_says_nothing_of_the_newest(past_round: Any) -> None:
    first = past_round([row("a-0", 1.0), row("a-1", 2.0)], [("a-1", "a-0")])
    second = past_round([row("a-2", 7.0), row("a-3", 5.0)], [])
    assert stored_scores([first, second])["a"].chosen == ()


def test_a_response_without_a_score_is_told(past_round: Any) -> None:
    past = [past_round([row("a-0", None, valid=False), row("a-1", None)], [])]
    with pytest.raises(InputError, match=r"response 'a-1' in .* has no proxy score, by which prompts are ranked"):
        stored_scores(past)


def test_lower_rewards_come_before_higher_ones_and_each_way_takes_its_share(past_round: Any) -> None:
    names, values = "edcba", (0.0, 4.0, 1.0, 3.0, 2.0)
    past = [past_round([row(f"{name}-0", value) for name, value in zip(names, values, strict=True)], [])]
    assert LowestReward(rho=0.5)(past, generator()) == ["e", "c", "a"]
    assert LowestReward(rho=1.0)(past, generator()) == ["e", "c", "a", "b", "d"]
    assert sorted(RandomShare(rho=1.0)(past, generator()) or []) == list("abcde")
    assert len(set(RandomShare(rho=0.5)(past, generator()) or [])) == 3


@pytest.mark.parametrize("way", [Fresh(), LowestReward(), RandomShare()])
def test_a_first_round_and_a_fresh_one_have_new_prompts(way: Any, past_round: Any) -> None:
    assert way([], generator()) is None
    assert Fresh()([past_round([row("a-0", 0.0)], [])], generator()) is None


def test_prompts_of_all_earlier_rounds_are_known(past_round: Any) -> None:
    past = [past_round([row(f"{name}-0", score)], []) for name, score in (("a", 3.0), ("b", 1.0), ("c", 2.0))]
    assert LowestReward(rho=1.0)(past, generator()) == ["b", "c", "a"]
    assert sorted(RandomShare(rho=1.0)(past, generator()) or []) == ["a", "b", "c"]


@pytest.mark.parametrize("way", [LowestReward(rho=0.3, centred=True), RandomShare(rho=0.3)])
def test_after_one_pool_a_centred_mean_ties_all_and_chance_is_fair(way: Any, past_round: Any) -> None:
    names = "abcdefghij"
    past = [past_round([row(f"{name}-{i}", ord(name) + 0.1 * i) for name in names for i in range(3)], [])]
    assert way(past, generator(5)) == way(past, generator(5))
    came = Counter(name for seed in range(400) for name in way(past, generator(seed)))
    assert sum(came.values()) == 1200
    assert set(came) == set(names)
    deviation = math.sqrt(400 * 0.3 * 0.7)
    assert all(abs(came[name] - 120) < 4 * deviation for name in names)
