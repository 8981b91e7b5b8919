"""Shards on a real local Ray: every one is done once, and each is handed over as soon as it is done."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.actors import Residence, resident
from cluster.session import ray_session
from cluster.settings import Settings
from cluster.shards import Shard, Work, each_shard, over_shards

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")

ACTORS = Residence(count=2, num_cpus=0.1, num_gpus=0)
SECONDS = 30


def clerk() -> type:
    """A small actor; a class inside a function travels to Ray's workers by value."""

    class Clerk:
        def double(self, number: int) -> int:
            return 2 * number

        def close(self) -> None:
            pass

    return Clerk


def doubling() -> Work:
    def double(shard: Shard, job: int, actor: Any) -> dict[str, Any]:
        import ray

        return {"shard": shard["shard"], "doubled": [ray.get(actor.double.remote(job + shard["shard"]))], "tokens": 3}

    return double


def waiting() -> Work:
    """All shards but the first wait until they may."""

    def wait(shard: Shard, job: Path, actor: Any) -> dict[str, Any]:
        deadline = time.monotonic() + SECONDS
        while shard["shard"] and not job.exists():
            if time.monotonic() > deadline:
                raise TimeoutError("the first shard was not handed over while the others waited")
            time.sleep(0.05)
        return {"shard": shard["shard"]}

    return wait


@pytest.fixture(scope="module")
def actors() -> Iterator[list[Any]]:
    with ray_session(Settings()), resident(clerk(), (), ACTORS) as handles:
        yield handles


def test_every_shard_is_done_once_and_told(actors: list[Any]) -> None:
    shards, seen = [{"shard": number} for number in range(5)], []
    rows = over_shards(
        shards,
        doubling(),
        job=10,
        actors=actors,
        report=lambda done, total, speed: seen.append((done, total, speed > 0)),
    )
    assert sorted((row["shard"], row["doubled"]) for row in rows) == [(n, [20 + 2 * n]) for n in range(5)]
    assert seen == [(done, 5, True) for done in range(1, 6)]


def test_a_shard_is_handed_over_while_others_are_worked_on(actors: list[Any], tmp_path: Path) -> None:
    shards, go = [{"shard": number} for number in range(3)], tmp_path / "go"
    rows = each_shard(shards, waiting(), job=go, actors=actors)
    assert next(rows) == {"shard": 0}
    go.touch()
    assert sorted(row["shard"] for row in rows) == [1, 2]
