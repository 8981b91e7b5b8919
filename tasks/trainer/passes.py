"""Forward passes of the policy that is trained: log pi(y|x) of a batch, and what its layers make of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tasks.trainer.batches import Batch


@dataclass(frozen=True, eq=False)
class Pass:
    """What a forward pass tells of the responses of a batch of n pairs.

    Attributes:
        logps: log pi(y|x), summed over tokens, nats, (2n,); chosen ones first.
        mask: columns whose state predicts a token of a response, (2n, longest - 1).
        entropy, mean_logits, is_top1: of these predictions, (2n, longest - 1), 0 elsewhere.
        auxiliary: loss of a mixture of experts that balances its load, or None.
    """

    logps: torch.Tensor
    mask: torch.Tensor
    entropy: torch.Tensor
    mean_logits: torch.Tensor
    is_top1: torch.Tensor
    auxiliary: torch.Tensor | None


def forward(model: Any, core: Any, batch: Batch, *, balanced: bool = False) -> Pass:
    """Run a model with TRL's fused head on a batch; the head sees the states alone that predict a response's token.

    Args:
        model: to call, perhaps wrapped.
        core: the causal language model within it.
        batch: of n pairs.
        balanced: whether a mixture of experts shall tell its auxiliary loss.
    """
    mask = batch["completion_mask"][:, 1:].bool()
    with _states_alone(core.base_model, mask):
        output = model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            use_cache=False,
            shift_labels=batch["input_ids"][:, 1:][mask][None],
            fused_lm_head=True,
            **({"output_router_logits": True} if balanced else {}),
        )
    told = (output.log_probs, output.entropy, output.mean_logits, output.is_top1)
    logps, entropy, mean_logits, is_top1 = (one.new_zeros(mask.shape).masked_scatter(mask, one[0]) for one in told)
    auxiliary = output.aux_loss if balanced else None
    return Pass(logps.sum(1), mask, entropy.detach(), mean_logits, is_top1, auxiliary)


@contextmanager
def _states_alone(backbone: nn.Module, mask: torch.Tensor) -> Iterator[None]:
    """For the block, the backbone gives the states alone that stand before the columns of a mask (batch, length - 1).

    As one row (1, chosen, hidden), in the mask's own order.
    """

    def pick(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[:, :-1][mask][None]
        return output

    handle = backbone.register_forward_hook(pick)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def layer_means(core: Any, batch: Batch) -> Iterator[list[torch.Tensor]]:
    """A list that gets the output of every layer in the block, averaged over a text's tokens, (texts, hidden)."""
    shares = batch["attention_mask"] / batch["attention_mask"].sum(1, keepdim=True)
    found: list[torch.Tensor] = []

    def average(_module: nn.Module, _inputs: Any, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        found.append(torch.einsum("ts,tsh->th", shares.to(states.dtype), states))

    handles = [layer.register_forward_hook(average) for layer in _layers(core)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _layers(core: Any) -> nn.ModuleList:
    """The transformer layers of a causal language model, in order."""
    count = core.config.get_text_config().num_hidden_layers
    return next(part for part in core.modules() if isinstance(part, nn.ModuleList) and len(part) == count)
