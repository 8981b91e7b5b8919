"""What a referee's results show: differences with their corrections, labels saved, and what selecting costs."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.errors import InputError
from flows.decomposition import PARTS, Part, Parts, compare_parts, parts_of
from flows.referee import UNIFORM, RefereeConfig
from tasks.design.arrays import BoolArray, FloatArray
from tasks.design.statistics import Difference, Saving, compare_pairs, labels_saved


@dataclass(frozen=True, eq=False, kw_only=True)
class Runs:
    """What one selector did in every seed of an environment.

    Attributes:
        values: metric, higher is better, (n, B).
        frontier: utility at each divergence, (n, B, D).
        parts: of what the metric loses against the best of the family.
        selection_seconds: in the selector, (n, B).
        seconds: with fit and measures, in all.
        notes: what it had to say, and in how many selections.
    """

    values: FloatArray
    frontier: FloatArray
    parts: Parts
    selection_seconds: FloatArray
    seconds: float
    notes: Mapping[str, int]


@dataclass(frozen=True, eq=False, kw_only=True)
class Verdict:
    """What is shown in one environment under one proxy; differences are corrected for all that stand together.

    Attributes:
        environment: its name.
        proxy: its name; None: no scores.
        metric: "regret", negated so that higher is better, or "utility".
        budgets: of all selectors.
        uniform_budgets: of uniform.
        size: prompts and responses to each.
        runs: by selector.
        absent: selectors that could not take part.
        bases: those that the others are compared with, where they took part.
    """

    environment: str
    proxy: str | None
    metric: Literal["regret", "utility"]
    budgets: tuple[int, ...]
    uniform_budgets: tuple[int, ...]
    size: tuple[int, int]
    runs: Mapping[str, Runs]
    absent: tuple[str, ...]
    bases: tuple[str, ...]

    @property
    def name(self) -> str:
        """Environment and proxy, fit for a file."""
        return self.environment if self.proxy is None else f"{self.environment}-proxy-{self.proxy}"

    @property
    def title(self) -> str:
        """Environment and proxy in words."""
        return f"{self.environment}, {'no proxy' if self.proxy is None else f'proxy {self.proxy}'}"

    @cached_property
    def _shared(self) -> BoolArray:
        """Which of uniform's budgets the others spend too."""
        return np.isin(self.uniform_budgets, self.budgets)

    @cached_property
    def _spent(self) -> dict[str, FloatArray]:
        """Values at the budgets that all selectors share."""
        return {
            name: runs.values[:, self._shared] if name == UNIFORM else runs.values for name, runs in self.runs.items()
        }

    @cached_property
    def parts(self) -> dict[str, Parts]:
        """Of the losses at the budgets that all selectors share."""
        return {
            name: runs.parts.at(self._shared) if name == UNIFORM else runs.parts for name, runs in self.runs.items()
        }

    @cached_property
    def part_differences(self) -> dict[Part, dict[str, list[Difference]]]:
        """What every selector loses less than uniform of each part; corrected for all selectors and budgets."""
        return compare_parts(self.parts, UNIFORM)

    @cached_property
    def differences(self) -> dict[str, list[Difference]]:
        """Every selector against uniform, budget by budget, corrected for all of them."""
        found = compare_pairs(self._spent, [UNIFORM], np.random.default_rng(0))
        return {selector: entries for (selector, _), entries in found.items()}

    @cached_property
    def against_bases(self) -> dict[tuple[str, str], list[Difference]]:
        """Every selector that is no base against every base, corrected for all of them; empty with uniform alone."""
        if len(self.bases) < 2:
            return {}
        return compare_pairs(self._spent, self.bases, np.random.default_rng(1))

    @cached_property
    def savings(self) -> dict[str, list[Saving]]:
        """Labels that uniform needs per label of every other selector, budget by budget."""
        uniform, budgets = self.runs[UNIFORM].values, (self.budgets, self.uniform_budgets)
        return {
            name: labels_saved(runs.values, uniform, budgets, np.random.default_rng(2))
            for name, runs in self.runs.items()
            if name != UNIFORM
        }

    def extremes(self, selector: str) -> tuple[Saving, Saving]:
        """Least and most labels saved over the budgets; a bound counts as its number."""
        ranked = sorted(self.savings[selector], key=lambda saving: saving.factor.value)
        return ranked[0], ranked[-1]

    def below_a_base(self, selector: str) -> list[tuple[str, int]]:
        """Bases and budgets at which a selector is shown to be below; none: not significantly below the best."""
        return [
            (base, budget)
            for (name, base), entries in self.against_bases.items()
            for budget, entry in zip(self.budgets, entries, strict=True)
            if name == selector and entry.verdict == "below"
        ]


