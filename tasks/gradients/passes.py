"""Passes over many responses: in batches that fit the memory, prompts read once where that is exact."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tasks.gradients.batches import Batch, Tokens, batch_of, by_length, by_prompt, split_batch_of
from tasks.gradients.forward import Pass, cached, forward
from tasks.gradients.vectors import Measured, Vectors

SHARE = 0.5
"""Part of the free memory that a batch is planned to take: the estimate is rough, and allocators leave gaps."""

MOST_ON_CPU = 8
"""Responses together on a CPU at most: more gain nothing there, for they are padded more and fall out of its caches."""

MOST_ON_GPU = 256
"""Responses together on a GPU at most."""


@dataclass(frozen=True)
class Room:
    """What batches may take.

    Attributes:
        size: responses together at most.
        is_full: whether an error says that memory ran out; the batch is tried again with half as many then.
    """

    size: int
    is_full: Callable[[Exception], bool] = lambda error: isinstance(error, torch.OutOfMemoryError)


def measure(model: Any, texts: Sequence[Tokens], vectors: Vectors, room: Room) -> tuple[Measured, int]:
    """Measure all texts, in their order, on the CPU; and the least number of responses that went together.

    Args:
        model: in evaluation mode, its parameters frozen; the adapter that speaks is active.
        texts: prompts of one token at least, and responses.
        vectors: what is measured.
        room: for batches.

    Raises:
        RuntimeError: a single response is too much for the memory.
    """
    order = by_prompt(texts) if vectors.reads_prompts_once else by_length(texts)
    logp = torch.zeros(len(texts), dtype=torch.float64)
    found = torch.zeros(len(texts), vectors.dim)
    size = room.size

    def work(places: list[int]) -> Measured:
        return vectors(*reading(model, [texts[place] for place in places], once=vectors.reads_prompts_once))

    for places, measured in _in_batches(order, room, work):
        logp[places] = measured.logp.cpu()
        found[places] = measured.vectors.float().cpu()
        size = min(size, len(places)) if places[-1] != order[-1] else size
    return Measured(logp, found), size


def reading(model: Any, texts: Sequence[Tokens], *, once: bool) -> tuple[Batch, Callable[[], Pass]]:
    """A batch of these texts, and the pass of the model over it; `once` reads a prompt of several responses once."""
    device = str(model.device)
    if not once:
        batch = batch_of(texts, device)
        return batch, lambda: forward(model, batch)
    prefix, rest = split_batch_of(texts, device)
    return rest, lambda: forward(model, rest, cached(model, prefix))


def size_that_fits(config: Any, longest: int, free: int) -> int:
    """Responses of `longest` tokens for which half of the `free` bytes suffices; 1 at least.

    A rough estimate, of a pass with a backward pass in float32: every layer keeps about 12 hidden and 5 intermediate
    states of each token, and logits are kept three times.
    """
    text = config.get_text_config()
    hidden, intermediate = text.hidden_size, getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    numbers = text.num_hidden_layers * (12 * hidden + 5 * intermediate) + 3 * text.vocab_size
    return max(1, int(SHARE * free / (4 * numbers * longest)))


def _in_batches(
    order: Sequence[int], room: Room, work: Callable[[list[int]], Measured]
) -> Iterator[tuple[list[int], Measured]]:
    done, size = 0, room.size
    while done < len(order):
        places = list(order[done : done + size])
        result = _tried(places, room, work)
        if result is None:
            size = len(places) // 2
        else:
            done += len(places)
            yield places, result


def _tried(places: list[int], room: Room, work: Callable[[list[int]], Measured]) -> Measured | None:
    """The result, or None where memory ran out; what the failed batch had taken is free again on return."""
    try:
        return work(places)
    except RuntimeError as error:
        if len(places) == 1 or not room.is_full(error):
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None
