"""Files of prompts: JSONL or Parquet, one prompt a row and, in some, what else is known of it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, TypeAdapter, ValidationError

from cluster.errors import InputError
from cluster.storage import digest_of

Messages = list[dict[str, str | None]]


class ChatMessage(BaseModel):
    """One turn of a conversation."""

    role: str
    content: str


Prompt = str | list[ChatMessage]
_PROMPT: TypeAdapter[Prompt] = TypeAdapter(Prompt)


@dataclass(frozen=True)
class PromptRow:
    """One row of a file.

    Attributes:
        where: the file and the row's place in it, for messages.
        messages: its prompt; one message without a role where that is plain text.
        columns: all that the row holds.
    """

    where: str
    messages: Messages
    columns: dict[str, Any]

    @property
    def prompt_id(self) -> str:
        """A hash of the prompt's content."""
        return digest_of(self.messages)[:32]


def read_rows(path: Path, *, name: str = "prompts", setting: str = "prompts.path") -> list[PromptRow]:
    """The rows of a file in its order; `name` is what messages call it and `setting` where its path was given.

    Raises:
        InputError: no such file, an empty or unreadable one, a line that is not JSON, or a row without `prompt`.
    """
    if not path.is_file():
        raise InputError(f"{name} file {path} does not exist: check {setting}")
    rows = [PromptRow(where, _messages(row, where), row) for where, row in _rows(path, name)]
    if not rows:
        raise InputError(f"{name} file {path} is empty: it needs a row with a column 'prompt' for each prompt")
    return rows


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """Rows of PROMPTS in the order of their ids, which are hashes of their content; repeats are dropped.

    Raises:
        InputError: see `read_rows`.
    """
    rows = {row.prompt_id: row.messages for row in read_rows(path)}
    return [{"prompt_id": prompt_id, "messages": rows[prompt_id]} for prompt_id in sorted(rows)]


def _rows(path: Path, name: str) -> Iterator[tuple[str, Any]]:
    if path.suffix == ".parquet":
        rows = _parquet(path, name).to_pylist()
        yield from ((f"{path}, row {number}", row) for number, row in enumerate(rows, start=1))
        return
    lines = _text(path, name).split("\n")  # a JSON string may hold other line separators
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield f"{path}, line {number}", json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {number} is not JSON: {error.msg} at column {error.colno}") from error


def _parquet(path: Path, name: str) -> pa.Table:
    try:
        return pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise InputError(
            f"{name} file {path} is not Parquet ({error}): write it anew, or call JSONL *.jsonl"
        ) from error


def _text(path: Path, name: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name} file {path} is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8, one JSON "
            "object a line"
        ) from error


def _messages(row: Any, where: str) -> Messages:
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