def verdicts(config: RefereeConfig, results: pa.Table) -> Iterator[Verdict]:
    """Every environment under every proxy.

    Raises:
        InputError: the results lack a trial.
    """
    for environment, arena in config.environments.items():
        here = results.filter(pc.equal(results["environment"], environment))
        for proxy in (None if proxy is None else str(proxy) for proxy in arena.proxies):
            runs = {}
            for selector in config.selectors_of(arena):
                rows = _rows_of(here, selector, proxy)
                if rows.num_rows:
                    budgets = config.uniform_budgets_of(arena) if selector == UNIFORM else config.budgets_of(arena)
                    runs[selector] = _runs(config, arena.metric, rows, budgets)
            yield Verdict(
                environment=environment,
                proxy=proxy,
                metric=arena.metric,
                budgets=config.budgets_of(arena),
                uniform_budgets=config.uniform_budgets_of(arena),
                size=(here["num_prompts"][0].as_py(), here["num_responses"][0].as_py()),
                runs=runs,
                absent=tuple(name for name in config.selectors_of(arena) if name not in runs),
                bases=tuple(base for base in dict.fromkeys((UNIFORM, *config.bases)) if base in runs),
            )


def _rows_of(here: pa.Table, selector: str, proxy: str | None) -> pa.Table:
    """A selector's rows under a proxy: those without one where a proxy can't change what it does."""
    rows = here.filter(pc.equal(here["selector"], selector))
    bare = pc.is_null(rows["proxy"])
    if proxy is None:
        return rows.filter(bare)
    scored = rows.filter(pc.fill_null(pc.equal(rows["proxy"], proxy), False))
    return scored if scored.num_rows else rows.filter(bare)


def _runs(config: RefereeConfig, metric: str, rows: pa.Table, budgets: Sequence[int]) -> Runs:
    shape = (config.seeds, len(budgets))
    rows = rows.sort_by([("seed", "ascending"), ("budget", "ascending")])
    if rows.num_rows != shape[0] * shape[1]:
        found = f"{rows.num_rows} rows of {rows['selector'][0]} in {rows['environment'][0]}"
        raise InputError(f"the results have {found}, {shape[0] * shape[1]} are due: run the referee without --redraw")
    at = config.divergences.index(config.divergence)

    def values_of(prefix: str) -> FloatArray:
        if metric == "regret":
            regret: FloatArray = rows[f"{prefix}regret"].to_numpy().reshape(shape)
            return -regret
        return _nested(rows[f"{prefix}frontier"], shape)[:, :, at]

    return Runs(
        values=values_of(""),
        frontier=_nested(rows["frontier"], shape),
        parts=parts_of(values_of),
        selection_seconds=rows["selection_seconds"].to_numpy().reshape(shape),
        seconds=float(np.sum(rows["seconds"].to_numpy())),
        notes=Counter(note for notes in rows["notes"].to_pylist() for note in notes),
    )


def _nested(lists: pa.ChunkedArray, shape: tuple[int, int]) -> FloatArray:
    """Lists of equal length as an array, (*shape, length)."""
    found: FloatArray = np.array(lists.to_pylist()).reshape(*shape, -1)
    return found


def summary(verdict: Verdict) -> dict[str, Any]:
    """A verdict as JSON."""
    return {
        "environment": verdict.environment,
        "proxy": verdict.proxy,
        "metric": verdict.metric,
        "budgets": list(verdict.budgets),
        "seeds": len(verdict.runs[UNIFORM].values),
        "uniform": {
            str(budget): value
            for budget, value in zip(verdict.uniform_budgets, verdict.runs[UNIFORM].values.mean(axis=0), strict=True)
        },
        "uniform_parts": _shown_parts(verdict.parts[UNIFORM]),
        "selectors": {name: _summary_of(verdict, name) for name in verdict.differences},
        "against_bases": {
            f"{selector} v. {base}": [_shown(entry) for entry in entries]
            for (selector, base), entries in verdict.against_bases.items()
        },
        "absent": list(verdict.absent),
        "compute_seconds": {name: runs.seconds for name, runs in verdict.runs.items()},
    }


def _summary_of(verdict: Verdict, selector: str) -> dict[str, Any]:
    least, most = verdict.extremes(selector)
    shown = Counter(entry.verdict for entry in verdict.differences[selector])
    return {
        "differences": [_shown(entry) for entry in verdict.differences[selector]],
        "parts": _shown_parts(verdict.parts[selector]),
        "part_differences": {
            part: [_shown(entry) for entry in verdict.part_differences[part][selector]] for part in PARTS
        },
        "labels_saved": [asdict(saving) for saving in verdict.savings[selector]],
        "least_saved": str(least),
        "most_saved": str(most),
        "verdicts": dict(shown),
        "below_a_base": [list(place) for place in verdict.below_a_base(selector)],
        "median_selection_seconds": np.median(verdict.runs[selector].selection_seconds, axis=0).tolist(),
        "notes": dict(Counter(verdict.runs[selector].notes).most_common(3)),
    }


def _shown_parts(parts: Parts) -> dict[str, Any]:
    """Means of the parts over seeds, and standard errors, budget by budget."""
    values = {part: parts.of(part) for part in PARTS}
    return {
        part: {
            "mean": of.mean(axis=0).tolist(),
            "error": (of.std(axis=0, ddof=1) / np.sqrt(len(of))).tolist(),
        }
        for part, of in values.items()
    }


def _shown(entry: Difference) -> dict[str, Any]:
    """A difference with its verdict; ends of an interval without bounds are null."""
    return {
        **{name: number if np.isfinite(number) else None for name, number in asdict(entry).items()},
        "verdict": entry.verdict,
    }
