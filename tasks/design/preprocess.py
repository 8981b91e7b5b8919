"""Feature space: standardise and rotate to principal axes."""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh

from tasks.design.arrays import BoolArray, FloatArray

_ROWS_PER_CHUNK = 8192


@dataclass(frozen=True, eq=False, kw_only=True)
class Projection:
    """An affine map fitted on one pool; features of earlier rounds go through the same one.

    Attributes:
        mean: (dim_in,).
        gain: 1 / standard deviation, (dim_in,); 0 for a constant column.
        axes: principal axes as columns, (dim_in, dim_out); the entry of largest size is positive.
    """

    mean: FloatArray
    gain: FloatArray
    axes: FloatArray

    def __call__(self, features: FloatArray) -> FloatArray:
        """Map (..., dim_in) to (..., dim_out) float64."""
        mapped: FloatArray = self.standardise(features) @ self.axes
        return mapped

    def standardise(self, features: FloatArray) -> FloatArray:
        """Map (..., dim_in) to mean 0 and variance 1 over the responses of the fitted pool."""
        standard: FloatArray = (features - self.mean) * self.gain
        return standard


def fit_projection(features: FloatArray, valid: BoolArray, *, dim: int) -> Projection:
    """Standardise the columns over the valid responses, then keep the first `dim` principal axes.

    Han, Goyal and Ma (arXiv:2606.19607) are reported to standardise hidden states and keep 128 axes. Directions
    in which the responses don't vary are dropped: `dim_out` is the smaller of `dim` and their rank, and at least 1.

    Args:
        features: (P, K, dim_in).
        valid: responses to fit on, (P, K).
        dim: most axes to keep.

    Raises:
        ValueError: `dim` is below 1, no response is valid, or a valid one holds NaN or infinity.
    """
    rows = features[valid]
    if dim < 1 or len(rows) == 0:
        raise ValueError(f"can't keep {dim} axes of {len(rows)} valid responses: both must be 1 or more")
    if not np.isfinite(rows).all():
        prompt, response = np.argwhere(valid)[np.argwhere(~np.isfinite(rows))[0, 0]]
        raise ValueError(f"features are not finite at prompt {prompt}, response {response}: recompute or mask them")
    mean, gain = _moments(rows)
    standard = Projection(mean=mean, gain=gain, axes=np.eye(len(mean)))
    return Projection(mean=mean, gain=gain, axes=_principal_axes(rows, standard, dim=dim))


def _moments(rows: FloatArray) -> tuple[FloatArray, FloatArray]:
    mean = rows.mean(axis=0, dtype=np.float64)
    spread = np.sqrt(sum(np.square(part - mean).sum(axis=0) for part in _parts(rows)) / len(rows))
    varies = spread > 64 * np.finfo(rows.dtype).eps * np.abs(mean)
    return mean, np.divide(1.0, spread, out=np.zeros_like(spread), where=varies & (spread > 0))


def _principal_axes(rows: FloatArray, standard: Projection, *, dim: int) -> FloatArray:
    width = rows.shape[1]
    correlation = np.zeros((width, width))
    for part in _parts(rows):
        scaled = standard.standardise(part)
        correlation += scaled.T @ scaled
    kept = min(dim, width)
    values, vectors = eigh(correlation, subset_by_index=(width - kept, width - 1))
    values, vectors = values[::-1], vectors[:, ::-1]
    rank = max(1, int((values > width * np.finfo(np.float64).eps * values[0]).sum()))
    axes = vectors[:, :rank]
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(rank)])
    oriented: FloatArray = axes * signs
    return oriented


def _parts(rows: FloatArray) -> list[FloatArray]:
    return np.split(rows, range(_ROWS_PER_CHUNK, len(rows), _ROWS_PER_CHUNK))
