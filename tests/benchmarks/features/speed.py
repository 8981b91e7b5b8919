"""P11: gradients of all responses against one plain pass, a loop, and a loop with a dense projection."""

import time
from collections.abc import Iterator
from typing import Any

import torch
from features.models import BATCH, Case, lean_pass, one_by_one, plain_pass
from measuring import Finding, peer, take_turns

from tasks.gradients.passes import Room, measure
from tasks.gradients.projections import CountSketch
from tasks.gradients.taps import lora_layers
from tasks.gradients.vectors import LoraGradients

FLOOR, TARGET = 1.3, 1.15


def gradient_speed(repeats: int, *, case: Case, silent: bool) -> Iterator[Finding]:
    """Seconds of ours over those of a plain batched pass, and of the loops over ours."""
    torch.set_num_threads(1)
    model, texts = case.model(silent=silent), case.texts()
    when = "B = 0" if silent else "B trained"
    workload = f"{case.name}, {when}, {case.count} responses, dim {case.dim}"

    def ours() -> None:
        _sketched(model, texts, case.dim)

    ours()  # hash tables are made once a process
    own, plain, lean = take_turns(
        ours, lambda: plain_pass(model, texts), lambda: lean_pass(model, texts), repeats=repeats, slow=60
    )
    told = f"{own}, {len(texts) / own.seconds:.3g} responses/s"
    for name, floor, high in (("plain forward and backward", plain, FLOOR), ("the same, lean head", lean, None)):
        words = f"{name}: {floor}"
        yield Finding(workload=workload, ours=told, peer=words, number=own.seconds / floor.seconds, high=high)
    yield from _against_loops(model, case, own.seconds / case.count, workload)


def _against_loops(model: Any, case: Case, own: float, workload: str) -> Iterator[Finding]:
    """`own`: seconds of ours for one response."""
    some = case.texts()[: case.looped]
    begun = time.process_time()
    gradients = one_by_one(model, some)
    looped = (time.process_time() - begun) / len(some)
    words = f"one at a time: {looped * case.count:.3g} s"
    yield Finding(workload=workload, ours=f"{own * case.count:.3g} s", peer=words, number=looped / own, low=1.4)
    projected = looped + _traker_seconds(gradients, case.dim)
    words = f"one at a time, traker's projector: {projected * case.count:.3g} s"
    yield Finding(workload=workload, ours=f"{own * case.count:.3g} s", peer=words, number=projected / own, low=5)


def _traker_seconds(gradients: torch.Tensor, dim: int) -> float:
    """Seconds of traker's projector for one gradient, 16 at a time as LESS has them."""
    projectors = peer("trak.projectors")
    projector = projectors.BasicProjector(
        grad_dim=gradients.shape[1],
        proj_dim=dim,
        seed=0,
        proj_type=projectors.ProjectionType.rademacher,
        device="cpu",
        block_size=128,
    )
    begun = time.process_time()
    for start in range(0, len(gradients), 16):
        projector.project(gradients[start : start + 16], model_id=0)
    return (time.process_time() - begun) / len(gradients)


def _sketched(model: Any, texts: list[Any], dim: int) -> torch.Tensor:
    model.requires_grad_(requires_grad=False)
    vectors = LoraGradients(lora_layers(model, "default"), CountSketch(dim=dim))
    return measure(model, texts, vectors, Room(BATCH))[0].vectors


def gradient_error(_repeats: int, *, case: Case) -> Iterator[Finding]:
    """The largest relative error of a sketched gradient against the sketch of the loop's."""
    model, texts = case.model(silent=False), case.texts()[:8]
    named = {name: weights for name, weights in model.named_parameters() if "lora_" in name}
    parts = one_by_one(model, texts).split([weights.numel() for weights in named.values()], dim=1)
    plain = {name: name.removeprefix("base_model.model.").removesuffix(".default.weight") for name in named}
    projector = CountSketch(dim=case.dim).over({plain[name]: tuple(weights.shape) for name, weights in named.items()})
    expected = torch.zeros(len(texts), case.dim)
    for (name, weights), part in zip(named.items(), parts, strict=True):
        projector.add(expected, plain[name], part.view(-1, *weights.shape))
    found = _sketched(model, texts, case.dim)
    error = float(((found - expected).norm(dim=1) / expected.norm(dim=1)).max())
    yield Finding(workload=f"{case.name}: largest relative error of a response", number=error, high=1e-5)
