"""Progress of a long stage: a bar in the terminal and an artifact in Prefect, or what it says of itself."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect import get_run_logger
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import TaskRunContext
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cluster.shards import Report

if TYPE_CHECKING:
    import ray

NOTE_SECONDS = 0.2
"""Least time between two lines that a worker writes down."""

RunLogger = logging.Logger | logging.LoggerAdapter[logging.Logger]


@contextmanager
def progress(description: str) -> Iterator[Report]:
    """Give a function to call with (done, in all, tokens per second)."""
    speed = TextColumn("{task.fields[speed]}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), speed)
    artifact = _artifact(description)
    with Progress(*columns, console=Console(stderr=True)) as bars:
        bar = bars.add_task(description, total=None, speed="")

        def report(done: int, total: int, tokens_per_second: float = 0.0) -> None:
            speed = f"{tokens_per_second:.0f} tokens/s" if tokens_per_second else ""
            bars.update(bar, completed=done, total=total, speed=speed)
            if artifact is not None:
                update_progress_artifact(artifact, progress=100 * done / total)

        yield report


def _artifact(description: str) -> UUID | None:
    """A progress artifact of the running task; none outside of Prefect."""
    if TaskRunContext.get() is None:
        return None
    key = "".join(letter if letter.isalnum() else "-" for letter in description.lower())
    artifact = create_progress_artifact(progress=0.0, key=key, description=description)
    return artifact if isinstance(artifact, UUID) else None


def run_logger() -> RunLogger:
    """The logger of the running task, seen in the terminal and in Prefect; one of our own outside of Prefect."""
    return logging.getLogger(__name__) if TaskRunContext.get() is None else get_run_logger()


@contextmanager
def noting(name: str, note: Path) -> Iterator[None]:
    """Keep in the file `note` the last line that loggers at and below `name` say within the block.

    For work in another process; `followed` reads the file where the stage runs.
    """
    logger, handler = logging.getLogger(name), _Note(note)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


def followed(answer: "ray.ObjectRef[Any]", note: Path, *, every: float = 1.0) -> Any:
    """What a Ray task returns; until then each new line of its note, looked at every so many seconds, is logged."""
    import ray

    logger, said = run_logger(), ""
    done: list[Any] = []
    while not done:
        done, _ = ray.wait([answer], timeout=every)
        line = note.read_text(encoding="utf-8") if note.exists() else ""
        if line != said:
            logger.info(line)
            said = line
    return ray.get(answer)


class _Note(logging.Handler):
    """Writes a line over the one before; a line that can't be written is not worth the work's end."""

    def __init__(self, path: Path) -> None:
        super().__init__(logging.INFO)
        self._path = path
        self._written = -NOTE_SECONDS

    def emit(self, record: logging.LogRecord) -> None:
        now = time.monotonic()
        if now - self._written < NOTE_SECONDS:
            return
        self._written = now
        whole = self._path.with_suffix(".tmp")
        with suppress(OSError):
            whole.write_text(self.format(record), encoding="utf-8")
            whole.replace(self._path)
