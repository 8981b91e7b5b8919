"""Progress of a long stage: a bar in the terminal and an artifact in Prefect."""

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import TaskRunContext
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cluster.shards import Report


@contextmanager
def progress(description: str) -> Iterator[Report]:
    """Give a function to call with (done, in all)."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    artifact = _artifact(description)
    with Progress(*columns, console=Console(stderr=True)) as bars:
        bar = bars.add_task(description, total=None)

        def report(done: int, total: int) -> None:
            bars.update(bar, completed=done, total=total)
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
