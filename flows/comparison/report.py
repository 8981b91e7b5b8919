"""The report of a comparison: one HTML file that needs nothing else, and the same as Markdown with its figures."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cluster.storage import Store, atomic_path
from flows.comparison import series, sheets
from flows.comparison.config import Member
from flows.comparison.figures import Figure, draw
from flows.comparison.glossary import DEFINITIONS, HOW_TO_READ
from flows.comparison.guard_sheet import guards
from flows.comparison.judgement import Judgement, Standing
from flows.comparison.pairs import NUM_PAIRS, showcases
from flows.comparison.provenance import clock, manifests_of, provenance
from flows.comparison.sheets import Sheet
from flows.comparison.words import NONE, markdown, num, pieces, visible
from flows.standings import MARKS

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

HTML, MARKDOWN = "report.html", "report.md"

LONGEST = 600
"""Letters of a text that are shown at once."""

LONGEST_IN_MARKDOWN = 300


@dataclass(frozen=True)
class Chapter:
    """What a report shows of one budget.

    Attributes:
        budget: labels a round.
        standings: signs and words.
        table: of the standings.
        guards: of all selectors.
        costs: of all selectors.
        matrices: by the kind of their figure.
        figures: by kind.
    """

    budget: int
    standings: Sequence[tuple[str, str]]
    table: Sheet
    guards: Sheet
    costs: Sheet
    matrices: Mapping[str, Sheet]
    figures: Mapping[str, Figure]


def write_report(
    judgement: Judgement, members: Sequence[Member], store: Store, out: Path, *, written: datetime | None = None
) -> Path:
    """Write report.html, report.md and figures/ below `out`; gives the HTML file.

    The same judgement gives the same bytes, if `written` is the same or None, where no date of writing is told.
    """
    manifests = manifests_of(members, store)
    figures = draw(judgement, out, clock=clock(manifests))
    context = {
        "judgement": judgement,
        "evidence": judgement.evidence,
        "chapters": [_chapter(judgement, budget, figures) for budget in judgement.evidence.budgets],
        "alarms": _untold(judgement),
        "gaps": sheets.gaps(judgement),
        "showcases": showcases(members, store),
        "num_pairs": NUM_PAIRS,
        "how_to_read": HOW_TO_READ,
        "definitions": DEFINITIONS,
        "provenance": provenance(judgement.evidence, members, manifests, written),
    }
    for name in (MARKDOWN, HTML):
        with atomic_path(out / name) as temporary:
            temporary.write_text(_environment(out).get_template(f"{name}.j2").render(context), encoding="utf-8")
    return out / HTML


def _untold(judgement: Judgement) -> list[str]:
    """Refusals and confounds that the headline doesn't tell already."""
    told, found = [judgement.headline], []
    for said in (*judgement.refusals, *judgement.evidence.confounds):
        if not any(said in one for one in told):
            told.append(said)
            found.append(said)
    return found


def _chapter(judgement: Judgement, budget: int, figures: Sequence[Figure]) -> Chapter:
    names = judgement.evidence.selectors
    above = series.square(judgement.above, names, budget, complement=True)
    overlap = series.square(judgement.overlap, names, budget, complement=False)
    titles = {
        "above": f"Probability that the row is above the column, budget {budget:,} a round",
        "overlap": f"Overlap of selections, budget {budget:,} a round",
    }
    return Chapter(
        budget=budget,
        standings=[(_sign(one, judgement), one.words) for one in judgement.standings if one.budget == budget],
        table=sheets.standings(judgement, budget),
        guards=guards(judgement, budget),
        costs=sheets.costs(judgement, budget),
        matrices={
            kind: sheets.matrix(titles[kind], names, cells)
            for kind, cells in (("above", above), ("overlap", overlap))
            if np.isfinite(cells).any()
        },
        figures={figure.kind: figure for figure in figures if figure.budget == budget},
    )


def _sign(one: Standing, judgement: Judgement) -> str:
    verdict = sheets.shown_as(one, judgement)
    return NONE if verdict is None else MARKS[verdict]


def _environment(out: Path) -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("flows.comparison"),
        autoescape=lambda name: name is None or not name.endswith(f"{MARKDOWN}.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters: dict[str, Any] = {
        "breakable": _breakable,
        "cut": _cut,
        "data_uri": _data_uri,
        "md": markdown,
        "md_text": _markdown_text,
        "num": num,
        "beside": lambda path: path.relative_to(out).as_posix(),
        "visible": visible,
    }
    environment.filters.update(filters)
    return environment


def _data_uri(figure: Figure) -> str:
    return f"data:image/svg+xml;base64,{b64encode(figure.svg.read_bytes()).decode()}"


def _breakable(name: str) -> Markup:
    """A name whose lines may break behind its separators."""
    from markupsafe import Markup

    return Markup("<wbr>").join(pieces(name))


def _cut(text: str) -> tuple[str, str]:
    """What is shown of a text at once, and the rest of it; a rest of a few words isn't worth a click."""
    shown = visible(text)
    if len(shown) <= LONGEST * 1.2:
        return shown, ""
    end = shown.rfind(" ", LONGEST // 2, LONGEST)
    end = LONGEST if end < 0 else end
    return shown[:end], shown[end:]


def _markdown_text(text: str) -> str:
    kept, lost = text[:LONGEST_IN_MARKDOWN], len(text) - LONGEST_IN_MARKDOWN
    return f"{markdown(kept)} *… {lost:,} letters more*" if lost > 0 else markdown(kept)
