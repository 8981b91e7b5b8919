"""DPO in which every pair has a weight of its own, which TRL's trainer has no place for.

Imported on training workers only; it needs torch and trl.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.nn import functional
from trl import DPOConfig, DPOTrainer

from cluster.errors import InputError

WEIGHT = "weight"
"""The column of the weights; of mean 1 over the pairs that are trained on, once they are prepared."""

Example = Mapping[str, Any]
Collator = Callable[[list[dict[str, Any]]], dict[str, Any]]


def weights_of(rows: Sequence[Example]) -> list[float] | None:
    """Weights of the labels, 1 for null; None where all are alike and above 0, which is TRL's own loss."""
    weights = [1.0 if row[WEIGHT] is None else float(row[WEIGHT]) for row in rows]
    return None if len(set(weights)) == 1 and weights[0] > 0 else weights


@dataclass(frozen=True)
class WeightCollator:
    """Batches as another collator makes them, with the weights of their pairs, (batch,)."""

    inner: Collator

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Make a batch."""
        return self.inner(examples) | {WEIGHT: torch.tensor([example[WEIGHT] for example in examples])}


class WeightedDPOTrainer(DPOTrainer):  # type: ignore[misc]
    """The mean over a batch of w_i l_i, with l_i = -log sigmoid(beta (log-ratio of chosen - of rejected)).

    Weights are of mean 1 over the data set, so their common scale changes nothing. Batches enter a step as TRL's own
    do: each by its mean, whatever its size and weights. What else TRL logs speaks of the pairs without weights. Its
    collator has to be a `WeightCollator`.
    """

    def _prepare_dataset(self, dataset: Dataset, processing_class: Any, args: DPOConfig, dataset_name: str) -> Dataset:
        """TRL's own, which leaves out pairs whose prompt is too long; the weights are those of the pairs that stay."""
        return normalised(super()._prepare_dataset(dataset, processing_class, args, dataset_name))

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if WEIGHT not in self._signature_columns:
            self._signature_columns.append(WEIGHT)

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        """TRL's own, which logs and calls the model twice: as the policy, and as its reference."""
        own = {name: value for name, value in inputs.items() if name != WEIGHT}
        with log_likelihoods(self.accelerator.unwrap_model(self.model)) as found:
            result = super()._compute_loss(model, own, return_outputs)
        (chosen, rejected), (reference_chosen, reference_rejected) = (of.chunk(2) for of in found[:2])
        margins = self.beta * ((chosen - reference_chosen) - (rejected - reference_rejected))
        loss = (inputs[WEIGHT] * -functional.logsigmoid(margins)).mean()
        return (loss, result[1]) if return_outputs else loss


@contextmanager
def log_likelihoods(model: torch.nn.Module) -> Iterator[list[torch.Tensor]]:
    """A list that gets, from every call of the model in the block, log-probabilities summed over responses, nats."""
    found: list[torch.Tensor] = []
    hook = model.register_forward_hook(lambda _model, _inputs, output: found.append(output.log_probs.sum(dim=1)))
    try:
        yield found
    finally:
        hook.remove()


def normalised(dataset: Dataset) -> Dataset:
    """The data set with its weights divided by their mean.

    Raises:
        InputError: all weights are 0.
    """
    weights = np.array(dataset[WEIGHT], dtype=np.float64)
    if not weights.any():
        raise InputError(
            f"all {len(weights)} pairs that fit training.max_length have weight 0, so there is nothing to learn: "
            "expected one above 0; raise training.max_length or choose pairs otherwise"
        )
    return dataset.remove_columns(WEIGHT).add_column(WEIGHT, weights / weights.mean())
