"""Shards: Ray Data spreads the slices of a job over actors, one call a shard."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import pyarrow as pa


class Report(Protocol):
    """Told of progress."""

    def __call__(self, done: int, total: int, tokens_per_second: float = 0.0) -> None:
        """Hear how many parts of the work are done, of how many, and how fast so far where that is known."""
        ...


Shard = dict[str, int]
Work = Callable[[Shard, Any, Any], dict[str, Any]]
"""Called with a shard, its job and an actor; writes the shard's file and gives a row of what that took."""

RELAY_CPUS = 0.1
"""Logical CPUs of the task that hands a shard to its actor and waits: actors must never hold them all."""


def over_shards(
    shards: Sequence[Shard], work: Work, *, job: Any, actors: Sequence[Any], report: Report
) -> list[dict[str, Any]]:
    """Have `work(shard, job, actor)` done for every shard, each actor on one at a time; gives the rows.

    `work` is a module-level function, so that it pickles by reference. Where its rows have `tokens`, they are counted.
    """
    started, tokens, done = time.perf_counter(), 0, []
    for row in each_shard(shards, work, job=job, actors=actors):
        done.append(row)
        tokens += row.get("tokens", 0)
        report(len(done), len(shards), tokens / (time.perf_counter() - started))
    return done


def each_shard(shards: Sequence[Shard], work: Work, *, job: Any, actors: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """Have `work` done as `over_shards` does, and give every shard's row as soon as it is there."""
    import ray

    rows = ray.data.from_items(list(shards), override_num_blocks=len(shards)).map_batches(
        _relay,
        fn_args=(work, job, actors),
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.TaskPoolStrategy(size=min(len(actors), len(shards))),
        num_cpus=RELAY_CPUS,
    )
    # With its usual prefetch of 1, Ray Data keeps back what is finished until the next shard is, too.
    for batch in rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from batch.to_pylist()


def _relay(batch: pa.Table, work: Work, job: Any, actors: Sequence[Any]) -> pa.Table:
    return pa.Table.from_pylist([work(shard, job, actors[shard["shard"] % len(actors)]) for shard in batch.to_pylist()])
