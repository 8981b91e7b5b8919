"""Weights of pairs in the loss: factors, their product, and what is left of the sample."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class SigmoidUtility:
    """sigma(beta_2 (r_w - r_l)).

    OPTune (arXiv:2406.07657) weights the DPO term of a pair by something that grows with the reward gap scaled by
    beta_2; its formula was not to be found, so this is a reconstruction.
    """

    kind: Literal["sigmoid"] = "sigmoid"
    beta_2: float = 1.0

    def __post_init__(self) -> None:
        _require_scale(self.beta_2)

    def __call__(self, gaps: Values) -> Values:
        """Weights of pairs with these reward gaps, (n,)."""
        return np.asarray(np.exp(-np.logaddexp(0, -self.beta_2 * gaps)))


@dataclass(frozen=True, kw_only=True)
class SoftplusUtility:
    """log(1 + exp(beta_2 (r_w - r_l))): like the gap itself where it is large; a reconstruction as `SigmoidUtility`."""

    kind: Literal["softplus"] = "softplus"
    beta_2: float = 1.0

    def __post_init__(self) -> None:
        _require_scale(self.beta_2)

    def __call__(self, gaps: Values) -> Values:
        """Weights of pairs with these reward gaps, (n,)."""
        return np.logaddexp(0, self.beta_2 * gaps)


@dataclass(frozen=True, kw_only=True)
class GapUtility:
    """max(0, r_w - r_l) over its mean: whatever the scale of the reward; a reconstruction as `SigmoidUtility`.

    A pair whose label contradicts the reward weighs nothing.
    """

    kind: Literal["normalised_gap"] = "normalised_gap"

    def __call__(self, gaps: Values) -> Values:
        """Weights of pairs with these reward gaps, (n,); ones where no gap is above 0."""
        positive = np.maximum(gaps, 0.0)
        return positive / positive.mean() if positive.any() else np.ones_like(gaps)


AnyUtility = SigmoidUtility | SoftplusUtility | GapUtility
"""The one place to add a weight by reward gap."""

UTILITIES = {utility.kind: utility for utility in get_args(AnyUtility)}


@dataclass(frozen=True, eq=False)
class Weighting:
    """The product of factors.

    Attributes:
        weights: (n,).
        num_clipped: pairs whose product exceeded the limit.
        effective_sample_size: (sum w)^2 / sum w^2 (Kish 1965): pairs of equal weight that would vary as little.
    """

    weights: Values
    num_clipped: int
    effective_sample_size: float


def product(factors: Mapping[str, Values], clip: float | None = None) -> Weighting:
    """Multiply factors (n,) of at least one name, pair by pair.

    Args:
        factors: by name.
        clip: largest weight, as a multiple of the mean product; None: no limit.

    Raises:
        ValueError: a factor is negative or not finite; all products are 0.
    """
    for name, values in factors.items():
        odd = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
        if len(odd):
            raise ValueError(
                f"weight {name!r} of pair number {odd[0]} is {values[odd[0]]}, and {len(odd)} of {len(values)} are "
                "negative or not finite: expected finite numbers, 0 or more"
            )
    weights = np.prod(np.stack(list(factors.values())), axis=0)
    if not weights.any():
        raise ValueError(f"all {len(weights)} pairs have weight 0 ({' x '.join(factors)}): there is nothing to learn")
    limit = math.inf if clip is None else clip * float(weights.mean())
    clipped = np.minimum(weights, limit)
    return Weighting(clipped, int((weights > limit).sum()), float(clipped.sum() ** 2 / (clipped**2).sum()))


def _require_scale(beta_2: float) -> None:
    if not 0 < beta_2 < math.inf:
        raise ValueError(f"beta_2 is {beta_2}: expected a finite number above 0")
