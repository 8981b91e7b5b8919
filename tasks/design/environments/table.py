"""Worlds drawn from a table of real responses and what a labeller thinks of them."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.linalg import eigh

from tasks.design.arrays import BoolArray, FloatArray, IntArray, gram
from tasks.design.environments.base import (
    UtilityTable,
    centred,
    check_at_least,
    check_flips,
    check_positive,
    pair_draws,
    uniform_log_probs,
)
from tasks.design.environments.world import Target, World
from tasks.design.pool import Pool


@dataclass(frozen=True, kw_only=True)
class FromTable:
    """Random prompts of a table are the pool, the others the deployment.

    Features are taken about their prompt's mean, and mapped to the principal components of the pool's prompts alone,
    scaled so that the mean squared norm of the pool's responses is 1. The reference is uniform over a prompt's
    responses. Utilities are the table's: how well the features explain them is not chosen but found.

    Attributes:
        dim: principal components kept.
        num_prompts: prompts of the pool; None: half of the table's.
        beta: inverse temperature of the preference loss.
        flip_rate: chance that a label is turned round.

    Raises:
        ValueError: a field is out of range.
    """

    kind: Literal["table"] = "table"
    dim: int = 32
    num_prompts: int | None = None
    beta: float = 1.0
    flip_rate: float = 0.0

    def __post_init__(self) -> None:
        check_at_least(1, dim=self.dim, num_prompts=1 if self.num_prompts is None else self.num_prompts)
        check_positive(beta=self.beta)
        check_flips(self.flip_rate)

    def draw(self, rng: np.random.Generator, table: UtilityTable | None = None) -> World:
        """Draw one split of the table, and the labels of its pool.

        Raises:
            ValueError: there is no table, or it has too few prompts or features.
        """
        if table is None:
            raise ValueError("an environment of kind 'table' needs a table of utilities, it was given none: pass one")
        chosen, others = self._split(table, rng)
        pooled, judged = self._mapped(table, chosen, others)
        valid = table.valid[chosen]
        pool = Pool(
            features=pooled,
            valid=valid,
            rewards=np.zeros(valid.shape),
            beta=self.beta,
            log_probs=np.where(valid, uniform_log_probs(valid), 0.0),
            lengths=table.lengths[chosen],
        )
        target = Target(
            features=judged,
            utilities=table.utilities[others],
            log_reference=uniform_log_probs(table.valid[others]),
        )
        utilities, draws = table.utilities[chosen], pair_draws(valid, rng)
        return World(pool=pool, utilities=utilities, draws=draws, flip_rate=self.flip_rate, target=target)

    def _split(self, table: UtilityTable, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
        """Rows of the pool's prompts and of the others."""
        rows, columns = len(table.valid), table.features.shape[2]
        size = rows // 2 if self.num_prompts is None else self.num_prompts
        if not 0 < size < rows:
            raise ValueError(f"the pool asks for {size} prompts, the table has {rows}: leave some to judge policies on")
        if self.dim > columns:
            raise ValueError(f"dim is {self.dim}, the table has {columns} features: pass as many or fewer")
        order = rng.permutation(rows)
        return np.sort(order[:size]), np.sort(order[size:])

    def _mapped(self, table: UtilityTable, chosen: IntArray, others: IntArray) -> tuple[FloatArray, FloatArray]:
        """phi of the pool and of the deployment, (P, K, dim) and (Q, K, dim)."""
        pooled = centred(table.features[chosen], table.valid[chosen])
        axes = _principal_axes(pooled, table.valid[chosen], dim=self.dim)
        return pooled @ axes, centred(table.features[others], table.valid[others]) @ axes


def _principal_axes(features: FloatArray, valid: BoolArray, *, dim: int) -> FloatArray:
    """Leading eigenvectors of the features' second moment as columns, scaled to a mean squared norm of 1, (D, dim).

    Args:
        features: about their prompts' means, (P, K, D).
        valid: (P, K).
        dim: how many.

    Raises:
        ValueError: features don't differ within any prompt.
    """
    moment = gram(features[valid]) / valid.sum()
    columns = len(moment)
    values, vectors = eigh(moment, subset_by_index=(columns - dim, columns - 1))
    if values.sum() <= 0:
        raise ValueError("features don't differ within any prompt of the pool: no pair of responses can be told apart")
    axes: FloatArray = vectors[:, ::-1] / np.sqrt(values.sum())
    return axes
