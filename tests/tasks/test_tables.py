"""Tables: every schema survives Parquet, and what breaks a contract is refused with all its faults."""

import math
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import InputError
from tasks.feature_tables import features_schema
from tasks.tables import (
    JUDGED,
    LESSONS,
    PAIRS,
    PREFERENCES,
    PROMPTS,
    RESPONSES,
    SCORES,
    check,
    inspect,
    part_path,
    parts,
    read,
    schema_digest,
    write_arrow,
    write_part,
)

CHAT = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "naïve\n☃"}]
PLAIN = [{"role": None, "content": ""}]
NUMBERS = {"weight": 0.5, "inclusion_probability": None, "loss_weight": 0.0, "score": 1e-300}
SCORED = dict.fromkeys(SCORES.names[1:], 0.25)

ROWS: dict[str, tuple[pa.Schema, dict[str, Any]]] = {
    "prompts": (PROMPTS, {"prompt_id": "p", "messages": CHAT}),
    "plain prompts": (PROMPTS, {"prompt_id": "p", "messages": PLAIN}),
    "responses": (
        RESPONSES,
        {
            "response_id": "a",
            "prompt_id": "p",
            "messages": CHAT,
            "index": 3,
            "text": "",
            "token_ids": [],
            "logprob": -12.5,
            "finish_reason": "length",
            "fault": "empty",
            "sampling": "{}",
            "policy": "base",
            "engine": "vllm",
        },
    ),
    "pairs": (
        PAIRS,
        {
            "pair_id": "ab",
            "order": 0,
            "prompt_id": "p",
            "response_a": "a",
            "response_b": "b",
            "staleness": 2,
            **NUMBERS,
        },
    ),
    "preferences": (
        PREFERENCES,
        {
            "pair_id": "ab",
            "prompt_id": "p",
            "messages": CHAT,
            "chosen": "a",
            "rejected": "b",
            "chosen_text": "A",
            "rejected_text": "B",
            "chosen_token_ids": [1, 2],
            "rejected_token_ids": [],
            "outcome": "preferred",
            "swapped": True,
            "probability": None,
            "votes_chosen": 1,
            "votes_rejected": 0,
            "num_answers": 1,
            "labeller": "{}",
            "weight": None,
        },
    ),
    "lessons": (
        LESSONS,
        {
            "pair_id": "ab",
            "prompt_id": "p",
            "messages": CHAT,
            "chosen": "a",
            "rejected": "b",
            "chosen_token_ids": [1, 2],
            "rejected_token_ids": [3],
            "chosen_reference_logp": -1.5,
            "rejected_reference_logp": None,
            "probability": 0.75,
            "chosen_reward": 1.0,
            "rejected_reward": None,
            "explored_token_ids": None,
            "explored_reference_logp": None,
            "weight_selection": 2.0,
            "weight_utility": None,
            "weight_confidence": 0.5,
            "weight": 1.0,
        },
    ),
    "judged": (JUDGED, {"response_id": "a", "proxy_score": -0.5}),
    "scores": (SCORES, {"prompt_id": "p", **SCORED}),
}
RESPONSE = ROWS["responses"][1]


@pytest.mark.parametrize("name", ROWS)
def test_rows_survive_parquet(name: str, tmp_path: Path) -> None:
    schema, row = ROWS[name]
    for shard in range(2):
        write_part(part_path(tmp_path, shard), [row] * (shard + 1), schema)
    found = read(tmp_path, schema)
    assert found.to_pylist() == [row] * 3
    assert found.schema.equals(schema)
    assert inspect(tmp_path) == (3, schema_digest(schema))


def test_parts_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for shard in (10, 2, 0):
        write_part(part_path(tmp_path, shard), [RESPONSE | {"index": shard}], RESPONSES)
    assert read(tmp_path, RESPONSES).column("index").to_pylist() == [0, 2, 10]


