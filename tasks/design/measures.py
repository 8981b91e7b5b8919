"""What a design is judged by: convex functions of the information matrix M, to be minimised, and how they bend.

`Trace` is tr(H M^-1): L-optimality, with A- and V-optimality as cases of H. `LogDet` is -log det M: D-optimality.
Both are seen around one M through R with R R' = M^-1 (an `Expansion`), in which every gradient is a squared length.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from scipy.linalg import eigh
from scipy.linalg.lapack import dpotrf, dtrtri
from scipy.optimize import brentq

from tasks.design.arrays import Array, FloatArray, namespace, product, spectrum, to_like, to_numpy


class Expansion(Protocol):
    """A measure around one information matrix M.

    Attributes:
        objective: the measure of M.
        inverse_root: R with R R' = M^-1, (dim, dim).
        gradient_root: T, so that -dPhi/dw_e = |T' a_e|^2, (dim, q).
    """

    @property
    def objective(self) -> float: ...  # noqa: D102 (described above)

    @property
    def inverse_root(self) -> Array: ...  # noqa: D102

    @property
    def gradient_root(self) -> Array: ...  # noqa: D102

    def curve(self, direction: Array) -> Array:
        """A matrix C(D): the second derivative along D and E is proportional to the inner product of C(D) and C(E)."""
        ...

    def best_step(self, direction: Array) -> float:
        """Step t in [0, 1] that minimises the measure of M + t D, exact up to rounding."""
        ...

    def worth(self, gains: FloatArray, leverages: FloatArray) -> FloatArray:
        """What adding one label of the pair takes off the measure; s = gain, t = leverage a' M^-1 a."""
        ...

    def price(self, gains: FloatArray, leverages: FloatArray) -> FloatArray:
        """What taking one label of the pair away adds to the measure."""
        ...

    def lower_bound(self, gap: float) -> float:
        """No design allowed has a smaller measure, given the Frank-Wolfe gap G = max_v sum_e (v_e - w_e) s_e."""
        ...

    def relative(self, gap: float) -> float:
        """The gap in the unit in which tolerances are given."""
        ...

    def efficiency(self, lower_bound: float) -> float:
        """How close M comes to the bound, in [0, 1]."""
        ...


class Measure(Protocol):
    """A convex function of the information matrix.

    Attributes:
        power: exponent p of the multiplicative rule w_e <- w_e s_e^p, which never raises the measure (Yu 2010).
    """

    @property
    def power(self) -> float: ...  # noqa: D102 (described above)

    def expand(self, inverse_root: Array) -> Expansion:
        """The measure around M, given R with R R' = M^-1."""
        ...


