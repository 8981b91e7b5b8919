"""Parked rounds: their record in the store, how their flow run is suspended, and how it is resumed."""

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn
from uuid import UUID, uuid4

from httpx import HTTPError
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.client.schemas.responses import SetStateStatus
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound, Pause
from prefect.logging import get_logger
from prefect.states import Paused
from pydantic import BaseModel, ConfigDict, ValidationError

from cluster.errors import InputError
from cluster.settings import Settings
from cluster.storage import PARKED, Store, write_json
from flows.config import RoundConfig
from flows.opening import tracker_of_lineage
from tasks.labellers.ledger import Ledger
from tasks.labellers.people import PeopleLabeller
from tasks.parking import Waiting
from tasks.review_queue import PLACE_TAG, take_in

SUSPENDED = "Waits for people"
"""Name of a flow run's state while it is suspended."""
STARTING = timedelta(minutes=10)
"""How long the process of a flow run that is due may take to start; one that took longer has died."""


class ParkedRound(BaseModel):
    """A round that waits for people, and the flow run that goes on with it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    waiting: Waiting
    until: int
    """Number of the round before which the run was to stop."""
    flow_run: UUID | None = None
    """A deployment's, suspended in Prefect; None: a command that has ended, and goes on when it is given again."""
    review_queue: bool = False
    """Whether people can answer in MLflow, too."""
    times: int = 1
    """How often it has been parked."""


@dataclass(frozen=True, kw_only=True)
class Resumption:
    """What came of looking after a parked round."""

    lineage: str
    round: int | None
    """None: its record can't be read."""
    resumed: bool
    said: str
    """What it waits for, or what was done about it, as the rest of a sentence about the round."""
    trouble: bool = False
    """Whether something has to be mended."""

    @property
    def place(self) -> str:
        """Which round that is, in words."""
        return f"{'the parked round' if self.round is None else f'round {self.round}'} of lineage {self.lineage}"


def parked_round(store: Store, lineage: str) -> ParkedRound | None:
    """The round at which a lineage is parked, with the terms that the lineage's config on record has by now.

    Raises:
        InputError: its record or that of the config is damaged, or of another release.
    """
    file = _record(store, lineage)
    try:
        parked = ParkedRound.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise InputError(
            f"the record of a parked round {file} doesn't fit ({error.error_count()} faults): remove it and start the "
            "lineage again; what was answered is in the ledger"
        ) from error
    config = round_on_record(store, lineage)
    if config is None or not isinstance(labeller := config.labelling.labeller, PeopleLabeller):
        return parked
    return parked.model_copy(update={"waiting": parked.waiting.model_copy(update={"terms": labeller.terms})})


def round_on_record(store: Store, lineage: str, *, since: datetime | None = None) -> RoundConfig | None:
    """The config with which a lineage ran last; with `since`, only one that was put on record after that moment.

    Raises:
        InputError: it is damaged, or of another release.
    """
    file = store.lineage(lineage) / "config.json"
    if not file.exists() or (since is not None and file.stat().st_mtime < since.timestamp()):
        return None
    try:
        return RoundConfig.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise InputError(
            f"the config on record {file} doesn't fit ({error.error_count()} faults): go on with the release that "
            "the lineage began with, or give the config a new lineage name"
        ) from error


def note(store: Store, parked: ParkedRound) -> ParkedRound:
    """Put a parked round on record, counting how often it has been."""
    waiting, before = parked.waiting, parked_round(store, parked.waiting.lineage)
    if before is not None and before.waiting.round == waiting.round:
        parked = parked.model_copy(update={"times": before.times + 1})
    write_json(_record(store, waiting.lineage), parked.model_dump(mode="json"))
    return parked


def forget(store: Store, lineage: str) -> None:
    """Take a round that went on off the record."""
    _record(store, lineage).unlink(missing_ok=True)


