"""The command `pairwright`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.text import Text

from cluster.errors import InputError
from cluster.settings import Settings, read_settings
from cluster.storage import Store
from flows.comparison.command import compare
from flows.labels import app as labels_app

if TYPE_CHECKING:
    from flows.parking import ParkedRound

LOG_WIDTH = 140
"""Columns of tables that don't go to a terminal."""

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
app.add_typer(labels_app, name="labels")
console = Console(width=None if sys.stdout.isatty() else LOG_WIDTH)

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file of a lineage, see configs/")]
ConfigFiles = Annotated[list[Path], typer.Argument(metavar="CONFIG...", help="YAML files of lineages")]


@app.command()
def run(
    config: ConfigFile,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="rounds of the lineage in all, in place of the config's")
    ] = None,
) -> None:
    """Run the rounds that a lineage still lacks, and print how they went."""
    settings = _settings()
    from flows.config import load_config
    from flows.opening import check_round, claim

    lineage = load_config(config)
    if rounds is not None:
        lineage = lineage.model_copy(update={"rounds": rounds})
    check_round(lineage.round, settings)
    with claim(lineage.round, lineage.lineage, settings, lineage.filing):
        from flows.lineage import tune

        ran = tune(lineage)
    _show(settings, lineage.lineage)
    if ran.parked is not None:
        _tell(ran.parked, settings)
        return
    kept = lineage.rounds - ran.num_rounds
    console.print(f"rounds: {ran.num_rounds} run, {kept} found finished and every stage of them reused")


@app.command(name="round")
def one_round(
    config: ConfigFile,
    number: Annotated[
        int, typer.Option("--round", min=0, help="number of the round; the rounds before it must be finished")
    ],
) -> None:
    """Run one round of a lineage; its finished stages are reused."""
    settings = _settings()
    from flows.config import load_config
    from flows.opening import check_round, claim

    lineage = load_config(config)
    check_round(lineage.round, settings)
    with claim(lineage.round, lineage.lineage, settings, lineage.filing):
        from flows.lineage import run_one

        ran = run_one(lineage, number, settings)
    _show(settings, lineage.lineage)
    if ran.parked is not None:
        _tell(ran.parked, settings)


@app.command()
def deploy(configs: ConfigFiles) -> None:
    """Create or renew one Prefect deployment per config, with its schedule."""
    settings = _settings()
    from flows.comparison.config import load_deployable
    from flows.opening import check_prefect

    wanted = [load_deployable(config) for config in configs]
    check_prefect(settings)
    from flows.deploy import deploy as create

    for deployment, identifier in create(wanted).items():
        console.print(f"deployment {deployment} ({identifier})")
    console.print("`pairwright serve` with the same configs, on the machine that shall run them, starts what is due")


@app.command()
def serve(configs: ConfigFiles) -> None:
    """Serve the deployments of these configs: run what their schedules, the Prefect UI or a retry start.

    Their rounds that wait for people are resumed when the answers are in.
    """
    settings = _settings()
    from flows.comparison.config import load_deployable
    from flows.opening import check_prefect

    wanted = [load_deployable(config) for config in configs]
    check_prefect(settings)
    from prefect import serve as serve_deployments

    from flows.deploy import deployment
    from flows.parking import keep_resuming

    keep_resuming(settings, [name for config in wanted for name in config.lineage_names])
    serve_deployments(*(deployment(config) for config in wanted))


@app.command()
def status(
    lineage: Annotated[str | None, typer.Argument(help="name of one lineage; without it, all of them")] = None,
) -> None:
    """Show rounds, stages, labels spent, win rates, and where the artefacts are."""
    settings = _settings()
    names = _lineages(settings, lineage)
    if not names:
        console.print(f"no lineage in {settings.store} yet")
    for name in names:
        _show(settings, name)


@app.command(name="lineage")
def show_lineage(
    name: Annotated[str, typer.Argument(metavar="NAME", help="name of the lineage")],
    source: Annotated[
        Literal["store", "mlflow"], typer.Option("--from", help="whose manifests are read; both have the same")
    ] = "store",
) -> None:
    """Show which adapter came from which, by which labels, out of which pools."""
    settings = _settings()
    _lineages(settings, name)
    from flows.chain_table import show_chain

    show_chain(settings, name, source=source, console=console)


@app.command()
def label(
    lineage: Annotated[str, typer.Argument(help="name of the lineage whose round waits for people")],
    host: Annotated[str, typer.Option(help="address to listen on; one that others reach needs logins")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="port of the page")] = 7861,
    login: Annotated[Path | None, typer.Option(help="file of name:password lines, readable by you alone")] = None,
) -> None:
    """Serve the page on which people say, side by side, which response is better."""
    settings = _settings()
    from flows.page.server import Place, serve_page

    serve_page(lineage, Place(host=host, port=port, login=login), settings)


