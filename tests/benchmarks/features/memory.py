"""MEMORY: 100,000 vectors of 4,096 numbers from shards to the arrays of a selector."""

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
from measuring import Finding, anonymous, peak

from tasks.candidates import Offer, Reading, candidates
from tasks.feature_tables import features_schema, read_features, write_features
from tasks.tables import ARROW, Table, part_path

PROMPTS, RESPONSES, DIM, SHARD = 25_000, 4, 4096, 1_000
SIZE = PROMPTS * RESPONSES * DIM * 4


def table_memory(_repeats: int) -> Iterator[Finding]:
    """Peak memory that no file stands behind, over the size of the vectors; pages of mapped files can be let go."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        target = Path(folder)
        with _watched() as most:
            for shard in range(PROMPTS * RESPONSES // SHARD):
                write_features(part_path(target, shard, ARROW), _rows(shard), {"space": {}})
        yield _finding("written in shards of 1,000", most())
        with _watched() as most:
            column = read_features(target).column("feature")
            assert len(column) == PROMPTS * RESPONSES
        yield _finding("mapped as one column", most())
        empty = Table(path=target / "none", rows=0, digest="none")
        offer = Offer(Table(path=target, rows=len(column), digest="all"), empty)
        with _watched() as most:
            pool, _ = candidates(offer, Reading(0.1, "current", 0))
            assert pool.features.shape == (PROMPTS, RESPONSES, DIM)
        yield _finding("read into the pool that selectors see", most())
        yield Finding(workload="with pages of mapped files, the whole process", ours=_gib(peak()), number=peak() / SIZE)


def _finding(what: str, most: int) -> Finding:
    workload = f"{PROMPTS * RESPONSES:,} x {DIM:,} float32 ({_gib(SIZE)}), {what}: memory over size"
    return Finding(workload=workload, ours=_gib(most), number=most / SIZE, high=1.3)


def _rows(shard: int) -> pa.Table:
    vectors = np.random.default_rng(shard).standard_normal((SHARD, DIM), dtype=np.float32)
    places = [shard * SHARD + row for row in range(SHARD)]
    columns = {
        "response_id": [f"r{place}" for place in places],
        "prompt_id": [f"p{place // RESPONSES}" for place in places],
        "valid": [True] * SHARD,
        "fault": [None] * SHARD,
        "num_tokens": [10] * SHARD,
        "logp_policy": [-1.0] * SHARD,
        "logp_reference": [-1.0] * SHARD,
        "feature": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), DIM),
        "proxy_score": [None] * SHARD,
    }
    return pa.table(columns, schema=features_schema(DIM))


@contextmanager
def _watched() -> Iterator[object]:
    """Watch this process; gives a function that tells the most it held above what it held before."""
    before, seen, done = anonymous(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            seen.append(anonymous() - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield lambda: max(seen)
    finally:
        seen.append(anonymous() - before)
        done.set()
        thread.join()


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
