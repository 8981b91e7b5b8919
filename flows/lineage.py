"""A lineage: its rounds one after the other, from the first that is unfinished."""

from dataclasses import dataclass
from datetime import datetime
from typing import cast

from prefect import Task, flow
from prefect.context import FlowRunContext
from prefect.states import Completed

from cluster.session import ray_session
from cluster.settings import Settings
from cluster.storage import Store
from flows.config import LineageConfig
from flows.history import first_unfinished, settled
from flows.opening import check_round, claim
from flows.parking import (
    ParkedRound,
    announce,
    deployed_run,
    first_start,
    forget,
    note,
    parked_round,
    resume_ready,
    round_on_record,
    suspend,
    waits_elsewhere,
)
from flows.round import preference_round
from tasks.labellers.people import PeopleLabeller
from tasks.parking import WAITING, Waiting


@dataclass(frozen=True)
class Ran:
    """How far a lineage came."""

    num_rounds: int
    """Rounds that were run to their end."""
    parked: ParkedRound | None = None
    """The round at which it stopped, because people have not answered yet."""


@flow(name="tune", flow_run_name="{config.lineage}")
def tune(config: LineageConfig, max_rounds: int | None = None) -> Ran:
    """Run the rounds that the lineage still lacks, `max_rounds` at most, until one waits for people.

    A flow run of a deployment is suspended then, which ends its process, and goes on from there when it is resumed.
    It is suspended while it still holds the lineage, so that none that holds nothing is running by Prefect's account.
    """
    settings = Settings()
    check_round(config.round, settings)
    store = Store(settings.store)
    with store.hold_lineage(config.lineage):
        config = in_force(config, store, began=first_start())
        with claim(config.round, config.lineage, settings, config.filing):
            parked = parked_round(store, config.lineage)
            if parked is not None and waits_elsewhere(parked):
                (look,) = resume_ready(settings, [config.lineage])
                return _ended(Ran(0, parked), f"{look.place} {look.said} (flow run {parked.flow_run})")
            ran = _run_rounds(config, _numbers(config, max_rounds, parked, store), settings)
            return ran if ran.parked is None else _park(ran, ran.parked, settings)


def in_force(config: LineageConfig, store: Store, *, began: datetime | None) -> LineageConfig:
    """The config of a flow run that first started at `began`, with what has changed under the lineage since then.

    Its parameters stay those of its first start, and a later start may have brought other terms or another budget.

    Raises:
        InputError: the config on record is damaged, or of another release.
    """
    newer = None if began is None else round_on_record(store, config.lineage, since=began)
    if newer is None or settled(newer) != settled(config.round):
        return config
    return config.model_copy(update={"round": newer})


def run_one(config: LineageConfig, number: int, settings: Settings) -> Ran:
    """Run one round of a lineage, outside of the others."""
    store = Store(settings.store)
    parked = parked_round(store, config.lineage)
    if parked is not None and waits_elsewhere(parked):
        return Ran(0, parked)
    waiting = preference_round(config.round, config.lineage, number, config.filing)
    if waiting is not None:
        return Ran(0, note(store, _record(config, waiting, until=number + 1)))
    if parked is not None and parked.waiting.round == number:
        forget(store, config.lineage)
    return Ran(1)


def _numbers(config: LineageConfig, max_rounds: int | None, parked: ParkedRound | None, store: Store) -> range:
    """The rounds to run; a flow run that was suspended stops where it was to stop before."""
    first, mine = first_unfinished(store, config), deployed_run()
    last = config.rounds if max_rounds is None else min(config.rounds, first + max_rounds)
    if parked is not None and mine is not None and parked.flow_run == mine:
        last = parked.until
    return range(first, last)


def _park(ran: Ran, parked: ParkedRound, settings: Settings) -> Ran:
    announce(parked, settings)
    if (mine := deployed_run()) is not None:
        suspend(parked, mine)
    return _ended(ran, parked.waiting.said)


def _run_rounds(config: LineageConfig, numbers: range, settings: Settings) -> Ran:
    if not numbers:
        return Ran(0)
    store = Store(settings.store)
    with ray_session(settings):
        for number in numbers:
            parked = parked_round(store, config.lineage)
            _number_call(number, 0 if parked is None or parked.waiting.round != number else parked.times)
            waiting = preference_round(config.round, config.lineage, number, config.filing)
            if waiting is not None:
                return Ran(number - numbers.start, note(store, _record(config, waiting, until=numbers.stop)))
            forget(store, config.lineage)
    return Ran(len(numbers))


def _number_call(round_number: int, times_parked: int) -> None:
    """Give the next call of a round a number of its own in Prefect.

    Prefect numbers the flows that a flow calls. In a flow that was resumed or retried it takes a call for the one
    that had its number before: it goes on with one that was killed, and skips one that ended well, which a parked
    round has and an earlier round, too.
    """
    context = FlowRunContext.get()
    if context is not None:
        before = 1000 * times_parked + round_number - 1
        context.task_run_dynamic_keys[Task(preference_round.fn).task_key] = before


def _record(config: LineageConfig, waiting: Waiting, *, until: int) -> ParkedRound:
    labeller = config.round.labelling.labeller
    queue = isinstance(labeller, PeopleLabeller) and labeller.review_queue
    return ParkedRound(waiting=waiting, until=until, flow_run=deployed_run(), review_queue=queue)


def _ended(ran: Ran, message: str) -> Ran:
    """In a state that says so."""
    return cast(Ran, Completed(name=WAITING, message=message, data=ran))