def deployed_run() -> UUID | None:
    """The running flow run, if a deployment started it; no other can be suspended."""
    context = FlowRunContext.get()
    run = None if context is None else context.flow_run
    return None if run is None or run.deployment_id is None else run.id


def first_start() -> datetime | None:
    """When the running flow run first started, if it was resumed or retried since; None: it starts now."""
    context = FlowRunContext.get()
    return None if context is None or context.flow_run is None else context.flow_run.start_time


def waits_elsewhere(parked: ParkedRound) -> bool:
    """Whether a flow run other than this one will go on with the round by itself; for who holds the lineage.

    One that runs would hold the lineage: whatever Prefect says of it, its process has died.
    """
    if parked.flow_run is None or parked.flow_run == deployed_run():
        return False
    with get_client(sync_client=True) as client:
        try:
            state = client.read_flow_run(parked.flow_run).state
        except ObjectNotFound:
            return False
    return state is not None and _goes_on(state)


def suspend(parked: ParkedRound, flow_run: UUID) -> NoReturn:
    """Suspend the running flow run of a deployment: its process ends, and a new one begins when it is resumed."""
    state: State[None] = Paused(name=SUSPENDED, message=parked.waiting.said, reschedule=True, pause_key=str(uuid4()))
    with get_client(sync_client=True) as client:
        answer = client.set_flow_run_state(flow_run, state)
    if answer.status != SetStateStatus.ACCEPT or answer.state is None:
        raise RuntimeError(f"Prefect did not suspend the flow run ({answer.details}): retry it, or start it again")
    raise Pause(state=answer.state)


def guide(parked: ParkedRound, settings: Settings) -> list[str]:
    """What a parked round waits for, where people answer, and how it goes on; Markdown, a paragraph each."""
    waiting = parked.waiting
    again = "Give the same command again to go on; what was answered is never asked again."
    by_itself = (
        f"Its flow run {parked.flow_run} goes on when they are in: by `pairwright serve`, "
        f"`pairwright labels resume {waiting.lineage}`, or *Resume* in the Prefect UI."
    )
    queue = tracker_of_lineage(settings, waiting.lineage).tags_of_round(waiting.lineage, waiting.round).get(PLACE_TAG)
    return [
        f"Round {waiting.round} of lineage {waiting.lineage} {waiting.now(Ledger(url=settings.ledger))}.",
        f"Label with `pairwright label {waiting.lineage}`, at <{settings.label_url}>.",
        *([] if queue is None else [f"Or in MLflow, at <{queue}>."]),
        again if parked.flow_run is None else by_itself,
    ]


def announce(parked: ParkedRound, settings: Settings) -> None:
    """Say in Prefect what the running flow run waits for."""
    key = "".join(letter if letter.isalnum() else "-" for letter in f"labels-{parked.waiting.lineage}".lower())
    text = "\n\n".join(guide(parked, settings))
    create_markdown_artifact(key=key, markdown=text, description=parked.waiting.said)


def resume_ready(settings: Settings, lineages: Sequence[str] | None = None) -> list[Resumption]:
    """Resume every parked round whose answers are in, or whose deadline has passed with enough of them.

    Without `lineages` all of the store are looked after. A server that doesn't answer, or a record that can't be read,
    is said; nothing is lost, and the other lineages are looked after.

    Raises:
        InputError: the ledger can't be read.
    """
    store = Store(settings.store)
    everywhere = sorted(file.parent.name for file in store.lineage("").glob(f"*/{PARKED}"))
    names = everywhere if lineages is None else lineages
    return [found for name in names if (found := _look_after(name, store, settings)) is not None]


def keep_resuming(settings: Settings, lineages: Sequence[str]) -> threading.Thread:
    """Look after the parked rounds of these lineages every `settings.poll_seconds`, as long as the process lives."""

    def look() -> None:
        before: dict[str, int] = {}
        while True:
            now = _sayings(settings, lineages)
            for line, level in now.items():
                if line not in before:
                    get_logger("parking").log(level, line)
            before = now
            time.sleep(settings.poll_seconds)

    thread = threading.Thread(target=look, name="parked rounds", daemon=True)
    thread.start()
    return thread


