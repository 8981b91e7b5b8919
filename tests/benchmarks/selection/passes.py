"""One pass over all pairs: against the matrix of pairs, a plain product, the public formula, and in memory."""

import time
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from measuring import Finding, peak, resident, take_turns
from selection.peers import scores_of
from selection.problems import make_pool, pair_rows, size_of

from tasks.design.criterion import curvature_of, trace_criterion
from tasks.design.measures import inverse_root
from tasks.design.pool import Pool
from tasks.design.selectors.designs import DDesign, TraceDesign, pool_information

MANY_PROMPTS = (7143, 8, 256)
MANY_RESPONSES = (1667, 16, 256)


def pass_speed(repeats: int, *, shape: tuple[int, int, int], double: float, single: float) -> Iterator[Finding]:
    """A gradient pass at the uniform design, in both precisions, against the same on pairs."""
    pool = make_pool(shape)
    narrow = make_pool(shape, np.float32)
    curvature, root = curvature_of(pool), _uniform_root(pool)
    rows, root_32 = pair_rows(pool), root.astype(np.float32)
    theirs, wide, rough = take_turns(
        lambda: scores_of(rows, root),
        lambda: pool.space.scores(curvature, root),
        lambda: narrow.space.scores(curvature, root_32),
        repeats=repeats,
    )
    exact = theirs.value.reshape(curvature.shape)
    for name, ours, least in (("float64", wide, double), ("float32", rough, single)):
        work = f"one gradient pass in {name}, {size_of(pool)}"
        said = f"pairs formed, float64: {theirs}"
        yield Finding(workload=work, ours=str(ours), peer=said, number=theirs.seconds / ours.seconds, low=least)
        yield _error_of(ours.value, exact)
    target = _dense_root(pool)
    exact = scores_of(rows, target).reshape(curvature.shape)
    yield _error_of(narrow.space.scores(curvature, target.astype(np.float32)), exact, "under tr(H M^-1), float32")


def pass_throughput(repeats: int) -> Iterator[Finding]:
    """Operations a second of the pass over those of a product of the same shape; the root is dense, as for a trace."""
    for precision in (np.float64, np.float32):
        pool = make_pool(MANY_PROMPTS, precision)
        prompts, responses, dim = MANY_PROMPTS
        curvature, root = curvature_of(pool), _dense_root(pool).astype(precision)
        flat = pool.features.reshape(-1, dim)
        product = np.empty_like(flat)
        gemm, ours = take_turns(
            partial(np.matmul, flat, root, out=product),
            partial(pool.space.scores, curvature, root),
            repeats=2 * repeats,
        )
        count = 2 * prompts * responses * dim**2
        speed = (count + 2 * prompts * responses**2 * dim) / ours.seconds
        yield Finding(
            workload=f"the pass in {precision.__name__}, {size_of(pool)}",
            ours=f"{speed / 1e9:.0f} GFLOP/s",
            peer=f"a matrix product of its shape: {count / gemm.seconds / 1e9:.0f} GFLOP/s",
            number=speed * gemm.seconds / count,
            low=0.7,
        )


def one_shot_scores(repeats: int) -> Iterator[Finding]:
    """Scores against one information matrix, and the formula of public code that reads them off an n x n matrix."""
    pool = make_pool((357, 8, 64))
    rows, curvature = pair_rows(pool), curvature_of(pool)
    held = pool_information(pool) * 1000

    def formula() -> Any:
        return np.diag(rows @ np.linalg.inv(held + 1e-3 * np.eye(64)) @ rows.T)

    def ours() -> Any:
        return pool.space.scores(curvature, inverse_root(held, 1e-3))

    theirs, mine = take_turns(formula, ours, repeats=repeats)
    memory = f"{_peak_of(ours) / 1e6:.0f} MB", f"{_peak_of(formula) / 1e6:.0f} MB"
    yield Finding(
        workload=f"one-shot scores, {size_of(pool)}; peak memory",
        ours=f"{mine}, {memory[0]}",
        peer=f"diag(D V^-1 D'): {theirs}, {memory[1]}",
        number=theirs.seconds / mine.seconds,
        low=150,
    )
    yield _error_of(mine.value.ravel(), theirs.value)


def selection_memory(repeats: int, *, selector: DDesign | TraceDesign) -> Iterator[Finding]:
    """Peak memory of a whole selection above what the process held before the features existed, over their size."""
    _warm_up(selector)
    before = resident()
    pool = make_pool(MANY_PROMPTS)
    begun = time.perf_counter()
    selector(pool, 5000, np.random.default_rng(0))
    yield Finding(
        workload=f"memory of {selector.kind}, {size_of(pool)}, budget 5,000, cap 3; peak over the features",
        ours=f"{(peak() - before) / 1e6:.0f} MB, {time.perf_counter() - begun:.3g} s",
        peer=f"features, float64: {pool.features.nbytes / 1e6:.0f} MB",
        number=(peak() - before) / pool.features.nbytes,
        high=1.6,
    )


def _error_of(scores: Any, exact: Any, where: str = "") -> Finding:
    error = float((np.abs(scores - exact) / exact).max())
    return Finding(workload=f"largest relative error of a score {where}".rstrip(), number=error, high=1e-4)


def _warm_up(selector: DDesign | TraceDesign) -> None:
    """Have the libraries make their own buffers."""
    selector(make_pool((40, 4, 16)), 20, np.random.default_rng(0))


def _uniform_root(pool: Pool) -> Any:
    return inverse_root(5000 * pool_information(pool), 1e-3)


def _dense_root(pool: Pool) -> Any:
    return trace_criterion(pool, ridge=1e-3).expand(5000 * pool_information(pool)).gradient_root


def _peak_of(work: Callable[[], Any]) -> int:
    tracemalloc.start()
    work()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most
