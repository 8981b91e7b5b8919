"""The trace criterion Phi(w) = tr(H M(w)^-1) of a pool, with M(w) = ridge I + prior + sum_e w_e a_e a_e'.

H is the policy Fisher information and a_e = beta sqrt(sigma'(z_e)) (phi_a - phi_b): M is the Fisher information of the
labels. To second order the expected suboptimality of the trained policy is (beta / 2) tr(H M^-1). Such a trace is
reported to bound it from above and from below in Han, Goyal and Ma, "Which Pairs to Compare for LLM Post-Training?"
(arXiv:2606.19607). The constant beta / 2, the factor sigma' and the prior come from the expansion, not from their text;
at round 0 every sigma' is 1/4 and changes no design.
"""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh, solve_triangular
from scipy.optimize import brentq

from tasks.design.kernels import BoolArray, FloatArray, centre, information, pair_curvature, pair_scores
from tasks.design.pool import Pool

_LARGE_POOL = 2**22


@dataclass(frozen=True, eq=False, kw_only=True)
class TraceCriterion:
    """Everything tr(H M(w)^-1) needs of a pool.

    Attributes:
        features: centred within prompts, (P, K, dim).
        curvature: beta^2 sigma'(z_e), 0 where a pair is not valid, (P, m).
        mask: valid pairs, (P, m).
        prior: information of labels already held, (dim, dim).
        ridge: multiple of the identity added to every information matrix.
        fisher_root: H^(1/2) with H = root root', (dim, rank of H).
    """

    features: FloatArray
    curvature: FloatArray
    mask: BoolArray
    prior: FloatArray
    ridge: float
    fisher_root: FloatArray

    def information(self, weights: FloatArray) -> FloatArray:
        """M(w) without the ridge, of a design w (P, m): prior + sum_e w_e a_e a_e'."""
        return self.prior + self.added_information(weights)

    def added_information(self, weights: FloatArray) -> FloatArray:
        """sum_e w_e a_e a_e' of a design w (P, m), (dim, dim)."""
        return information(self.features, self.curvature * weights)

    def expand(self, held: FloatArray) -> "Expansion":
        """Factorise M = ridge I + `held`."""
        root = _inverse_root(held, self.ridge)
        whitened = root.T @ self.fisher_root
        return Expansion(objective=float(np.square(whitened).sum()), inverse_root=root, whitened=whitened)

    def objective(self, weights: FloatArray) -> float:
        """Phi(w) of a design w (P, m), relaxed or of zeros and ones."""
        return self.expand(self.information(weights)).objective

    def gains(self, expansion: "Expansion", dtype: type[np.floating] = np.float64) -> FloatArray:
        """s_e = -dPhi/dw_e = a_e' M^-1 H M^-1 a_e >= 0 of every pair slot, (P, m) float64; the pass runs in `dtype`."""
        return self._quadratic(expansion.gradient_root, dtype)

    def leverages(self, expansion: "Expansion", dtype: type[np.floating] = np.float64) -> FloatArray:
        """t_e = a_e' M^-1 a_e of every pair slot, (P, m) float64; the pass runs in `dtype`."""
        return self._quadratic(expansion.inverse_root, dtype)

    @property
    def rough_dtype(self) -> type[np.floating]:
        """Precision that steers a search well enough: single where the pool is large enough for it to pay."""
        return np.float32 if self.features.size >= _LARGE_POOL else np.float64

    def _quadratic(self, root: FloatArray, dtype: type[np.floating]) -> FloatArray:
        scale = float(np.abs(root).max(initial=0.0)) or 1.0
        unit = np.ascontiguousarray(root / scale, dtype=dtype)
        return pair_scores(self.features, self.curvature, root=unit).astype(np.float64) * scale**2


@dataclass(frozen=True, eq=False, kw_only=True)
class Expansion:
    """Phi around one information matrix M.

    Attributes:
        objective: tr(H M^-1).
        inverse_root: R with R R' = M^-1, (dim, dim).
        whitened: R' H^(1/2), (dim, rank).
    """

    objective: float
    inverse_root: FloatArray
    whitened: FloatArray

    @property
    def gradient_root(self) -> FloatArray:
        """M^-1 H^(1/2), (dim, rank)."""
        return self.inverse_root @ self.whitened

    def curve(self, direction: FloatArray) -> FloatArray:
        """R' D M^-1 H^(1/2): the second derivative of Phi along D and E is twice the inner product of their curves."""
        return self.inverse_root.T @ (direction @ self.gradient_root)

    def best_step(self, direction: FloatArray) -> float:
        """Step t in [0, 1] that minimises tr(H (M + t D)^-1), exact up to rounding.

        With R' D R = U diag(v) U' the objective is sum_i z_i / (1 + t v_i), where z_i is the squared norm of
        row i of U' R' H^(1/2).
        """
        pencil = self.inverse_root.T @ direction @ self.inverse_root
        values, vectors = eigh((pencil + pencil.T) / 2)
        values = np.maximum(values, -1 + 1e-12)
        mass = np.square(vectors.T @ self.whitened).sum(axis=1)

        def slope(step: float) -> float:
            return -float((mass * values / np.square(1 + step * values)).sum())

        if slope(0.0) >= 0:
            return 0.0
        return 1.0 if slope(1.0) <= 0 else float(brentq(slope, 0.0, 1.0, xtol=1e-12))


def trace_criterion(pool: Pool, *, ridge: float) -> TraceCriterion:
    """Prepare tr(H M(w)^-1) for a pool.

    Raises:
        ValueError: the policy Fisher information has a negative eigenvalue.
    """
    prior = 0.0 if pool.prior_information is None else pool.prior_information
    return TraceCriterion(
        features=centre(pool.features, pool.valid),
        curvature=pair_curvature(pool.rewards, pool.pair_mask, beta=pool.beta),
        mask=pool.pair_mask,
        prior=np.zeros((pool.dim, pool.dim)) + prior,
        ridge=ridge,
        fisher_root=_symmetric_root(pool.policy_fisher),
    )


def effective_rank(matrix: FloatArray) -> float:
    """(tr M)^2 / tr(M^2): the number of equally informed directions with the same spread; 0 for the zero matrix."""
    scale = float(np.abs(matrix).max(initial=0.0))
    if scale == 0:
        return 0.0
    unit = matrix / scale
    return float(np.trace(unit) ** 2 / np.square(unit).sum())


def _symmetric_root(matrix: FloatArray) -> FloatArray:
    values, vectors = eigh(matrix.astype(np.float64))
    largest = float(np.abs(values).max(initial=0.0))
    if values.min(initial=0.0) < -1e-6 * largest:
        raise ValueError(f"fisher has the negative eigenvalue {values.min():.3g}: pass a covariance or leave it out")
    kept = values > len(values) * np.finfo(np.float64).eps * largest
    root: FloatArray = vectors[:, kept] * np.sqrt(values[kept])
    return root


def _inverse_root(held: FloatArray, ridge: float) -> FloatArray:
    identity = np.eye(len(held))
    try:
        lower = np.linalg.cholesky(held + ridge * identity)
    except np.linalg.LinAlgError:  # rounding swallowed the ridge: the information is 1e16 times as large
        values, vectors = eigh(held)
        spectral: FloatArray = vectors / np.sqrt(np.maximum(values, 0.0) + ridge)
        return spectral
    triangular: FloatArray = solve_triangular(lower, identity, lower=True).T
    return triangular
