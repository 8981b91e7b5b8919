"""Proxies: what decides their scores, and what they refuse."""

from dataclasses import asdict
from pathlib import Path

import pytest

from cluster.errors import InputError
from tasks.features import HiddenFeatures
from tasks.labellers.rewards import Length, Sentiment
from tasks.proxies import PROXIES, AnyProxy, ImplicitReward, RewardModel, check_proxy, identity_of


def test_every_proxy_is_known_by_its_kind() -> None:
    assert set(PROXIES) == {"sentiment", "length", "reward_model", "implicit_reward"}
    assert HiddenFeatures.model_validate({"proxy": {"kind": "implicit_reward"}}).proxy == ImplicitReward()
    named = HiddenFeatures.model_validate({"proxy": {"kind": "reward_model", "path": "/rewards"}}).proxy
    assert named == RewardModel(path=Path("/rewards"))


@pytest.mark.parametrize("proxy", [None, Sentiment(), Length(per="character", unit=2.0), ImplicitReward()])
def test_what_needs_no_model_is_its_fields_and_always_served(proxy: AnyProxy | None) -> None:
    check_proxy(proxy)
    assert identity_of(proxy) == (None if proxy is None else asdict(proxy))
    assert identity_of(proxy) == HiddenFeatures(proxy=proxy).model_dump()["proxy"]


@pytest.mark.parametrize("limit", [0, -1])
def test_a_reward_model_that_may_read_nothing_is_refused(limit: int) -> None:
    with pytest.raises(InputError, match=f"max_length of the reward model is {limit}: expected 1 or more tokens"):
        RewardModel(path=Path("/rewards"), max_length=limit)


def test_a_reward_model_that_is_a_policy_is_refused(tiny_model: Path) -> None:
    for look in (check_proxy, identity_of):
        with pytest.raises(InputError, match=r"is no sequence classifier: found LlamaForCausalLM"):
            look(RewardModel(path=tiny_model))
