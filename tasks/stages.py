"""How every stage runs: look in the store, else work, check the contract, seal with a manifest, tell MLflow."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.context import TaskRunContext
from prefect.states import Completed

from cluster.settings import Settings
from cluster.storage import MANIFEST, Manifest, StageFolder, StageKey, Store, digest_of, write_json
from cluster.tracking import TAG_LIMIT, Tracker
from tasks.parking import Parked, Waiting
from tasks.tables import Table, inspect, parts

ADAPTER = "adapter"
"""Name of the folder that holds a policy's adapter, in its stage and in MLflow."""

CHAINED = ("drawn", "pool", "recalled", "selection", "preferences", "training")
"""Stages along which an adapter comes from labels and these from a pool; the first is of some rounds alone."""
DIGEST_LENGTH = 64
"""Characters of a SHA-256, by which digests of stages and policies are told from other inputs."""

P = ParamSpec("P")
R = TypeVar("R")
Measures = Mapping[str, Any]
Work = Callable[[Path], Measures]


class StageTask(Task[P, R]):
    """A Prefect task that gives its caller the result where the run ended in a state of the task's own making."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:  # type: ignore[override]
        """Run the task.

        Raises:
            Parked: it waits for people; its run ended in a state named `Waiting`.
        """
        result = super().__call__(*args, **kwargs)
        given = result.result() if isinstance(result, State) else result
        if isinstance(given, Waiting):
            raise Parked(given)
        return cast(R, given)


def stage_task(title: str, *, retry_delays: Sequence[float] = ()) -> Callable[[Callable[P, R]], StageTask[P, R]]:
    """Make a function with a parameter `here` a task, named in Prefect after lineage, round and `title`.

    Whether it is done is for the store to say, so Prefect caches nothing. Where the cause of a failure can lie outside
    of us it is tried again, after each of `retry_delays` seconds. One that is parked ends in a state named `Waiting`.
    """

    def decorate(function: Callable[P, R]) -> StageTask[P, R]:
        @wraps(function)
        def work(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return function(*args, **kwargs)
            except Parked as parked:
                if TaskRunContext.get() is None:
                    raise
                return cast(R, parked.waiting.state)

        return StageTask(
            work,
            task_run_name=f"{{here.label}} {title}",
            cache_policy=NO_CACHE,
            retries=len(retry_delays),
            retry_delay_seconds=list(retry_delays) or None,
        )

    return decorate


@dataclass(frozen=True)
class RoundContext:
    """The round that a stage works for: its place in the lineage, its seed, and where things are kept."""

    lineage: str
    round: int
    seed: int
    settings: Settings
    tracker: Tracker
    run: str

    @property
    def label(self) -> str:
        """Lineage and round as they show in Prefect."""
        return f"{self.lineage}-r{self.round:03d}"

    @property
    def store(self) -> Store:
        """The store that every stage shares."""
        return Store(self.settings.store)

    def seed_of(self, *parts: str) -> int:
        """A 31-bit seed decided by the lineage's seed, the round and the given words."""
        return int(digest_of([self.seed, self.round, *parts])[:8], 16) % 2**31


@dataclass(frozen=True)
class Publish:
    """The name a stage has within its round, and whether MLflow gets its Parquet beside its digest and measures."""

    name: str
    parquet: bool = False


def run_stage(key: StageKey, work: Work, here: RoundContext, *, publish: Publish) -> Table:
    """Give the stage's table, from the store if it is finished there.

    `work` fills the folder it is given and returns the stage's measures. Numbers among them become metrics.
    Inside a Prefect task a stage that was found finished ends in a state named `Reused`.
    """
    folder = here.store.stage(key)
    manifest, reused = _finished(folder, work)
    _record(here, folder, manifest, publish, reused=reused)
    table = Table(path=folder.path, rows=manifest.rows, digest=manifest.digest)
    if reused and TaskRunContext.get() is not None:
        return cast(Table, Completed(name="Reused", message="found finished in the store", data=table))
    return table


def _finished(folder: StageFolder, work: Work) -> tuple[Manifest, bool]:
    if (manifest := folder.manifest) is not None:
        return manifest, True
    with folder.work() as started:
        if (manifest := folder.manifest) is not None:
            return manifest, True
        measures = work(folder.path)
        rows, schema = inspect(folder.path)
        return folder.finish(started, rows=rows, schema_digest=schema, measures=measures), False


def _record(here: RoundContext, folder: StageFolder, manifest: Manifest, publish: Publish, *, reused: bool) -> None:
    """Note the stage in the lineage's record and in MLflow; doing it twice changes nothing."""
    name, tracker = publish.name, here.tracker
    entry = {"path": str(folder.path), "rows": manifest.rows, "digest": manifest.digest, "reused": reused}
    write_json(round_record(here.store, here.lineage, here.round) / f"{name}.json", entry)
    tracker.set_tags(here.run, {f"digest.{name}": manifest.digest} | _inputs_tag(name, manifest))
    text = (folder.path / MANIFEST).read_text(encoding="utf-8")
    tracker.log_text(here.run, text, artifact_file=manifest_artifact(name))
    numbers = {"seconds": manifest.seconds, "rows": manifest.rows, **manifest.measures}
    metrics = {f"{name}/{key}": float(value) for key, value in numbers.items() if isinstance(value, int | float)}
    tracker.log_metrics(here.run, metrics, step=here.round)
    tracker.log_dataset(here.run, name, digest=manifest.digest, source=str(folder.path), context=name)
    for part in parts(folder.path) if publish.parquet else []:
        tracker.log_file(here.run, part, artifact_path=name)


def _inputs_tag(name: str, manifest: Manifest) -> dict[str, str]:
    """What a stage of the chain was made from, stages and base policy, to search runs by; none where it is too much.

    Other stages would bury a run's page in tags; MLflow has the manifest of each of them, with all that decided it.
    """
    digests = ",".join(dict.fromkeys(given for given in manifest.inputs if len(given) == DIGEST_LENGTH))
    return {f"inputs.{name}": digests} if name in CHAINED and 0 < len(digests) <= TAG_LIMIT else {}


def manifest_artifact(name: str) -> str:
    """Where a round's run in MLflow has the manifest of a stage."""
    return f"manifests/{name}.json"


def round_record(store: Store, lineage: str, round_number: int) -> Path:
    """Folder in which a lineage notes the stages of one round."""
    return store.lineage(lineage) / f"round-{round_number:03d}"


def manifest_of(table: Table) -> Manifest:
    """The manifest of a finished stage."""
    return Manifest.model_validate_json((table.path / MANIFEST).read_text(encoding="utf-8"))
