"""Tables of features: mapped into memory as they lie on disk, and never mixed with those of another kind."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import feather

from cluster.errors import InputError
from tasks.feature_tables import (
    ROWS,
    VECTOR,
    concat_features,
    dim_of,
    facts_of,
    features_schema,
    read_features,
    vectors_of,
    write_features,
)
from tasks.tables import ARROW, inspect, part_path, parts, schema_digest

DIM = 3
ROW: dict[str, Any] = {
    "response_id": "a",
    "prompt_id": "p",
    "valid": False,
    "fault": "too_long",
    "num_tokens": 0,
    "logp_policy": None,
    "logp_reference": -2.5,
    "feature": [0.5, -1.0, 0.0],
    "proxy_score": None,
}
SKETCH = {"kind": "lora_gradient", "projection": {"dim": DIM, "seed": 0}}


def write(folder: Path, rows: list[dict[str, Any]], shard: int = 0, **facts: Any) -> Path:
    path = part_path(folder, shard, ARROW)
    write_features(path, pa.Table.from_pylist(rows, schema=features_schema(len(rows[0]["feature"]))), facts)
    return path


def table_of(vectors: np.ndarray) -> pa.Table:
    rows = [ROW | {"feature": vector.tolist()} for vector in vectors]
    return pa.Table.from_pylist(rows, schema=features_schema(vectors.shape[1]))


def test_rows_survive_their_file_with_what_is_said_of_them(tmp_path: Path) -> None:
    for shard in range(2):
        write(tmp_path, [ROW] * (shard + 1), shard, space=SKETCH, attention="sdpa")
    found = read_features(tmp_path)
    assert found.to_pylist() == [ROW] * 3
    assert found.schema.equals(features_schema(DIM))
    assert facts_of(found.schema) == {"space": SKETCH, "attention": "sdpa"}
    assert inspect(tmp_path) == (3, schema_digest(features_schema(DIM)))
    assert [path.name for path in parts(tmp_path)] == ["part-00000.arrow", "part-00001.arrow"]


@pytest.mark.parametrize("dim", [1, 3, 64])
def test_features_are_read_whatever_their_dimension(dim: int, tmp_path: Path) -> None:
    write(tmp_path, [ROW | {"feature": [0.5] * dim}])
    assert dim_of(read_features(tmp_path).schema) == dim


def test_a_stage_that_had_no_response_reads_as_no_row(tmp_path: Path) -> None:
    assert read_features(tmp_path).num_rows == 0
    assert read_features(tmp_path).schema.names == features_schema(1).names


@pytest.mark.parametrize("column", features_schema(3).names)
def test_a_file_that_lacks_a_column_is_refused_with_its_path(column: str, tmp_path: Path) -> None:
    table = pa.Table.from_pylist([ROW], schema=features_schema(DIM)).drop_columns(column)
    feather.write_feather(table, str(part_path(tmp_path, 0, ARROW)), compression="uncompressed")
    with pytest.raises(InputError, match=rf"part-00000\.arrow .*column '{column}' is missing"):
        read_features(tmp_path)


def test_vectors_of_no_fixed_length_are_refused(tmp_path: Path) -> None:
    schema = features_schema(DIM)
    loose = schema.set(schema.get_field_index(VECTOR), pa.field(VECTOR, pa.list_(pa.float32()), nullable=False))
    table = pa.Table.from_pylist([ROW], schema=loose)
    feather.write_feather(table, str(part_path(tmp_path, 0, ARROW)), compression="uncompressed")
    with pytest.raises(InputError, match=r"column 'feature' is list<.*expected fixed_size_list"):
        read_features(tmp_path)


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_a_proxy_score_that_is_not_finite_leaves_no_file(score: float, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the proxy score of response 'a' is"):
        write(tmp_path, [ROW | {"proxy_score": score}])
    assert list(tmp_path.iterdir()) == []


def test_vectors_are_views_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, [ROW | {"feature": [1.0] * 64}] * 1000)
    before = pa.total_allocated_bytes()
    (block,) = vectors_of(read_features(tmp_path))
    assert pa.total_allocated_bytes() - before < 64 * 1000 * 4 / 10 < path.stat().st_size
    assert not block.flags.owndata
    assert block.shape == (1000, 64)


def test_blocks_hold_the_rows_asked_for_across_files_and_batches() -> None:
    rng = np.random.default_rng(0)
    whole = rng.standard_normal((2 * ROWS + 10, 2)).astype(np.float32)
    table = pa.concat_tables([table_of(whole[:5]), table_of(whole[5:])])
    blocks = list(vectors_of(table))
    assert max(len(block) for block in blocks) == ROWS
    assert np.array_equal(np.concatenate(blocks), whole)
    rows = np.sort(rng.choice(len(whole), 500, replace=False))
    assert np.array_equal(np.concatenate(list(vectors_of(table, rows))), whole[rows])


def test_vectors_of_another_seed_are_not_mixed_with_todays(tmp_path: Path) -> None:
    other = {**SKETCH, "projection": {"dim": DIM, "seed": 1}}
    files = [write(tmp_path, [ROW], shard, space=space) for shard, space in enumerate((SKETCH, other))]
    written = [path.read_bytes() for path in files]
    fault = (
        r"vectors of different kinds can't be compared: found projection \{'dim': 3, 'seed': 0\} and "
        r"\{'dim': 3, 'seed': 1\}. Score those responses again"
    )
    with pytest.raises(InputError, match=fault):
        read_features(tmp_path)
    assert [path.read_bytes() for path in files] == written


def test_tables_of_one_kind_go_together_whatever_else_is_said_of_them() -> None:
    tables = [table_of(np.ones((2, DIM), dtype=np.float32)) for _ in range(2)]
    spoken = [
        table.replace_schema_metadata({b"pairwright": b'{"space": {}, "batch_size": %d}' % n})
        for n, table in enumerate(tables)
    ]
    assert concat_features(spoken, "here").num_rows == 4
