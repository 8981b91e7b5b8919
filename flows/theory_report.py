"""The theory study as tables, a report and a figure: n x gap against n, and what the theory predicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cluster.storage import atomic_path
from flows.claims import Finding
from flows.figures import Style, styles_of
from flows.publication import Published
from flows.standings import MARKS, Grid
from flows.theory import Gaps, TheoryConfig
from flows.theory_findings import place_of, word
from tasks.design.asymptotics import DESIGNS
from tasks.design.statistics import band, compare

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEGEND = (
    "n x gap, gap = J(pi*) - J(pi), exact: mean over worlds and its standard error. n pairs are drawn from the design "
    "with repetition, each gets a label, the policy is the ridge-regularised logistic fit. The last column is what the "
    "theory says as n grows, (beta / 2) tr(I M^-1). ▲ above uniform, that is worse, ▼ below it, at 5 % after "
    "correction for the whole table. Findings compare log gaps, paired over worlds, with 95 % intervals of each alone; "
    "above and below: at 5 % after correction for all of them together; +0.10 is a gap some 10 % larger."
)

FIGURE = "gaps.png"

_DOTS_PER_INCH = 130


def overview(measured: Sequence[Gaps], findings: Sequence[Finding]) -> Grid:
    """The answers: a finding a row, an environment and ridge a column; findings as `theory_findings` gives them."""
    count = len(findings) // len(measured)
    by_place = [findings[at : at + count] for at in range(0, len(findings), count)]
    words = [finding.claim.removeprefix(f"{place_of(measured[0])}: ") for finding in by_place[0]]
    rows = [[name, *(found[row].answer for found in by_place)] for row, name in enumerate(words)]
    return Grid("The paper's findings", ["", *map(place_of, measured)], rows)


def tables(config: TheoryConfig, measured: Sequence[Gaps]) -> list[Grid]:
    """One table an environment and ridge: a design a row, n a column."""
    return [_table(config, gaps) for gaps in measured]


def _table(config: TheoryConfig, gaps: Gaps) -> Grid:
    scaled, others = gaps.scaled, [name for name in DESIGNS if name != "uniform"]
    differences = np.hstack([np.log(scaled[name] / scaled["uniform"]) for name in others])
    entries = compare(differences, np.random.default_rng(3))
    marks = {"uniform": [""] * len(config.num_labels)}
    for place, name in enumerate(others):
        shown = entries[place * len(config.num_labels) : (place + 1) * len(config.num_labels)]
        marks[name] = [f" {MARKS[entry.verdict]}" for entry in shown]
    rows = []
    for name, values in scaled.items():
        errors = values.std(axis=0, ddof=1) / np.sqrt(len(values))
        cells = [
            f"{mean:.1f} ± {error:.1f}{mark}"
            for mean, error, mark in zip(values.mean(axis=0), errors, marks[name], strict=True)
        ]
        rows.append([word(name), *cells, f"{gaps.predicted[name].mean():.1f}"])
    title = f"{place_of(gaps)}: n x gap; untrained, the gap is {gaps.untrained.mean():.3f}"
    return Grid(title, ["design", *(f"n = {number}" for number in config.num_labels), "predicted"], rows)


def ratios(config: TheoryConfig, measured: Sequence[Gaps]) -> Grid:
    """n x gap over the prediction, with its interval over worlds: a design and place a row, n a column."""
    rows = []
    for gaps in measured:
        for name, values in gaps.scaled.items():
            ends = band(values / gaps.predicted[name][:, None], np.random.default_rng(3))
            cells = [f"{mean:.2f} [{low:.2f}, {high:.2f}]" for mean, low, high in zip(*ends, strict=True)]
            rows.append([f"{place_of(gaps)}: {word(name)}", *cells])
    return Grid("n x gap over the prediction", ["", *(f"n = {number}" for number in config.num_labels)], rows)


def report(config: TheoryConfig, measured: Sequence[Gaps], published: Published) -> str:
    """The whole report in Markdown; the figure lies beside it."""
    parts = [
        "# Which pairs to compare: theory against Monte Carlo",
        f"{config.seeds} worlds of each environment, {config.draws} sets of labels of each size. {LEGEND}",
        f"Budgets up to n = {config.small} count as small; plug-in is close to oracle where it needs at most "
        f"{config.close:.0%} more labels; a prediction is met within {config.agreement:.0%}.",
        f"![n x gap against n]({FIGURE})",
        "\n".join(f"- {finding}" for finding in published.findings),
        *(grid.markdown() for grid in published.grids),
        ratios(config, measured).markdown(),
    ]
    return "\n\n".join([*parts, ""])


def draw(config: TheoryConfig, measured: Sequence[Gaps], path: Path) -> None:
    """Write a panel an environment and ridge as PNG: measured solid with its 95 % band, predicted dashed."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    styles, width = styles_of(list(DESIGNS)), len(config.ridges)
    with mpl.rc_context(
        {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.4}
    ):
        figure = Figure(figsize=(5.4 * width, 0.5 + 4.2 * len(config.worlds)), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(len(config.worlds), width, squeeze=False)
        for axes, gaps in zip(panels.flat, measured, strict=True):
            _draw_panel(axes, gaps, styles)
        figure.suptitle(f"n x gap against n ({config.seeds} worlds, bands 95 %; dashed: predicted)")
        handles, names = panels.flat[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", dpi=_DOTS_PER_INCH)


def _draw_panel(axes: Axes, gaps: Gaps, styles: Mapping[str, Style]) -> None:
    """Limits are those of what was measured: the line of no training leaves the panel."""
    from matplotlib.ticker import LogLocator

    at, heights = gaps.num_labels, []
    for name, values in gaps.scaled.items():
        style, (mean, low, high) = styles[name], band(values, np.random.default_rng(3))
        axes.plot(at, mean, label=word(name), color=style.colour, marker=style.marker, linestyle="-", markersize=5)
        axes.fill_between(at, low, high, color=style.colour, alpha=0.15, linewidth=0)
        axes.axhline(float(gaps.predicted[name].mean()), color=style.colour, linestyle="--", linewidth=1)
        heights += [low.min(), high.max()]
    axes.plot(at, at * gaps.untrained.mean(), color="#777777", linestyle=":", label="not trained")
    axes.set(xscale="log", yscale="log", ylim=(min(heights) / 1.3, max(heights) * 1.3))
    axes.set_xticks(at, [f"{number:.0f}" for number in at])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.set(xlabel="n, labels", ylabel="n x gap", title=place_of(gaps))
