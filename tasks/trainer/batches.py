"""Pairs as the trainer reads them: a data set of token ids, batches of it, and how a step's batches are cut.

Imported on training workers only; it needs torch and datasets.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from cluster.errors import InputError
from cluster.rendering import prompt_tokens
from tasks.objectives.pairs import Pairs
from tasks.tables import LESSONS, read

Example = dict[str, Any]
Tokens = tuple[Sequence[int], Sequence[int]]
Batch = dict[str, Any]
"""Tensors by name; those of a batch of responses within it under the name `EXPLORED`."""

ROW = "row"
"""A pair's place in the data set."""

NUMBERS = ("ref_chosen_logps", "ref_rejected_logps", "weight", "probability", "chosen_reward", "rejected_reward")
"""Columns of one number a pair; NaN where it is not known."""

EXPLORED = "explored"
"""The reference's own responses that an exploration term looks at."""

TOKENS = ("input_ids", "attention_mask", "completion_mask")
"""What of a batch the reference reads."""


def dataset(lessons: Path, tokenizer: Any, max_length: int) -> Dataset:
    """The pairs of a table of LESSONS whose prompt leaves room for a response, cut to `max_length` tokens.

    Responses are the tokens that were sampled, as log-probabilities in features are. Of a response that is cut the
    reference's log-probability is not known.

    Raises:
        InputError: no prompt leaves room, or all weights of those that do are 0.
    """
    examples = [_example(row, tokenizer, max_length) for row in read(lessons, LESSONS).to_pylist()]
    fitting = [example for example in examples if len(example["prompt_ids"]) < max_length]
    if not any(example["weight"] for example in fitting):
        raise InputError(
            f"{len(fitting)} of {len(examples)} pairs have a prompt of fewer than training.max_length {max_length} "
            "tokens, and none of them a weight above 0, so there is nothing to learn: raise training.max_length or "
            "choose pairs otherwise"
        )
    return Dataset.from_list([example | {ROW: row} for row, example in enumerate(fitting)])


def _example(row: Mapping[str, Any], tokenizer: Any, max_length: int) -> Example:
    prompt = prompt_tokens(tokenizer, row["messages"])
    room = max_length - len(prompt)
    sides = {side: row[f"{side}_token_ids"] for side in ("chosen", "rejected")}
    references = {
        f"ref_{side}_logps": _number(row[f"{side}_reference_logp"] if len(ids) <= room else None)
        for side, ids in sides.items()
    }
    shown = {f"{side}_ids": ids[: max(room, 0)] for side, ids in sides.items()}
    named = {"pair_id": row["pair_id"], "prompt_ids": prompt, "length": len(prompt) + max(map(len, shown.values()))}
    explored = {
        "explored_ids": (row["explored_token_ids"] or [])[: max(room, 0)],
        "ref_explored_logps": _number(row["explored_reference_logp"]),
    }
    numbers = {name: _number(row[name]) for name in NUMBERS if name in row}
    return named | shown | references | explored | numbers


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


@dataclass(frozen=True)
class PairCollator:
    """Makes batches as TRL lays them out: all chosen responses, then all rejected ones, each after its prompt.

    A batch of n pairs has `input_ids`, `attention_mask` and `completion_mask` (2n, longest), the columns `NUMBERS` and
    `ROW` (n,); and where a pair has one of the reference's own responses, a batch of these under `EXPLORED`.
    """

    pad_token_id: int

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """Make a batch."""
        texts = [(one["prompt_ids"], one[f"{side}_ids"]) for side in ("chosen", "rejected") for one in examples]
        numbers = {name: torch.tensor([one[name] for one in examples], dtype=torch.float64) for name in NUMBERS}
        batch = self._padded(texts) | {ROW: torch.tensor([one[ROW] for one in examples])} | numbers
        exploring = [one for one in examples if one.get("explored_ids")]
        if exploring:
            reference = torch.tensor([one["ref_explored_logps"] for one in exploring], dtype=torch.float64)
            batch[EXPLORED] = self._padded([(one["prompt_ids"], one["explored_ids"]) for one in exploring])
            batch[EXPLORED]["ref_logps"] = reference
        return batch

    def _padded(self, texts: Sequence[Tokens]) -> Batch:
        longest = max(len(prompt) + len(response) for prompt, response in texts)
        ids = torch.full((len(texts), longest), self.pad_token_id)
        attention, completion = torch.zeros(2, len(texts), longest, dtype=torch.long)
        for place, (prompt, response) in enumerate(texts):
            end = len(prompt) + len(response)
            ids[place, :end] = torch.tensor([*prompt, *response])
            attention[place, :end] = 1
            completion[place, len(prompt) : end] = 1
        return {"input_ids": ids, "attention_mask": attention, "completion_mask": completion}


def pairs_of(batch: Batch, logps: torch.Tensor) -> Pairs:
    """A batch as its objective sees it.

    Args:
        batch: of n pairs.
        logps: of its responses under the policy, (2n,), nats.
    """
    chosen, rejected = logps.chunk(2)
    tokens = batch["completion_mask"][:, 1:].sum(1)
    numbers = {name: batch[name].to(logps.dtype) for name in NUMBERS}
    return Pairs(
        chosen=chosen,
        rejected=rejected,
        reference_chosen=numbers["ref_chosen_logps"],
        reference_rejected=numbers["ref_rejected_logps"],
        num_chosen_tokens=tokens[: len(chosen)],
        num_rejected_tokens=tokens[len(chosen) :],
        probabilities=numbers["probability"],
        chosen_rewards=numbers["chosen_reward"],
        rejected_rewards=numbers["rejected_reward"],
    )


def cut(rows: Sequence[int], lengths: Sequence[int], num_batches: int) -> list[list[int]]:
    """Rows in so many batches, those of like length together; sizes differ by one at most, longer ones come first.

    Args:
        rows: at least one for each batch.
        lengths: tokens of each row.
        num_batches: how many.
    """
    order = sorted(range(len(rows)), key=lambda place: (-lengths[place], place))
    size, more = divmod(len(rows), num_batches)
    sizes = [size + (number < more) for number in range(num_batches)]
    starts = [sum(sizes[:number]) for number in range(num_batches)]
    return [[rows[place] for place in order[start : start + n]] for start, n in zip(starts, sizes, strict=True)]
