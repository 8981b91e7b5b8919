"""The flow `compare`: lineages that differ in their selector alone, run, judged and reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture, wait
from prefect.states import Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from cluster.session import ray_session
from cluster.settings import Settings
from cluster.storage import Store
from flows.comparison.check import check_comparison, party_of, require_fair
from flows.comparison.config import ComparisonConfig, Member, named
from flows.comparison.evidence import gather
from flows.comparison.folder import Folder
from flows.comparison.judged import Judgement
from flows.comparison.judgement import judge
from flows.comparison.publish import announce, log_report
from flows.comparison.report import write_report
from flows.comparison.sharing import shared
from flows.config import LineageConfig
from flows.lineage import Ran, tune
from tasks.labellers.ledger import Ledger
from tasks.parking import WAITING


@dataclass(frozen=True)
class Went:
    """How a lineage of a comparison went."""

    lineage: str
    num_rounds: int = 0
    """Rounds that were run to their end."""
    waits: str = ""
    """What it waits for, if people have not answered yet."""
    error: str = ""
    """Why it failed, if it did."""


@dataclass(frozen=True)
class Compared:
    """A comparison as it stands.

    Attributes:
        judgement: what the evidence shows.
        went: how the lineages went that were run.
        shared: what lineages had in common, in words.
        report: the file for a browser.
        unlogged: why MLflow has no record of the report; "" if it has one.
    """

    judgement: Judgement
    went: tuple[Went, ...]
    shared: tuple[str, ...]
    report: Path
    unlogged: str

    @property
    def failed(self) -> tuple[Went, ...]:
        """The lineages that failed."""
        return tuple(one for one in self.went if one.error)

    @property
    def waiting(self) -> tuple[Went, ...]:
        """The lineages that wait for people."""
        return tuple(one for one in self.went if one.waits)


@flow(name="compare", flow_run_name="{config.comparison}")
def compare(
    config: ComparisonConfig,
    max_rounds: int | None = None,
    *,
    only: tuple[str, ...] = (),
    allow_confounded: bool = False,
    out: Path | None = None,
) -> Compared:
    """Run the rounds that the lineages still lack, judge what all of them did, and report it.

    A lineage that fails stops no other; the flow fails in the end, and a retry repeats what was lost. `max_rounds` of a
    lineage are run at most, and of the lineages those in `only`; the report is of all.
    """
    settings = Settings()
    party = check_comparison(config, settings, allow_confounded=allow_confounded, only=only)
    folder = Folder.of(config, settings, out)
    folder.keep_config(config)
    with ray_session(settings):
        went = _run(named(party.members, only) if only else party.members, config.max_concurrent, max_rounds)
    folder.keep_reasons({one.lineage: one.error or one.waits for one in went})
    compared = report(config, settings, folder, went)
    announce(compared.judgement, folder)
    return _ended(compared)


@task(name="run lineage", task_run_name="{config.lineage}", cache_policy=NO_CACHE)
def run_lineage(config: LineageConfig, max_rounds: int | None) -> Ran:
    """Run the rounds that a lineage still lacks, in a flow run of its own."""
    return tune(config, max_rounds)


def rewritten(config: ComparisonConfig, settings: Settings, out: Path | None, *, allow_confounded: bool) -> Compared:
    """Report again what is in the store.

    Raises:
        InputError: the lineages differ in more than selector, seed and budget, and that is not allowed.
    """
    require_fair(config, party_of(config, Store(settings.store)), allow_confounded=allow_confounded)
    return report(config, settings, Folder.of(config, settings, out))


def report(config: ComparisonConfig, settings: Settings, folder: Folder, went: Sequence[Went] = ()) -> Compared:
    """Judge what is in the store, write the report and log it to MLflow; runs nothing."""
    store, ledger = Store(settings.store), Ledger(url=settings.ledger)
    party = party_of(config, store)
    evidence = gather(config, store, ledger, confounds=party.confounds, reasons=folder.reasons)
    judgement = judge(evidence)
    written = write_report(judgement, party.everyone, store, folder.out)
    folder.keep_evidence(evidence)
    unlogged = log_report(judgement, folder, settings, failed=any(one.error for one in went))
    return Compared(judgement, tuple(went), shared(party.everyone, store, ledger), written, unlogged)


def _run(members: Sequence[Member], max_concurrent: int, max_rounds: int | None) -> tuple[Went, ...]:
    """Run lineages, `max_concurrent` at once, each to its end, whatever becomes of the others."""
    run = _one_by_one if max_concurrent == 1 else partial(_at_once, max_concurrent=max_concurrent)
    states = run([member.config for member in members], max_rounds)
    return tuple(_went(member.lineage, state) for member, state in zip(members, states, strict=True))


def _one_by_one(configs: Sequence[LineageConfig], max_rounds: int | None) -> list[State[Ran]]:
    """In this thread, so that an interrupt ends the lineage at work, too."""
    return [run_lineage(config, max_rounds, return_state=True) for config in configs]


def _at_once(configs: Sequence[LineageConfig], max_rounds: int | None, *, max_concurrent: int) -> list[State[Ran]]:
    """In threads; an interrupt waits for the lineages at work."""
    runner: ThreadPoolTaskRunner[Ran] = ThreadPoolTaskRunner(max_workers=max_concurrent)
    with runner:
        futures: list[PrefectFuture[Ran]] = [
            runner.submit(run_lineage, {"config": config, "max_rounds": max_rounds}) for config in configs
        ]
        wait(futures)
    return [future.state for future in futures]


def _went(lineage: str, state: State[Ran]) -> Went:
    result = state.result(raise_on_failure=False)
    if isinstance(result, Ran):
        return Went(lineage, result.num_rounds, waits="" if result.parked is None else result.parked.waiting.said)
    return Went(lineage, error=f"{type(result).__name__}: {result}")


def _ended(compared: Compared) -> Compared:
    """In a state that tells of lineages that failed or wait."""
    if compared.failed:
        names = ", ".join(one.lineage for one in compared.failed)
        message = f"{len(compared.failed)} of the lineages failed: {names}. The report has been written; retry this run"
        return cast(Compared, Failed(message=message, data=compared))
    if compared.waiting:
        said = "; ".join(f"{one.lineage} {one.waits}" for one in compared.waiting)
        return cast(Compared, Completed(name=WAITING, message=said, data=compared))
    return compared
