"""Before and around a round: what is checked first, and what is opened and closed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.engines import check_engine
from cluster.models import Contrast, base_policy
from cluster.preflight import await_answer, git_state, reachable
from cluster.session import ray_session
from cluster.settings import Settings
from cluster.storage import Store, digest_of
from cluster.tracking import Status, Tracker
from flows.config import RoundConfig
from flows.history import History, history, keep_config, settled
from flows.report import round_of
from tasks.logged import check_logged
from tasks.parking import Parked
from tasks.prompts import check_prompts, drawable
from tasks.proxies import check_proxy
from tasks.stages import RoundContext
from tasks.training import check_training

EXPERIMENT = "pairwright"


def check_round(config: RoundConfig, settings: Settings) -> None:
    """Look at all that a round needs, before anything expensive.

    Raises:
        InputError: prompts, logged responses, proxy, labeller, scheduler, model, engine or store can't serve it.
        InputError: MLflow or Prefect doesn't answer.
    """
    check_prompts(config.prompts)
    check_logged(config.pool.source, config.generation.num_responses, drawable(config.prompts))
    check_proxy(config.features.proxy)
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
def claim(config: RoundConfig, lineage: str, settings: Settings) -> Iterator[None]:
    """Hold the lineage for the block, with its config on record.

    Raises:
        InputError: the lineage is busy, or has run with another config.
    """
    store = Store(settings.store)
    with store.hold_lineage(lineage):
        keep_config(store, lineage, config)
        yield


@contextmanager
def open_round(
    config: RoundConfig, lineage: str, round_number: int, settings: Settings
) -> Iterator[tuple[RoundContext, History]]:
    """Hold the lineage, have Ray, and keep the round's MLflow run open for the block.

    A round that was parked in the block is scheduled in MLflow until it goes on.

    Raises:
        InputError: the lineage is busy, has run with another config, or lacks an earlier round.
        InputError: the policy can't have such features.
    """
    base = base_policy(config.model, settings.cache)
    start = Contrast(policy=base, reference=base, lora=config.training.lora)
    config.features.require_fit(start, config.seed, settings)
    with claim(config, lineage, settings):
        past = history(Store(settings.store), lineage, round_number, base)
        tracker = tracker_of(settings)
        run = _open_run(tracker, config, lineage, round_number)
        here = RoundContext(lineage, round_number, config.seed, settings, tracker, run)
        status: Status = "FAILED"
        try:
            with ray_session(settings):
                yield here, past
            status = "FINISHED"
            speed = round_of(here.store, lineage, round_number).speed
            tracker.log_metrics(run, {f"round/{name}": value for name, value in speed.items()}, step=round_number)
        except Parked:
            status = "SCHEDULED"
            raise
        finally:
            tracker.close(run, status)


def tracker_of(settings: Settings) -> Tracker:
    """The MLflow experiment of all lineages."""
    return Tracker(tracking_uri=settings.tracking, experiment=EXPERIMENT, artifact_root=settings.artifact_root)


def _open_run(tracker: Tracker, config: RoundConfig, lineage: str, round_number: int) -> str:
    selector = config.selection.selector.kind
    tags = {"pairwright.selector": selector, "pairwright.seed": str(config.seed), **git_state(Path.cwd())}
    parent = tracker.open_lineage(lineage, tags)
    run = tracker.open_round(parent, lineage, round_number=round_number, tags=tags)
    values = settled(config)
    tracker.log_params(run, dict(_flat(values)) | {"config_digest": digest_of(values)})
    return run


def _flat(values: dict[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)