@app.command()
def referee(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file of a referee, see configs/referee-*")],
    table: Annotated[Path | None, typer.Option(help="Parquet of utilities that environments are drawn from")] = None,
    out: Annotated[Path | None, typer.Option(help="folder of results, report and figures")] = None,
    redraw: Annotated[bool, typer.Option("--redraw", help="show stored results again; compute nothing")] = False,
) -> None:
    """Compare selectors in worlds where their worth is known; finished trials are reused."""
    settings = _settings()
    from flows.config import load
    from flows.referee import RefereeConfig, Stand, compare
    from flows.standings import COSTS, LEGEND, publish

    wanted = load(config, RefereeConfig)
    stand = Stand(settings.store / "trials", out or settings.store / "referee" / config.stem, table)
    tally = None if redraw else compare(wanted, stand, settings)
    for grid in publish(wanted, stand):
        console.print(grid.rich())
    for text in (LEGEND, COSTS):
        console.print(text, highlight=False)
    if tally:
        console.print(f"trials: {tally.computed} computed, {tally.reused} found finished and reused")
    console.print(f"results, report and figures: {stand.out}", soft_wrap=True, highlight=False)


app.command()(compare)


@app.command()
def study(
    name: Annotated[
        Literal["bandit", "theory", "referee"],
        typer.Argument(
            help="bandit: on-policy data and negative gradients; theory: which pairs to compare, against Monte Carlo; "
            "referee: whether a comparison finds what is there and nothing else"
        ),
    ],
    config: Annotated[Path | None, typer.Option(help="YAML file; without it as configs/study-NAME.yaml")] = None,
    out: Annotated[Path | None, typer.Option(help="folder of results, report and figures")] = None,
) -> None:
    """Measure a published claim where its truth can be computed; a finished study is reused."""
    settings = _settings()
    from flows.config import load
    from flows.opening import check_prefect
    from flows.studies import STUDIES

    chosen = STUDIES[name]
    wanted = chosen.config() if config is None else load(config, chosen.config)
    check_prefect(settings)
    published = chosen.run(wanted, None if out is None else out.resolve())
    for grid in published.grids:
        console.print(grid.rich())
    for text in (*published.notes, *map(str, published.findings)):
        console.print(text, highlight=False, markup=False)
    console.print("found finished and reused" if published.reused else "computed")
    console.print(f"results, report and figures: {published.out}", soft_wrap=True, highlight=False)


@app.command()
def ui(
    prefect_port: Annotated[int, typer.Option(help="port of the Prefect server")] = 4200,
    mlflow_port: Annotated[int, typer.Option(help="port of MLflow")] = 5000,
) -> None:
    """Start the Prefect server and MLflow on loopback against the embedded stores, and print both addresses."""
    settings = _settings()
    from flows.desk import serve_uis

    serve_uis(settings, prefect_port=prefect_port, mlflow_port=mlflow_port, console=console)


def main() -> None:
    """Run the command; input that can't work ends it with code 2."""
    try:
        app()
    except InputError as error:
        message = Text.assemble(("error:", "bold red"), " ", str(error))  # a message may hold [brackets]
        Console(stderr=True).print(message, soft_wrap=True)
        sys.exit(2)


def _settings() -> Settings:
    settings = read_settings()
    Store(settings.store).check_writable()
    settings.export()
    return settings


def _lineages(settings: Settings, lineage: str | None) -> list[str]:
    from flows.report import lineages_of

    names = lineages_of(Store(settings.store))
    if lineage is not None and lineage not in names:
        raise InputError(f"no lineage {lineage!r} in {settings.store}: found {', '.join(names) or 'none'}")
    return names if lineage is None else [lineage]


def _show(settings: Settings, lineage: str) -> None:
    from flows.parking import parked_round
    from flows.report import rounds_of, rounds_table, speed_lines, spent, stages_table
    from tasks.labellers.ledger import Ledger

    store, ledger = Store(settings.store), Ledger(url=settings.ledger)
    rounds, parked = rounds_of(store, lineage), parked_round(store, lineage)
    for report in rounds:
        console.print(stages_table(report))
    waits = {} if parked is None else {parked.waiting.round: parked.waiting.now(ledger)}
    console.print(rounds_table(lineage, rounds, waits))
    for line in (line for report in rounds for line in speed_lines(report)):
        console.print(line, highlight=False)
    console.print(f"{spent(ledger, lineage)}; store {settings.store}; MLflow {settings.tracking}", soft_wrap=True)
    console.print("UIs of Prefect and MLflow: pairwright ui", highlight=False)


def _tell(parked: "ParkedRound", settings: Settings) -> None:
    from flows.parking import guide

    for line in guide(parked, settings):
        console.print(line, highlight=False, soft_wrap=True)
