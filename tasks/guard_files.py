"""Files of guards: text and multiple choice that nobody of a lineage wrote, and that its training never sees."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from cluster.errors import InputError
from tasks.prompt_files import Messages, Prompt

GIVEN = "given"
"""What stands for policy, engine and finish reason of a response that such a file gives."""

_PROMPT: TypeAdapter[Prompt] = TypeAdapter(Prompt)
_MOST_FAULTS = 20


@dataclass(frozen=True)
class Given:
    """A prompt and what a file gives as responses to it.

    Attributes:
        where: the file and the line, for messages.
        messages: the prompt; one message without a role where it is plain text.
        responses: one text, or the choices of a question.
        answer: index of the right choice; None of a text.
    """

    where: str
    messages: Messages
    responses: tuple[str, ...]
    answer: int | None = None


class TextFile(BaseModel):
    """Held-out text: JSONL with `prompt`, as in `prompts.path`, and `response`, a string."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path = Field(description="JSONL, a text a line")

    def read(self) -> list[Given]:
        """The texts of the file in its order.

        Raises:
            InputError: no such file, one without rows, or rows that don't fit; all of them are named.
        """
        rows = _rows(self.path, _text_faults, setting="evaluation.text.path")
        return [Given(where, _messages(row), (row["response"],)) for where, row in rows]


class CapabilityFile(BaseModel):
    """Multiple choice: JSONL with `prompt`, as in `prompts.path`, `choices`, strings, and `answer`, the right index."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path = Field(description="JSONL, a question a line")

    def read(self) -> list[Given]:
        """The questions of the file in its order.

        Raises:
            InputError: no such file, one without rows, or rows that don't fit; all of them are named.
        """
        rows = _rows(self.path, _question_faults, setting="evaluation.capability.path")
        return [Given(where, _messages(row), tuple(row["choices"]), row["answer"]) for where, row in rows]


def refuse(path: Path, faults: list[str], *, expected: str) -> None:
    """Tell of a file's faults, if there are any.

    Raises:
        InputError: there are.
    """
    if faults:
        more = [f"and {len(faults) - _MOST_FAULTS} more"] if len(faults) > _MOST_FAULTS else []
        raise InputError(f"{path} does not fit: {'; '.join([*faults[:_MOST_FAULTS], *more])}. {expected}")


def _rows(path: Path, faults_of: Callable[[Any], Iterator[str]], *, setting: str) -> list[tuple[str, dict[str, Any]]]:
    """The rows of a file that fit, all of them, with their places."""
    rows: list[tuple[str, dict[str, Any]]] = []
    faults: list[str] = []
    for number, line in enumerate(_text(path, setting).split("\n"), start=1):  # JSON strings may hold other separators
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            faults.append(f"line {number} is not JSON: {error.msg} at column {error.colno}")
            continue
        faults += [f"line {number}: {fault}" for fault in faults_of(row)]
        rows.append((f"{path}, line {number}", row))
    refuse(path, faults, expected=f"Mend those lines, or name another file in {setting}")
    if not rows:
        raise InputError(f"{path} has no rows: it needs one JSON object a line, or take {setting} out of the config")
    return rows


def _text(path: Path, setting: str) -> str:
    if not path.is_file():
        raise InputError(f"file {path} does not exist: check {setting}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8") from error


def _messages(row: dict[str, Any]) -> Messages:
    prompt = _PROMPT.validate_python(row["prompt"])
    if isinstance(prompt, str):
        return [{"role": None, "content": prompt}]
    return [{"role": message.role, "content": message.content} for message in prompt]


def _text_faults(row: Any) -> Iterator[str]:
    yield from _lacking(row, ("prompt", "response"))
    if isinstance(row, dict) and "response" in row and not _is_text(row["response"]):
        yield f"'response' is {row['response']!r}: expected a text that is not blank"


def _question_faults(row: Any) -> Iterator[str]:
    yield from _lacking(row, ("prompt", "choices", "answer"))
    if not isinstance(row, dict) or not {"choices", "answer"} <= row.keys():
        return
    choices, answer = row["choices"], row["answer"]
    if not isinstance(choices, list) or not all(map(_is_text, choices)):
        yield f"'choices' is {choices!r}: expected a list of texts that are not blank"
    elif len(set(choices)) < max(2, len(choices)):
        yield f"'choices' is {choices!r}: expected 2 or more that differ"
    elif not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        yield f"'answer' is {answer!r}: expected the index of a choice, 0 to {len(choices) - 1}"


def _lacking(row: Any, keys: tuple[str, ...]) -> Iterator[str]:
    """What both kinds of rows need."""
    if not isinstance(row, dict):
        yield f"found {type(row).__name__}, expected an object with {', '.join(keys)}"
        return
    yield from (f"no {key!r} (found {', '.join(sorted(row)) or 'no key'})" for key in keys if key not in row)
    if "prompt" in row:
        try:
            prompt = _PROMPT.validate_python(row["prompt"])
        except ValidationError:
            yield "'prompt' is neither a string nor a list of {role, content} messages"
        else:
            if not prompt:
                yield "'prompt' is empty: expected at least one word or message"


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())
