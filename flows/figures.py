"""A referee's verdicts as figures: metric against labels, utility against KL, and labels saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cluster.storage import atomic_path
from flows.referee import UNIFORM
from flows.verdict import Verdict
from tasks.design.arrays import FloatArray
from tasks.design.statistics import Reading, band

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8B6914")
"""Of Okabe and Ito, told apart by colour-blind readers, without their yellow; a brown more."""
_MARKERS = "osD^vPX*<>hdp"
_LINES = ("-", "--", ":")
_DOTS_PER_INCH = 130


@dataclass(frozen=True)
class Style:
    """How a selector is drawn, the same in all figures of a referee."""

    colour: str
    marker: str
    line: str


def styles_of(selectors: Sequence[str]) -> dict[str, Style]:
    """Styles in the order of the config; uniform is black."""
    others = [name for name in selectors if name != UNIFORM]
    styles = {
        name: Style(_COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)], _LINES[i // len(_COLOURS) % len(_LINES)])
        for i, name in enumerate(others)
    }
    return {UNIFORM: Style("#000000", ".", "-"), **styles}


def draw(verdict: Verdict, divergences: Sequence[float], styles: Mapping[str, Style], path: Path) -> None:
    """Write the three panels of one environment and proxy as PNG."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(
        {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.4}
    ):
        figure = Figure(figsize=(16, 5.2), layout="constrained")
        FigureCanvasAgg(figure)
        learning, frontier, saved = figure.subplots(1, 3)
        _draw_learning(learning, verdict, styles)
        _draw_frontier(frontier, verdict, divergences, styles)
        _draw_saved(saved, verdict, styles)
        figure.suptitle(f"{verdict.title} ({len(verdict.runs[UNIFORM].values)} seeds, bands and bars 95 %)")
        handles, names = learning.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=min(len(names), 10), frameon=False)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", dpi=_DOTS_PER_INCH)


def _draw_learning(axes: Axes, verdict: Verdict, styles: Mapping[str, Style]) -> None:
    """The metric against labels."""
    for name, runs in verdict.runs.items():
        budgets = verdict.uniform_budgets if name == UNIFORM else verdict.budgets
        sign = -1 if verdict.metric == "regret" else 1
        _line(axes, budgets, sign * runs.values, (name, styles[name]))
    axes.set_xscale("log")
    if verdict.metric == "regret":
        axes.set_yscale("log")
    axes.set_xticks(verdict.uniform_budgets, [str(budget) for budget in verdict.uniform_budgets])
    axes.minorticks_off()
    axes.set(xlabel="labels", ylabel=verdict.metric, title=f"{verdict.metric} against labels")


def _draw_frontier(axes: Axes, verdict: Verdict, divergences: Sequence[float], styles: Mapping[str, Style]) -> None:
    """Utility against KL at the middle budget."""
    budget = verdict.budgets[len(verdict.budgets) // 2]
    for name, runs in verdict.runs.items():
        budgets = verdict.uniform_budgets if name == UNIFORM else verdict.budgets
        _line(axes, divergences, runs.frontier[:, budgets.index(budget)], (name, styles[name]))
    axes.set_xscale("log")
    axes.set_xticks(divergences, [f"{divergence:g}" for divergence in divergences])
    axes.minorticks_off()
    axes.set(xlabel="KL from the reference, nats", ylabel="utility", title=f"frontier at {budget} labels")


def _line(axes: Axes, at: Sequence[float], values: FloatArray, named: tuple[str, Style]) -> None:
    name, style = named
    mean, low, high = band(values, np.random.default_rng(3))
    axes.plot(at, mean, label=name, color=style.colour, marker=style.marker, linestyle=style.line, markersize=5)
    axes.fill_between(at, low, high, color=style.colour, alpha=0.1, linewidth=0)


def _draw_saved(axes: Axes, verdict: Verdict, styles: Mapping[str, Style]) -> None:
    """A row a selector, within it the budgets rising downwards; arrows where only a bound is known."""
    names, width = list(verdict.savings), len(verdict.budgets)
    for row, name in enumerate(names):
        for place, saving in enumerate(verdict.savings[name]):
            height = row + 0.7 * ((place + 0.5) / width - 0.5)
            _draw_dot(axes, (saving.low, saving.factor, saving.high), height, styles[name])
    axes.axvline(1.0, color="#000000", linewidth=1)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 2, 4, 8, 16, 32) if low <= tick <= high]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    budgets = ", ".join(map(str, verdict.budgets))
    axes.set(xlabel="labels uniform needs per label spent", title=f"labels saved at {budgets}")


def _draw_dot(axes: Axes, readings: tuple[Reading, Reading, Reading], height: float, style: Style) -> None:
    low, factor, high = readings
    axes.plot([low.value, high.value], [height, height], color=style.colour, linewidth=1.2, alpha=0.6)
    for end in (low, high):
        if end.bound:
            marker = ">" if end.bound == "≥" else "<"
            axes.plot(end.value, height, color=style.colour, marker=marker, markersize=5, alpha=0.6)
    filled = "none" if factor.bound else style.colour
    axes.plot(
        factor.value,
        height,
        color=style.colour,
        marker=style.marker,
        markerfacecolor=filled,
        markersize=6,
        linestyle="",
    )
