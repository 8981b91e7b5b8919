"""The commands `pairwright labels`: what was labelled and paid, and labels as files."""

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from cluster.errors import InputError
from cluster.settings import Settings, read_settings
from cluster.storage import PARKED, Store

if TYPE_CHECKING:
    from tasks.labellers.delivery import Delivery
    from tasks.labellers.ledger import Ledger

LOG_WIDTH = 140
"""Columns of tables that don't go to a terminal."""

NUM_LISTED = 20
"""Answers that an import lists one by one; the others are counted."""

app = typer.Typer(no_args_is_help=True, help="What labels were bought and paid, and labels as files.")
console = Console(width=None if sys.stdout.isatty() else LOG_WIDTH)

FormatName = Literal["preference", "unpaired", "label-studio", "answers"]
Format = Annotated[FormatName, typer.Option("--format", help="preference and unpaired are TRL's")]
LabellerName = Annotated[
    str | None, typer.Option("--labeller", help="which labeller: its kind, crew, model or name in `labels status`")
]


@app.command()
def status(
    lineage: Annotated[str | None, typer.Argument(help="name of one lineage; without it, all of them")] = None,
) -> None:
    """Show what every lineage is charged and has paid, and whether any label was bought twice."""
    ledger = _ledger()
    from flows.label_report import bought_once, charges_table, labellers_table

    names = _lineages(ledger, lineage)
    if names:
        console.print(charges_table(ledger, Store(_settings().store), names))
        console.print(labellers_table(ledger, names))
        console.print(bought_once(ledger), highlight=False)
    else:
        console.print("no lineage has asked for labels yet")
    console.print(f"ledger {ledger.database.name}", soft_wrap=True, highlight=False)


@app.command()
def export(
    form: Format,
    lineage: Annotated[str | None, typer.Option(help="name of one lineage; without it, all of them")] = None,
    labeller: LabellerName = None,
    prompts: Annotated[
        Literal["chat", "plain"] | None, typer.Option(help="only conversations, or only plain text")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="file *.jsonl, *.json, *.csv or *.parquet; without it, JSONL is printed")
    ] = None,
) -> None:
    """Write labels as TRL, Label Studio or we ourselves read them."""
    ledger = _ledger()
    from tasks.labellers.formats import FORMATS, printed, write_answers
    from tasks.labellers.holdings import Wanted

    chosen = FORMATS[form]
    _lineages(ledger, lineage)
    holding = Wanted(lineage=lineage, labeller=labeller, prompts=prompts).holding(ledger, chosen)
    if out is None:
        typer.echo(printed(chosen, holding), nl=False)
    else:
        typer.echo(f"{out}: {write_answers(out, chosen, holding)} rows in the format {form}")
    if note := chosen.note(holding):
        typer.echo(note, err=out is None)


@app.command(name="import")
def take_in(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="*.jsonl, *.json, *.csv or *.parquet")],
    form: Format,
    lineage: Annotated[str, typer.Option(help="name of the lineage that asked")],
    labeller: LabellerName = None,
    annotator: Annotated[
        str | None, typer.Option(help="who answered, where the file doesn't say; without it, the file's name")
    ] = None,
) -> None:
    """Take the answers of a file into the ledger, all of them or none; those that it has already are left out."""
    ledger = _ledger()
    from tasks.labellers.delivery import deliver, labeller_of
    from tasks.labellers.formats import FORMATS, read_answers
    from tasks.labellers.formats.files import Faults

    faults = Faults(file)
    given = read_answers(file, FORMATS[form], faults)
    identity = labeller_of(ledger, lineage, labeller)
    _report(deliver(ledger, identity, given, faults, annotator=annotator or file.stem))
    num_open = sum(question.wanted for question in ledger.open_questions(lineage))
    console.print(f"answers that lineage {lineage} still waits for: {num_open}", highlight=False)
    if (Store(_settings().store).lineage(lineage) / PARKED).exists():
        resume(lineage)


@app.command()
def resume(
    lineage: Annotated[str | None, typer.Argument(help="name of one lineage; without it, all of them")] = None,
) -> None:
    """Let rounds go on that wait for people, if the answers are in; for cron."""
    settings = _settings()
    from flows.parking import resume_ready

    found = resume_ready(settings, None if lineage is None else [lineage])
    for one in found:
        console.print(f"{one.place} {one.said}", soft_wrap=True, highlight=False, markup=False)
    if any(one.trouble for one in found):
        raise typer.Exit(1)


def _settings() -> Settings:
    settings = read_settings()
    settings.export()
    return settings


def _ledger() -> "Ledger":
    settings = _settings()
    from tasks.labellers.ledger import Ledger

    return Ledger(url=settings.ledger)


def _lineages(ledger: "Ledger", lineage: str | None) -> list[str]:
    names = ledger.lineages()
    if lineage is not None and lineage not in names:
        raise InputError(
            f"lineage {lineage!r} has asked for no labels in {ledger.database.name}: "
            f"found {', '.join(names) or 'none that has'}"
        )
    return names if lineage is None else [lineage]


def _report(delivery: "Delivery") -> None:
    counts: Counter[str] = Counter(receipt.status for _, receipt in delivery.receipts)
    counts.update({"held already": len(delivery.held), "older than the annotator's answer": len(delivery.older)})
    console.print(", ".join(f"{number} {status}" for status, number in counts.items() if number), highlight=False)
    told = [f"{given.where}: {receipt.status}: {receipt.reason}" for given, receipt in delivery.receipts]
    told += [f"{given.where}: not used: its annotator has answered anew since" for given in delivery.older]
    for line in told[:NUM_LISTED]:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    if len(told) > NUM_LISTED:
        console.print(f"and {len(told) - NUM_LISTED} more")
