"""What few paired runs show: Student's intervals, verdicts of a family, and the runs that would show more.

Every column holds the differences of one selector to uniform, one a seed, in which both saw the same prompts, first
pool and label draws. Columns may have different seeds.

All of it assumes that a selector that is no better makes a difference as likely as its opposite: so it is where both
sides have the same kind of noise, whatever that is. Then Student's test of normal differences holds its level, and of
heavier tails stays below it (Benjamini 1983, "Is the t Test Really Conservative When the Parent Distribution Is
Long-Tailed?"). Where one side alone is skewed it may find more than it should; `pairwright study referee` measures all
of that.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import nctdtr, ndtri, stdtr, stdtrit

from tasks.design.arrays import FloatArray
from tasks.design.statistics import LEVEL, Difference

POWER = 0.8
"""Chance with which a difference is to be shown."""

MOST_SEEDS = 10_000
"""No more seeds are counted."""

_EXACT = 1e-9
"""Relative size below which a spread or a mean is rounding."""

_MOST_SIGNS = 4096
"""Patterns of signs that are tried; all of them up to 12 seeds."""


def student(columns: Sequence[FloatArray]) -> list[Difference]:
    """Means of a family of paired differences, (n,) each, with Student's intervals and p-values.

    Adjusted p-values step down by Holm 1979, "A Simple Sequentially Rejective Multiple Test Procedure": they hold the
    chance of any false verdict, whatever the columns have to do with each other. A column without spread tells no
    standard deviation; its p-value is that of its signs, 2^(1 - n), and its interval is a point (ours).

    Raises:
        ValueError: a column has fewer than two seeds, or an entry is not finite.
    """
    alone = [_alone(np.asarray(column, dtype=np.float64)) for column in columns]
    adjusted = _holm([p_value for *_, p_value in alone])
    return [Difference(*found, corrected) for found, corrected in zip(alone, adjusted, strict=True)]


def probability_above(difference: Difference) -> float:
    """P(the mean is above 0), given the differences.

    T_{n-1}(mean / error): the posterior of the mean of normal differences under the flat prior of the mean and of the
    logarithm of their deviation (published: Box and Tiao 1973, section 2.4). It is one minus half the p-value, and
    that is taken, too, where there is no spread.
    """
    half = difference.p_value / 2
    return 1 - half if difference.mean >= 0 else half


def further_seeds(column: FloatArray, family: int) -> int | None:
    """Seeds that differences (n,) lack to be shown among a family, at LEVEL and with POWER, if they are the true ones.

    By the noncentral t distribution at LEVEL / family (Holm's first step), from their mean and deviation. Those of few
    seeds are rough, and a mean that was noticed is more often too large than too small, so this is rather too few. 1
    at least; MOST_SEEDS stands for more, too. None: the mean is 0, or there are fewer than two seeds.
    """
    values = np.asarray(column, dtype=np.float64)
    if len(values) < 2 or _is_zero(values.mean(), values):
        return None
    effect, level = abs(float(values.mean())), LEVEL / family
    if _is_zero(values.std(), values):
        return max(1, 1 + math.ceil(-math.log2(level)) - len(values))
    standardised = effect / float(values.std(ddof=1))
    normal = ((ndtri(1 - level / 2) + ndtri(POWER)) / standardised) ** 2  # were the deviation known; never enough
    lacking, most = len(values) - 1 + int(max(1, min(MOST_SEEDS, normal - len(values)))), len(values) + MOST_SEEDS
    enough = min(most, lacking + 1)
    while power(standardised, enough, level) < POWER:
        if enough == most:
            return MOST_SEEDS
        lacking, enough = enough, min(most, 2 * enough - lacking + 1)
    while enough - lacking > 1:
        middle = (lacking + enough) // 2
        lacking, enough = (lacking, middle) if power(standardised, middle, level) >= POWER else (middle, enough)
    return enough - len(values)


def power(effect: float, num_seeds: int, level: float = LEVEL) -> float:
    """Chance that Student's two-sided test shows normal differences whose mean is `effect` standard deviations."""
    freedom, centre = num_seeds - 1, effect * math.sqrt(num_seeds)
    critical = stdtrit(freedom, 1 - level / 2)
    other = np.nan_to_num(nctdtr(freedom, centre, -critical), nan=0.0)  # far out scipy finds no number
    return float(1 - nctdtr(freedom, centre, critical) + other)


def sign_flips(differences: FloatArray, rng: np.random.Generator) -> list[float]:
    """Adjusted p-values of a family of paired differences (n, H), of the signs that they could have had.

    The step-down of Romano and Wolf 2005, algorithm 4.1, over |t|, with all signs of a seed turned together: exact
    where a difference is as likely as its opposite. None is below 2^(1 - n), so that fewer than 6 seeds show nothing.
    """
    num_seeds = len(differences)
    if 2**num_seeds <= _MOST_SIGNS:
        signs = 1.0 - 2.0 * (np.arange(2**num_seeds)[:, None] >> np.arange(num_seeds) & 1)
    else:
        signs = np.vstack([np.ones(num_seeds), rng.choice([-1.0, 1.0], size=(_MOST_SIGNS - 1, num_seeds))])
    means = signs @ differences / num_seeds
    spread = np.sqrt(np.maximum(np.square(differences).mean(axis=0) - np.square(means), 0.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.nan_to_num(np.abs(means) / spread, nan=0.0, posinf=np.inf)
    order = np.argsort(-ratios[0], kind="stable")
    largest_left = np.maximum.accumulate(ratios[:, order[::-1]], axis=1)[:, ::-1]
    exceeded = (largest_left >= ratios[0, order] * (1 - _EXACT)).mean(axis=0)
    adjusted = np.empty(len(order))
    adjusted[order] = np.maximum.accumulate(exceeded)
    return [float(p_value) for p_value in adjusted]


def _alone(values: FloatArray) -> tuple[float, float, float, float, float]:
    """Mean, error, interval and p-value of one column."""
    num_seeds = len(values)
    if num_seeds < 2:
        raise ValueError(f"found the differences of {num_seeds} seeds: run 2 or more")
    if not np.isfinite(values).all():
        raise ValueError(f"differences hold {values[~np.isfinite(values)][0]}: run that seed again")
    mean = math.fsum(values) / num_seeds
    if _is_zero(values.std(), values):
        return mean, 0.0, mean, mean, 1.0 if mean == 0 else 2.0 ** (1 - num_seeds)
    error = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (num_seeds - 1) / num_seeds)
    reach = float(stdtrit(num_seeds - 1, 1 - LEVEL / 2)) * error
    return mean, error, mean - reach, mean + reach, 2 * float(stdtr(num_seeds - 1, -abs(mean) / error))


def _holm(p_values: Sequence[float]) -> list[float]:
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def _is_zero(number: float, values: FloatArray) -> bool:
    return bool(abs(number) <= _EXACT * np.abs(values).max())


def wilson(num_found: int, num_tried: int) -> tuple[float, float]:
    """Interval of a chance that showed `num_found` times of `num_tried`, at 1 - LEVEL (published: Wilson 1927)."""
    width, share = float(ndtri(1 - LEVEL / 2)), num_found / num_tried
    centre = share + width**2 / (2 * num_tried)
    reach = width * math.sqrt(share * (1 - share) / num_tried + (width / (2 * num_tried)) ** 2)
    low, high = ((centre + side * reach) / (1 + width**2 / num_tried) for side in (-1, 1))
    return max(0.0, low), min(1.0, high)