def _sayings(settings: Settings, lineages: Sequence[str]) -> dict[str, int]:
    """What there is to say of parked rounds, each with its level of logging."""
    try:
        found = resume_ready(settings, lineages)
    except InputError as error:
        return {f"parked rounds can't be looked after: {error}": logging.WARNING}
    return {f"{one.place} {one.said}": logging.WARNING if one.trouble else logging.INFO for one in found}


def _look_after(lineage: str, store: Store, settings: Settings) -> Resumption | None:
    try:
        parked = parked_round(store, lineage)
    except InputError as error:
        said = f"can't be looked after: {error}"
        return Resumption(lineage=lineage, round=None, resumed=False, said=said, trouble=True)
    return None if parked is None else _resume_if_ready(parked, settings)


def _resume_if_ready(parked: ParkedRound, settings: Settings) -> Resumption:
    waiting, ledger = parked.waiting, Ledger(url=settings.ledger)
    trouble = _take_in(parked, ledger, settings) if parked.review_queue else ""
    if not waiting.ready(ledger):
        return _said(parked, "; ".join(filter(None, (waiting.now(ledger), trouble))), trouble=bool(trouble))
    if parked.flow_run is None:
        return _said(parked, "has its answers: give the command again that ran it")
    try:
        return _resume(parked, parked.flow_run)
    except (HTTPError, RuntimeError) as error:  # the second where Prefect's embedded server doesn't come up
        return _said(parked, f"has its answers, and Prefect can't be asked to resume it ({error})", trouble=True)


def _resume(parked: ParkedRound, flow_run: UUID) -> Resumption:
    with get_client(sync_client=True) as client:
        try:
            state = client.read_flow_run(flow_run).state
        except ObjectNotFound:
            lost = f"has its answers, and Prefect doesn't know its flow run {flow_run}: start the deployment anew"
            return _said(parked, lost, trouble=True)
        if state is None or not state.is_paused():
            ended = state is not None and state.is_final()
            hint = ": retry it, or start the lineage again" if ended else ""
            return _said(parked, f"has its answers, and its flow run {flow_run} is {state and state.name}{hint}")
        answer = client.resume_flow_run(flow_run)
    done = answer.status == SetStateStatus.ACCEPT
    said = f"has its answers: its flow run {flow_run} {'is' if done else 'could not be'} resumed"
    return replace(_said(parked, said, trouble=answer.status == SetStateStatus.REJECT), resumed=done)


def _goes_on(state: State[Any]) -> bool:
    if state.is_pending():
        return datetime.now(UTC) - state.timestamp < STARTING
    return state.is_paused() or state.is_scheduled()


def _take_in(parked: ParkedRound, ledger: Ledger, settings: Settings) -> str:
    """Move what was said in MLflow of the round into the ledger; gives what can't be used, or why MLflow is silent.

    What is said of earlier rounds is late, and the next round's labelling takes it in.
    """
    from mlflow.exceptions import MlflowException

    waiting = parked.waiting
    try:
        tracker = tracker_of_lineage(settings, waiting.lineage)
        intake = take_in(ledger, tracker, waiting.lineage, round_number=waiting.round)
        return "; ".join(intake.refused)
    except (InputError, MlflowException) as error:
        return f"MLflow's review queue can't be read ({error})"


def _said(parked: ParkedRound, said: str, *, trouble: bool = False) -> Resumption:
    waiting = parked.waiting
    return Resumption(lineage=waiting.lineage, round=waiting.round, resumed=False, said=said, trouble=trouble)


def _record(store: Store, lineage: str) -> Path:
    return store.lineage(lineage) / PARKED
