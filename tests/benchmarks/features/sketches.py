"""P12: projections of real gradients, their time and their error on differences of responses."""

from collections.abc import Iterator
from functools import partial

import torch
from features.models import Case, one_by_one
from measuring import Finding, take_turns

from tasks.gradients.projections import AnyProjection, CountSketch, Kronecker, Rademacher

SEEDS = 8


def projection_quality(repeats: int, *, case: Case) -> Iterator[Finding]:
    """Count-sketch against a stored dense matrix: time, and relative error of ||g_i - g_j||^2; then the others."""
    torch.set_num_threads(1)
    model = case.model(silent=False)
    gradients = one_by_one(model, case.texts())
    named = [(name, weights.shape) for name, weights in model.named_parameters() if "lora_" in name]
    shapes = {name: (shape[0], shape[1]) for name, shape in named}
    parts = gradients.split([rows * columns for rows, columns in shapes.values()], dim=1)
    matrices = {name: part.view(-1, *shapes[name]).contiguous() for name, part in zip(shapes, parts, strict=True)}
    dense = torch.randint(0, 2, (gradients.shape[1], case.dim), generator=torch.Generator().manual_seed(0)).float()
    dense = (2 * dense - 1) / case.dim**0.5

    def projected(projection: AnyProjection) -> torch.Tensor:
        projector, total = projection.over(shapes), torch.zeros(len(gradients), projection.dim)
        for name, gradient in matrices.items():
            projector.add(total, name, gradient)
        return total

    kinds = [CountSketch(dim=case.dim), CountSketch(dim=case.dim, nonzeros=4), Kronecker(dim=case.dim)]
    for kind in kinds:
        projected(kind)  # hash tables are made once a process
    own, stored, four, sides = take_turns(
        lambda: projected(kinds[0]),
        lambda: gradients @ dense,
        *(partial(projected, kind) for kind in kinds[1:]),
        repeats=repeats,
    )
    workload = f"{len(gradients)} gradients of {case.name}, {gradients.shape[1]:,} numbers to {case.dim:,}"
    words, ratio = f"dense matrix, stored: {stored}", stored.seconds / own.seconds
    yield Finding(workload=workload, ours=str(own), peer=words, number=ratio, low=8)
    plain = torch.stack([projected(Rademacher(dim=case.dim, seed=seed)) for seed in range(SEEDS)])
    reference = _error(plain, gradients)
    for name, kind, timed, high in (
        ("count_sketch", kinds[0], own, 1.3),
        ("count_sketch of 4 nonzeros", kinds[1], four, 1.3),
        ("kronecker", kinds[2], sides, None),
    ):
        drawn = [projected(type(kind)(**{**vars(kind), "seed": seed})) for seed in range(SEEDS)]
        error = _error(torch.stack(drawn), gradients)
        yield Finding(
            workload=f"{name}: error of squared distances over that of a dense matrix",
            ours=f"{error:.3f}, {timed}",
            peer=f"dense: {reference:.3f}",
            number=error / reference,
            high=high,
        )


def _error(drawn: torch.Tensor, gradients: torch.Tensor) -> float:
    """Root mean square relative error of squared distances between neighbours, over draws (draws, texts, dim)."""
    exact = (gradients[::2] - gradients[1::2]).double().square().sum(1)
    found = (drawn[:, ::2] - drawn[:, 1::2]).double().square().sum(2)
    return float(((found / exact - 1) ** 2).mean().sqrt())
