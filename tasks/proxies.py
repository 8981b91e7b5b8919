"""Proxies: what stands in for the labeller and scores every response of a pool."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from cluster.classifiers import Classifier, classifier
from cluster.errors import InputError
from tasks.labellers.rewards import AnyReward


@dataclass(frozen=True, kw_only=True)
class RewardModel:
    """Likes what a sequence classifier in a local folder likes: its one logit, or the second minus the first of two.

    It reads prompt and response in its own chat template, or as plain text where it has none or the prompt is plain
    text. Of what exceeds `max_length`, or what the model takes, the beginning is left out.
    """

    kind: Literal["reward_model"] = "reward_model"
    path: Path
    max_length: int | None = None

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 1:
            raise InputError(f"max_length of the reward model is {self.max_length}: expected 1 or more tokens, or null")

    def resolve(self, setting: str = "features.proxy") -> Classifier:
        """Check the checkpoint; `setting` is where the config names it.

        Raises:
            InputError: the folder holds no sequence classifier with one or two labels.
        """
        return classifier(self.path, self.max_length, setting=f"{setting}.path")


@dataclass(frozen=True, kw_only=True)
class ImplicitReward:
    """Likes what the policy finds likelier than its reference does: log pi - log pi_ref, nats; 0 where they agree."""

    kind: Literal["implicit_reward"] = "implicit_reward"


AnyProxy = AnyReward | RewardModel | ImplicitReward
"""The one place to add a proxy; a reward is one."""

PROXIES = {proxy.kind: proxy for proxy in get_args(AnyProxy)}


def check_proxy(proxy: AnyProxy | None, setting: str = "features.proxy") -> None:
    """Look at what a proxy needs, without loading it; `setting` is where the config names it.

    Raises:
        InputError: a reward model that can't serve.
    """
    if isinstance(proxy, RewardModel):
        proxy.resolve(setting)


def identity_of(proxy: AnyProxy | None) -> dict[str, Any] | None:
    """What decides a proxy's scores; of a reward model its bytes, wherever they lie."""
    if proxy is None:
        return None
    if isinstance(proxy, RewardModel):
        return {"kind": proxy.kind, "digest": proxy.resolve().digest, "max_length": proxy.max_length}
    return asdict(proxy)
