"""Curves of a comparison: the metric against labels and against seconds, its differences, and reward against KL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from flows.comparison import series
from flows.comparison.charts import drawable, limits
from flows.comparison.evidence import Evidence
from flows.comparison.judgement import UNIFORM, Cell
from flows.comparison.words import SHORT, wrapped
from flows.figures import Style
from tasks.design.arrays import FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

WIDTH, HEIGHT = 4.8, 3.3
"""Inches of a panel, its legend apart."""

BASELINES = {"win_base": 0.5, "win_base_length_controlled": 0.5}
"""What the base policy has of a metric, where that is so by definition."""

_LEGEND_WIDTHS = {3: 12, 2: 20, 1: 44}
"""Letters of a line in a legend of so many columns."""
_STEP = 0.011
"""Between the marks of one round, of the width of a panel."""


@dataclass(frozen=True)
class Scene:
    """What the curves of one budget are drawn from."""

    evidence: Evidence
    budget: int
    styles: Mapping[str, Style]
    clock: str

    def rows(self, selector: str, quantity: series.Quantity) -> FloatArray:
        """A quantity of a selector's lineages, (n, R)."""
        evidence = self.evidence
        return series.matrix(evidence, series.of(evidence, selector, self.budget), quantity)

    @cached_property
    def most_seeds(self) -> int:
        """Lineages of the selector that has most of them."""
        return max(len(series.of(self.evidence, name, self.budget)) for name in self.evidence.selectors)

    def measures(self, name: str) -> bool:
        """Whether any round of this budget measured it."""
        return any(np.isfinite(self.rows(one, series.measure(name))).any() for one in self.evidence.selectors)

    def baseline(self, metric: str) -> float:
        """The base policy's; NaN where nobody measured it."""
        rows = [self.rows(name, series.measure(f"{metric}_base"))[:, :1] for name in self.evidence.selectors]
        return BASELINES.get(metric, series.mean_of(np.vstack(rows)))


def against_labels(canvas: Canvas, *, scene: Scene) -> None:
    """The metric against labels charged by the end of each round."""
    axes = _panel(canvas, scene, SHORT[scene.evidence.metric], "Against labels")
    spent = {name: _spent(scene, name, lambda facts: float(facts.num_labels)) for name in scene.evidence.selectors}
    reach = max((float(np.nanmax(at)) for at in spent.values() if np.isfinite(at).any()), default=1.0)
    lines = {}
    for place, (name, at) in enumerate(spent.items()):
        aside = (place - (len(spent) - 1) / 2) * _STEP * reach
        lines[name] = (at + aside, series.points(scene.rows(name, series.measure(scene.evidence.metric))))
    _curves(axes, scene, lines)
    axes.set_xlim(0, reach * (1.06 + _STEP * len(spent) / 2))
    _label_ticks(axes, spent[UNIFORM])
    axes.set_xlabel("labels spent by a lineage")
    _legend(canvas, axes)


def against_seconds(canvas: Canvas, *, scene: Scene) -> None:
    """The metric against seconds in models by the end of each round."""
    axes = _panel(canvas, scene, SHORT[scene.evidence.metric], f"Against {scene.clock}")
    lines = {
        name: (
            _spent(scene, name, lambda facts: facts.model_seconds),
            series.points(scene.rows(name, series.measure(scene.evidence.metric))),
        )
        for name in scene.evidence.selectors
    }
    _curves(axes, scene, lines)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"{scene.clock} of a lineage")
    _legend(canvas, axes)


def differences(canvas: Canvas, *, scene: Scene, cells: Sequence[Cell]) -> None:
    """Paired differences to uniform against labels."""
    axes = _panel(canvas, scene, f"{SHORT[scene.evidence.metric]},\ndifference to uniform", "Paired difference")
    names = [name for name in scene.evidence.selectors if name != UNIFORM]
    cells = [cell for cell in cells if np.isfinite(cell.labels)]
    reach = max((cell.labels for cell in cells), default=1.0)
    ends: list[tuple[float, float, float]] = []
    for place, name in enumerate(names):
        mine = sorted((cell for cell in cells if cell.selector == name), key=lambda cell: cell.round)
        shown = [(cell, cell.difference) for cell in mine if cell.difference is not None]
        style, aside = scene.styles[name], (place - (len(names) - 1) / 2) * _STEP * reach
        for (one, before), (other, after) in pairwise(shown):
            if (other.round, other.num_seeds) == (one.round + 1, one.num_seeds):
                ys = [before.mean, after.mean]
                axes.plot([one.labels + aside, other.labels + aside], ys, color=style.colour, linestyle=style.line)
        for cell, found in shown:
            filled = cell.num_seeds == scene.most_seeds
            _mark(axes, (cell.labels + aside, found.mean, found.low, found.high), style, filled=filled)
            ends.append((found.mean, found.low, found.high))
        _entry(axes, name, style)
    axes.axhline(0, color="#000000", linewidth=1.4)
    axes.annotate("uniform", (0.005, 0), xycoords=("axes fraction", "data"), xytext=(0, 3), textcoords="offset points")
    bounds = np.array([*ends, (0.0, 0.0, 0.0)])
    axes.set_ylim(*limits(bounds[:, 0], bounds))
    axes.set_xlim(0, reach * (1.06 + _STEP * len(names) / 2))
    _label_ticks(axes, _spent(scene, UNIFORM, lambda facts: float(facts.num_labels)))
    axes.set_xlabel("labels spent by a lineage")
    _legend(canvas, axes)


