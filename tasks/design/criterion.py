"""A design criterion over a pool: a measure of M(w) = ridge I + prior + sum_e w_e a_e a_e'.

With a_e = beta sqrt(sigma'(z_e)) (phi_a - phi_b), M is the Fisher information of the labels. With H the policy Fisher
information, (beta / 2) tr(H M^-1) is to second order the expected suboptimality of the trained policy. Such a trace is
reported to bound it from above and from below in Han, Goyal and Ma, "Which Pairs to Compare for LLM Post-Training?"
(arXiv:2606.19607). The constant beta / 2, the factor sigma' and the prior come from the expansion, not from their text;
at round 0 every sigma' is 1/4 and changes no design.
"""

from dataclasses import dataclass

import numpy as np

from tasks.design.arrays import Array, BoolArray, FloatArray, IntArray, Precision, cast, largest, namespace, to_like
from tasks.design.kernels import PairSpace, logistic_curvature
from tasks.design.measures import Expansion, LogDet, Measure, Trace, inverse_root, symmetric_root
from tasks.design.pool import Pool

_LARGE_POOL = 2**22


@dataclass(frozen=True, eq=False, kw_only=True)
class Criterion:
    """Everything that a measure of M(w) needs of a pool.

    Attributes:
        space: the features, as differences within prompts.
        curvature: squared length of a_e over that of its difference of features, 0 where a pair is not valid, (P, m).
        mask: valid pairs, (P, m).
        prior: information of labels already held, (dim, dim).
        ridge: multiple of the identity added to every information matrix.
        measure: the function of M that is minimised.
    """

    space: PairSpace
    curvature: FloatArray
    mask: BoolArray
    prior: Array
    ridge: float
    measure: Measure

    def information(self, weights: FloatArray, precision: Precision = np.float64) -> Array:
        """M(w) without the ridge, of a design w (P, m): prior + sum_e w_e a_e a_e', (dim, dim) float64."""
        return self.prior + self.space.information(self.curvature * weights, precision)

    def added_information(self, pairs: IntArray) -> Array:
        """sum_e a_e a_e' over flat pair indices, (dim, dim) float64."""
        return self.space.information_of(pairs, self.curvature.ravel()[pairs])

    def expand(self, held: Array) -> Expansion:
        """The measure around M = ridge I + `held`."""
        return self.measure.expand(inverse_root(held, self.ridge))

    def objective(self, weights: FloatArray) -> float:
        """The measure of a design w (P, m), relaxed or of zeros and ones."""
        return self.expand(self.information(weights)).objective

    def gains(self, expansion: Expansion, precision: Precision = np.float64) -> FloatArray:
        """s_e = -dPhi/dw_e >= 0 of every pair slot, (P, m) float64; the pass runs in `precision`."""
        return self._squared_lengths(expansion.gradient_root, precision)

    def gains_of(self, expansion: Expansion, pairs: IntArray) -> FloatArray:
        """s_e of flat pair indices, (n,) float64."""
        return self._squared_lengths_of(pairs, expansion.gradient_root)

    def leverages_of(self, expansion: Expansion, pairs: IntArray) -> FloatArray:
        """t_e = a_e' M^-1 a_e of flat pair indices, (n,) float64."""
        return self._squared_lengths_of(pairs, expansion.inverse_root)

    @property
    def rough_precision(self) -> Precision:
        """Precision that steers a search well enough: single where the pool is large enough for it to pay."""
        num_prompts, num_responses = self.space.valid.shape
        return np.float32 if num_prompts * num_responses * self.space.dim >= _LARGE_POOL else np.float64

    def _squared_lengths_of(self, pairs: IntArray, root: Array) -> FloatArray:
        found: FloatArray = self.curvature.ravel()[pairs] * self.space.scores_of(pairs, root, self.rough_precision)
        return found

    def _squared_lengths(self, root: Array, precision: Precision) -> FloatArray:
        scale = largest(root) or 1.0
        return self.space.scores(self.curvature, cast(root / scale, precision)).astype(np.float64) * scale**2


def trace_criterion(pool: Pool, *, ridge: float, fisher: FloatArray | None = None, logistic: bool = True) -> Criterion:
    """tr(H M(w)^-1) over a pool.

    Args:
        pool: candidate pairs.
        ridge: multiple of the identity added to M.
        fisher: H, (dim, dim); None: the policy Fisher information of the pool.
        logistic: weigh each pair by sigma'(z_e), the information of one label about its margin.

    Raises:
        ValueError: H has a negative eigenvalue.
    """
    root = symmetric_root(pool.policy_fisher if fisher is None else fisher)
    return _criterion(pool, Trace(to_like(root, pool.features)), ridge=ridge, logistic=logistic)


def log_det_criterion(pool: Pool, *, ridge: float, logistic: bool = True) -> Criterion:
    """-log det M(w) over a pool; see `trace_criterion`."""
    return _criterion(pool, LogDet(), ridge=ridge, logistic=logistic)


def curvature_of(pool: Pool, *, logistic: bool = True) -> FloatArray:
    """beta^2 sigma'(z_e) of every pair slot, or beta^2, (P, m) float64; 0 where a pair is not valid."""
    curvature = logistic_curvature(pool.margins) if logistic else 1.0
    found: FloatArray = np.where(pool.pair_mask, pool.beta**2 * curvature, 0.0)
    return found


def effective_rank(matrix: Array) -> float:
    """(tr M)^2 / tr(M^2): the number of equally informed directions with the same spread; 0 for the zero matrix."""
    xp = namespace(matrix)
    scale = largest(matrix)
    if scale == 0:
        return 0.0
    unit = matrix / scale
    return float(xp.linalg.trace(unit)) ** 2 / float(xp.sum(unit * unit))


def _criterion(pool: Pool, measure: Measure, *, ridge: float, logistic: bool) -> Criterion:
    held = pool.prior_information
    if pool.labels is not None and not logistic:
        held = pool.labels.information(beta=pool.beta, logistic=False)
    return Criterion(
        space=pool.space,
        curvature=curvature_of(pool, logistic=logistic),
        mask=pool.pair_mask,
        prior=to_like(held, pool.features),
        ridge=ridge,
        measure=measure,
    )
