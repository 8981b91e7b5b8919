"""Recall: the responses of earlier rounds that a selection asks for again."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster.storage import StageKey
from tasks.stages import Publish, RoundContext, run_stage, stage_task
from tasks.tables import PREFERENCES, RESPONSES, PastRound, Table, latest, part_path, read, write_arrow

SHARD_SIZE = 64
"""Responses of one file: what a killed scoring of them repeats at most."""


@stage_task("recalled")
def recall_responses(past: Sequence[PastRound], here: RoundContext, *, labelled: bool, offer_rounds: int) -> Table:
    """Gather responses of earlier rounds into one table, oldest first; it has no file where there are none.

    Args:
        past: the earlier rounds, in order.
        here: the round.
        labelled: whether all responses that any of them labelled are wanted.
        offer_rounds: number of last rounds of which every response that can form a pair is wanted.
    """

    def work(folder: Path) -> dict[str, Any]:
        found = recalled(past, labelled=labelled, offer_rounds=offer_rounds)
        for shard, start in enumerate(range(0, found.num_rows, SHARD_SIZE)):
            write_arrow(part_path(folder, shard), found.slice(start, SHARD_SIZE), RESPONSES)
        return {}

    facts = {"labelled": labelled, "offer_rounds": offer_rounds, "shard_size": SHARD_SIZE}
    inputs = [table.digest for one in past for table in (one.pool, one.preferences)]
    return run_stage(StageKey("recalled", facts, inputs), work, here, publish=Publish("recalled"))


def recalled(past: Sequence[PastRound], *, labelled: bool, offer_rounds: int) -> pa.Table:
    """Rows of RESPONSES, each once."""
    wanted, found, taken = _labelled(past) if labelled else set(), [RESPONSES.empty_table()], set[str]()
    offered = latest(past, offer_rounds)
    for one in past:
        pool = read(one.pool.path, RESPONSES)
        names = pool.column("response_id").to_pylist()
        usable = one in offered
        keep = [
            name not in taken and (name in wanted or (usable and fault is None))
            for name, fault in zip(names, pool.column("fault").to_pylist(), strict=True)
        ]
        found.append(pool.filter(pa.array(keep, pa.bool_())))
        taken.update(found[-1].column("response_id").to_pylist())
    return pa.concat_tables(found)


def _labelled(past: Sequence[PastRound]) -> set[str]:
    tables = [read(one.preferences.path, PREFERENCES) for one in past]
    return {name for table in tables for side in ("chosen", "rejected") for name in table.column(side).to_pylist()}
