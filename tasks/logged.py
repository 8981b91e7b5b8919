"""Logged responses: those that a file holds, as a round's pool or beside what the policy writes.

Which of the two serves better depends on where the reward's peak lies (Tajwar et al., arXiv:2404.14367).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from cluster.engines import Sampled
from cluster.errors import InputError
from cluster.models import Policy
from cluster.rendering import is_chat, plain_text
from cluster.storage import StageKey
from tasks.prompt_files import PromptRow, read_rows
from tasks.sampling import faults, response_row
from tasks.stages import Publish, RoundContext, run_stage, stage_task
from tasks.tables import PROMPTS, RESPONSES, Table, part_path, read, write_part
from tasks.tokeniser import Tokeniser

LOGGED = "logged"
"""What stands for policy, engine and finish reason of a response whose sampler nobody knows."""


@dataclass(frozen=True, kw_only=True)
class OnPolicy:
    """The policy writes all responses."""

    kind: Literal["on_policy"] = "on_policy"

    def num_logged(self, num_responses: int) -> int:  # noqa: ARG002 - whatever their number
        """How many of a prompt's responses are taken from a file: none."""
        return 0


@dataclass(frozen=True, kw_only=True)
class Logged:
    """All responses come from a file: JSONL or Parquet with `prompt`, as in `prompts.path`, and `responses`, strings.

    Of each prompt the first `generation.num_responses` are taken, whole: `generation.max_tokens` cuts none.
    """

    kind: Literal["logged"] = "logged"
    path: Path

    def num_logged(self, num_responses: int) -> int:
        """How many of a prompt's responses are taken from the file: all."""
        return num_responses


@dataclass(frozen=True, kw_only=True)
class Mixed:
    """The share `ratio` of each prompt's responses comes from a file as `Logged` reads it, the policy writes the rest.

    Of K responses ratio * K are logged, rounded to the nearest whole number (halves up), at least 1 and at most K - 1.
    """

    kind: Literal["mixed"] = "mixed"
    path: Path
    ratio: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise InputError(
                f"ratio is {self.ratio}: expected a share between 0 and 1; kind on_policy has no logged responses, "
                "kind logged has no others"
            )

    def num_logged(self, num_responses: int) -> int:
        """How many of a prompt's responses are taken from the file."""
        nearest = math.floor(Fraction(str(self.ratio)) * num_responses + Fraction(1, 2))
        return min(max(nearest, 1), num_responses - 1)


AnySource = OnPolicy | Logged | Mixed
"""The one place to add a source."""

SOURCES = {source.kind: source for source in get_args(AnySource)}