def test_a_folder_without_parquet_has_no_rows_and_no_schema(tmp_path: Path) -> None:
    assert inspect(tmp_path) == (0, None)
    assert read(tmp_path, PAIRS).num_rows == 0


def test_all_faults_of_a_table_are_listed_at_once() -> None:
    schema = pa.schema(
        [
            pa.field("a", pa.int32(), nullable=False),
            pa.field("b", pa.string(), nullable=False),
            pa.field("c", pa.bool_()),
        ]
    )
    table = pa.table({"a": pa.array([1, 2], pa.int64()), "b": ["x", None], "d": [1, 2]})
    with pytest.raises(InputError) as fault:
        check(table, schema, "/some/file")
    for part in (
        "/some/file does not keep its contract",
        "column 'a' is int64, expected int32",
        "column 'b' has 1 nulls, expected none",
        "column 'c' is missing",
        "column 'd' is not in the schema",
        "Remove it and let its stage run again",
    ):
        assert part in str(fault.value)


def test_a_null_is_fine_where_the_schema_allows_it() -> None:
    schema, row = ROWS["pairs"]
    table = pa.Table.from_pylist([row | dict.fromkeys(NUMBERS)], schema=schema)
    assert check(table, schema, "here") is table


@pytest.mark.parametrize("column", RESPONSES.names)
def test_a_response_file_of_another_version_is_refused_with_its_path(column: str, tmp_path: Path) -> None:
    write_part(part_path(tmp_path, 0), [RESPONSE], RESPONSES)
    table = pa.Table.from_pylist([RESPONSE], schema=RESPONSES).drop_columns(column)
    pq.write_table(table, part_path(tmp_path, 1))
    where = re.escape(str(part_path(tmp_path, 1)))
    with pytest.raises(InputError, match=rf"{where} does not keep its contract: column '{column}' is missing"):
        read(tmp_path, RESPONSES)


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_proxy_score_that_is_not_finite_is_refused_with_its_response(score: float, tmp_path: Path) -> None:
    schema, row = ROWS["judged"]
    rows = [row | {"proxy_score": 0.5}, row | {"response_id": "odd", "proxy_score": score}]
    fault = f"the proxy score of response 'odd' is {score}, and of 1 of 2 responses it is not finite: mend the proxy"
    with pytest.raises(InputError, match=fault):
        write_part(part_path(tmp_path, 0), rows, schema)
    assert list(tmp_path.iterdir()) == []
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), part_path(tmp_path, 0))
    with pytest.raises(InputError, match=rf"part-00000\.parquet: {fault}"):
        read(tmp_path, schema)


def test_the_digest_of_a_schema_tells_dimensions_and_nullability_apart() -> None:
    schemas = [schema for schema, _ in ROWS.values()] + [features_schema(dim) for dim in (3, 4)]
    loose = pa.schema([pa.field("prompt_id", pa.string()), PROMPTS.field("messages")])
    assert len({schema_digest(schema) for schema in [*schemas, loose]}) == len(ROWS) + 2


def test_rows_that_lack_a_required_value_leave_no_file(tmp_path: Path) -> None:
    broken = {name: value for name, value in RESPONSE.items() if name != "text"}
    with pytest.raises(InputError, match="column 'text' has 1 nulls, expected none"):
        write_part(part_path(tmp_path, 0), [RESPONSE, broken], RESPONSES)
    assert list(tmp_path.iterdir()) == []


def test_a_refused_table_leaves_the_file_that_was_there(tmp_path: Path) -> None:
    path = part_path(tmp_path, 0)
    write_part(path, [RESPONSE], RESPONSES)
    before = path.read_bytes()
    table = pa.Table.from_pylist([RESPONSE], schema=RESPONSES).drop_columns("text")
    with pytest.raises(InputError, match="column 'text' is missing"):
        write_arrow(path, table, RESPONSES)
    assert path.read_bytes() == before
    assert parts(tmp_path) == [path]
    assert len(list(tmp_path.iterdir())) == 1
