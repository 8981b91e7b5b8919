"""A lineage's chain as a table, with the run of each round in MLflow."""

from collections.abc import Iterator, Sequence
from typing import Literal

from rich.console import Console
from rich.table import Table as RichTable

from cluster.errors import InputError
from cluster.preflight import reachable, without_password
from cluster.runs import LineageRuns, runs_of
from cluster.settings import Settings
from cluster.storage import Store
from flows.chain import Chain, Link, chain_of_store, chain_of_tracking
from flows.opening import tracker_of_lineage

SHOWN = 12
"""Characters of a digest that are shown."""


def show_chain(settings: Settings, lineage: str, *, source: Literal["store", "mlflow"], console: Console) -> None:
    """Print the chain of a lineage, and where MLflow has its runs.

    Raises:
        InputError: the chain is asked of MLflow, which doesn't answer or whose manifests don't fit.
    """
    runs, said = _runs(settings, lineage, needed=source == "mlflow")
    if source == "store":
        chain = chain_of_store(Store(settings.store), lineage)
    else:
        chain = chain_of_tracking(tracker_of_lineage(settings, lineage), lineage)
    console.print(chain_table(chain, runs) if chain.links else f"no round of lineage {lineage} is trained yet")
    console.print(said, soft_wrap=True, highlight=False, markup=False)


def chain_table(chain: Chain, runs: LineageRuns) -> RichTable:
    """Every round's pool, selection, labels and adapter, and what each came from."""
    table = RichTable(title=f"chain of lineage {chain.lineage}")
    for heading in ("round", "what", "digest", "from", "run in MLflow"):
        table.add_column(heading, justify="right" if heading == "round" else "left", overflow="fold")
    if chain.base is not None:
        table.add_row("", "base", chain.base[:SHOWN], "the checkpoint", "", end_section=True)
    for link in chain.links:
        run = runs.rounds.get(link.round)
        for row, (what, digest, source) in enumerate(_rows(chain, link)):
            places = ("", "") if row else (str(link.round), "not there" if run is None else run.run)
            table.add_row(places[0], what, digest[:SHOWN], source, places[1], end_section=what == "adapter")
    return table


def _rows(chain: Chain, link: Link) -> Iterator[tuple[str, str, str]]:
    yield "pool", link.pool, f"written by {chain.name(link.writer)}"
    yield "selection", link.selection, f"out of {_named(chain, link.offered)}"
    yield "labels", link.labels, f"of the selection of round {link.round}"
    origin = f"{chain.name(link.start)} taught by {_named(chain, link.learnt_from)}"
    yield "adapter", link.adapter, f"{origin}; reference {chain.name(link.reference)}"


def _named(chain: Chain, digests: Sequence[str]) -> str:
    return ", ".join(map(chain.name, digests))


def _runs(settings: Settings, lineage: str, *, needed: bool) -> tuple[LineageRuns, str]:
    """The lineage's runs and where they are, in words; without runs where MLflow isn't needed and doesn't answer."""
    try:
        reachable(settings.tracking, timeout=settings.connect_timeout)
    except InputError as error:
        if needed:
            raise
        return LineageRuns(None, {}), f"its runs in MLflow are not shown: {error}"
    tracker = tracker_of_lineage(settings, lineage)
    runs = runs_of(tracker, lineage)
    if runs.lineage is None:
        return runs, f"no runs of it in experiment {tracker.experiment} of {settings.tracking}"
    place = f"MLflow experiment {tracker.experiment}"
    if settings.tracking.startswith("http"):
        return runs, f"{place}: {without_password(settings.tracking)}/{runs.lineage.link}"
    return runs, f"{place}: /{runs.lineage.link} at the address of MLflow that `pairwright ui` prints"
