"""A referee's verdicts as figures: metric against labels, utility against KL, and labels saved.

Of many selectors lines can't be told apart: they get rows, grouped by family, with a panel for a small, a middle and a
large budget. The parts of what is lost are drawn so for few selectors too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cluster.storage import atomic_path
from flows.decomposition import Parts
from flows.referee import UNIFORM
from flows.verdict import Verdict
from tasks.design.arrays import FloatArray
from tasks.design.selectors import AnySelector
from tasks.design.statistics import Difference, Reading, band

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_LINES = 12
"""Selectors that a figure shows as lines."""

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
    with _figure((16, 5.2), path) as figure:
        learning, frontier, saved = figure.subplots(1, 3)
        _draw_learning(learning, verdict, styles)
        _draw_frontier(frontier, verdict, divergences, styles)
        _draw_saved(saved, verdict, styles)
        figure.suptitle(f"{verdict.title} ({len(verdict.runs[UNIFORM].values)} seeds, bands and bars 95 %)")
        handles, names = learning.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=min(len(names), 10), frameon=False)


@contextmanager
def _figure(size: tuple[float, float], path: Path) -> Iterator[Figure]:
    """A figure of some inches that is written as PNG once it is drawn."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(
        {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.4}
    ):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
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


def families_of(selectors: Mapping[str, AnySelector]) -> dict[str, str]:
    """The family of every selector: the module of its rule, without a mixture's share of uniform pairs."""
    rules = {name: getattr(selector, "selector", selector) for name, selector in selectors.items()}
    return {name: type(rule).__module__.rsplit(".", 1)[-1] for name, rule in rules.items()}