def frontier(canvas: Canvas, *, scene: Scene) -> None:
    """Reward against KL: a path a selector from the base policy, a mark a round."""
    axes = _panel(canvas, scene, "reward on held-out prompts", "Reward against KL")
    start = scene.baseline("reward")
    for name in scene.evidence.selectors:
        style = scene.styles[name]
        kl, reward = (series.points(scene.rows(name, series.measure(of))) for of in ("kl", "reward"))
        first = reward.whole(0) and np.isfinite(start)
        path = [(0.0, start), (kl.mean[0], reward.mean[0])] if first else []
        axes.plot(*zip(*path, strict=True), color=style.colour, linestyle=style.line) if path else None
        for number in range(len(kl.mean)):
            if number + 1 < len(kl.mean) and kl.joined(number) and reward.joined(number):
                both = slice(number, number + 2)
                axes.plot(kl.mean[both], reward.mean[both], color=style.colour, linestyle=style.line)
            _dot(axes, kl.mean[number], reward.mean[number], style, filled=reward.whole(number))
        _entry(axes, name, style)
    if np.isfinite(start):
        (star,) = axes.plot(0, start, color="#000000", marker="*", markersize=12, linestyle="", label="base policy")
        star.set_clip_on(False)
    axes.set_xlim(left=0)
    axes.margins(y=0.08)
    whose = "the reference" if scene.evidence.reference == "base" else "the previous policy"
    axes.set_xlabel(f"KL from {whose}, nats a response")
    _legend(canvas, axes)


def _panel(canvas: Canvas, scene: Scene, ylabel: str, title: str) -> Axes:
    names = [*scene.evidence.selectors, "base policy"]
    rows = -(-len(names) // _columns(names))
    lines = sum(max(_short(name).count("\n") + 1 for name in names[row::rows]) for row in range(rows))
    canvas.set_size_inches(WIDTH, HEIGHT + 0.2 * lines)
    axes = canvas.subplots()
    axes.set_ylabel(ylabel)
    canvas.suptitle(f"{title}, budget {scene.budget:,}", x=0.02, ha="left")
    return axes


def _legend(canvas: Canvas, axes: Axes) -> None:
    handles, names = axes.get_legend_handles_labels()
    columns = _columns(names)
    canvas.legend(handles, names, loc="outside lower left", ncols=columns, handlelength=2.3, columnspacing=1.1)


def _columns(names: Sequence[str]) -> int:
    """Of a legend: as many as its longest name leaves room for."""
    longest = max(len(line) for name in names for line in name.split("\n"))
    return next((columns for columns, width in _LEGEND_WIDTHS.items() if longest <= width), 1)


def _entry(axes: Axes, name: str, style: Style) -> None:
    """A line of the legend."""
    marker, size = style.marker, _size(style)
    axes.plot([], [], color=style.colour, linestyle=style.line, marker=marker, markersize=size, label=_short(name))


def _curves(axes: Axes, scene: Scene, lines: Mapping[str, tuple[FloatArray, series.Points]]) -> None:
    """Means with intervals, joined where both ends are means of the same seeds."""
    for name, (at, found) in lines.items():
        style = scene.styles[name]
        for number in range(len(at)):
            if number + 1 < len(at) and found.joined(number):
                both = slice(number, number + 2)
                axes.plot(at[both], found.mean[both], color=style.colour, linestyle=style.line)
            place = (float(at[number]), *(float(of[number]) for of in (found.mean, found.low, found.high)))
            _mark(axes, place, style, filled=found.whole(number))
        _entry(axes, name, style)
    ends = np.vstack([np.stack([found.mean, found.low, found.high], axis=1) for _, found in lines.values()])
    base = scene.baseline(scene.evidence.metric)
    if np.isfinite(base):
        axes.axhline(base, color="#595959", linewidth=1.2, linestyle=(0, (1, 2)), label="base policy")
        ends = np.vstack([ends, np.full((1, 3), base)])
    axes.set_ylim(*limits(ends[:, 0], ends))


def _mark(axes: Axes, place: tuple[float, ...], style: Style, *, filled: bool) -> None:
    """A mean with its interval at a place."""
    at, mean, low, high = place
    if np.isfinite([at, mean]).all():
        ends = [drawable(end, mean) for end in (low, high)]
        axes.plot([at, at], ends, color=style.colour, linewidth=1.1)
        _dot(axes, at, mean, style, filled=filled)


def _dot(axes: Axes, at: float, height: float, style: Style, *, filled: bool) -> None:
    face = style.colour if filled else "#ffffff"
    colour, marker, size = style.colour, style.marker, _size(style)
    axes.plot(at, height, color=colour, linestyle="", marker=marker, markersize=size, markerfacecolor=face)


def _size(style: Style) -> float | None:
    """Of a mark; a point is drawn as large as the others."""
    return 12 if style.marker == "." else None


def _spent(scene: Scene, selector: str, quantity: series.Quantity) -> FloatArray:
    return series.points(series.spent(scene.rows(selector, quantity))).mean


def _label_ticks(axes: Axes, spent: FloatArray) -> None:
    """Ticks at the labels of rounds, where these are few."""
    ticks = [float(round(at)) for at in spent if np.isfinite(at)]
    if 0 < len(ticks) <= 6:
        axes.set_xticks([0, *ticks], ["0", *(f"{tick:,.0f}" for tick in ticks)])


def _short(name: str) -> str:
    return wrapped(name, _LEGEND_WIDTHS[1])
