"""Contracts between stages: the Arrow schemas, and the only ways to write and read a stage's Parquet.

Features have a module of their own, `feature_tables`.
"""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from cluster.errors import InputError
from cluster.storage import atomic_path, digest_of

PARQUET, ARROW = ".parquet", ".arrow"
"""Endings of the tables of a stage; features alone are Arrow files, to be mapped into memory."""

MESSAGES = pa.list_(pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string(), nullable=False)]))


def required(name: str, kind: pa.DataType) -> pa.Field:
    """A column without nulls."""
    return pa.field(name, kind, nullable=False)


PROMPTS = pa.schema([required("prompt_id", pa.string()), required("messages", MESSAGES)])
"""One row a prompt; a message without a role is plain text that the policy continues."""

RESPONSES = pa.schema(
    [
        required("response_id", pa.string()),
        required("prompt_id", pa.string()),
        required("messages", MESSAGES),
        required("index", pa.int32()),
        required("text", pa.string()),
        required("token_ids", pa.list_(pa.int32())),
        required("logprob", pa.float64()),
        required("finish_reason", pa.string()),
        pa.field("fault", pa.string()),
        required("sampling", pa.string()),
        required("policy", pa.string()),
        required("engine", pa.string()),
    ]
)
"""One row a response. `logprob`: summed over its tokens under the sampler (after temperature and truncation), nats; NaN
where the response was logged and nobody knows its sampler.
`fault`: "empty" or "duplicate" (of an earlier response to the prompt) where it can't form a pair, else null."""

PAIRS = pa.schema(
    [
        required("pair_id", pa.string()),
        required("order", pa.int32()),
        required("prompt_id", pa.string()),
        required("response_a", pa.string()),
        required("response_b", pa.string()),
        required("staleness", pa.int32()),
        pa.field("weight", pa.float64()),
        pa.field("inclusion_probability", pa.float64()),
        pa.field("loss_weight", pa.float64()),
        pa.field("score", pa.float64()),
    ]
)
"""One row a selected pair, in order of choice; nulls where the selector defines no such number. `staleness`: rounds
since the pool of the pair was written, 0 for this round's. `loss_weight`: of its label in training, of mean 1 over the
round's, null for 1."""

PREFERENCES = pa.schema(
    [
        required("pair_id", pa.string()),
        required("prompt_id", pa.string()),
        required("messages", MESSAGES),
        required("chosen", pa.string()),
        required("rejected", pa.string()),
        required("chosen_text", pa.string()),
        required("rejected_text", pa.string()),
        required("chosen_token_ids", pa.list_(pa.int32())),
        required("rejected_token_ids", pa.list_(pa.int32())),
        required("outcome", pa.string()),
        required("swapped", pa.bool_()),
        pa.field("probability", pa.float64()),
        required("votes_chosen", pa.int32()),
        required("votes_rejected", pa.int32()),
        required("num_answers", pa.int32()),
        required("labeller", pa.string()),
        pa.field("weight", pa.float64()),
    ]
)
"""One row a pair that was asked, in the order asked unless its `outcome` is "preferred": the others are "tie",
"abstained" and "unanswered", where chosen and rejected are names alone. `swapped`: the first answer saw response b
first. `probability`: P(chosen over rejected), the labeller's own or made of several answers. `votes_*`: answers for
either; `num_answers`: those that were given, ties and abstentions too. `weight`: the selection's, of its loss in
training; null for 1."""

PREFERRED, TIE, UNANSWERED = "preferred", "tie", "unanswered"
"""Outcomes that others need to tell apart."""

LESSONS = pa.schema(
    [
        required("pair_id", pa.string()),
        required("prompt_id", pa.string()),
        required("messages", MESSAGES),
        required("chosen", pa.string()),
        required("rejected", pa.string()),
        required("chosen_token_ids", pa.list_(pa.int32())),
        required("rejected_token_ids", pa.list_(pa.int32())),
        pa.field("chosen_reference_logp", pa.float64()),
        pa.field("rejected_reference_logp", pa.float64()),
        pa.field("probability", pa.float64()),
        pa.field("chosen_reward", pa.float64()),
        pa.field("rejected_reward", pa.float64()),
        pa.field("explored_token_ids", pa.list_(pa.int32())),
        pa.field("explored_reference_logp", pa.float64()),
        pa.field("weight_selection", pa.float64()),
        pa.field("weight_utility", pa.float64()),
        pa.field("weight_confidence", pa.float64()),
        required("weight", pa.float64()),
    ]
)
"""One row a pair that is trained on. `*_reference_logp`: of the response's tokens under the reference, nats; null where
no features hold it. `*_reward`: scores of the round's proxy. `explored_*`: a response of the reference's own to the
prompt, for exploration, null for none. `weight_*`: factors of `weight`, null for one that the
config doesn't ask for."""

SCORES = pa.schema(
    [
        required("prompt_id", pa.string()),
        required("reward", pa.float64()),
        required("reward_base", pa.float64()),
        required("reward_previous", pa.float64()),
        required("win_base", pa.float64()),
        required("win_previous", pa.float64()),
        required("kl", pa.float64()),
        required("num_tokens", pa.float64()),
        required("num_tokens_base", pa.float64()),
        pa.field("judge", pa.float64()),
        pa.field("judge_base", pa.float64()),
    ]
)
"""One row a held-out prompt, means over its responses. `win_*`: share of wins, ties count half. `kl`: nats. `judge*`:
the second opinion's rewards, null where the config names none."""


