"""Resident actors on a real local Ray: kept, restarted, ended; and who may shut Ray down."""

import os
import signal
import sys
import sysconfig
import threading
import time
import venv
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray

from cluster.actors import MAX_RESTARTS, Residence, release, resident
from cluster.session import ray_session
from cluster.settings import Settings

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")

ON_CPU = Residence(count=2, num_cpus=0.2, num_gpus=0)
ON_GPU = Residence(count=2, num_cpus=0.2, num_gpus=0.5)
SECONDS = 60


def clerk() -> type:
    """A small actor; a class inside a function travels to Ray's workers by value."""

    class Clerk:
        def __init__(self, log: Path) -> None:
            self._log = log

        def pid(self) -> int:
            return os.getpid()

        def interpreter(self) -> str:
            return sys.executable

        def work(self, log: Path) -> int:
            """Note the process; the first call lasts until its process is killed."""
            with log.open("a") as notes:
                notes.write(f"{os.getpid()}\n")
            if len(log.read_text().splitlines()) == 1:
                time.sleep(SECONDS)
            return os.getpid()

        def die(self, log: Path) -> None:
            with log.open("a") as notes:
                notes.write(f"{os.getpid()}\n")
            os._exit(1)

        def close(self) -> None:
            with self._log.open("a") as notes:
                notes.write(f"closed {os.getpid()}\n")

    return Clerk


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """A Ray that the tests started themselves; its GPU is a number to Ray's scheduler, no more."""
    ray.init(num_cpus=2, num_gpus=1, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False)
    try:
        yield
    finally:
        release()
        ray.shutdown()


@pytest.fixture
def closed(tmp_path: Path, local_ray: None) -> Iterator[Path]:
    """Where the actors of a test note that they were closed; nothing is kept for the next test."""
    yield tmp_path / "closed"
    release()


def pids(handles: list[Any]) -> list[int]:
    found: list[int] = ray.get([handle.pid.remote() for handle in handles], timeout=SECONDS)
    return found


def until(seen: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not seen():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_a_session_shuts_down_the_ray_that_it_started(tmp_path: Path) -> None:
    assert not ray.is_initialized()
    with ray_session(Settings()):
        assert ray.is_initialized()
        with resident(clerk(), (tmp_path / "closed",), ON_CPU) as handles:
            first = pids(handles)
    assert not ray.is_initialized()
    until(lambda: not any(alive(pid) for pid in first))


def test_a_session_leaves_alone_the_ray_that_it_found(closed: Path) -> None:
    with ray_session(Settings()), resident(clerk(), (closed,), ON_CPU) as handles:
        first = pids(handles)
    assert ray.is_initialized()
    assert all(alive(pid) for pid in first)


def test_actors_without_a_gpu_serve_the_next_stage_too(closed: Path) -> None:
    actor = clerk()
    with resident(actor, (closed,), ON_CPU) as handles:
        first = pids(handles)
    assert len(set(first)) == 2
    with resident(actor, (closed,), ON_CPU) as handles:
        assert pids(handles) == first
    assert not closed.exists()


def test_threads_take_turns_with_the_same_actors(closed: Path) -> None:
    actor, inside = clerk(), threading.Semaphore(1)

    def stage() -> list[int]:
        with resident(actor, (closed,), ON_CPU) as handles:
            assert inside.acquire(blocking=False), "another thread has them"
            found = pids(handles)
            time.sleep(0.2)
            inside.release()
            return found

    with ThreadPoolExecutor(3) as threads:
        first, *others = [stage.result() for stage in [threads.submit(stage) for _ in range(3)]]
    assert others == [first, first]


def test_other_arguments_are_other_actors(closed: Path) -> None:
    actor = clerk()
    with resident(actor, (closed,), ON_CPU) as handles:
        first = pids(handles)
    with resident(actor, (closed.with_name("elsewhere"),), ON_CPU) as handles:
        assert set(pids(handles)).isdisjoint(first)


def test_actors_with_a_gpu_are_closed_and_ended_with_their_stage(closed: Path) -> None:
    actor = clerk()
    with resident(actor, (closed,), ON_GPU) as handles:
        first = pids(handles)
    assert sorted(closed.read_text().splitlines()) == sorted(f"closed {pid}" for pid in first)
    until(lambda: not any(alive(pid) for pid in first))
    with resident(actor, (closed,), ON_GPU) as handles:
        assert set(pids(handles)).isdisjoint(first), "the GPU was free for new ones"


def test_a_killed_actor_is_started_again(closed: Path) -> None:
    with resident(clerk(), (closed,), ON_CPU) as handles:
        first = pids(handles)
        os.kill(first[0], signal.SIGKILL)
        until(lambda: not alive(first[0]))
        second = pids(handles)
    assert second[0] != first[0]
    assert second[1] == first[1]


def test_the_call_of_a_killed_actor_is_repeated(closed: Path, tmp_path: Path) -> None:
    log = tmp_path / "calls"
    with resident(clerk(), (closed,), ON_CPU) as handles:
        call = handles[0].work.remote(log)
        until(lambda: log.exists() and log.read_text().endswith("\n"))
        os.kill(int(log.read_text()), signal.SIGKILL)
        answer = ray.get(call, timeout=SECONDS)
    killed, repeated = (int(line) for line in log.read_text().splitlines())
    assert killed != repeated == answer


def test_actors_that_keep_dying_are_given_up_and_not_offered_again(closed: Path, tmp_path: Path) -> None:
    actor, log = clerk(), tmp_path / "calls"

    def die(residence: Residence) -> None:
        log.unlink(missing_ok=True)
        with resident(actor, (closed,), residence) as handles:
            ray.get(handles[0].die.remote(log), timeout=SECONDS)

    for residence in (ON_CPU, ON_GPU):
        with pytest.raises(ray.exceptions.RayActorError):
            die(residence)
        assert len(set(log.read_text().splitlines())) == 1 + MAX_RESTARTS
        with resident(actor, (closed,), residence) as handles:
            assert len(set(pids(handles))) == 2


def test_a_dead_actor_does_not_hide_what_went_wrong(closed: Path) -> None:
    def fail() -> None:
        with resident(clerk(), (closed,), ON_GPU) as handles:
            first = pids(handles)
            ray.kill(handles[0])
            until(lambda: not alive(first[0]))
            raise ValueError("what went wrong")

    with pytest.raises(ValueError, match="what went wrong"):
        fail()
    assert len(closed.read_text().splitlines()) == 1, "the living one was closed all the same"


def test_actors_run_under_the_interpreter_that_their_residence_names(closed: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "other", with_pip=False)
    [folder] = (tmp_path / "other").glob("lib/python*/site-packages")
    packages = sysconfig.get_path("purelib")
    (folder / "shared.pth").write_text(f"import site; site.addsitedir({packages!r})\n", encoding="utf-8")
    python = tmp_path / "other" / "bin" / "python"

    there = Residence(count=1, num_cpus=0.2, num_gpus=0, runtime_env={"py_executable": str(python)})
    here = Residence(count=1, num_cpus=0.2, num_gpus=0)
    found = []
    for residence in (there, here):
        with resident(clerk(), (closed,), residence) as [handle]:
            found.append(ray.get(handle.interpreter.remote(), timeout=SECONDS))
    assert found == [str(python), sys.executable]
