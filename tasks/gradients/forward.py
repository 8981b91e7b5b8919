"""Forward passes: log pi(y|x) of every response, and what the last layer made of its tokens."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tasks.gradients.batches import Batch, Prefix


@dataclass(frozen=True, eq=False)
class Pass:
    """What one forward pass tells of a batch.

    Attributes:
        logp: log-probabilities summed over each response's tokens, nats, float64, (batch,).
        predictors: last-layer states that the response tokens were predicted from, (tokens, hidden).
        states: last-layer states of every column that was read, (batch, longest, hidden).
        head: what the head made of the predictors before the model scaled or capped it, (tokens, vocabulary).
    """

    logp: torch.Tensor
    predictors: torch.Tensor
    states: torch.Tensor
    head: torch.Tensor


def forward(model: Any, batch: Batch, cache: Any = None) -> Pass:
    """Run a causal language model of transformers; only states that predict response tokens go through its head.

    Args:
        model: in evaluation mode, its own parameters frozen.
        batch: its responses.
        cache: keys and values of the columns before the batch, of as many rows.
    """
    with _seen_by_head(model, batch) as seen:
        output = model(
            input_ids=batch.ids,
            attention_mask=batch.attention,
            position_ids=batch.positions,
            past_key_values=cache,
            use_cache=cache is not None,
        )
    logits = output.logits[0] if output.logits.dtype == torch.float64 else output.logits[0].float()
    taken = logits.gather(1, batch.targets[:, None]).squeeze(1) - logits.logsumexp(1)
    return Pass(batch.sums(taken.double()), *seen)


def cached(model: Any, prefix: Prefix) -> Any:
    """Keys and values of the prompts, a row for every response; nothing flows back into them."""
    with torch.no_grad(), _seen_by_head(model, prefix.batch):
        output = model(
            input_ids=prefix.batch.ids,
            attention_mask=prefix.batch.attention,
            position_ids=prefix.batch.positions,
            use_cache=True,
        )
    output.past_key_values.batch_select_indices(prefix.places)
    return output.past_key_values


@contextmanager
def _seen_by_head(model: Any, batch: Batch) -> Iterator[list[torch.Tensor]]:
    """A list that gets predictors, states and head of a `Pass`; the head is given the predictors alone."""
    seen: list[torch.Tensor] = []

    def before(_head: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        predictors = inputs[0][batch.rows, batch.columns]
        seen.extend([predictors, inputs[0]])
        return (predictors[None],)

    def after(_head: nn.Module, _inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if torch.is_grad_enabled() and not output.requires_grad:
            output.requires_grad_()
        seen.append(output)

    head = model.get_output_embeddings()
    handles = (head.register_forward_pre_hook(before), head.register_forward_hook(after))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
