"""Arrays of any library that keeps the array API standard, and the way from them to numpy and back.

Features may live on an accelerator. Everything of the size of the features or of a dim x dim matrix is then computed
there; what has one number a pair, and every decision, is numpy. On the host all large products and factorisations go
through scipy's BLAS and LAPACK: numpy brings a copy of its own, and the idle threads of one spin while the other works,
which takes twice the time.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import array_api_compat
import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh, get_blas_funcs

Array: TypeAlias = Any
"""An array of numpy, torch, cupy or another library of the standard."""
FloatArray = npt.NDArray[np.floating]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.intp]
Precision = type[np.float32] | type[np.float64]


_NAMESPACES: dict[type, Any] = {}


def namespace(array: Array) -> Any:
    """The functions of the library that an array belongs to; looked up once for each type of array."""
    found = _NAMESPACES.get(type(array))
    if found is None:
        found = _NAMESPACES[type(array)] = array_api_compat.array_namespace(array)
    return found


def to_numpy(array: Array) -> npt.NDArray[Any]:
    """The same numbers on the host."""
    return array if isinstance(array, np.ndarray) else np.asarray(array_api_compat.to_device(array, "cpu"))


def to_like(values: npt.ArrayLike, like: Array, precision: Precision = np.float64) -> Array:
    """Copy numbers into the library and onto the device of `like`, in one of two precisions."""
    xp = namespace(like)
    host = np.ascontiguousarray(values, dtype=precision)
    return xp.asarray(host, device=array_api_compat.device(like))


def index_like(index: IntArray, like: Array) -> Array:
    """Copy indices into the library and onto the device of `like`."""
    return namespace(like).asarray(np.ascontiguousarray(index, dtype=np.int64), device=array_api_compat.device(like))


def cast(array: Array, precision: Precision) -> Array:
    """The array in single or double precision; itself where it is already."""
    xp = namespace(array)
    return xp.astype(array, xp.float32 if precision is np.float32 else xp.float64, copy=False)


def take_rows(matrix: Array, index: IntArray) -> Array:
    """Rows of a matrix by number."""
    return namespace(matrix).take(matrix, index_like(index, matrix), axis=0)


def largest(array: Array) -> float:
    """Greatest absolute value; 0 of no numbers."""
    xp = namespace(array)
    return 0.0 if 0 in array.shape else float(xp.max(xp.abs(array)))


def product(left: Array, right: Array) -> Array:
    """left @ right of two matrices."""
    if not isinstance(left, np.ndarray) or 0 in left.shape + right.shape:
        return left @ right
    (a, flip_a), (b, flip_b) = _for_blas(right), _for_blas(left)
    return get_blas_funcs("gemm", (a, b))(1.0, a, b, trans_a=flip_a, trans_b=flip_b).T


def gram(rows: Array) -> Array:
    """rows' rows of a matrix (n, dim), symmetric to the last digit."""
    if not isinstance(rows, np.ndarray) or 0 in rows.shape:
        return rows.T @ rows
    half = get_blas_funcs("syrk", (rows,))(1.0, rows.T)
    return half + np.triu(half, 1).T


def multiplier(matrix: Array, *, overwrite: bool = False) -> Callable[[Array], Array]:
    """A function from rows (n, dim) to rows @ matrix, which may overwrite the rows where that is allowed.

    An upper triangular matrix on the host is multiplied in half the time.
    """
    if not isinstance(matrix, np.ndarray) or matrix.shape[0] != matrix.shape[1] or np.tril(matrix, -1).any():
        return lambda rows: product(rows, matrix)
    multiply, transposed = get_blas_funcs("trmm", (matrix,)), np.asfortranarray(matrix.T)
    return lambda rows: multiply(1.0, transposed, rows.T, side=0, lower=1, overwrite_b=overwrite).T


def spectrum(symmetric: Array) -> tuple[FloatArray, Array]:
    """Eigenvalues, rising, on the host (dim,), and eigenvectors as columns (dim, dim)."""
    if isinstance(symmetric, np.ndarray):
        values, vectors = eigh(symmetric, driver="evd", check_finite=False)
        return values, vectors
    values, vectors = namespace(symmetric).linalg.eigh(symmetric)
    return to_numpy(values), vectors


def _for_blas(matrix: FloatArray) -> tuple[FloatArray, bool]:
    """The transpose of a matrix as BLAS takes it without a copy: an array by columns, and whether to flip it."""
    return (matrix.T, False) if matrix.flags.c_contiguous else (np.asfortranarray(matrix), True)
