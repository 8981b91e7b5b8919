"""Resident actors: what is dear to start (an engine, a model) is started once and serves a whole run."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from cluster.storage import digest_of

MAX_RESTARTS = 2
CLOSE_SECONDS = 10

_kept: dict[str, list[Any]] = {}
"""Handles of the actors that outlive a stage: Ray ends an actor with its last handle."""

_in_use: dict[str, threading.RLock] = {}
"""A lock for each set of actors: a thread that wants those of another waits, in place of starting more of them."""


@dataclass(frozen=True)
class Residence:
    """How many actors of a class are kept, and what each takes."""

    count: int
    num_cpus: float
    num_gpus: float
    runtime_env: dict[str, Any] = field(default_factory=dict)

    @property
    def keep(self) -> bool:
        """Whether they outlive a stage: on CPUs, where nothing waits for them; GPUs are freed for the next stage."""
        return self.num_gpus == 0


@contextmanager
def resident(actor: type, arguments: Sequence[Any], residence: Residence) -> Iterator[list[Any]]:
    """Give handles of the actors made with these arguments, started if they don't run yet.

    An actor whose process dies is started again and its calls are repeated, `MAX_RESTARTS` times at most.
    They end with the process that started them at the latest, and where the block ends in an error.
    """
    name = f"{actor.__name__}-{digest_of(repr((arguments, residence)))[:12]}"
    with _in_use.setdefault(name, threading.RLock()):
        handles, keep = _kept.pop(name, None) or _start(actor, arguments, residence), False
        try:
            yield handles
            keep = residence.keep
        finally:
            if keep:
                _kept[name] = handles
            else:
                _end(handles)


def release() -> None:
    """Let go of all actors; has to happen before Ray is left."""
    _kept.clear()


def _start(actor: type, arguments: Sequence[Any], residence: Residence) -> list[Any]:
    import ray

    remote = ray.remote(
        num_cpus=residence.num_cpus,
        num_gpus=residence.num_gpus,
        runtime_env=residence.runtime_env,
        max_restarts=MAX_RESTARTS,
        max_task_retries=MAX_RESTARTS,
    )(actor)
    return [remote.remote(*arguments) for _ in range(residence.count)]


def _end(handles: Sequence[Any]) -> None:
    """Close and kill the actors; one that is dead, or deaf for too long, is no reason to spare the others."""
    import ray

    ray.wait([handle.close.remote() for handle in handles], num_returns=len(handles), timeout=CLOSE_SECONDS)
    for handle in handles:
        ray.kill(handle)
