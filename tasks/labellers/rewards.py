"""Rewards: what a simulated labeller likes in a response."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, get_args

from cluster.errors import InputError

if TYPE_CHECKING:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer


@dataclass(frozen=True, kw_only=True)
class Sentiment:
    """Likes positive texts: VADER's compound score, in [-1, 1] (Hutto & Gilbert 2014)."""

    kind: Literal["sentiment"] = "sentiment"

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """Score each text."""
        analyser = _analyser()
        return [float(analyser.polarity_scores(text)["compound"]) for text in texts]


@dataclass(frozen=True, kw_only=True)
class Length:
    """Likes long texts: one point for every `unit` words or characters.

    The default of 100 gives two responses that differ by tens of words a margin of tenths, as sentiment does.
    """

    kind: Literal["length"] = "length"
    per: Literal["word", "character"] = "word"
    unit: float = 100.0

    def __post_init__(self) -> None:
        if not self.unit > 0:
            raise InputError(f"length unit is {self.unit}: expected a number above 0")

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """Score each text."""
        return [len(text.split() if self.per == "word" else text) / self.unit for text in texts]


AnyReward = Sentiment | Length
"""The one place to add a reward."""

REWARDS = {reward.kind: reward for reward in get_args(AnyReward)}


@lru_cache
def _analyser() -> "SentimentIntensityAnalyzer":
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()
