"""What paired runs over seeds show: differences, with corrections for looking at many of them, and labels saved.

Every array of values has one row a seed, in which all selectors saw the same world and the same labels, and one column
a budget; higher is better. Everything is a bootstrap over seeds. Rows are put into an order of their own first, so that
the order of seeds means nothing.
"""  # noqa: A005 (only ever tasks.design.statistics)

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.optimize import isotonic_regression
from scipy.special import ndtr, stdtrit

from tasks.design.arrays import FloatArray

LEVEL = 0.05
"""Chance of one false verdict or more among all of a family; intervals cover with one minus it."""

NUM_RESAMPLES = 4000

_POINTS = 32
"""Steps in which a curve is read between two budgets."""

_EXACT = 1e-9
"""Relative size below which a spread or a difference of means is rounding."""

Verdict = Literal["above", "below", "no difference shown"]
Bound = Literal["", "≥", "≤"]


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences over seeds.

    Attributes:
        mean: of the differences; above 0 is better.
        error: standard error of the mean.
        low: lower end of the interval, of this difference alone.
        high: upper end.
        p_value: that the mean is 0, two-sided, of this difference alone.
        adjusted: the same after correction for the whole family.
    """

    mean: float
    error: float
    low: float
    high: float
    p_value: float
    adjusted: float

    @property
    def verdict(self) -> Verdict:
        """What is shown after correction."""
        if self.adjusted > LEVEL:
            return "no difference shown"
        return "above" if self.mean > 0 else "below"


@dataclass(frozen=True)
class Reading:
    """A number, or the bound that is all that was measured of it."""

    value: float
    bound: Bound = ""

    def __str__(self) -> str:
        """Two decimals, after the bound."""
        return f"{self.bound}{self.value:.2f}"


@dataclass(frozen=True)
class Saving:
    """Labels that uniform pairs need for the same mean, per label used, with its interval."""

    factor: Reading
    low: Reading
    high: Reading

    def __str__(self) -> str:
        """Factor and interval."""
        return f"{self.factor} [{self.low}, {self.high}]"


def compare(differences: FloatArray, rng: np.random.Generator, num_resamples: int = NUM_RESAMPLES) -> list[Difference]:
    """Means of a family of paired differences (n, H), one entry a column.

    Intervals are of the studentised bootstrap, which covers well from some ten seeds on (Efron and Tibshirani 1993,
    chapter 12.5). Adjusted p-values step down over the largest |t| of those left, all columns resampled together:
    Romano and Wolf 2005, "Exact and Approximate Stepdown Methods for Multiple Hypothesis Testing", algorithm 4.1. They
    hold the chance of any false rejection, whatever the columns have to do with each other. A column without spread is
    what it is: its interval is a point, and any number other than 0 is shown.

    Raises:
        ValueError: fewer than two seeds, or an entry is not finite.
    """
    counts = _counts(differences, rng, num_resamples)
    values = _ordered(differences)
    means = values.mean(axis=0)
    errors = _errors(np.ones((1, len(values))), values)[0]
    ratios = _ratios(means, errors)
    drawn = _ratios(counts @ (values - means) / len(values), _errors(counts, values))
    drawn[:, errors == 0] = 0.0
    upper, lower = np.quantile(drawn, [1 - LEVEL / 2, LEVEL / 2], axis=0, method="nearest")
    alone = (1 + (np.abs(drawn) >= np.abs(ratios)).sum(axis=0)) / (1 + len(drawn))
    with np.errstate(invalid="ignore"):
        low, high = (np.where(errors == 0, means, means - end * errors) for end in (upper, lower))
    columns = (means, errors, low, high, alone, _step_down(np.abs(ratios), np.abs(drawn)))
    return [Difference(*(float(number) for number in row)) for row in zip(*columns, strict=True)]


def compare_pairs(
    values: Mapping[str, FloatArray], bases: Sequence[str], rng: np.random.Generator
) -> dict[tuple[str, str], list[Difference]]:
    """Every selector that is no base against every base, as one family: (selector, base) -> one entry a budget.

    "Not significantly below the best of the bases" means that none of a selector's entries has the verdict "below".

    Args:
        values: by selector, (n, B).
        bases: names in `values`.
        rng: resamples the seeds.
    """
    names = [(selector, base) for selector in values if selector not in bases for base in bases]
    if not names:
        return {}
    found = compare(np.hstack([values[selector] - values[base] for selector, base in names]), rng)
    width = values[bases[0]].shape[1]
    return {name: found[i * width : (i + 1) * width] for i, name in enumerate(names)}


def labels_saved(
    values: FloatArray, uniform: FloatArray, budgets: tuple[Sequence[float], Sequence[float]], rng: np.random.Generator
) -> list[Saving]:
    """Labels that uniform pairs need for a selector's mean, per label it used, one entry a budget of the selector.

    Uniform's means over the budgets are made monotone by isotonic regression and read by monotone cubic interpolation
    (PCHIP) over log budget; of a flat stretch counts its beginning. Nothing is read beyond the budgets that were
    measured: there the entry is a bound. Intervals are percentiles of a bootstrap over seeds, joint for both, expanded
    for few seeds (Hesterberg 2015, "What Teachers Should Know About the Bootstrap", section 5.3).

    Args:
        values: of the selector, (n, B).
        uniform: of uniform pairs, (n, U).
        budgets: the B budgets of the selector, and the U of uniform, these rising.
        rng: resamples the seeds.
    """
    used, bought = (np.asarray(of, dtype=np.float64) for of in budgets)
    joint = np.hstack([values, uniform])
    counts = np.vstack([np.ones(len(joint)), _counts(joint, rng, NUM_RESAMPLES)])
    ordered = _ordered(joint)
    wanted, curve = np.split(counts @ ordered / len(joint), [len(used)], axis=1)
    grid, heights = _curves(bought, curve)
    labels = np.stack([_labels_for(wanted[:, i], grid, heights) for i in range(len(used))], axis=1)
    tail, ends = _tail(len(joint)), (bought[0], bought[-1])
    lows = np.quantile(labels[1:], tail, axis=0, method="lower")
    highs = np.quantile(labels[1:], 1 - tail, axis=0, method="higher")
    return [
        Saving(*(_reading(float(number), ends, float(used[i])) for number in (labels[0, i], lows[i], highs[i])))
        for i in range(len(used))
    ]


def band(values: FloatArray, rng: np.random.Generator) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Mean over seeds of each column of (n, B), and the ends of its expanded percentile interval, (B,) each."""
    means = _counts(values, rng, NUM_RESAMPLES) @ _ordered(values) / len(values)
    tail = _tail(len(values))
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return values.mean(axis=0), low, high


