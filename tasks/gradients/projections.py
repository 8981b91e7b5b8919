"""Projections: gradients of many matrices into one vector of `dim` numbers that keeps inner products.

Every projection here is linear, decided by its seed and the names of the matrices, and unbiased:
E <S a, S b> = <a, b>. So sketches of all rounds, machines and shards can be compared.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import isqrt
from typing import TYPE_CHECKING, Literal, Protocol, get_args

import numpy as np

from tasks.gradients.randomness import hashed, signs

if TYPE_CHECKING:
    import torch

Shapes = Mapping[str, tuple[int, int]]
"""Rows and columns of each matrix, by its name."""

LARGEST_DIM = 65_536
"""Numbers of a vector at most: what a pool keeps for every response."""

_BLOCK = 4_096
"""Rows of a dense projection that exist at a time."""


class Projector(Protocol):
    """A projection of matrices of known names and shapes, ready to be added up."""

    @property
    def dim(self) -> int:
        """Numbers of a projected vector."""
        ...

    def add(self, total: "torch.Tensor", name: str, gradient: "torch.Tensor") -> None:
        """Add the projections of matrix `name`'s gradients (batch, rows, columns) to `total` (batch, dim)."""
        ...


def size_of(shapes: Shapes) -> int:
    """Numbers of all matrices together."""
    return sum(rows * columns for rows, columns in shapes.values())


@dataclass(frozen=True, kw_only=True)
class CountSketch:
    """Every number is added, with a random sign, to `nonzeros` of the `dim` sums.

    After Charikar, Chen and Farach-Colton (2002); with several nonzeros each has a block of dim / nonzeros sums of its
    own (Kane and Nelson 2014). For a vector x, E ||S x||^2 = ||x||^2 and
    Var ||S x||^2 = (2 / dim) (||x||_2^4 - ||x||_4^4), as with a dense matrix of signs, at the price of one addition per
    number and nonzero.

    Attributes:
        dim: numbers of a projected vector.
        nonzeros: sums that a number enters, 1 to 4.
        seed: decides the sketch, with the names of the matrices.
    """

    kind: Literal["count_sketch"] = "count_sketch"
    dim: int = 1024
    nonzeros: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        _require_dim(self.dim)
        if self.nonzeros not in (1, 2, 3, 4) or self.dim % self.nonzeros:
            raise ValueError(
                f"nonzeros is {self.nonzeros} for dim {self.dim}: pass 1, 2, 3 or 4, and a dim that is a multiple of it"
            )

    def over(self, shapes: Shapes, device: str = "cpu") -> Projector:
        """Get ready for these matrices."""
        require_room(self, size_of(shapes))
        return _Sketcher(self, shapes, device)


class _Sketcher:
    def __init__(self, sketch: CountSketch, shapes: Shapes, device: str) -> None:
        self.dim = sketch.dim
        sizes = {name: rows * columns for name, (rows, columns) in shapes.items()}
        self._tables = {name: _hash_tables(sketch, name, size, device) for name, size in sizes.items()}

    def add(self, total: "torch.Tensor", name: str, gradient: "torch.Tensor") -> None:
        flat = gradient.flatten(1)
        for places, gains in self._tables[name]:
            total.scatter_add_(1, places.expand_as(flat), flat * gains)


@cache
def _hash_tables(sketch: CountSketch, name: str, count: int, device: str) -> "list[tuple[torch.Tensor, torch.Tensor]]":
    """Places in the sum and signed gains of every number, for each nonzero; both (count,)."""
    import torch

    width, tables = sketch.dim // sketch.nonzeros, []
    for block in range(sketch.nonzeros):
        places, drawn = hashed(sketch.seed, f"{name}/{block}", count, width)
        gains = torch.from_numpy(drawn / sketch.nonzeros**0.5)
        tables.append((torch.from_numpy(places + block * width).to(device), gains.to(device)))
    return tables


@dataclass(frozen=True, kw_only=True)
class Rademacher:
    """A dense matrix of random signs over sqrt(dim) (Achlioptas 2003), made anew block by block: exact and slow.

    Var ||S x||^2 is that of `CountSketch`.

    Attributes:
        dim: numbers of a projected vector.
        seed: decides the matrix, with the names of the gradients' matrices.
    """

    kind: Literal["rademacher"] = "rademacher"
    dim: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        _require_dim(self.dim)

    def over(self, shapes: Shapes, device: str = "cpu") -> Projector:  # noqa: ARG002 - it lives where its input does
        """Get ready for these matrices."""
        require_room(self, size_of(shapes))
        return _Dense(self)


