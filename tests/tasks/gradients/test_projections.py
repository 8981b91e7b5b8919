"""Projections against their theory: unbiased, of the promised variance, and the same wherever they are made."""

import hashlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from tasks.gradients.projections import (
    LARGEST_DIM,
    PROJECTIONS,
    AnyProjection,
    CountSketch,
    Kronecker,
    Rademacher,
    Whole,
)
from tasks.gradients.randomness import bits, hashed, signs

SHAPES = {"b": (8, 30), "a": (40, 8), "c": (4, 4)}
DIM = 64
SEEDS = 1500


def matrices(seed: int = 0, batch: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(batch, *shape, generator=generator) for name, shape in SHAPES.items()}


def projected(projection: AnyProjection, gradients: dict[str, torch.Tensor]) -> torch.Tensor:
    projector = projection.over({name: tuple(of.shape[1:]) for name, of in gradients.items()})
    total = torch.zeros(len(next(iter(gradients.values()))), projector.dim)
    for name, gradient in gradients.items():
        projector.add(total, name, gradient)
    return total


def flat(gradients: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([gradients[name].flatten(1) for name in sorted(gradients)], dim=1)


def repeated(kind: Any, gradients: dict[str, torch.Tensor], **options: Any) -> torch.Tensor:
    """Projections under many seeds, (seeds, batch, dim)."""
    return torch.stack([projected(kind(dim=DIM, seed=seed, **options), gradients) for seed in range(SEEDS)]).double()


KINDS = [
    pytest.param(CountSketch, {"nonzeros": 1}, id="count_sketch"),
    pytest.param(CountSketch, {"nonzeros": 4}, id="count_sketch of 4"),
    pytest.param(Rademacher, {}, id="rademacher"),
    pytest.param(Kronecker, {}, id="kronecker"),
]


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_inner_products_are_kept_on_average(kind: Any, options: dict[str, int]) -> None:
    gradients = matrices()
    gradients["a"][1] += gradients["a"][0]
    found = repeated(kind, gradients, **options)
    products = torch.einsum("sid,sjd->sij", found, found)
    error = products.mean(0) - flat(gradients).double() @ flat(gradients).double().T
    assert (error.abs() < 4.5 * products.std(0) / SEEDS**0.5).all()


@pytest.mark.parametrize(("kind", "options"), KINDS[:3])
def test_the_error_of_a_length_is_that_of_johnson_and_lindenstrauss(kind: Any, options: dict[str, int]) -> None:
    """Var ||S x||^2 = (2 / dim) (||x||_2^4 - ||x||_4^4), for a dense matrix of signs and for count-sketch alike."""
    gradients = matrices()
    gradients["c"][0, 0, 0] = 12.0
    x = flat(gradients).double()
    expected = 2 / DIM * (x.square().sum(1).square() - x.pow(4).sum(1))
    variance = repeated(kind, gradients, **options).square().sum(2).var(0)
    assert variance.tolist() == pytest.approx(expected.tolist(), rel=0.15)


def test_a_kronecker_projection_errs_more_where_a_gradient_has_low_rank() -> None:
    """One side of a matrix G: Var ||R G||^2 = (2 / k) (||G G'||_F^2 - sum_i ||row i||^4), which rank one maximises."""
    rows, columns, k = 40, 8, DIM // 8
    generator = torch.Generator().manual_seed(3)
    left, right = (torch.randn(1, size, generator=generator) for size in (rows, columns))
    for gradient in (left[:, :, None] * right[:, None, :], torch.randn(1, rows, columns, generator=generator)):
        squares = torch.stack(
            [projected(Kronecker(dim=DIM, seed=seed), {"a": gradient}).double().square().sum() for seed in range(SEEDS)]
        )
        gram = (gradient[0] @ gradient[0].T).double()
        expected = 2 / k * (gram.square().sum() - gram.diagonal().square().sum())
        assert float(squares.var()) == pytest.approx(float(expected), rel=0.2)


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_projections_are_linear_and_the_order_of_matrices_does_not_matter(kind: Any, options: dict[str, int]) -> None:
    first, second = matrices(1), matrices(2)
    projection = kind(dim=DIM, seed=7, **options)
    mixed = {name: 2 * first[name] - 3 * second[name] for name in reversed(first)}
    expected = 2 * projected(projection, first) - 3 * projected(projection, second)
    torch.testing.assert_close(projected(projection, mixed), expected, rtol=0, atol=1e-4)


def test_a_count_sketch_of_fewer_numbers_is_a_larger_one_folded() -> None:
    gradients = matrices()
    wide, narrow = (projected(CountSketch(dim=dim), gradients) for dim in (64, 16))
    torch.testing.assert_close(wide.reshape(2, 16, 4).sum(2), narrow, rtol=0, atol=1e-4)


def test_none_keeps_every_number_in_the_order_of_names() -> None:
    gradients = matrices()
    assert torch.equal(projected(Whole(), gradients), flat(gradients))


def test_each_nonzero_has_sums_of_its_own() -> None:
    one = {"a": torch.zeros(1, 40, 8)}
    one["a"][0, 3, 5] = 2.0
    found = projected(CountSketch(dim=DIM, nonzeros=4), one)[0].reshape(4, DIM // 4)
    assert (found != 0).sum(1).tolist() == [1, 1, 1, 1]
    assert found.abs().sum().item() == pytest.approx(4 * 2.0 / 2)


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_another_seed_and_another_name_are_another_projection(kind: Any, options: dict[str, int]) -> None:
    gradient = matrices()["a"]
    found = projected(kind(dim=DIM, seed=0, **options), {"a": gradient})
    assert not torch.equal(found, projected(kind(dim=DIM, seed=1, **options), {"a": gradient}))
    assert not torch.equal(found, projected(kind(dim=DIM, seed=0, **options), {"z": gradient}))


SCRIPT = """
import hashlib, sys, torch
from tasks.gradients.projections import CountSketch, Rademacher, Kronecker
names = sys.argv[1].split(",")
for kind in (CountSketch(dim=64, nonzeros=2), Rademacher(dim=64), Kronecker(dim=64)):
    gradients = {name: torch.arange(320.0).reshape(1, 40, 8) * (1 + ord(name)) for name in names}
    projector, total = kind.over({name: (40, 8) for name in gradients}), torch.zeros(1, 64, dtype=torch.float64)
    for name in names:
        projector.add(total, name, gradients[name].double())
    print(hashlib.sha256(total.numpy().round(6).tobytes()).hexdigest())
"""


def test_two_processes_make_the_same_sketch_whatever_they_see_first() -> None:
    said = [
        subprocess.run([sys.executable, "-c", SCRIPT, names], check=True, capture_output=True, text=True).stdout
        for names in ("a,b,c", "c,a,b")
    ]
    assert said[0] == said[1]
    assert len(set(said[0].split())) == 3


def test_the_random_numbers_are_those_of_every_machine() -> None:
    """Written down once: a sketch of last year has to be comparable with one of today."""
    buckets, drawn = hashed(0, "model.layers.0.lora_B", 6, 1000)
    assert buckets.tolist() == [624, 821, 427, 756, 941, 622]
    assert drawn.tolist() == [1, -1, -1, -1, 1, -1]
    assert hashlib.sha256(signs(3, "x", 5, 7).tobytes()).hexdigest()[:16] == "79fd6e86e6175fb9"
    assert bits(0, "a", 1)[0] != bits(1, "a", 1)[0]


def test_buckets_and_signs_are_even() -> None:
    buckets, drawn = hashed(5, "x", 100_000, 10)
    counts = np.bincount(buckets, minlength=10)
    assert np.abs(counts - 10_000).max() < 5 * np.sqrt(10_000 * 0.9)
    assert abs(drawn.mean()) < 5 / np.sqrt(100_000)
    assert abs(signs(5, "x", 300, 300).mean()) < 5 / 300
    assert set(np.unique(signs(5, "x", 3, 300))) == {-1.0, 1.0}


@pytest.mark.parametrize("kind", [CountSketch, Rademacher, Kronecker])
def test_more_numbers_than_the_gradient_has_are_refused_with_the_most_that_make_sense(kind: Any) -> None:
    with pytest.raises(ValueError, match=r"dim 2,048 exceeds the 576 numbers of the gradient: lower it to 576 at most"):
        kind(dim=2048).over(SHAPES)


def test_faulty_projections_are_refused() -> None:
    for kind in (CountSketch, Rademacher, Kronecker):
        with pytest.raises(ValueError, match="dim is 0: pass 1 to 65,536"):
            kind(dim=0)
        with pytest.raises(ValueError, match="dim is 65,537: pass 1 to 65,536"):
            kind(dim=LARGEST_DIM + 1)
    for nonzeros in (0, 5, 3):
        with pytest.raises(ValueError, match=f"nonzeros is {nonzeros} for dim 64: pass 1, 2, 3 or 4"):
            CountSketch(dim=64, nonzeros=nonzeros)
    with pytest.raises(ValueError, match="projection is none for gradients of 70,000 numbers, expected 65,536"):
        Whole().over({"a": (700, 100)})
    assert set(PROJECTIONS) == {"count_sketch", "rademacher", "kronecker", "none"}
