"""Guards: what a policy must not have become while it learned to win."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Guard:
    """A number beside the win rate, and where it ends.

    Attributes:
        name: in words, with its unit.
        threshold: its name among the thresholds.
        needs: measures that it is made of, in the order in which `value` takes them.
        value: of their means over seeds.
        least: whether the threshold is the least that it may be.
    """

    name: str
    threshold: str
    needs: tuple[str, ...]
    value: Callable[..., float]
    least: bool = False

    def measured(self, seeds: Sequence[Mapping[str, float]]) -> float | None:
        """Its value, of the seeds that have all that it needs; None if none has."""
        rows = [[one[name] for name in self.needs] for one in seeds if all(name in one for name in self.needs)]
        found = self.value(*np.mean(rows, axis=0)) if rows else float("nan")
        return float(found) if np.isfinite(found) else None

    def breaks(self, value: float, limit: float) -> bool:
        """Whether a value is beyond the limit."""
        return value < limit if self.least else value > limit


def _same(value: float) -> float:
    return value


def _ratio(policy: float, base: float) -> float:
    return policy / base if base else float("nan")


def _drop(policy: float, base: float) -> float:
    return base - policy


GUARDS = (
    Guard("KL in nats", "max_kl", ("kl",), _same),
    Guard("length over base", "max_length_ratio", ("num_tokens", "num_tokens_base"), _ratio),
    Guard("perplexity over base", "max_perplexity_ratio", ("perplexity", "perplexity_base"), _ratio),
    Guard("drop of capability", "max_capability_drop", ("capability", "capability_base"), _drop),
    Guard("diversity over base", "min_diversity_ratio", ("distinct_2", "distinct_2_base"), _ratio, least=True),
)
REWARD_HACKING = "reward_hacking"


def look(
    seeds: Sequence[Mapping[str, float]], thresholds: Mapping[str, float | None]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Guards that are broken, in words with numbers, and those that nobody measured; one without a limit is neither.

    Args:
        seeds: measures of the evaluation of each seed.
        thresholds: by name.
    """
    broken, unmeasured = [], []
    for guard in GUARDS:
        value, limit = guard.measured(seeds), thresholds.get(guard.threshold)
        if limit is None:
            continue
        if value is None:
            unmeasured.append(guard.name)
        elif guard.breaks(value, limit):
            broken.append(f"{guard.name} {value:.2f} (at {'least' if guard.least else 'most'} {limit:g})")
    if not any(REWARD_HACKING in one for one in seeds):
        unmeasured.append("reward hacking")
    return tuple(broken), tuple(unmeasured)


def is_hacked(seeds: Sequence[Mapping[str, float]]) -> bool:
    """Whether most of the seeds that looked for reward hacking found it; seeds share prompts, so they aren't pooled."""
    flags = [one[REWARD_HACKING] for one in seeds if REWARD_HACKING in one]
    return sum(flags) > len(flags) / 2