PROXY_SCORE = "proxy_score"
"""The column whose numbers are finite wherever it stands, in a table with one row a response."""

JUDGED = pa.schema([required("response_id", pa.string()), required(PROXY_SCORE, pa.float32())])
"""One row a response: what a reward model makes of it."""


class Table(BaseModel):
    """A finished stage's Parquet: what passes between tasks in place of data."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path
    rows: int
    digest: str


class PastRound(BaseModel):
    """What an earlier round of the lineage left for later ones.

    Attributes:
        pool: its responses.
        features: their scores under the policy and the reference of that round.
        recalled_features: scores, under the same two, of the responses that it recalled from rounds before it.
        preferences: its labels, of pairs of those responses.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pool: Table
    features: Table
    recalled_features: Table
    preferences: Table

    @property
    def digests(self) -> list[str]:
        """The digests of all four."""
        return [table.digest for table in (self.pool, self.features, self.recalled_features, self.preferences)]


def latest(past: Sequence[PastRound], num_rounds: int) -> Sequence[PastRound]:
    """The last so many rounds, oldest first; all of them where there are fewer."""
    return past[max(0, len(past) - num_rounds) :]


def schema_digest(schema: pa.Schema) -> str:
    """SHA-256 of the columns, their types and nullability."""
    kinds = [str(field.type).replace("<element: ", "<item: ") for field in schema]  # Parquet's name and Arrow's
    return digest_of([[field.name, kind, field.nullable] for field, kind in zip(schema, kinds, strict=True)])


def check(table: pa.Table, schema: pa.Schema, where: str) -> pa.Table:
    """The table itself, if it keeps the contract.

    Raises:
        InputError: with every missing, mistyped and superfluous column and every null that may not be.
        InputError: a proxy score is NaN or infinite.
    """
    faults = [f"column {name!r} is missing" for name in schema.names if name not in table.column_names]
    faults += [f"column {name!r} is not in the schema" for name in table.column_names if name not in schema.names]
    for field in schema:
        if field.name in table.column_names:
            column = table.column(field.name)
            if column.type != field.type:
                faults.append(f"column {field.name!r} is {column.type}, expected {field.type}")
            elif not field.nullable and column.null_count:
                faults.append(f"column {field.name!r} has {column.null_count} nulls, expected none")
    if faults:
        raise InputError(
            f"{where} does not keep its contract: {'; '.join(faults)}. "
            "Was it written by another version? Remove it and let its stage run again"
        )
    if PROXY_SCORE in schema.names:
        _require_finite_scores(table, where)
    return table


def _require_finite_scores(table: pa.Table, where: str) -> None:
    odd = table.filter(pc.invert(pc.is_finite(table.column(PROXY_SCORE)).fill_null(fill_value=True)))
    if odd.num_rows:
        first = {name: odd.column(name)[0].as_py() for name in ("response_id", PROXY_SCORE)}
        raise InputError(
            f"{where}: the proxy score of response {first['response_id']!r} is {first[PROXY_SCORE]}, and of "
            f"{odd.num_rows} of {table.num_rows} responses it is not finite: mend the proxy, "
            "or name another in features.proxy"
        )


def decided(preferences: pa.Table) -> pa.Table:
    """The rows in which one response was preferred."""
    return preferences.filter(pc.equal(preferences.column("outcome"), PREFERRED))


def write_part(path: Path, rows: Sequence[dict[str, object]], schema: pa.Schema) -> None:
    """Write rows as one Parquet file, atomically.

    Raises:
        InputError: the rows don't keep the schema.
    """
    write_arrow(path, pa.Table.from_pylist(list(rows), schema=schema), schema)


def write_arrow(path: Path, table: pa.Table, schema: pa.Schema) -> None:
    """Write an Arrow table as one Parquet file, atomically.

    Raises:
        InputError: the table doesn't keep the schema.
    """
    check(table, schema, str(path))
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)


def inspect(folder: Path) -> tuple[int, str | None]:
    """Rows of a stage folder and the digest of its schema (None where it has no table), without reading data."""
    files = [_headed(path) for path in parts(folder)]
    return sum(rows for rows, _ in files), schema_digest(files[0][1]) if files else None


def _headed(path: Path) -> tuple[int, pa.Schema]:
    if path.suffix == ARROW:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        return table.num_rows, table.schema
    file = pq.ParquetFile(path)
    return file.metadata.num_rows, file.schema_arrow


def parts(folder: Path) -> list[Path]:
    """The tables of a stage folder in order."""
    return sorted(path for path in folder.glob("part-*") if path.suffix in {PARQUET, ARROW})


def part_path(folder: Path, shard: int, suffix: str = PARQUET) -> Path:
    """Where shard number `shard` of a stage lies."""
    return folder / f"part-{shard:05d}{suffix}"


def read(folder: Path, schema: pa.Schema) -> pa.Table:
    """All rows of a stage folder.

    Raises:
        InputError: a file doesn't keep the schema.
    """
    tables = [check(pq.read_table(path), schema, str(path)) for path in parts(folder)]
    return pa.concat_tables(tables) if tables else schema.empty_table()
