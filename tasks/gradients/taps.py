"""Taps: exact gradients of LoRA matrices for every response of a batch, read off one backward pass."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from tasks.gradients.modules import ALL_LINEAR, TargetModules, base_path, chosen
from tasks.gradients.projections import Shapes
from tasks.gradients.randomness import bits

Sink = Callable[[str, torch.Tensor], None]
"""Called with a matrix's name and its gradients, (batch, rows, columns), float32 or wider."""


@dataclass(frozen=True)
class LoraLayer:
    """One module's LoRA matrices: A of shape (rank, in) and B of shape (out, rank).

    Attributes:
        name: path of the module in the base model, the same whatever the adapter is called.
    """

    name: str
    lora_a: nn.Linear
    lora_b: nn.Linear

    @property
    def is_silent(self) -> bool:
        """Whether B is all zeros, as at the start of training: then the gradient of A is exactly zero."""
        return not bool(self.lora_b.weight.any())

    def shapes(self) -> Shapes:
        """Names of both matrices, with their shapes."""
        a, b = self.lora_a.weight.shape, self.lora_b.weight.shape
        return {f"{self.name}.lora_A": (a[0], a[1]), f"{self.name}.lora_B": (b[0], b[1])}


def lora_layers(model: nn.Module, adapter: str, target_modules: TargetModules = ALL_LINEAR) -> list[LoraLayer]:
    """The LoRA matrices of an adapter in the chosen modules of a model that PEFT built.

    Raises:
        ValueError: the adapter has no such module, or one that is not plain LoRA.
    """
    found = {
        base_path(path): module
        for path, module in model.named_modules()
        if adapter in getattr(module, "lora_A", ()) and adapter in getattr(module, "lora_B", ())
    }
    return [_layer(path, found[path], adapter) for path in chosen(list(found), target_modules)]


def _layer(path: str, module: Any, adapter: str) -> LoraLayer:
    if adapter in module.lora_variant:
        raise ValueError(f"module {path} has a variant of LoRA ({module.lora_variant[adapter]}): expected plain LoRA")
    return LoraLayer(path, module.lora_A[adapter], module.lora_B[adapter])


@contextmanager
def tapped(layers: Sequence[LoraLayer], sink: Sink, *, warm_start: float = 0.0) -> Iterator[None]:
    """Within the block, every backward pass hands the gradients of these layers' matrices to `sink`.

    For a linear map y = x W' the gradient of W for one response is the sum over its tokens of (dlogp/dy)' x. While B is
    zero, A gets none, and what flows back through the two is zero: that part of the pass is left out.

    Args:
        layers: what to tap; the first of them is where the backward pass ends.
        sink: takes the gradients, matrix by matrix, in no promised order.
        warm_start: standard deviation of a B that stands in for one of zeros in the gradient of A alone (ours): the
            gradient that A would have after a step of that size, to first order in B. Outputs stay as they are.
    """
    with ExitStack() as stack:
        for layer in layers:
            silent = layer.is_silent
            if silent:
                stack.callback(layer.lora_a.register_forward_pre_hook(_cut_off).remove)
            if silent and warm_start:
                stack.enter_context(_warm(layer, warm_start))
            if not silent or warm_start:
                stack.callback(layer.lora_a.register_forward_hook(_tap(f"{layer.name}.lora_A", sink)).remove)
            stack.callback(layer.lora_b.register_forward_hook(_tap(f"{layer.name}.lora_B", sink)).remove)
        yield


def _tap(name: str, sink: Sink) -> Callable[[nn.Module, tuple[torch.Tensor, ...], Any], None]:
    def after_forward(_module: nn.Module, inputs: tuple[torch.Tensor, ...], output: Any) -> None:
        if not torch.is_grad_enabled():
            return
        x = inputs[0].detach()
        if not output.requires_grad:
            output.requires_grad_()
        output.register_hook(partial(_hand_over, name, x, sink))

    return after_forward


def _hand_over(name: str, x: torch.Tensor, sink: Sink, gradient: torch.Tensor) -> None:
    sink(name, _wide(gradient).transpose(1, 2) @ _wide(x))


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _cut_off(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (inputs[0].detach(),)


@contextmanager
def _warm(layer: LoraLayer, std: float) -> Iterator[None]:
    """Give a silent B weights that only the backward pass sees: what it adds to the output is taken off again."""
    weight = layer.lora_b.weight
    with torch.no_grad():
        weight.copy_(stand_in(layer, std))
    handle = layer.lora_b.register_forward_hook(lambda _module, _inputs, output: output - output.detach())
    try:
        yield
    finally:
        handle.remove()
        with torch.no_grad():
            weight.zero_()


def stand_in(layer: LoraLayer, std: float) -> torch.Tensor:
    """Normal numbers decided by the layer's name, (out, rank)."""
    weight = layer.lora_b.weight
    key = int(bits(0, f"{layer.name}/warm start", 1)[0] >> 1)
    drawn = torch.randn(weight.shape, generator=torch.Generator().manual_seed(key), dtype=torch.float64)
    return std * drawn.to(weight)