class PoolConfig(BaseModel):
    """Where the responses of a pool come from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Annotated[AnySource, Field(discriminator="kind")] = Field(
        OnPolicy(), description="on_policy; logged: a file of responses; mixed: each prompt has some of both"
    )


def read_logged(path: Path) -> dict[str, list[str]]:
    """The responses of a file by prompt id, in its order; rows of the same prompt are joined.

    Raises:
        InputError: no such file, an unreadable one, or a row without a prompt or without a list of strings `responses`.
    """
    found: dict[str, list[str]] = {}
    for row in read_rows(path, name="responses", setting="pool.source.path"):
        found.setdefault(row.prompt_id, []).extend(_responses(row))
    return found


def _responses(row: PromptRow) -> list[str]:
    if row.columns.get("responses") is None:
        found = sorted(row.columns)
        raise InputError(f"{row.where} has no 'responses' (found {found}): expected a list of strings")
    responses = row.columns["responses"]
    if not isinstance(responses, list):
        raise InputError(f"{row.where}: 'responses' is of type {type(responses).__name__}: expected a list of strings")
    if not responses:
        raise InputError(f"{row.where}: 'responses' is an empty list: expected at least one response")
    if odd := [response for response in responses if not isinstance(response, str)]:
        raise InputError(f"{row.where}: 'responses' holds {odd[0]!r}: expected strings alone")
    return responses


def check_logged(source: AnySource, num_responses: int, prompts: Sequence[dict[str, Any]]) -> None:
    """See that a file, where one is named, has enough responses to all prompts (rows of PROMPTS).

    Raises:
        InputError: the file is unreadable, or a prompt has too few.
    """
    if not isinstance(source, OnPolicy):
        first_responses(source, num_responses, prompts)


def first_responses(
    source: Logged | Mixed, num_responses: int, prompts: Sequence[dict[str, Any]]
) -> dict[str, list[str]]:
    """Logged responses by prompt id, as many of each prompt as the source gives to `num_responses`.

    Raises:
        InputError: see `check_logged`.
    """
    found, needed = read_logged(source.path), source.num_logged(num_responses)
    lacking = [row for row in prompts if len(found.get(row["prompt_id"], [])) < needed]
    if lacking:
        first = lacking[0]
        raise InputError(
            f"{source.path} has fewer than the {needed} responses wanted of each prompt for {len(lacking)} of "
            f"{len(prompts)} prompts, the first of them {plain_text(first['messages'])[:60]!r} with "
            f"{len(found.get(first['prompt_id'], []))}: add responses to the file, take those prompts out of "
            "prompts.path, or lower generation.num_responses"
        )
    return {row["prompt_id"]: found[row["prompt_id"]][:needed] for row in prompts}


@dataclass(frozen=True)
class LoggedShare:
    """The logged responses that a pool gets: their source, and the number and prompts of all as for generation."""

    source: Logged | Mixed
    num_responses: int
    shard_size: int


@stage_task("pool")
def add_logged(prompts: Table, drawn: Table | None, share: LoggedShare, base: Policy, here: RoundContext) -> Table:
    """Write a pool of, prompt by prompt, the responses drawn and after them the logged ones.

    Indices run over both, and so do faults: a logged response that says what a drawn one says is a duplicate. Logged
    responses have the base checkpoint's tokens, see `Tokeniser`, and no `logprob` (NaN). Their ids depend on prompt,
    place and tokens alone, not on the round, so that a pair of them is offered once.

    Raises:
        InputError: the file is unreadable, or a prompt has too few responses.
    """
    rows = read(prompts.path, PROMPTS).to_pylist()
    texts = first_responses(share.source, share.num_responses, rows)

    def work(folder: Path) -> dict[str, Any]:
        tokenise, own = Tokeniser(base.model), _by_prompt(drawn)
        counts = dict.fromkeys(("num_logged", "num_empty", "num_duplicate"), 0)
        for shard, start in enumerate(range(0, len(rows), share.shard_size)):
            pool = [
                response
                for prompt in rows[start : start + share.shard_size]
                for response in _pool(prompt, own.get(prompt["prompt_id"], []), texts[prompt["prompt_id"]], tokenise)
            ]
            write_part(part_path(folder, shard), pool, RESPONSES)
            counts["num_logged"] += sum(row["policy"] == LOGGED for row in pool)
            counts["num_empty"] += sum(row["fault"] == "empty" for row in pool)
            counts["num_duplicate"] += sum(row["fault"] == "duplicate" for row in pool)
        return counts | {"model_seconds": 0.0}

    inputs = [prompts.digest, base.digest, *([drawn.digest] if drawn else [])]
    key = StageKey("logged", {"responses": texts, "shard_size": share.shard_size}, inputs)
    return run_stage(key, work, here, publish=Publish("pool", parquet=True))


def _by_prompt(drawn: Table | None) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in read(drawn.path, RESPONSES).to_pylist() if drawn else []:
        found.setdefault(row["prompt_id"], []).append(row)
    return found


def _pool(
    prompt: dict[str, Any], drawn: Sequence[dict[str, Any]], texts: Sequence[str], tokenise: Tokeniser
) -> list[dict[str, Any]]:
    """Rows of RESPONSES of one prompt."""
    tokens = tokenise(texts, chat=is_chat(prompt["messages"]))
    logged = [Sampled(text, own, math.nan, LOGGED) for text, own in zip(texts, tokens, strict=True)]
    shared = {"sampling": "{}", "policy": LOGGED, "engine": LOGGED}
    added = [
        response_row(prompt, index, response, LOGGED) | shared
        for index, response in enumerate(logged, start=len(drawn))
    ]
    rows = [*drawn, *added]
    return [row | {"fault": fault} for row, fault in zip(rows, faults([row["text"] for row in rows]), strict=True)]
