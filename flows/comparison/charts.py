"""Charts of a comparison at its end: differences to uniform, and matrices of selectors by selectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from flows.comparison.judgement import Judgement, Standing
from flows.comparison.sheets import shown_as, signed
from flows.comparison.words import SHORT, num, wrapped
from flows.figures import Style
from tasks.design.arrays import FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

WIDTH = 4.8
_NAME_WIDTH = 20
_KEY_WIDTH = 50
_FAR = 1e6
"""Beyond any panel, and no overflow."""
_ROOM = 0.8
"""What intervals may add to the span of the means, on either side."""
_LEAST = 1e-3
"""Span of a panel whose means are all the same."""


def standing(canvas: Canvas, *, judgement: Judgement, shown: Sequence[Standing], styles: Mapping[str, Style]) -> None:
    """A row a selector: its difference to uniform with its interval, and what that shows."""
    names = [wrapped(one.selector, _NAME_WIDTH) for one in shown]
    heights = np.array([0.26 + 0.17 * (name.count("\n") + 1) for name in names])
    places = np.cumsum(heights) - heights / 2
    canvas.set_size_inches(WIDTH, 1.0 + heights.sum())
    axes = canvas.subplots()
    for place, one in zip(places, shown, strict=True):
        _difference(axes, float(place), one, styles[one.selector], said=signed(shown_as(one, judgement)))
    axes.axvline(0, color="#000000", linewidth=1.4)
    axes.set_yticks(places, names)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_ylim(heights.sum(), 0)
    _widths(axes, shown)
    canvas.suptitle(f"At the end, budget {shown[0].budget:,}", x=0.02, ha="left")
    axes.set_xlabel(f"{SHORT[judgement.evidence.metric]}, difference to uniform")


def matrix(canvas: Canvas, *, cells: FloatArray, names: Sequence[str], title: str, diverging: bool) -> None:
    """Selectors by selectors, numbers between 0 and 1 in the cells, NaN for none; long names stand below in a key."""
    is_keyed = any(len(name) > _NAME_WIDTH - 6 for name in names)
    key = "\n".join(wrapped(f"{place}  {name}", _KEY_WIDTH) for place, name in enumerate(names, 1)) if is_keyed else ""
    labels = [str(place) for place in range(1, len(names) + 1)] if is_keyed else names
    canvas.set_size_inches(WIDTH, 1.0 + 0.4 * len(names) + (0.19 * (key.count("\n") + 1) if is_keyed else 0.6))
    axes = canvas.subplots()
    shades, reach = ("PuOr_r", (-0.2, 1.2)) if diverging else ("Blues", (0.0, 1.2))
    image = axes.imshow(cells, cmap=shades, vmin=reach[0], vmax=reach[1], aspect="auto")
    grounds, size = image.to_rgba(cells), min(11.0, 100 / len(names))
    for row, column in np.ndindex(cells.shape):
        value = float(cells[row, column])
        ink = "#000000" if np.isnan(value) else _ink(grounds[row, column, :3])
        axes.text(column, row, num(value, 2), ha="center", va="center", color=ink, fontsize=size)
    slant, side = (0, "center") if is_keyed else (40, "right")
    axes.set_xticks(
        range(len(names)), labels, rotation_mode="default" if is_keyed else "anchor", rotation=slant, ha=side
    )
    axes.set_yticks(range(len(names)), labels)
    axes.set_xlabel(key, loc="left", multialignment="left")
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    canvas.suptitle(title, x=0.02, ha="left")


def _ink(ground: FloatArray) -> str:
    """Black or white, whichever has more contrast on a colour (WCAG 2, relative luminance)."""
    linear = np.where(ground <= 0.04045, ground / 12.92, ((ground + 0.055) / 1.055) ** 2.4)
    luminance = float(np.dot(linear, (0.2126, 0.7152, 0.0722)))
    return "#000000" if (luminance + 0.05) ** 2 > 1.05 * 0.05 else "#ffffff"


def drawable(end: float, mean: float) -> float:
    """An end of an interval, far off in place of nowhere; its mean where it has none."""
    return mean if np.isnan(end) else float(np.clip(end, mean - _FAR, mean + _FAR))


def _difference(axes: Axes, row: float, one: Standing, style: Style, *, said: str) -> None:
    found = one.cell.difference
    assert found is not None
    ends = [drawable(end, found.mean) for end in (found.low, found.high)]
    axes.plot(ends, [row, row], color=style.colour, linewidth=2.2, solid_capstyle="butt")
    axes.plot(found.mean, row, color=style.colour, marker=style.marker, markersize=8, linestyle="")
    if one.cell.broken or one.cell.reward_hacking:
        said += "\n⚠ guard broken"
    place = ("axes fraction", "data")
    axes.annotate(said, (1.02, row), xycoords=place, annotation_clip=False, va="center", fontsize=10)


def limits(means: FloatArray, ends: FloatArray) -> tuple[float, float]:
    """Limits of an axis that show all means, and intervals as far as that leaves the means apart."""
    means, ends = means[np.isfinite(means)], ends[np.isfinite(ends)]
    span = max(float(np.ptp(means)), _LEAST)
    low = max(float(min(ends.min(), means.min() - 0.1 * span)), float(means.min()) - _ROOM * span)
    high = min(float(max(ends.max(), means.max() + 0.1 * span)), float(means.max()) + _ROOM * span)
    return low - 0.06 * (high - low), high + 0.06 * (high - low)


def _widths(axes: Axes, shown: Sequence[Standing]) -> None:
    found = [one.cell.difference for one in shown if one.cell.difference is not None]
    ends = [end for one in found for end in (one.low, one.high)]
    axes.set_xlim(*limits(np.array([0.0, *(one.mean for one in found)]), np.array([0.0, *ends])))
