"""Whole selections of many pairs: how time grows with the prompts, and a million pairs on all cores."""

import time
from collections.abc import Iterator

import numpy as np
from measuring import Finding, peak, resident, take_turns
from selection.problems import make_features, make_pool, pool_of, size_of

from tasks.design.selectors.designs import DDesign, TraceDesign

BUDGET = 20_000
MILLION = (35_715, 8, 512)
SIZES = (16_000, 32_000, 64_000, 128_000)  # below these, costs that do not grow hide the slope


def million_pairs(
    repeats: int, *, selector: DDesign | TraceDesign, seconds: float, products: float
) -> Iterator[Finding]:
    """Time and memory of one selection from the features to the pairs, in float32."""
    selector(make_pool((40, 4, 16)), 20, np.random.default_rng(0))
    before = resident()
    features = make_features(MILLION, np.float32)
    begun = time.perf_counter()
    pool = pool_of(features)
    selection = selector(pool, BUDGET, np.random.default_rng(0))
    taken, memory = time.perf_counter() - begun, peak() - before
    proof = selection.certificate
    assert proof is not None
    work = f"{selector.kind}, {size_of(pool)}, budget 20,000, cap 3, float32, all cores"
    told = f"{taken:.3g} s, {proof.passes} passes, gap {proof.gap:.1e}, efficiency {proof.efficiency:.4f}"
    certified = proof.converged and proof.gap <= 1e-3
    yield Finding(workload=f"{work}; seconds", ours=told, number=taken if certified else np.inf, high=seconds)
    product = _product_seconds(features, repeats)
    said = f"one float32 product of the same shape: {product:.3g} s"
    yield Finding(workload="in products of the same shape", peer=said, number=taken / product, high=products)
    said = f"features: {features.nbytes / 1e6:.0f} MB"
    share = memory / features.nbytes
    yield Finding(
        workload="peak memory over the features", ours=f"{memory / 1e6:.0f} MB", peer=said, number=share, high=1.6
    )


def _product_seconds(features: np.ndarray, repeats: int) -> float:
    flat = features.reshape(-1, features.shape[2])
    square = np.random.default_rng(0).standard_normal((flat.shape[1], flat.shape[1]), dtype=np.float32)
    product = np.empty_like(flat)
    (timed,) = take_turns(lambda: np.matmul(flat, square, out=product), repeats=repeats, clock=time.perf_counter)
    return timed.seconds


def linear_growth(repeats: int) -> Iterator[Finding]:
    """Slope of log time over log prompts, the number of passes being fixed; of several turns the least disturbed."""
    selector = DDesign(max_pairs_per_prompt=3, max_passes=6, tolerance=1e-9)
    pools = [make_pool((prompts, 8, 128), np.float32) for prompts in SIZES]

    def select(number: int) -> None:
        selector(pools[number], int(0.7 * SIZES[number]), np.random.default_rng(0))

    timed = take_turns(
        *(lambda number=number: select(number) for number in range(len(SIZES))), repeats=repeats, slow=np.inf
    )
    times = [side.least for side in timed]
    slope = float(np.polyfit(np.log(SIZES), np.log(times), 1)[0])
    yield Finding(
        workload="d_design, six passes, 0.7 pairs a prompt, dim 128: exponent of time in prompts",
        ours=", ".join(f"{size:,}: {one:.3g} s" for size, one in zip(SIZES, times, strict=True)),
        number=slope,
        low=0.95,
        high=1.1,
    )