@dataclass(frozen=True, eq=False)
class Trace:
    """tr(H M^-1).

    Attributes:
        root: H^(1/2) with H = root root', (dim, rank of H).
    """

    root: Array
    power: float = 0.5

    def expand(self, inverse_root: Array) -> "TraceExpansion":
        """The trace around M."""
        whitened = product(inverse_root.T, self.root)
        xp = namespace(whitened)
        return TraceExpansion(
            objective=float(xp.sum(whitened * whitened)),
            inverse_root=inverse_root,
            gradient_root=product(inverse_root, whitened),
            whitened=whitened,
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class TraceExpansion:
    """tr(H M^-1) around M; see `Expansion`.

    The lower bound Phi^2 / (Phi + G) never lies below the plain Phi - G: by Cauchy-Schwarz
    Phi(w)^2 <= Phi(v) tr(H M(w)^-1 M(v) M(w)^-1), and the last factor is Phi(w) + sum_e (v_e - w_e) s_e <= Phi(w) + G,
    whatever prior and ridge both designs share.
    """

    objective: float
    inverse_root: Array
    gradient_root: Array
    whitened: Array

    def curve(self, direction: Array) -> Array:
        """R' D M^-1 H^(1/2), (dim, rank)."""
        return product(self.inverse_root.T, product(direction, self.gradient_root))

    def best_step(self, direction: Array) -> float:
        """With R' D R = U diag(v) U' the trace is sum_i z_i / (1 + t v_i), z_i = |row i of U' R' H^(1/2)|^2."""
        values, vectors = _pencil(self.inverse_root, direction)
        turned = product(vectors.T, self.whitened)
        mass = to_numpy(namespace(turned).sum(turned * turned, axis=1))
        return _root_of_slope(lambda step: -float((mass * values / np.square(1 + step * values)).sum()))

    def worth(self, gains: FloatArray, leverages: FloatArray) -> FloatArray:
        """Adding one label takes s / (1 + t) off."""
        worth: FloatArray = np.divide(gains, 1 + leverages)
        return worth

    def price(self, gains: FloatArray, leverages: FloatArray) -> FloatArray:
        """Taking one away adds s / (1 - t)."""
        price: FloatArray = np.divide(gains, np.maximum(1 - leverages, 1e-9))
        return price

    def lower_bound(self, gap: float) -> float:
        """Phi^2 / (Phi + G)."""
        return self.objective / (1 + self.relative(gap)) if self.objective > 0 else 0.0

    def relative(self, gap: float) -> float:
        """G / Phi."""
        return gap / self.objective if self.objective > 0 else 0.0

    def efficiency(self, lower_bound: float) -> float:
        """lower_bound / Phi."""
        return min(1.0, lower_bound / self.objective) if self.objective > 0 else 1.0


@dataclass(frozen=True, eq=False)
class LogDet:
    """-log det M."""

    power: float = 1.0

    def expand(self, inverse_root: Array) -> "LogDetExpansion":
        """The log determinant around M."""
        return LogDetExpansion(inverse_root)


@dataclass(frozen=True, eq=False)
class LogDetExpansion:
    """-log det M around M; see `Expansion`.

    For any design v allowed log det M(v) - log det M(w) <= dim log(tr(M(w)^-1 M(v)) / dim), by the inequality of
    arithmetic and geometric means, and that trace is dim + sum_e (v_e - w_e) s_e <= dim + G.
    """

    inverse_root: Array

    @property
    def gradient_root(self) -> Array:
        """R itself: gains are leverages."""
        return self.inverse_root

    @cached_property
    def objective(self) -> float:
        """2 log |det R|."""
        _, log_det = namespace(self.inverse_root).linalg.slogdet(self.inverse_root)
        return 2 * float(log_det)

    @property
    def dim(self) -> int:
        """Rows of M."""
        return int(self.inverse_root.shape[0])

    def curve(self, direction: Array) -> Array:
        """R' D R, (dim, dim)."""
        return product(self.inverse_root.T, product(direction, self.inverse_root))

    def best_step(self, direction: Array) -> float:
        """With R' D R = U diag(v) U' the log determinant grows by sum_i log(1 + t v_i)."""
        values, _ = _pencil(self.inverse_root, direction)
        return _root_of_slope(lambda step: -float((values / (1 + step * values)).sum()))

    def worth(self, gains: FloatArray, leverages: FloatArray) -> FloatArray:  # noqa: ARG002 (they are the same)
        """log(1 + t)."""
        worth: FloatArray = np.log1p(leverages)
        return worth

    def price(self, gains: FloatArray, leverages: FloatArray) -> FloatArray:  # noqa: ARG002 (they are the same)
        """-log(1 - t)."""
        price: FloatArray = -np.log1p(-np.minimum(leverages, 1 - 1e-9))
        return price

    def lower_bound(self, gap: float) -> float:
        """Phi - dim log(1 + G / dim)."""
        return self.objective - self.dim * float(np.log1p(self.relative(gap)))

    def relative(self, gap: float) -> float:
        """G / dim."""
        return gap / self.dim

    def efficiency(self, lower_bound: float) -> float:
        """exp((lower_bound - Phi) / dim): the share of labels that the best design would need for the same det M."""
        return min(1.0, float(np.exp((lower_bound - self.objective) / self.dim)))


def symmetric_root(matrix: FloatArray) -> FloatArray:
    """H^(1/2) with as many columns as H has rank, (dim, rank).

    Raises:
        ValueError: the matrix has a negative eigenvalue.
    """
    values, vectors = eigh(matrix.astype(np.float64))
    largest = float(np.abs(values).max(initial=0.0))
    if values.min(initial=0.0) < -1e-6 * largest:
        raise ValueError(f"fisher has the negative eigenvalue {values.min():.3g}: pass a covariance or leave it out")
    kept = values > len(values) * np.finfo(np.float64).eps * largest
    root: FloatArray = vectors[:, kept] * np.sqrt(values[kept])
    return root


def inverse_root(held: Array, ridge: float) -> Array:
    """R with R R' = (held + ridge I)^-1, (dim, dim); factorised on the host, in float64."""
    matrix = to_numpy(held)
    lower, fault = dpotrf(matrix + ridge * np.eye(len(matrix)), lower=1)
    if fault:  # rounding swallowed the ridge: the information is 1e16 times as large
        values, vectors = eigh(matrix)
        return to_like(vectors / np.sqrt(np.maximum(values, 0.0) + ridge), held)
    inverse, _ = dtrtri(lower, lower=1)
    return to_like(inverse.T, held)


def _pencil(root: Array, direction: Array) -> tuple[FloatArray, Array]:
    turned = product(root.T, product(direction, root))
    values, vectors = spectrum((turned + turned.T) / 2)
    return np.maximum(values, -1 + 1e-12), vectors


def _root_of_slope(slope: "_Slope") -> float:
    if slope(0.0) >= 0:
        return 0.0
    return 1.0 if slope(1.0) <= 0 else float(brentq(slope, 0.0, 1.0, xtol=1e-12))


class _Slope(Protocol):
    def __call__(self, step: float) -> float: ...
