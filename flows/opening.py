"""Before and around a round: what is checked first, and what is opened and closed."""

from collections.abc import Iterator
from contextlib import contextmanager

from cluster.engines import check_engine
from cluster.models import Contrast, base_policy
from cluster.preflight import await_answer, reachable
from cluster.session import ray_session
from cluster.settings import Settings
from cluster.storage import Store
from cluster.tracking import Status, Tracker
from flows.config import RoundConfig
from flows.filing import EXPERIMENT, Filing, filing_of, keep_filing
from flows.history import History, history, keep_config
from flows.logbook import log_standing, open_runs
from flows.notes import write_notes
from flows.report import round_of
from tasks.logged import check_logged
from tasks.parking import Parked
from tasks.prompts import check_prompts, drawable
from tasks.proxies import check_proxy
from tasks.stages import RoundContext
from tasks.training import check_training


def check_round(config: RoundConfig, settings: Settings) -> None:
    """Look at all that a round needs, before anything expensive.

    Raises:
        InputError: prompts, logged responses, proxy, guards, labeller, scheduler, model, engine or store can't
            serve it.
        InputError: MLflow or Prefect doesn't answer.
    """
    check_prompts(config.prompts)
    check_logged(config.pool.source, config.generation.num_responses, drawable(config.prompts))
    check_proxy(config.features.proxy)
    config.evaluation.read_given()
    check_proxy(config.evaluation.judge, "evaluation.judge")
    config.labelling.labeller.check()
    check_training(config.training, settings.train.num_workers)
    check_engine(settings.engine)
    Store(settings.store).check_writable()
    reachable(settings.tracking, timeout=settings.connect_timeout)
    check_prefect(settings)
    config.model.resolve(settings.cache)


def check_prefect(settings: Settings) -> None:
    """Ask the Prefect server, where one is named.

    Raises:
        InputError: it doesn't answer.
    """
    if settings.prefect is not None:
        await_answer("Prefect", settings.prefect, timeout=settings.connect_timeout)


@contextmanager
def claim(config: RoundConfig, lineage: str, settings: Settings, filing: Filing | None = None) -> Iterator[None]:
    """Hold the lineage for the block, with its config on record; without `filing` that on record holds.

    Raises:
        InputError: the lineage is busy, or has run with another config or in another MLflow experiment.
    """
    store = Store(settings.store)
    with store.hold_lineage(lineage):
        keep_config(store, lineage, config)
        if filing is not None:
            keep_filing(store, lineage, filing)
        yield


@contextmanager
def open_round(
    config: RoundConfig, lineage: str, round_number: int, settings: Settings, *, filing: Filing | None = None
) -> Iterator[tuple[RoundContext, History]]:
    """Hold the lineage, have Ray, and keep the runs of lineage and round open in MLflow for the block.

    A round that was parked in the block is scheduled in MLflow until it goes on.

    Raises:
        InputError: the lineage is busy, has run with another config or in another MLflow experiment, or lacks an
            earlier round.
        InputError: the policy can't have such features.
    """
    base = base_policy(config.model, settings.cache)
    start = Contrast(policy=base, reference=base, lora=config.training.lora)
    config.features.require_fit(start, config.seed, settings)
    with claim(config, lineage, settings, filing):
        store = Store(settings.store)
        past, filed = history(store, lineage, round_number, base), filing_of(store, lineage)
        tracker = tracker_of(settings, filed.experiment)
        parent, run = open_runs(tracker, config, lineage=lineage, round_number=round_number, filing=filed)
        write_notes(tracker, lineage, round_number)
        here = RoundContext(lineage, round_number, config.seed, settings, tracker, run)
        status: Status = "FAILED"
        try:
            with ray_session(settings):
                yield here, past
            status = "FINISHED"
            speed = round_of(store, lineage, round_number).speed
            tracker.log_metrics(run, {f"round/{name}": value for name, value in speed.items()}, step=round_number)
            log_standing(tracker, parent, lineage, settings)
            write_notes(tracker, lineage, round_number)
        except Parked:
            status = "SCHEDULED"
            raise
        finally:
            tracker.close(run, status)
            tracker.close(parent, status)


def tracker_of(settings: Settings, experiment: str = EXPERIMENT) -> Tracker:
    """An MLflow experiment of lineages."""
    return Tracker(tracking_uri=settings.tracking, experiment=experiment, artifact_root=settings.artifact_root)


def tracker_of_lineage(settings: Settings, lineage: str) -> Tracker:
    """The MLflow experiment that holds a lineage's runs, by its record.

    Raises:
        InputError: the record is damaged, or of another release.
    """
    return tracker_of(settings, filing_of(Store(settings.store), lineage).experiment)
