"""Prompts: read them, keep some out for evaluation, draw each round's share without repeats."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, TypeAdapter, ValidationError

from cluster.errors import InputError
from cluster.storage import StageKey, digest_of
from tasks.stages import Publish, RoundContext, run_stage, stage_task
from tasks.tables import PROMPTS, Table, part_path, write_part


class PromptsConfig(BaseModel):
    """Where prompts come from and how many a round uses."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path = Field(description="JSONL or Parquet with a column `prompt`: a string or a list of chat messages")
    num_prompts: PositiveInt = Field(description="prompts that get a pool in each round")
    num_held_out: PositiveInt = Field(description="prompts that only evaluation sees, the same in every round")
    held_out_share: float = Field(0.2, gt=0, lt=1, description="share of all prompts from which those are taken")


class ChatMessage(BaseModel):
    """One turn of a conversation."""

    role: str
    content: str


Prompt = str | list[ChatMessage]
_PROMPT: TypeAdapter[Prompt] = TypeAdapter(Prompt)


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """Rows of PROMPTS in the order of their ids, which are hashes of their content; repeats are dropped.

    Raises:
        InputError: no such file, an empty or unreadable one, a line that is not JSON, or a row without `prompt`.
    """
    if not path.is_file():
        raise InputError(f"prompts file {path} does not exist: check prompts.path")
    rows = {}
    for place, row in _rows(path):
        messages = _messages(row, f"{path}, {place}")
        rows[digest_of(messages)[:32]] = messages
    if not rows:
        raise InputError(f"prompts file {path} is empty: it needs a row with a column 'prompt' for each prompt")
    return [{"prompt_id": prompt_id, "messages": rows[prompt_id]} for prompt_id in sorted(rows)]


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    if path.suffix == ".parquet":
        yield from ((f"row {number}", row) for number, row in enumerate(_parquet(path).to_pylist(), start=1))
        return
    for number, line in enumerate(_text(path).split("\n"), start=1):  # a JSON string may hold other line separators
        if not line.strip():
            continue
        try:
            yield f"line {number}", json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {number} is not JSON: {error.msg} at column {error.colno}") from error


def _parquet(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise InputError(
            f"prompts file {path} is not Parquet ({error}): write it anew, or call JSONL *.jsonl"
        ) from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"prompts file {path} is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8, one JSON "
            "object a line"
        ) from error


def _messages(row: Any, where: str) -> list[dict[str, str | None]]:
    if not isinstance(row, dict) or row.get("prompt") is None:
        found = sorted(row) if isinstance(row, dict) else type(row).__name__
        raise InputError(f"{where} has no 'prompt' (found {found}): expected a string or a list of chat messages")
    try:
        prompt = _PROMPT.validate_python(row["prompt"])
    except ValidationError as error:
        raise InputError(f"{where}: 'prompt' is neither a string nor a list of {{role, content}} messages") from error
    if not prompt:
        found = "empty text" if isinstance(prompt, str) else "an empty conversation"
        raise InputError(f"{where}: 'prompt' is {found}: expected at least one word or message")
    if isinstance(prompt, str):
        return [{"role": None, "content": prompt}]
    return [{"role": message.role, "content": message.content} for message in prompt]


def split(rows: Sequence[dict[str, Any]], held_out_share: float) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows for rounds and rows held out; decided for each row by its id alone, so that new rows move no old one."""
    limit = int(held_out_share * 16**8)
    held_out = [row for row in rows if int(row["prompt_id"][:8], 16) < limit]
    return [row for row in rows if int(row["prompt_id"][:8], 16) >= limit], held_out


def draw(num_rows: int, num_prompts: int, round_number: int, seed: int) -> list[int]:
    """Indices of the prompts of a round; none comes again before all others came.

    Each pass over the prompts has an order of its own. Where a round spans two passes, those it already has wait for a
    later place in the second.
    """
    rng = np.random.default_rng(seed)
    waiting: list[int] = []
    drawn: list[int] = []
    for _ in range(round_number + 1):
        drawn, waiting = waiting[:num_prompts], waiting[num_prompts:]
        if len(drawn) < num_prompts:
            fresh = [int(i) for i in rng.permutation(num_rows)]
            held = set(drawn)
            fresh = [i for i in fresh if i not in held] + [i for i in fresh if i in held]
            lacking = num_prompts - len(drawn)
            drawn, waiting = drawn + fresh[:lacking], fresh[lacking:]
    return drawn


def check_prompts(config: PromptsConfig) -> None:
    """See that the file serves the config.

    Raises:
        InputError: the file is unreadable, or has fewer prompts than a round or the evaluation needs.
    """
    drawn, held_out = split(read_prompts(config.path), config.held_out_share)
    for found, needed, name, remedy in (
        (len(drawn), config.num_prompts, "num_prompts", "lower it, or lower prompts.held_out_share"),
        (len(held_out), config.num_held_out, "num_held_out", "lower it, or raise prompts.held_out_share"),
    ):
        if found < needed:
            raise InputError(f"prompts.{name} is {needed}, but {config.path} leaves {found}: {remedy}, or add prompts")


@stage_task("draw prompts")
def draw_prompts(config: PromptsConfig, here: RoundContext) -> Table:
    """Write the prompts that get a pool in this round."""
    rows, _ = split(read_prompts(config.path), config.held_out_share)
    chosen = [rows[i] for i in draw(len(rows), config.num_prompts, here.round, here.seed)]
    return _keep("prompts", chosen, here)


@stage_task("hold out prompts")
def hold_out_prompts(config: PromptsConfig, here: RoundContext) -> Table:
    """Write the prompts on which every round of every lineage is evaluated."""
    _, rows = split(read_prompts(config.path), config.held_out_share)
    return _keep("held_out", rows[: config.num_held_out], here)


def _keep(stage: str, rows: list[dict[str, Any]], here: RoundContext) -> Table:
    def work(folder: Path) -> dict[str, Any]:
        write_part(part_path(folder, 0), rows, PROMPTS)
        return {}

    key = StageKey("prompts", {}, [row["prompt_id"] for row in rows])
    return run_stage(key, work, here, publish=Publish(stage))
