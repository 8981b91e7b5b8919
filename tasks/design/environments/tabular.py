"""Tabular worlds: every response has a parameter of its own."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.linalg import block_diag
from scipy.special import log_softmax

from tasks.design.arrays import FloatArray
from tasks.design.environments.base import UtilityTable, check_at_least, check_flips, check_positive, pair_draws
from tasks.design.environments.world import Target, World
from tasks.design.pool import Pool


@dataclass(frozen=True, kw_only=True)
class Tabular:
    """One-hot features of few prompts, a reference that favours few responses, and rewards that differ little.

    After a synthetic study of Han, Goyal and Ma (arXiv:2606.19607), as reported: pi_0 strongly non-uniform, a small
    variance of the reward. The laws are ours: log pi_0 and the utilities are Gaussian, independent of each other. The
    deployment is the same prompts under pi_0, and the pool's `fisher` its mean of diag(pi_0) - pi_0 pi_0'.

    Attributes:
        num_prompts: prompts, each with a block of features of its own.
        num_responses: responses to each prompt.
        beta: inverse temperature of the preference loss.
        reference_spread: standard deviation of log pi_0 before it is normalised; 0: uniform.
        reward_scale: standard deviation of the utilities, logits.
        flip_rate: chance that a label is turned round.

    Raises:
        ValueError: a field is out of range.
    """

    kind: Literal["tabular"] = "tabular"
    num_prompts: int = 1
    num_responses: int = 60
    beta: float = 1.0
    reference_spread: float = 1.5
    reward_scale: float = 0.5
    flip_rate: float = 0.0

    def __post_init__(self) -> None:
        check_at_least(1, num_prompts=self.num_prompts)
        check_at_least(2, num_responses=self.num_responses)
        check_at_least(0, reference_spread=self.reference_spread)
        check_positive(beta=self.beta, reward_scale=self.reward_scale)
        check_flips(self.flip_rate)

    def draw(self, rng: np.random.Generator, table: UtilityTable | None = None) -> World:  # noqa: ARG002 (the protocol's)
        """Draw one world; no table is used."""
        shape = (self.num_prompts, self.num_responses)
        log_reference = log_softmax(self.reference_spread * rng.standard_normal(shape), axis=1)
        utilities = self.reward_scale * rng.standard_normal(shape)
        size = self.num_prompts * self.num_responses
        features, valid = np.eye(size).reshape(*shape, size), np.ones(shape, dtype=np.bool_)
        pool = Pool(
            features=features,
            valid=valid,
            rewards=np.zeros(shape),
            beta=self.beta,
            fisher=_fisher(np.exp(log_reference)),
            log_probs=log_reference,
        )
        target = Target(features=features, utilities=utilities, log_reference=log_reference)
        draws = pair_draws(valid, rng)
        return World(pool=pool, utilities=utilities, draws=draws, flip_rate=self.flip_rate, target=target)


def _fisher(reference: FloatArray) -> FloatArray:
    """A block diag(p) - p p' for every prompt, over the number of prompts, (P K, P K)."""
    blocks: FloatArray = block_diag(*(np.diag(row) - np.outer(row, row) for row in reference))
    return blocks / len(reference)
