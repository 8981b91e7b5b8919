"""What a benchmark is, what it finds, and how time and memory are read."""

import gc
import importlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

SLOW = 5.0  # seconds after which a side is not timed again


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One number and the target it has to meet.

    Attributes:
        workload: what was done.
        ours: what this repository reached.
        peer: what the other side reached.
        number: what the target speaks of, mostly the peer's time over ours; None: not had.
        low: least number that is good enough.
        high: largest number that is good enough.
    """

    workload: str
    ours: str = ""
    peer: str = ""
    number: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def target(self) -> str:
        """The target in words."""
        words = [f">= {self.low:g}"] if self.low is not None else []
        return " and ".join(words + ([f"<= {self.high:g}"] if self.high is not None else []))

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None: it was not measured."""
        if self.number is None:
            return None
        return (self.low is None or self.number >= self.low) and (self.high is None or self.number <= self.high)


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Measurements that belong together.

    Attributes:
        name: what the command line calls it.
        title: what it measures.
        parts: each runs in a fresh process and is told how often to repeat.
        threads: threads of the linear algebra; None: as many as there are cores.
        needs_gpu: whether it is left out on a machine without one.
    """

    name: str
    title: str
    parts: tuple[Callable[[int], Iterator[Finding]], ...]
    threads: int | None = 1
    needs_gpu: bool = False


class MissingPeerError(Exception):
    """The other side is not installed."""


@dataclass(frozen=True)
class Timed:
    """How long a side took in the middle and at least, and what it gave."""

    seconds: float
    value: Any
    least: float

    def __str__(self) -> str:
        return f"{self.seconds:.3g} s"


def peer(name: str) -> ModuleType:
    """The module of another implementation.

    Raises:
        MissingPeerError: it can't be imported.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingPeerError(f"{name} can't be imported: {error}") from error


def take_turns(
    *sides: Callable[[], Any], repeats: int, clock: Callable[[], float] = time.process_time, slow: float = SLOW
) -> tuple[Timed, ...]:
    """Times and last value of every side; the sides take turns, one that takes longer than `slow` seconds runs once."""
    seconds: list[list[float]] = [[] for _ in sides]
    values: list[Any] = [None] * len(sides)
    for _ in range(repeats):
        for number, side in enumerate(sides):
            if not seconds[number] or seconds[number][-1] < slow:
                values[number] = None
                gc.collect()
                begun = clock()
                values[number] = side()
                seconds[number].append(clock() - begun)
    return tuple(
        Timed(statistics.median(times), value, min(times)) for times, value in zip(seconds, values, strict=True)
    )


def resident() -> int:
    """Bytes of memory that this process holds now."""
    return _status("VmRSS")


def peak() -> int:
    """Most bytes of memory that this process has held so far."""
    return _status("VmHWM")


def anonymous() -> int:
    """Bytes of memory that this process holds now and that no file stands behind."""
    return _status("RssAnon")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"this system doesn't tell {field} of a process")
