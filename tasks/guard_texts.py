"""Guard texts: held-out text and multiple choice as a table of responses, to be scored as a policy's own are."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cluster.engines import Sampled
from cluster.errors import InputError
from cluster.models import Policy
from cluster.rendering import is_chat, prompt_tokens
from cluster.storage import StageKey, digest_of
from tasks.guard_files import GIVEN, Given
from tasks.sampling import response_row
from tasks.stages import Publish, RoundContext, run_stage, stage_task
from tasks.tables import RESPONSES, Table, part_path, write_part
from tasks.tokeniser import Tokeniser

SHARD_SIZE = 64
"""Responses of one file: what a killed scoring of them repeats at most."""


@stage_task("guard_texts")
def write_guard_texts(given: Sequence[Given], base: Policy, here: RoundContext) -> Table:
    """Write what files give as rows of RESPONSES, each row of a file a prompt of its own.

    Responses have the base checkpoint's tokens, without the one at which sampling stops: whether a policy stops is for
    its length to tell. `sampling` is JSON, `answer` in it whether a choice is the right one, null of a text.

    Raises:
        InputError: a prompt with a response is longer than the model reads; all of them are named.
    """

    def work(folder: Path) -> dict[str, Any]:
        rows = list(_rows(given, base))
        for shard, start in enumerate(range(0, len(rows), SHARD_SIZE)):
            write_part(part_path(folder, shard), rows[start : start + SHARD_SIZE], RESPONSES)
        num_texts = sum(one.answer is None for one in given)
        return {"num_texts": num_texts, "num_questions": len(given) - num_texts, "model_seconds": 0.0}

    content = [[one.messages, one.responses, one.answer] for one in given]
    facts = {"given": digest_of(content), "shard_size": SHARD_SIZE}
    return run_stage(StageKey("guard_texts", facts, [base.digest]), work, here, publish=Publish("guard_texts"))


def _rows(given: Sequence[Given], base: Policy) -> Iterator[dict[str, Any]]:
    tokenise = Tokeniser(base.model)
    tokens = [_tokens(one, tokenise) for one in given]
    _require_short(given, tokens, base.model)
    for number, (one, own) in enumerate(zip(given, tokens, strict=True)):
        prompt = {"prompt_id": digest_of([number, one.messages, one.responses])[:32], "messages": one.messages}
        for index, (text, ids) in enumerate(zip(one.responses, own, strict=True)):
            answer = None if one.answer is None else index == one.answer
            shared = {"fault": None, "sampling": json.dumps({"answer": answer}), "policy": GIVEN, "engine": GIVEN}
            yield response_row(prompt, index, Sampled(text, ids, math.nan, GIVEN), GIVEN) | shared


def _tokens(one: Given, tokenise: Tokeniser) -> list[list[int]]:
    """Tokens of each response alone."""
    *found, end = tokenise([*one.responses, ""], chat=is_chat(one.messages))
    return [tokens[: len(tokens) - len(end)] for tokens in found]


def _require_short(given: Sequence[Given], tokens: Sequence[list[list[int]]], model: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(model, local_files_only=True).get_text_config()
    limit = getattr(config, "max_position_embeddings", None) or math.inf
    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    lengths = [
        (one.where, len(prompt_tokens(tokenizer, one.messages)) + max(map(len, own)))
        for one, own in zip(given, tokens, strict=True)
    ]
    if long := [f"{where} has {length} tokens" for where, length in lengths if length > limit]:
        raise InputError(
            f"prompt and response are longer than the {limit} tokens that the model reads: {'; '.join(long)}. "
            "Shorten those rows, or take them out"
        )