@dataclass(frozen=True)
class _Rows:
    """Selectors from the top down, each with its height; families stand apart, the one of the best member first.

    Attributes:
        heights: by selector, falling in what it is worth within its family.
        heads: height above each family's first row.
        places: of the budgets that are drawn: the smallest, the middle, the largest.
    """

    heights: Mapping[str, float]
    heads: Mapping[str, float]
    places: tuple[int, ...]

    @classmethod
    def of(cls, verdict: Verdict, families: Mapping[str, str]) -> _Rows:
        places = tuple(sorted({0, len(verdict.budgets) // 2, len(verdict.budgets) - 1}))
        losses = {name: float(parts.loss[:, places].mean()) for name, parts in verdict.parts.items()}
        least: dict[str, float] = {}
        for name, loss in losses.items():
            least[families[name]] = min(loss, least.get(families[name], np.inf))
        heights, heads, height = {}, {}, 0.0
        for name in sorted(losses, key=lambda name: (least[families[name]], families[name], losses[name])):
            if families[name] not in heads:
                heads[families[name]] = height
                height += 1
            heights[name] = height
            height += 1
        return cls(heights, heads, places)

    @property
    def size(self) -> tuple[float, float]:
        """Of a figure, inches."""
        return 4 + 3.8 * len(self.places), 1.8 + 0.19 * (len(self.heights) + len(self.heads))

    def panels(self, figure: Figure) -> list[Axes]:
        """A panel a budget, rows named on the left."""
        panels: list[Axes] = list(figure.subplots(1, len(self.places), sharey=True, squeeze=False)[0])
        panels[0].set_yticks(
            [*self.heights.values(), *self.heads.values()], [*self.heights, *(f"{head}:" for head in self.heads)]
        )
        for label in panels[0].get_yticklabels()[len(self.heights) :]:
            label.set(fontweight="bold")
        panels[0].set_ylim(max(self.heights.values()) + 0.7, -0.7)
        for axes in panels:
            axes.tick_params(axis="y", length=0)
            axes.grid(alpha=0.15, axis="y")
            axes.set_axisbelow(True)
        return panels


def draw_dots(verdict: Verdict, families: Mapping[str, str], path: Path) -> None:
    """Write differences to uniform as PNG: a row a selector, a panel a budget."""
    rows = _Rows.of(verdict, families)
    with _figure(rows.size, path) as figure:
        for axes, place in zip(rows.panels(figure), rows.places, strict=True):
            for name, entries in verdict.differences.items():
                _draw_difference(axes, entries[place], rows.heights[name])
            axes.plot(0.0, rows.heights[UNIFORM], color="#000000", marker="o", markersize=5)
            axes.axvline(0.0, color="#000000", linewidth=1)
            axes.set(xlabel=f"{verdict.metric}, gain on uniform", title=f"{verdict.budgets[place]} labels")
        looks = [_dot(sign, shown) for shown in (True, False) for sign in (1, -1)] + [_dot(0, False)]
        handles = [figure.axes[0].plot([], [], linestyle="", **look)[0] for look in looks]
        figure.legend(handles, _DOT_NAMES, loc="outside lower center", ncols=3, frameon=False)
        figure.suptitle(f"{verdict.title} ({len(verdict.runs[UNIFORM].values)} seeds, bars: 95 %, each alone)")


_DOT_NAMES = (
    "above uniform, shown after correction",
    "below uniform, shown after correction",
    "above by its own interval alone",
    "below by its own interval alone",
    "no difference shown",
)


def _dot(sign: int, shown: bool) -> dict[str, Any]:
    """Looks of a difference above (1) or below (-1) uniform, or neither; filled where it is shown after correction."""
    colour, marker = {1: (_COLOURS[0], "^"), -1: (_COLOURS[1], "v"), 0: ("#767676", "o")}[sign]
    filled = colour if shown else "#ffffff"
    return {"color": colour, "marker": marker, "markersize": 6, "markerfacecolor": filled}


def _draw_difference(axes: Axes, entry: Difference, height: float) -> None:
    """Its mean and its own interval."""
    shown = entry.verdict != "no difference shown"
    look = _dot(int(np.sign(entry.mean)) if shown or entry.low > 0 or entry.high < 0 else 0, shown)
    axes.plot([entry.low, entry.high], [height, height], color=look["color"], linewidth=1.4)
    axes.plot(entry.mean, height, **look)


_PART_LOOKS = {"reach": ("#0072B2", ""), "misfit": ("#7FBFE5", ""), "variance": ("#E69F00", "///")}
"""Colour and hatch: the two parts of the bias are blue."""


def draw_parts(verdict: Verdict, families: Mapping[str, str], path: Path) -> None:
    """Write what is lost against the best of the family as PNG, its parts side by side in one bar a selector."""
    rows = _Rows.of(verdict, families)
    with _figure(rows.size, path) as figure:
        panels = rows.panels(figure)
        for axes, place in zip(panels, rows.places, strict=True):
            for name, height in rows.heights.items():
                _draw_bar(axes, verdict.parts[name], place, height)
            uniform = verdict.parts[UNIFORM]
            for loss, line in ((uniform.bias, ":"), (uniform.loss, "-")):
                axes.axvline(float(loss[:, place].mean()), color="#000000", linewidth=1, linestyle=line)
            axes.set(xlabel=f"{verdict.metric} lost", title=f"{verdict.budgets[place]} labels")
        handles, names = panels[0].get_legend_handles_labels()
        shown = dict(zip(names, handles, strict=True))
        figure.legend(shown.values(), shown, loc="outside lower center", ncols=3, frameon=False)
        figure.suptitle(
            f"{verdict.title}: lost against the best of the family ({len(verdict.runs[UNIFORM].values)} seeds, "
            "bars ± standard error)\nlines: uniform's bias (dotted) and all that it loses"
        )


def _draw_bar(axes: Axes, parts: Parts, place: int, height: float) -> None:
    """Parts from 0 on, those below 0 to its left; error bars of the bias and of the whole."""
    ends = {True: 0.0, False: 0.0}
    names = {"reach": "bias: reach", "misfit": "bias: misfit", "variance": "variance"}
    for part, values in (("reach", parts.reach), ("misfit", parts.misfit), ("variance", parts.variance)):
        colour, hatch = _PART_LOOKS[part]
        mean = float(values[:, place].mean())
        look: dict[str, Any] = {"color": colour, "hatch": hatch, "edgecolor": "#ffffff", "linewidth": 0.4}
        axes.barh(height, mean, left=ends[mean > 0], height=0.72, label=names[part], **look)
        ends[mean > 0] += mean
    error = parts.loss[:, place].std(ddof=1) / np.sqrt(len(parts.loss))
    axes.errorbar(parts.loss[:, place].mean(), height, xerr=error, color="#000000", linewidth=1)
