"""The bandit study as figures: reward against training from both sources, and at the end against T."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cluster.storage import atomic_path
from flows.bandit import SOURCES, Cell, StudyConfig
from flows.figures import Style, styles_of
from tasks.design.arrays import FloatArray
from tasks.design.statistics import band

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curves = Mapping[Cell, FloatArray]

_DOTS_PER_INCH = 130
_DASHES = dict(zip(SOURCES, ("--", "-"), strict=True))


def draw(config: StudyConfig, rewards: Curves, world: str, path: Path) -> None:
    """Write the three panels of one reward as PNG; `rewards` as `flows.bandit.curves` gives them."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    place, styles = list(config.rewards).index(world), styles_of(list(config.methods))
    here = {cell: values[place] for cell, values in rewards.items()}
    steps = sorted(config.inner_steps)
    middle = steps[len(steps) // 2]
    with mpl.rc_context(
        {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.4}
    ):
        figure = Figure(figsize=(16, 5.2), layout="constrained")
        FigureCanvasAgg(figure)
        *learning, ends = figure.subplots(1, 3, sharey=True)
        for axes, source in zip(learning, SOURCES, strict=True):
            shown = {cell: values for cell, values in here.items() if cell.source == source}
            _draw_learning(axes, {cell.method: v for cell, v in shown.items() if cell.inner_steps == middle}, styles)
            axes.set(xlabel=f"steps / T, T = {middle}", title=source)
        _draw_ends(ends, here, styles, steps)
        figure.suptitle(f"{world}: expected reward ({config.seeds} seeds, bands 95 %)")
        handles, names = learning[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=min(len(names), 10), frameon=False)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", dpi=_DOTS_PER_INCH)


def _draw_learning(axes: Axes, values: Mapping[str, FloatArray], styles: Mapping[str, Style]) -> None:
    """Reward against epochs, a line a method."""
    for name, seeds in values.items():
        mean, low, high = band(seeds, np.random.default_rng(3))
        style, epochs = styles[name], range(len(mean))
        axes.plot(epochs, mean, label=name, color=style.colour, linestyle=style.line)
        axes.fill_between(epochs, low, high, color=style.colour, alpha=0.1, linewidth=0)
    axes.set_ylim(0, 1.02)


def _draw_ends(axes: Axes, here: Curves, styles: Mapping[str, Style], steps: Sequence[int]) -> None:
    """Final reward against T; offline dashed."""
    for method, style in styles.items():
        for source in SOURCES:
            mine = [values for cell, values in here.items() if (cell.method, cell.source) == (method, source)]
            means = [float(values[:, -1].mean()) for values in mine]
            if means:
                axes.plot(
                    steps, means, color=style.colour, marker=style.marker, linestyle=_DASHES[source], markersize=5
                )
    axes.set_xscale("log")
    axes.set_xticks(steps, [str(number) for number in steps])
    axes.minorticks_off()
    axes.set(xlabel="T, gradient steps on a batch", title="at the end (dashed: offline)")