class _Dense:
    def __init__(self, projection: Rademacher) -> None:
        self.dim, self._seed = projection.dim, projection.seed

    def add(self, total: "torch.Tensor", name: str, gradient: "torch.Tensor") -> None:
        import torch

        for number, block in enumerate(torch.split(gradient.flatten(1), _BLOCK, dim=1)):
            drawn = torch.from_numpy(signs(self._seed, f"{name}/{number}", block.shape[1], self.dim))
            total.addmm_(block, drawn.to(block), alpha=self.dim**-0.5)


@dataclass(frozen=True, kw_only=True)
class Kronecker:
    """Random signs on the sides of each matrix, L G R, and the sum over matrices: cheap to apply, and less precise.

    `dim` is split into rows x columns; a side that is no longer than its part is left as it is, as the rank's side of a
    LoRA matrix mostly is; where both are, columns get signs. Sides are projected as in LoGra (Choe et al. 2024), which
    concatenates the matrices' results where this adds them up.

    Attributes:
        dim: numbers of a projected vector.
        seed: decides the signs, with the names of the matrices.
    """

    kind: Literal["kronecker"] = "kronecker"
    dim: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        _require_dim(self.dim)

    def over(self, shapes: Shapes, device: str = "cpu") -> Projector:
        """Get ready for these matrices."""
        require_room(self, size_of(shapes))
        return _Sides(self, shapes, device)


class _Sides:
    def __init__(self, projection: Kronecker, shapes: Shapes, device: str) -> None:
        self.dim = projection.dim
        self._sides = {name: _sides(projection, name, shape, device) for name, shape in shapes.items()}

    def add(self, total: "torch.Tensor", name: str, gradient: "torch.Tensor") -> None:
        left, right = self._sides[name]
        kept = gradient if right is None else gradient @ right.to(gradient)
        kept = kept if left is None else left.to(gradient) @ kept
        total[:, : kept[0].numel()] += kept.flatten(1)


@cache
def _sides(
    projection: Kronecker, name: str, shape: tuple[int, int], device: str
) -> "tuple[torch.Tensor | None, torch.Tensor | None]":
    """The matrices left (rows kept, rows) and right (columns, columns kept); None where a side stays."""
    import torch

    rows, columns = _split(projection.dim, shape)
    left = right = None
    if rows < shape[0]:
        left = signs(projection.seed, f"{name}/rows", rows, shape[0]) / np.sqrt(np.float32(rows))
    if columns < shape[1]:
        right = signs(projection.seed, f"{name}/columns", shape[1], columns) / np.sqrt(np.float32(columns))
    if left is None and right is None:  # without any sign, small matrices would add up to something biased
        right = np.diag(signs(projection.seed, name, 1, columns)[0])
    moved = [None if side is None else torch.from_numpy(side).to(device) for side in (left, right)]
    return moved[0], moved[1]


def _split(dim: int, shape: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns that are kept of a matrix: their product is `dim` at most, the shorter side goes first."""
    narrow = min(*shape, isqrt(dim))
    wide = min(max(shape), dim // narrow)
    return (narrow, wide) if shape[0] <= shape[1] else (wide, narrow)


@dataclass(frozen=True, kw_only=True)
class Whole:
    """All numbers, one matrix after the other in the order of their names: for small gradients."""

    kind: Literal["none"] = "none"

    def over(self, shapes: Shapes, device: str = "cpu") -> Projector:  # noqa: ARG002 - nothing to move
        """Get ready for these matrices."""
        require_room(self, size_of(shapes))
        return _Chain(shapes)


class _Chain:
    def __init__(self, shapes: Shapes) -> None:
        self._starts, self.dim = dict[str, int](), 0
        for name in sorted(shapes):
            self._starts[name] = self.dim
            self.dim += shapes[name][0] * shapes[name][1]

    def add(self, total: "torch.Tensor", name: str, gradient: "torch.Tensor") -> None:
        flat = gradient.flatten(1)
        total[:, self._starts[name] : self._starts[name] + flat.shape[1]] += flat


AnyProjection = CountSketch | Rademacher | Kronecker | Whole
"""The one place to add a projection."""

PROJECTIONS = {projection.kind: projection for projection in get_args(AnyProjection)}


def _require_dim(dim: int) -> None:
    if not 1 <= dim <= LARGEST_DIM:
        raise ValueError(f"dim is {dim:,}: pass 1 to {LARGEST_DIM:,}")


def require_room(projection: AnyProjection, size: int) -> None:
    """Check a projection against gradients of `size` numbers.

    Raises:
        ValueError: it asks for more numbers than there are, or is none for more than a vector may have.
    """
    if isinstance(projection, Whole):
        if size > LARGEST_DIM:
            raise ValueError(
                f"projection is none for gradients of {size:,} numbers, expected {LARGEST_DIM:,} at most: "
                "choose count_sketch, or fewer modules"
            )
    elif projection.dim > size:
        raise ValueError(
            f"dim {projection.dim:,} exceeds the {size:,} numbers of the gradient: "
            f"lower it to {size:,} at most, or set the projection's kind to none"
        )
