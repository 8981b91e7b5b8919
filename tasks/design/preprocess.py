"""Feature space: standardise and rotate to principal axes, or scale as a whole."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.linalg import eigh, qr

from tasks.design.arrays import FloatArray

Blocks = Callable[[], Iterator[FloatArray]]
"""Gives rows of features, some at a time, (rows, dim_in): so that they need never be in memory all at once."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Projection:
    """An affine map fitted on one pool; features of earlier rounds go through the same one.

    Attributes:
        mean: (dim_in,).
        gain: 1 / standard deviation, (dim_in,); 0 for a constant column.
        axes: principal axes as columns, (dim_in, dim_out); the entry of largest size is positive.
    """

    dtype: ClassVar[type[np.floating]] = np.float64

    mean: FloatArray
    gain: FloatArray
    axes: FloatArray

    @property
    def dim(self) -> int:
        """Numbers of a projected vector."""
        return int(self.axes.shape[1])

    def __call__(self, features: FloatArray) -> FloatArray:
        """Map (..., dim_in) to (..., dim_out) float64."""
        mapped: FloatArray = self.standardise(features) @ self.axes
        return mapped

    def standardise(self, features: FloatArray) -> FloatArray:
        """Map (..., dim_in) to mean 0 and variance 1 over the responses of the fitted pool."""
        standard: FloatArray = (features - self.mean) * self.gain
        return standard


@dataclass(frozen=True, eq=False)
class Scaling:
    """One factor for all numbers, which keeps the geometry and gives a ridge the same meaning whatever the features.

    Attributes:
        factor: 1 / root mean square of the numbers it was fitted on, about each column's mean; 1 where rows are alike.
        dim: numbers of a mapped vector.
        axes: orthonormal columns (dim_in, dim) that span all rows there are, where these are fewer than the numbers of
            one: coordinates along them keep every inner product. None: vectors stay as they are.
    """

    factor: float
    dim: int
    axes: FloatArray | None = None

    @property
    def dtype(self) -> type[np.floating]:
        """Coordinates of few rows are float64, other vectors float32."""
        return np.float32 if self.axes is None else np.float64

    def __call__(self, features: FloatArray) -> FloatArray:
        """Map (..., dim_in) to (..., dim)."""
        scaled: FloatArray = np.multiply(features, self.factor, dtype=self.dtype)
        return scaled if self.axes is None else scaled @ self.axes


def fit_scaling(blocks: Blocks, others: Blocks = lambda: iter(())) -> Scaling:
    """The factor that makes the mean square of all numbers 1, each column about its mean.

    Args:
        blocks: rows to fit on.
        others: further rows that will be mapped.

    Raises:
        ValueError: there is no row, or one holds NaN or infinity.
    """
    mean, count = _mean(blocks)
    total = sum(float(np.square(block - mean).sum()) for block in blocks())
    factor = float(np.sqrt(count * len(mean) / total)) if total > 0 else 1.0
    if count + sum(len(block) for block in others()) >= len(mean):
        return Scaling(factor, len(mean))
    rows = np.concatenate([*blocks(), *others()]).astype(np.float64)
    axes, _ = qr(rows.T, mode="economic", overwrite_a=True)
    return Scaling(factor, axes.shape[1], axes)


def fit_projection(blocks: Blocks, *, dim: int) -> Projection:
    """Standardise the columns, then keep the first `dim` principal axes.

    Han, Goyal and Ma (arXiv:2606.19607) are reported to standardise hidden states and keep 128 axes. Directions
    in which the responses don't vary are dropped: `dim_out` is the smaller of `dim` and their rank, and at least 1.

    Args:
        blocks: rows to fit on; they are gone through four times.
        dim: most axes to keep.

    Raises:
        ValueError: `dim` is below 1, there is no row, or one holds NaN or infinity.
    """
    if dim < 1:
        raise ValueError(f"can't keep {dim} axes: expected 1 or more")
    mean, gain = _moments(blocks)
    standard = Projection(mean=mean, gain=gain, axes=np.eye(len(mean)))
    return Projection(mean=mean, gain=gain, axes=_principal_axes(blocks, standard, dim=dim))


def _finite(blocks: Blocks) -> Iterator[FloatArray]:
    start = 0
    for block in blocks():
        whole = np.isfinite(block).all(axis=1)
        if not whole.all():
            raise ValueError(
                f"features are not finite at response {start + int(whole.argmin())}: recompute or mask them"
            )
        start += len(block)
        yield block


def _mean(blocks: Blocks) -> tuple[FloatArray, int]:
    """Mean of all rows, float64, and how many they are."""
    sums, count = [], 0
    for block in _finite(blocks):
        sums.append(block.sum(axis=0, dtype=np.float64))
        count += len(block)
    if not count:
        raise ValueError("no response is valid: expected one at least")
    return np.sum(sums, axis=0) / count, count


def _moments(blocks: Blocks) -> tuple[FloatArray, FloatArray]:
    mean, count = _mean(blocks)
    squares, precision = np.zeros_like(mean), 0.0
    for block in blocks():
        squares += np.square(block - mean).sum(axis=0)
        precision = float(np.finfo(block.dtype).eps)
    spread = np.sqrt(squares / count)
    varies = spread > 64 * precision * np.abs(mean)
    return mean, np.divide(1.0, spread, out=np.zeros_like(spread), where=varies & (spread > 0))


def _principal_axes(blocks: Blocks, standard: Projection, *, dim: int) -> FloatArray:
    width = len(standard.mean)
    correlation = np.zeros((width, width))
    for block in blocks():
        scaled = standard.standardise(block)
        correlation += scaled.T @ scaled
    kept = min(dim, width)
    values, vectors = eigh(correlation, subset_by_index=(width - kept, width - 1))
    values, vectors = values[::-1], vectors[:, ::-1]
    rank = max(1, int((values > width * np.finfo(np.float64).eps * values[0]).sum()))
    axes = vectors[:, :rank]
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(rank)])
    oriented: FloatArray = axes * signs
    return oriented
