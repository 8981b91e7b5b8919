"""A referee's verdicts as tables: in the terminal, and as a report in Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.table import Table as RichTable

from cluster.storage import atomic_path, write_json
from flows.decomposition import Part
from flows.figures import MOST_LINES, draw, draw_dots, draw_parts, families_of, styles_of
from flows.referee import UNIFORM, RefereeConfig, Stand, read_results
from flows.verdict import Verdict, summary, verdicts
from tasks.design.arrays import FloatArray
from tasks.design.statistics import Difference, Saving

MARKS = {"above": "▲", "below": "▼", "no difference shown": "·"}

PARTS_LEGEND = (
    "What is lost against the best of the family, the fit to all pairs with the chances of their labels. Bias: what "
    "would be left if every chosen pair were asked without end, as reach (so few pairs, and the ridge) + misfit "
    "(utility that the features can't express). Variance: what one label a pair adds. Below each, what is lost less "
    "than by uniform pairs ± its standard error; above 0 is better, and both together are the difference of the first "
    "table. Marks are corrected for all selectors and budgets of their table."
)

_SHOWN: tuple[Part, ...] = ("bias", "variance")

MOST_COLUMNS = 5
"""Of a table in the terminal, beside the first."""

LEGEND = (
    "Differences to uniform pairs at the same budget, over seeds that share world and labels; above 0 is better, below "
    "each its 95 % interval. ▲ above, ▼ below, · no difference shown: at 5 % after correction for all selectors and "
    "budgets of the table. Then labels that uniform pairs would need per label spent, with its 95 % interval; ≥ and ≤ "
    "are the ends of what was measured."
)

COSTS = (
    "What selecting costs beside training, in epochs of DPO on B labels: features of N prompts with K responses N K / "
    "(3 B), one forward and backward pass a response against, for each labelled pair, two responses forward and "
    "backward under the policy and forward under the reference, a forward pass counted as half of both, as with frozen "
    "base weights; scores of a proxy N K / (6 B) times its size over the policy's."
)


@dataclass(frozen=True)
class Grid:
    """A table of texts, whatever it is shown in."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]

    def split(self) -> list["Grid"]:
        """The same in tables of few columns, each with the first."""
        count = -(-(len(self.headings) - 1) // MOST_COLUMNS)
        parts = np.array_split(np.arange(1, len(self.headings)), count)
        return [Grid(self.title, *self._columns([0, *(int(column) for column in part)])) for part in parts]

    def _columns(self, places: Sequence[int]) -> tuple[list[str], list[list[str]]]:
        return [self.headings[place] for place in places], [[row[place] for place in places] for row in self.rows]

    def rich(self) -> RichTable:
        """For the terminal."""
        table = RichTable(title=self.title, show_lines=any("\n" in cell for row in self.rows for cell in row))
        for number, heading in enumerate(self.headings):
            table.add_column(heading, justify="right" if number else "left")
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """For a file."""
        rule = [":--", *["--:"] * (len(self.headings) - 1)]
        lines = [" | ".join(cell.replace("\n", "<br>") for cell in row) for row in (self.headings, rule, *self.rows)]
        return "\n".join([f"**{self.title}**", "", *(f"| {line} |" for line in lines)])


def comparison(verdict: Verdict) -> Grid:
    """Every selector against uniform: a budget a column, then the median seconds of a selection at the largest."""
    digits = _digits(verdict)
    uniform = verdict.runs[UNIFORM].values[:, np.isin(verdict.uniform_budgets, verdict.budgets)]
    sign = -1 if verdict.metric == "regret" else 1
    errors = uniform.std(axis=0, ddof=1) / np.sqrt(len(uniform))
    cells = [f"{sign * mean:.{digits}f} ± {error:.{digits}f}" for mean, error in _pairs(uniform.mean(axis=0), errors)]
    rows = [[f"{UNIFORM} ({verdict.metric})", *cells, _seconds(verdict, UNIFORM)]]
    for name, entries in verdict.differences.items():
        pairs = zip(entries, verdict.savings[name], strict=True)
        rows.append([name, *(_cell(entry, digits, saving) for entry, saving in pairs), _seconds(verdict, name)])
    headings = ["", *(f"B = {budget}" for budget in verdict.budgets), "seconds"]
    return Grid(f"{verdict.title}: {verdict.metric}, difference to uniform", headings, rows)


def losses(verdict: Verdict, part: Part) -> Grid:
    """What every selector loses of a part, and what less than uniform: a budget a column."""
    digits, rows = _digits(verdict), [[UNIFORM, *_part_cells(verdict, UNIFORM, part)]]
    for name, entries in verdict.part_differences[part].items():
        gains = [f"{entry.mean:+.{digits}f} ± {entry.error:.{digits}f} {MARKS[entry.verdict]}" for entry in entries]
        cells = zip(_part_cells(verdict, name, part), gains, strict=True)
        rows.append([name, *("\n".join(cell) for cell in cells)])
    headings = ["", *(f"B = {budget}" for budget in verdict.budgets)]
    return Grid(f"{verdict.title}: {part}, and gain on uniform", headings, rows)


def against_bases(verdict: Verdict) -> Grid:
    """Every selector that is no base against every base."""
    digits = _digits(verdict)
    rows = [
        [f"{selector} v. {base}", *(_cell(entry, digits) for entry in entries)]
        for (selector, base), entries in verdict.against_bases.items()
    ]
    headings = ["", *(f"B = {budget}" for budget in verdict.budgets)]
    return Grid(f"{verdict.title}: differences to the bases", headings, rows)


def overview(verdicts: Sequence[Verdict]) -> Grid:
    """A line a selector and environment: verdicts counted, least and most labels saved."""
    rows = []
    for verdict in verdicts:
        for name, entries in verdict.differences.items():
            counts = [sum(entry.verdict == shown for entry in entries) for shown in MARKS]
            below = len(verdict.below_a_base(name))
            places = "" if name in verdict.bases or len(verdict.bases) < 2 else str(below)
            rows.append([verdict.title, name, *map(str, counts), *map(str, verdict.extremes(name)), places])
    headings = ["environment", "selector", *MARKS.values(), "least labels saved", "most", "▼ some base"]
    return Grid("Budgets by verdict against uniform, and labels saved", headings, rows)


def costs(verdict: Verdict) -> Grid:
    """Epochs of DPO that selecting takes, a budget a column."""
    responses = verdict.size[0] * verdict.size[1]
    rows = [
        [name, *(f"{responses / (parts * budget):.2f}" for budget in verdict.budgets)]
        for name, parts in (("features", 3), ("scores of a proxy of the policy's size", 6))
    ]
    headings = ["", *(f"B = {budget}" for budget in verdict.budgets)]
    return Grid(f"{verdict.environment}: epochs of DPO, N = {verdict.size[0]}, K = {verdict.size[1]}", headings, rows)


def seconds(verdict: Verdict) -> Grid:
    """Median wall time of a selection, a budget a column."""
    shared = np.isin(verdict.uniform_budgets, verdict.budgets)
    rows = []
    for name, runs in verdict.runs.items():
        medians = np.median(runs.selection_seconds, axis=0)
        rows.append([name, *(f"{median:.4f}" for median in (medians[shared] if name == UNIFORM else medians))])
    headings = ["", *(f"B = {budget}" for budget in verdict.budgets)]
    return Grid(f"{verdict.title}: median seconds of a selection", headings, rows)


def publish(config: RefereeConfig, stand: Stand) -> list[Grid]:
    """Write summary, report and figures beside the results; gives what a terminal shows of them.

    Raises:
        InputError: there are no results of this config.
    """
    found = list(verdicts(config, read_results(config, stand)))
    write_json(stand.out / "summary.json", [summary(verdict) for verdict in found])
    with atomic_path(stand.out / "report.md") as temporary:
        temporary.write_text(report(stand.out.name, found), encoding="utf-8")
    styles, families = styles_of(list(config.selectors)), families_of(config.selectors)
    for verdict in found:
        path = stand.out / f"{verdict.name}.png"
        if len(verdict.runs) > MOST_LINES:
            draw_dots(verdict, families, path)
        else:
            draw(verdict, config.divergences, styles, path)
        draw_parts(verdict, families, stand.out / f"{verdict.name}-parts.png")
    priced = {verdict.environment: costs(verdict) for verdict in found}
    return [*(part for verdict in found for part in comparison(verdict).split()), *priced.values(), overview(found)]


def report(name: str, verdicts: Sequence[Verdict]) -> str:
    """The whole report in Markdown; figures lie beside it."""
    seeds = len(verdicts[0].runs[UNIFORM].values)
    parts = [f"# Referee: {name}", f"{seeds} seeds. {LEGEND}", overview(verdicts).markdown()]
    for verdict in verdicts:
        grids = [comparison(verdict), *([against_bases(verdict)] if verdict.against_bases else []), seconds(verdict)]
        parts += [
            f"## {verdict.title}",
            f"![{verdict.title}]({verdict.name}.png)",
            *(grid.markdown() for grid in grids),
            f"![{verdict.title}, parts of the loss]({verdict.name}-parts.png)",
            PARTS_LEGEND,
            *(losses(verdict, part).markdown() for part in _SHOWN),
        ]
        parts += [costs(verdict).markdown(), *_remarks(verdict)]
    return "\n\n".join([*parts, "## Costs", COSTS, ""])


def _remarks(verdict: Verdict) -> list[str]:
    """Who could not take part, what selectors had to say, and how long all of it took."""
    lines = [f"Not run here, for lack of what they need: {', '.join(verdict.absent)}."] if verdict.absent else []
    said = [
        f"- {name}, {count} times: {note}"
        for name, runs in verdict.runs.items()
        for note, count in sorted(runs.notes.items(), key=lambda item: -item[1])[:3]
    ]
    if said:
        lines.append("Notes of the selectors, the three most frequent of each:\n\n" + "\n".join(said))
    total = sum(runs.seconds for runs in verdict.runs.values())
    return [*lines, f"Selections, fits and measures took {total:.1f} s of one core."]


def _cell(entry: Difference, digits: int, saving: Saving | None = None) -> str:
    lines = [f"{entry.mean:+.{digits}f} {MARKS[entry.verdict]}", f"[{entry.low:.{digits}f}, {entry.high:.{digits}f}]"]
    return "\n".join(lines if saving is None else [*lines, str(saving)])


def _part_cells(verdict: Verdict, name: str, part: Part) -> list[str]:
    """Means over seeds, of a bias its two terms."""
    digits, of = _digits(verdict), verdict.parts[name]
    if part != "bias":
        return [f"{mean:.{digits}f}" for mean in of.of(part).mean(axis=0)]
    terms = _pairs(of.reach.mean(axis=0), of.misfit.mean(axis=0))
    return [f"{reach:.{digits}f} {misfit:+.{digits}f}" for reach, misfit in terms]


def _digits(verdict: Verdict) -> int:
    return 3 if np.abs(verdict.runs[UNIFORM].values.mean(axis=0)).max() >= 0.5 else 4


def _seconds(verdict: Verdict, name: str) -> str:
    place = verdict.uniform_budgets.index(verdict.budgets[-1]) if name == UNIFORM else -1
    return f"{np.median(verdict.runs[name].selection_seconds[:, place]):.3f}"


def _pairs(means: FloatArray, errors: FloatArray) -> list[tuple[float, float]]:
    return [(float(mean), float(error)) for mean, error in zip(means, errors, strict=True)]