def _tail(num_seeds: int) -> float:
    """Share of the resamples beyond either end of a percentile interval, Phi(-sqrt(n / (n - 1)) t_{n-1})."""
    return float(ndtr(-np.sqrt(num_seeds / (num_seeds - 1)) * stdtrit(num_seeds - 1, 1 - LEVEL / 2)))


def _counts(values: FloatArray, rng: np.random.Generator, num_resamples: int) -> FloatArray:
    """How often each row is drawn in each resample, (R, n) float64."""
    num_seeds = len(values)
    if num_seeds < 2:
        raise ValueError(f"found the values of {num_seeds} seeds: run 2 or more, some ten for intervals worth a look")
    if not np.isfinite(values).all():
        seed, column = (int(i) for i in np.argwhere(~np.isfinite(values))[0])
        raise ValueError(f"values hold {values[seed, column]} in row {seed}, column {column}: run that seed again")
    return rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=num_resamples).astype(np.float64)


def _ordered(values: FloatArray) -> FloatArray:
    """The rows sorted by their first column, ties by the next."""
    rows: FloatArray = values[np.lexsort(values.T[::-1])]
    return rows


def _errors(counts: FloatArray, values: FloatArray) -> FloatArray:
    """Standard errors of the means of each resample, (R, H); exactly 0 where the spread is rounding."""
    num_seeds = len(values)
    about = values - values.mean(axis=0)
    variances = counts @ np.square(about) / num_seeds - np.square(counts @ about / num_seeds)
    spread = np.sqrt(np.maximum(variances, 0) / (num_seeds - 1))
    found: FloatArray = np.where(spread > _EXACT * np.abs(values).max(axis=0), spread, 0.0)
    return found


def _ratios(means: FloatArray, errors: FloatArray) -> FloatArray:
    """t = mean / error; 0 / 0 is 0, anything else over 0 is infinite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found: FloatArray = np.where((errors == 0) & (means == 0), 0.0, means / errors)
    return found


def _step_down(observed: FloatArray, drawn: FloatArray) -> FloatArray:
    """Adjusted p-values of |t| (H,), given those of the resamples under the null (R, H)."""
    order = np.argsort(-observed, kind="stable")
    largest_left = np.maximum.accumulate(drawn[:, order[::-1]], axis=1)[:, ::-1]
    exceeded = (1 + (largest_left >= observed[order]).sum(axis=0)) / (1 + len(drawn))
    adjusted = np.empty(len(observed))
    adjusted[order] = np.maximum.accumulate(exceeded)
    return adjusted


def _curves(budgets: FloatArray, means: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Log budgets (G,) and the monotone curves there (G, R), of means (R, U)."""
    at = np.log(budgets)
    rising = np.stack([isotonic_regression(row).x for row in means], axis=1)
    if len(at) == 1:
        return at, rising
    steps = np.linspace(0, 1, _POINTS, endpoint=False)
    grid = np.append((at[:-1, None] + np.diff(at)[:, None] * steps).ravel(), at[-1])
    return grid, np.maximum.accumulate(PchipInterpolator(at, rising, axis=0)(grid), axis=0)


def _labels_for(wanted: FloatArray, grid: FloatArray, heights: FloatArray) -> FloatArray:
    """Least labels at which each curve reaches what is wanted, (R,); infinite above all of it, 0 below."""
    rounding = _EXACT * (np.abs(heights).max(axis=0) + np.abs(wanted))
    below = wanted < heights[0] - rounding
    above = wanted > heights[-1] + rounding
    inside = np.clip(wanted, heights[0], heights[-1])
    upper = np.clip((heights < inside).sum(axis=0), 1, max(len(grid) - 1, 1)) if len(grid) > 1 else np.zeros(1, int)
    lower, columns = np.maximum(upper - 1, 0), np.arange(len(wanted))
    rise = heights[upper, columns] - heights[lower, columns]
    share = np.divide(inside - heights[lower, columns], rise, out=np.zeros_like(rise), where=rise > 0)
    labels = np.exp(grid[lower] + share * (grid[upper] - grid[lower]))
    found: FloatArray = np.where(above, np.inf, np.where(below, 0.0, labels))
    return found


def _reading(labels: float, ends: tuple[float, float], used: float) -> Reading:
    """Labels of uniform per label used."""
    if labels == 0:
        return Reading(ends[0] / used, "≤")
    if np.isinf(labels):
        return Reading(ends[1] / used, "≥")
    return Reading(labels / used)
