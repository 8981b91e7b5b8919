"""A judgement as figures: learning curves, frontiers, standings and matrices, each as SVG and PNG."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cluster.storage import atomic_path
from flows.comparison import charts, curves, series
from flows.comparison.folder import FIGURES
from flows.comparison.judgement import UNIFORM, Judgement
from flows.comparison.words import METRICS, num
from flows.figures import Style, styles_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

DOTS_PER_INCH = 160

LOOK: dict[Any, Any] = {
    "font.size": 11,
    "figure.titlesize": 12,
    "figure.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#d9d9d9",
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.8,
    "lines.markersize": 6.5,
    "legend.fontsize": 10.5,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "pairwright",
}
"""Glyphs are paths, so that a figure looks the same wherever it is opened; the salt makes its bytes the same, too."""


_GAPS = " A hollow mark is a mean without the seeds that lack the round; no line crosses a gap."


@dataclass(frozen=True)
class Figure:
    """A figure that was written.

    Attributes:
        kind: what it shows, the same at all budgets.
        budget: labels a round.
        alt: what it shows, for those who can't see it.
        caption: how to read it.
        svg: its file.
        png: the same as pixels.
    """

    kind: str
    budget: int
    alt: str
    caption: str
    svg: Path
    png: Path


@dataclass(frozen=True)
class _Plan:
    """A figure to be drawn, and what is said of it."""

    kind: str
    budget: int
    alt: str
    caption: str
    paint: Callable[[Canvas], None]


def draw(judgement: Judgement, out: Path, *, clock: str = "seconds in models") -> list[Figure]:
    """Write all figures below `out`, budget by budget, and remove earlier ones that are no more.

    The same judgement gives the same bytes.
    `clock` says what seconds in models are seconds of.
    """
    import matplotlib as mpl

    styles = styles_of(judgement.evidence.selectors)
    with mpl.rc_context(LOOK):
        figures = [
            _written(plan, out / FIGURES)
            for budget in judgement.evidence.budgets
            for plan in _plans(judgement, curves.Scene(judgement.evidence, budget, styles, clock))
        ]
    kept = {path for figure in figures for path in (figure.svg, figure.png)}
    for path in {path for kind in ("svg", "png") for path in (out / FIGURES).glob(f"*-b*.{kind}")} - kept:
        path.unlink()
    return figures


def _written(plan: _Plan, folder: Path) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(layout="constrained")
    FigureCanvasAgg(canvas)
    plan.paint(canvas)
    svg, png = (folder / f"{plan.kind}-b{plan.budget}.{kind}" for kind in ("svg", "png"))
    with atomic_path(svg) as temporary:
        canvas.savefig(temporary, format="svg", metadata={"Date": None, "Creator": None})
    with atomic_path(png) as temporary:
        canvas.savefig(temporary, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return Figure(plan.kind, plan.budget, plan.alt, plan.caption, svg, png)


def _plans(judgement: Judgement, scene: curves.Scene) -> Iterator[_Plan]:
    """The figures of one budget that have something to show."""
    yield from _of_standings(judgement, scene.budget, scene.styles)
    yield from _of_rounds(judgement, scene)
    yield from _of_matrices(judgement, scene.budget)


def _of_standings(judgement: Judgement, budget: int, styles: Mapping[str, Style]) -> Iterator[_Plan]:
    shown = [one for one in judgement.standings if one.budget == budget and one.cell.difference is not None]
    if not shown:
        return
    means = {one.selector: one.cell.difference.mean for one in shown if one.cell.difference is not None}
    said = "; ".join(f"{name} {num(mean, sign=True)}" for name, mean in means.items())
    metric = METRICS[judgement.evidence.metric]
    yield _Plan(
        "standing",
        budget,
        f"Difference to uniform in {metric}, budget {budget}, by selector: {said}.",
        "Mean of the paired differences over seeds with its 95 % interval, after the last round that selector and "
        "uniform both have. The verdict beside it is corrected for all selectors and budgets. An interval that leaves "
        "the panel is longer than it.",
        partial(charts.standing, judgement=judgement, shown=shown, styles=styles),
    )


def _of_rounds(judgement: Judgement, scene: curves.Scene) -> Iterator[_Plan]:
    if not scene.measures(scene.evidence.metric):
        return
    names, metric, at = ", ".join(scene.evidence.selectors), METRICS[scene.evidence.metric], f"budget {scene.budget}"
    incomplete = any(one.missing for one in scene.evidence.lineages if one.budget == scene.budget)
    gaps = _GAPS if incomplete else ""
    yield _Plan(
        "labels",
        scene.budget,
        f"{metric.capitalize()} against labels spent, {at}, one line each for {names}.",
        f"{_means(scene)} Marks of one round stand side by side.{gaps}",
        partial(curves.against_labels, scene=scene),
    )
    cells = [one for one in judgement.cells if one.budget == scene.budget and one.difference is not None]
    if any(cell.selector != UNIFORM for cell in cells):
        yield _Plan(
            "difference",
            scene.budget,
            f"Difference to uniform in {metric} against labels spent, {at}, for {names}.",
            "Means of differences taken seed by seed, so that what a seed does to all selectors cancels. Bars are "
            f"their 95 % intervals, the ones to judge by; some may be longer than the panel.{gaps}",
            partial(curves.differences, scene=scene, cells=cells),
        )
    yield _Plan(
        "seconds",
        scene.budget,
        f"{metric.capitalize()} against {scene.clock}, {at}, one line each for {names}.",
        f"The same against the time that models worked for a lineage, a mean over seeds, too.{gaps}",
        partial(curves.against_seconds, scene=scene),
    )
    yield from _frontier(scene, gaps)


def _means(scene: curves.Scene) -> str:
    if scene.most_seeds < 2:
        return "One seed, so that nothing tells chance from merit."
    return "Means over seeds. Bars are 95 % intervals of each mean; some may be longer than the panel."


def _frontier(scene: curves.Scene, gaps: str) -> Iterator[_Plan]:
    if not (scene.measures("kl") and scene.measures("reward")):
        return
    steps = (
        ""
        if scene.evidence.reference == "base"
        else " KL is from the policy before each round: it tells how far a round went, not how far all of them did."
    )
    yield _Plan(
        "frontier",
        scene.budget,
        f"Reward against KL from the reference, budget {scene.budget}, a path for each of "
        f"{', '.join(scene.evidence.selectors)}.",
        "A path starts at the base policy and has a mark a round. Higher at the same KL is better; a gain that follows "
        f"the others' path is more movement, not better labels.{steps}{gaps}",
        partial(curves.frontier, scene=scene),
    )


def _of_matrices(judgement: Judgement, budget: int) -> Iterator[_Plan]:
    names = judgement.evidence.selectors
    above = series.square(judgement.above, names, budget, complement=True)
    if np.isfinite(above).any():
        yield _Plan(
            "above",
            budget,
            f"Probability that the selector of the row has the higher mean than that of the column, budget {budget}; "
            "the same numbers are in the table below.",
            "Row above column, given these seeds; 0.5 is a coin. Without correction for the many looks.",
            partial(
                charts.matrix, cells=above, names=names, title=_titled("P(row above column)", budget), diverging=True
            ),
        )
    overlap = series.square(judgement.overlap, names, budget, complement=False)
    if np.isfinite(overlap).any():
        yield _Plan(
            "overlap",
            budget,
            f"Jaccard overlap of the pairs that two selectors chose from the same pool, budget {budget}; the same "
            "numbers are in the table below.",
            "Pairs that both chose over pairs that either chose, mean over pools that both saw; 1 is the same choice.",
            partial(charts.matrix, cells=overlap, names=names, title=_titled("Overlap", budget), diverging=False),
        )


def _titled(what: str, budget: int) -> str:
    return f"{what}, budget {budget:,}"
