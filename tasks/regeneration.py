"""Regeneration: which of a lineage's prompts get a new pool.

OPTune (Chen et al., arXiv:2406.07657) generates anew only for the share rho of the prompts whose responses have the
lowest reward; the others keep the responses and pairs they have. Published: the share, and that prompts are ranked by
the reward of their present responses. The paper's own text was not at hand, and its reviewers say that it leaves open
which statistic of several rewards is meant: `statistic` is our reconstruction. `centred` is ours.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args

import numpy as np

from cluster.errors import InputError
from tasks.feature_tables import read_features
from tasks.tables import PREFERENCES, PROXY_SCORE, PastRound, decided, read

Statistic = Literal["mean", "max", "chosen"]


@dataclass(frozen=True)
class StoredScores:
    """Proxy scores of one prompt's valid responses, as their own rounds stored them.

    Attributes:
        newest: of those in its newest pool.
        chosen: of those among them that a label preferred.
        history: of those in all its pools, the newest too.
    """

    newest: Sequence[float] = ()
    chosen: Sequence[float] = ()
    history: Sequence[float] = ()


STATISTICS: Mapping[Statistic, Callable[[StoredScores], float]] = {
    "mean": lambda scores: float(np.mean(scores.newest)),
    "max": lambda scores: float(np.max(scores.newest)),
    "chosen": lambda scores: float(np.mean(scores.chosen or scores.newest)),
}


def stored_reward(scores: StoredScores, statistic: Statistic, *, centred: bool) -> float:
    """What a prompt is ranked by; -infinity where its newest pool has no valid response, so that it comes first.

    Args:
        scores: those of the prompt.
        statistic: mean or max of the newest scores, or mean of the chosen ones (of the newest where none was chosen).
        centred: minus the mean of the prompt's history. Under a Bradley-Terry model r(x, y) + c(x) says of preferences
            what r(x, y) says, for any c; such a shift changes the ranking of plain rewards and leaves that of centred
            ones. After one pool a centred mean is 0 for every prompt.
    """
    if not scores.newest:
        return -math.inf
    return STATISTICS[statistic](scores) - (float(np.mean(scores.history)) if centred else 0.0)


def lowest(rewards: Sequence[float], num: int, rng: np.random.Generator) -> list[int]:
    """Indices of the `num` lowest rewards, the lowest first; ties fall in random order."""
    return [int(i) for i in np.lexsort((rng.permutation(len(rewards)), np.asarray(rewards)))[:num]]


def stored_scores(past: Sequence[PastRound]) -> dict[str, StoredScores]:
    """Scores of each prompt that has a pool, by prompt id in ascending order; later rounds have newer pools.

    Raises:
        InputError: a valid response has no proxy score.
    """
    preferred = {
        name for one in past for name in decided(read(one.preferences.path, PREFERENCES))["chosen"].to_pylist()
    }
    newest: dict[str, dict[str, float]] = {}
    history: dict[str, list[float]] = {}
    for one in past:
        pools = _pools(one)
        newest |= pools
        for prompt, pool in pools.items():
            history.setdefault(prompt, []).extend(pool.values())
    return {
        prompt: StoredScores(
            newest=tuple(newest[prompt].values()),
            chosen=tuple(score for name, score in newest[prompt].items() if name in preferred),
            history=tuple(history[prompt]),
        )
        for prompt in sorted(newest)
    }


def _pools(one: PastRound) -> dict[str, dict[str, float]]:
    """Scores of a round's valid responses, by prompt and response; a prompt without any is there, too."""
    columns = ["prompt_id", "response_id", "valid", PROXY_SCORE]
    pools: dict[str, dict[str, float]] = {}
    for row in read_features(one.features.path).select(columns).to_pylist():
        pool = pools.setdefault(row["prompt_id"], {})
        if row["valid"]:
            if row[PROXY_SCORE] is None:
                raise InputError(
                    f"response {row['response_id']!r} in {one.features.path} has no proxy score, by which prompts are "
                    "ranked: set features.proxy and begin a lineage of another name"
                )
            pool[row["response_id"]] = row[PROXY_SCORE]
    return pools


@dataclass(frozen=True, kw_only=True)
class Fresh:
    """Every round has new prompts; none comes again before all others came."""

    kind: Literal["fresh"] = "fresh"

    def part(self, total: int, round_number: int) -> int:  # noqa: ARG002 - the same in every round
        """How many of `total` prompts, or labels, a round has: all."""
        return total

    def __call__(self, past: Sequence[PastRound], rng: np.random.Generator) -> list[str] | None:  # noqa: ARG002
        """None: new prompts are drawn."""
        return None


@dataclass(frozen=True, kw_only=True)
class _Share:
    rho: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.rho <= 1:
            raise InputError(f"rho is {self.rho}: expected a share above 0, at most 1")

    def part(self, total: int, round_number: int) -> int:
        """How many of `total` prompts, or labels, a round has: all in round 0, from then on ceil(rho * total).

        rho is the decimal number that the config shows: 0.1 of 30 is 3, not what floats make of it.
        """
        return math.ceil(Fraction(str(self.rho)) * total) if round_number else total


@dataclass(frozen=True, kw_only=True)
class LowestReward(_Share):
    """From round 1 on the known prompts with the lowest stored reward get a new pool, ceil(rho * known) of them.

    OPTune (Chen et al., arXiv:2406.07657), see this module's head for what is published. The stored reward is the
    proxy's score of the responses in the prompt's newest pool, see `stored_reward`. Ties fall in random order.
    """

    kind: Literal["lowest_reward"] = "lowest_reward"
    statistic: Statistic = "mean"
    centred: bool = False

    def __call__(self, past: Sequence[PastRound], rng: np.random.Generator) -> list[str] | None:
        """Ids of the prompts that get a new pool, the lowest first; None before any has one."""
        if not past:
            return None
        known = stored_scores(past)
        rewards = [stored_reward(scores, self.statistic, centred=self.centred) for scores in known.values()]
        names = list(known)
        return [names[i] for i in lowest(rewards, self.part(len(names), len(past)), rng)]


@dataclass(frozen=True, kw_only=True)
class RandomShare(_Share):
    """From round 1 on ceil(rho * known) of the known prompts get a new pool, whichever: the baseline of the other."""

    kind: Literal["random_share"] = "random_share"

    def __call__(self, past: Sequence[PastRound], rng: np.random.Generator) -> list[str] | None:
        """Ids of the prompts that get a new pool; None before any has one."""
        if not past:
            return None
        pools = [read_features(one.features.path).column("prompt_id") for one in past]
        known = sorted({name for pool in pools for name in pool.to_pylist()})
        return [known[i] for i in rng.permutation(len(known))[: self.part(len(known), len(past))]]


AnyRegeneration = Fresh | LowestReward | RandomShare
"""The one place to add a way."""

REGENERATIONS = {way.kind: way for way in get_args(AnyRegeneration)}
