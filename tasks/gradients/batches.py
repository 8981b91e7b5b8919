"""Batches: which responses go through the model together, and what it reads of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

Tokens = tuple[Sequence[int], Sequence[int]]
"""Token ids of a prompt and of a response to it."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Responses after their prompts, as the model reads them.

    Attributes:
        ids: tokens to read, (batch, longest).
        attention: 1 where there is a token, (batch, known + longest), `known` columns being in the model's cache.
        positions: place of each token in its text, (batch, longest).
        rows: the row of each response token, one response after the other, (tokens,).
        columns: the column whose state predicts that token, (tokens,).
        targets: the token itself, (tokens,).
    """

    ids: torch.Tensor
    attention: torch.Tensor
    positions: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    targets: torch.Tensor

    @property
    def size(self) -> int:
        """Responses."""
        return len(self.ids)

    def sums(self, values: torch.Tensor) -> torch.Tensor:
        """Sums of `values` (tokens, ...) over the tokens of each response, (batch, ...)."""
        return values.new_zeros(self.size, *values.shape[1:]).index_add(0, self.rows, values)

    def apart(self, values: torch.Tensor) -> torch.Tensor:
        """The `values` (tokens, width) of each response in rows of their own, zeros behind: (batch, longest, width)."""
        counts = torch.bincount(self.rows, minlength=self.size)
        places = torch.arange(len(self.rows), device=self.rows.device) - (counts.cumsum(0) - counts)[self.rows]
        filled = values.new_zeros(self.size, int(counts.max()), values.shape[1])
        filled[self.rows, places] = values
        return filled


@dataclass(frozen=True, eq=False)
class Prefix:
    """The prompts of a batch but for their last tokens, each once.

    Attributes:
        batch: what the model reads of them.
        places: the prompt of each response, (batch of responses,).
    """

    batch: Batch
    places: torch.Tensor


def batch_of(texts: Sequence[Tokens], device: str) -> Batch:
    """A batch of these texts. The last token of a prompt predicts the first of its response.

    Raises:
        ValueError: a prompt is empty.
    """
    if any(not prompt for prompt, _ in texts):
        raise ValueError("a prompt has no token, so nothing predicts the first of its response: give it one at least")
    longest = max(len(prompt) + len(response) for prompt, response in texts)
    ids, attention = torch.zeros(2, len(texts), longest, dtype=torch.long)
    for row, (prompt, response) in enumerate(texts):
        ids[row, : len(prompt) + len(response)] = torch.tensor([*prompt, *response])
        attention[row, : len(prompt) + len(response)] = 1
    starts = torch.tensor([len(prompt) for prompt, _ in texts])
    lengths = torch.tensor([len(response) for _, response in texts])
    rows = torch.arange(len(texts)).repeat_interleave(lengths)
    columns = torch.arange(len(rows)) - (lengths.cumsum(0) - lengths)[rows] + starts[rows] - 1
    read = (ids, attention, torch.arange(longest).expand_as(ids), rows, columns, ids[rows, columns + 1])
    return Batch(*(tensor.to(device) for tensor in read))


def split_batch_of(texts: Sequence[Tokens], device: str) -> tuple[Prefix, Batch]:
    """The same in two: prompts, to be read once for all their responses, and a batch that goes on from there.

    Prompts are padded on the left, so that the distance between columns is that between tokens also for layers that
    attend within a window.
    """
    distinct = {prompt: place for place, prompt in enumerate(dict.fromkeys(tuple(prompt[:-1]) for prompt, _ in texts))}
    places = torch.tensor([distinct[tuple(prompt[:-1])] for prompt, _ in texts], device=device)
    prefix = Prefix(_prompts_of(list(distinct), device), places)
    rest = batch_of([(prompt[-1:], response) for prompt, response in texts], device)
    known = prefix.batch.attention[places]
    attention = torch.cat([known, rest.attention], dim=1)
    return prefix, replace(rest, attention=attention, positions=rest.positions + known.sum(1, keepdim=True))


def _prompts_of(prompts: Sequence[Sequence[int]], device: str) -> Batch:
    """A batch of prompts alone, padded on the left; a row of padding where one is empty."""
    longest = max(1, *map(len, prompts))
    ids, attention = torch.zeros(2, len(prompts), longest, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
        attention[row, longest - len(prompt) :] = 1
    positions = (attention.cumsum(1) - 1).clamp(min=0)
    nothing = torch.zeros(0, dtype=torch.long)
    return Batch(*(tensor.to(device) for tensor in (ids, attention, positions, nothing, nothing, nothing)))


def by_length(texts: Sequence[Tokens]) -> list[int]:
    """Places of the texts, those of like length together: little padding."""
    return sorted(range(len(texts)), key=lambda place: len(texts[place][0]) + len(texts[place][1]))


def by_prompt(texts: Sequence[Tokens]) -> list[int]:
    """Places of the texts, responses to one prompt together and prompts of like length."""
    return sorted(range(len(texts)), key=lambda place: (len(texts[place][0]), tuple(texts[place][0])))
