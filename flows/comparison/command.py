"""The command `pairwright compare`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from cluster.settings import read_settings
from cluster.storage import Store

if TYPE_CHECKING:
    from flows.comparison.config import ComparisonConfig
    from flows.comparison.flow import Compared

LOG_WIDTH = 200
"""Columns of tables that don't go to a terminal."""

console = Console(width=None if sys.stdout.isatty() else LOG_WIDTH)


def compare(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file of a comparison, see configs/compare-*")],
    only: Annotated[list[str] | None, typer.Option(metavar="LINEAGE", help="run this lineage, and report all")] = None,
    allow_confounded: Annotated[
        bool, typer.Option("--allow-confounded", help="go on where lineages differ in more than their selectors")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="folder of the report; without it, one in the store")] = None,
    redraw: Annotated[bool, typer.Option("--redraw", help="report what is in the store again; run nothing")] = False,
) -> None:
    """Compare selectors on a base config: run the lineages that are missing, judge them, report."""
    settings = read_settings()
    Store(settings.store).check_writable()
    settings.export()
    from flows.comparison.check import check_comparison
    from flows.comparison.config import load_comparison
    from flows.comparison.flow import Compared, rewritten
    from flows.comparison.flow import compare as run

    wanted, folder = load_comparison(config), None if out is None else out.resolve()
    if redraw:
        compared = rewritten(wanted, settings, folder, allow_confounded=allow_confounded)
    else:
        check_comparison(wanted, settings, allow_confounded=allow_confounded, only=only or ())
        state = run(wanted, only=tuple(only or ()), allow_confounded=allow_confounded, out=folder, return_state=True)
        result = state.result(raise_on_failure=False)
        if not isinstance(result, Compared):
            raise result
        compared = result
    _show(wanted, compared, str(config))
    if compared.failed:
        raise typer.Exit(1)


def _show(config: "ComparisonConfig", compared: "Compared", file: str) -> None:
    from flows.comparison.sheets import standings
    from flows.standings import Grid

    judgement = compared.judgement
    for budget in judgement.evidence.budgets:
        sheet = standings(judgement, budget)
        rows = [[entry.text for entry in row] for row in sheet.rows]
        if rows:
            console.print(Grid(sheet.caption, sheet.headings, rows).rich())
    untold = [refusal for refusal in judgement.refusals if refusal not in judgement.headline]
    _say(judgement.headline, *untold, *compared.shared)
    for one in compared.waiting:
        _say(
            f"lineage {one.lineage} {one.waits}",
            f"  people label with: pairwright label {one.lineage}; when they have answered, run this again",
        )
    for one in compared.failed:
        _say(
            f"lineage {one.lineage} failed: {one.error}",
            f"  mend the cause, then: pairwright compare {file} --only {one.lineage}",
        )
    if compared.unlogged:
        _say(compared.unlogged)
    else:
        _say(f"MLflow: experiment {config.comparison}, run comparison; pairwright ui shows it")
    _say(f"report: {compared.report}")


def _say(*lines: str) -> None:
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
