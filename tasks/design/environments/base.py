"""What environments are, the table that some are drawn from, and what they share."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tasks.design.arrays import BoolArray, FloatArray
from tasks.design.environments.world import World
from tasks.design.kernels import pair_slots


@dataclass(frozen=True, eq=False, kw_only=True)
class UtilityTable:
    """Responses of many policies to the same prompts, and what a labeller thinks of each; padded with zeros.

    Attributes:
        features: phi(x, y), (P, K, D).
        valid: (P, K); False marks padding. Every prompt has two responses or more.
        utilities: r*(x, y), logits of the labeller's preference, (P, K).
        lengths: of the responses, in any unit, (P, K).

    Raises:
        ValueError: the shapes disagree, or a prompt has fewer than two responses.
    """

    features: FloatArray
    valid: BoolArray
    utilities: FloatArray
    lengths: FloatArray

    def __post_init__(self) -> None:
        shapes = self.valid.shape, self.utilities.shape, self.lengths.shape
        if self.features.ndim != 3 or any(shape != self.features.shape[:2] for shape in shapes):
            found = f"features {self.features.shape}, valid, utilities and lengths {shapes}"
            raise ValueError(f"a utility table has shapes {found}: pass (P, K, D), and (P, K) three times")
        lonely = np.flatnonzero(self.valid.sum(axis=1) < 2)
        if len(lonely):
            raise ValueError(
                f"{len(lonely)} prompts, row {lonely[0]} first, have fewer than 2 responses: leave them out"
            )


class Environment(Protocol):
    """A distribution of worlds.

    Attributes:
        kind: its name in a config.
    """

    @property
    def kind(self) -> str: ...  # noqa: D102 (described above)

    def draw(self, rng: np.random.Generator, table: UtilityTable | None = None) -> World:
        """Draw one world.

        Args:
            rng: source of all randomness.
            table: what to draw from, for an environment that makes nothing up; the others ignore it.

        Raises:
            ValueError: the environment draws from a table and has none, or one that is too small.
        """
        ...


def check_at_least(least: float, **fields: float) -> None:
    """Refuse fields that are below `least`, infinite or NaN.

    Raises:
        ValueError: with the name, the value and what is allowed.
    """
    for name, value in fields.items():
        if not least <= value < np.inf:
            raise ValueError(f"{name} is {value}: pass a finite number, {least:g} or more")


def check_positive(**fields: float) -> None:
    """Refuse fields that are not positive, or infinite or NaN.

    Raises:
        ValueError: with the name, the value and what is allowed.
    """
    for name, value in fields.items():
        if not 0 < value < np.inf:
            raise ValueError(f"{name} is {value}: pass a finite number above 0")


def check_flips(flip_rate: float) -> None:
    """Refuse a flip rate at which labels say nothing, or the contrary.

    Raises:
        ValueError: with the value and what is allowed.
    """
    if not 0 <= flip_rate < 0.5:
        raise ValueError(f"flip_rate is {flip_rate}: pass a chance from 0 to below 0.5, where labels say nothing")


def pair_draws(valid: BoolArray, rng: np.random.Generator) -> FloatArray:
    """One uniform number for every pair slot of responses (P, K), (P, m)."""
    return rng.random((len(valid), len(pair_slots(valid.shape[1])[0])))


def centred(values: FloatArray, valid: BoolArray) -> FloatArray:
    """Values of responses, (P, K) or (P, K, dim), about the mean of their prompt's valid ones; zeros in padding."""
    mask = valid.reshape(*valid.shape, *[1] * (values.ndim - 2))
    means = np.where(mask, values, 0.0).sum(axis=1, keepdims=True) / mask.sum(axis=1, keepdims=True)
    found: FloatArray = np.where(mask, values - means, 0.0)
    return found


def uniform_log_probs(valid: BoolArray) -> FloatArray:
    """log of the uniform distribution over each prompt's valid responses, -inf in padding, (P, K)."""
    found: FloatArray = np.where(valid, -np.log(valid.sum(axis=1, keepdims=True)), -np.inf)
    return found
