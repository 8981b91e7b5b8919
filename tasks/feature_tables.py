"""The contract of features: Arrow files that are mapped into memory, for their vectors are all that is large."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cluster.errors import InputError
from cluster.storage import atomic_path
from tasks.tables import PROXY_SCORE, check, parts, required

FACTS = b"pairwright"
"""Key of what a file of features says of how they were made."""

VECTOR = "feature"
"""The column of vectors."""

ROWS = 4096
"""Vectors that are read at a time."""


def features_schema(dim: int) -> pa.Schema:
    """FEATURES for vectors of `dim` numbers: one row a response; log-probabilities summed over its tokens, nats.

    `valid`: whether it can form a pair. `fault`: why it has no score, "too_long" for the model or "not_finite"; such a
    response is not valid, has no log-probabilities and a vector of zeros. `proxy_score`: what a stand-in for the
    labeller makes of it; null where the config names none.
    """
    return pa.schema(
        [
            required("response_id", pa.string()),
            required("prompt_id", pa.string()),
            required("valid", pa.bool_()),
            pa.field("fault", pa.string()),
            required("num_tokens", pa.int32()),
            pa.field("logp_policy", pa.float64()),
            pa.field("logp_reference", pa.float64()),
            required(VECTOR, pa.list_(pa.float32(), dim)),
            pa.field(PROXY_SCORE, pa.float64()),
        ]
    )


def write_features(path: Path, table: pa.Table, facts: Mapping[str, Any]) -> None:
    """Write a table of FEATURES as one file of Arrow's IPC format, atomically.

    Vectors of random numbers don't compress; as they lie in memory they are read without a copy. `facts`, JSON-able,
    say how they were made and go with the file.

    Raises:
        InputError: the table doesn't keep its schema.
    """
    check(table, features_schema(dim_of(table.schema)), str(path))
    told = table.replace_schema_metadata({FACTS: json.dumps(facts, sort_keys=True)})
    with atomic_path(path) as temporary, pa.ipc.new_file(temporary, told.schema) as file:
        file.write_table(told)


def dim_of(schema: pa.Schema) -> int:
    """Numbers of a feature vector; 1 where there are none, whose fault a check then tells."""
    kind = schema.field(VECTOR).type if VECTOR in schema.names else pa.null()
    return int(kind.list_size) if pa.types.is_fixed_size_list(kind) else 1


def facts_of(schema: pa.Schema) -> dict[str, Any]:
    """What a file of features says of how they were made; nothing where a table was put together by hand."""
    found: dict[str, Any] = json.loads((schema.metadata or {}).get(FACTS, b"{}"))
    return found


def read_features(folder: Path) -> pa.Table:
    """All rows of a feature stage, mapped into memory, whatever the dimension of its vectors; 1 where it has no row.

    Raises:
        InputError: a file doesn't keep the schema, or two were made in different ways.
    """
    tables = [pa.ipc.open_file(pa.memory_map(str(path))).read_all() for path in parts(folder)]
    if not tables:
        return features_schema(1).empty_table()
    schema = features_schema(dim_of(tables[0].schema))
    for path, table in zip(parts(folder), tables, strict=True):
        check(table, schema, str(path))
    return concat_features(tables, str(folder))


def concat_features(tables: Sequence[pa.Table], where: str) -> pa.Table:
    """The rows of tables whose vectors can be compared, without copying them; what was said of the first is kept.

    Raises:
        InputError: their vectors were made in different ways.
    """
    spaces: list[dict[str, Any]] = [facts_of(table.schema).get("space", {}) for table in tables]
    if odd := [space for space in spaces if space != spaces[0]]:
        keys = dict.fromkeys([*spaces[0], *odd[0]])
        pairs = [(key, spaces[0].get(key), odd[0].get(key)) for key in keys]
        changes = [f"{key} {one!r} and {other!r}" for key, one, other in pairs if one != other]
        raise InputError(
            f"{where}: vectors of different kinds can't be compared: found {'; '.join(changes)}. "
            "Score those responses again under one `features`, or begin a lineage of another name"
        )
    metadata = tables[0].schema.metadata
    return pa.concat_tables([table.replace_schema_metadata(metadata) for table in tables])


def vectors_of(table: pa.Table, rows: NDArray[np.intp] | None = None) -> Iterator[NDArray[np.float32]]:
    """The vectors of a table, or of these rows of it in ascending order, at most `ROWS` at a time, (rows, dim).

    Without `rows` they are views of what is mapped into memory.
    """
    start = 0
    for batch in table.select([VECTOR]).to_batches(max_chunksize=ROWS):
        vectors = batch.column(0).flatten().to_numpy().reshape(len(batch), -1)
        if rows is not None:
            first, last = np.searchsorted(rows, [start, start + len(batch)])
            vectors = vectors[rows[first:last] - start]
        start += len(batch)
        yield vectors
