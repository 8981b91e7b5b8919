"""All benchmarks, in the order in which they run."""

from functools import partial

from measuring import Benchmark
from selection.designs import (
    capped_speed,
    conic_speed,
    rounding,
    simplex_against_away_steps,
    simplex_against_multiplicative,
)
from selection.growth import linear_growth, million_pairs
from selection.passes import (
    MANY_PROMPTS,
    MANY_RESPONSES,
    one_shot_scores,
    pass_speed,
    pass_throughput,
    selection_memory,
)
from selection.picks import distance_sampling, greedy_large, greedy_small, greedy_wide

from tasks.design.selectors.designs import DDesign, TraceDesign, VDesign

D, TRACE, V = (design(max_pairs_per_prompt=3) for design in (DDesign, TraceDesign, VDesign))

BENCHMARKS = (
    Benchmark(
        name="P1",
        title="one pass over all pairs against the matrix of pairs",
        parts=(
            partial(pass_speed, shape=MANY_PROMPTS, double=3, single=6),
            partial(pass_speed, shape=MANY_RESPONSES, double=6, single=10),
        ),
    ),
    Benchmark(name="P2", title="the same pass against a plain matrix product", parts=(pass_throughput,)),
    Benchmark(
        name="P3",
        title="bounded designs against the same on pairs, and against another algorithm",
        parts=(
            partial(capped_speed, selector=D, passes=10),
            partial(capped_speed, selector=V, passes=30),
            partial(capped_speed, selector=TRACE, passes=30),
        ),
    ),
    Benchmark(
        name="P4",
        title="bounded designs against a conic solver",
        parts=tuple(partial(conic_speed, selector=selector) for selector in (D, V, TRACE)),
    ),
    Benchmark(
        name="P5",
        title="D-optimal designs on the simplex",
        parts=(simplex_against_away_steps, simplex_against_multiplicative),
    ),
    Benchmark(name="P6", title="greedy picks against two plain ways", parts=(greedy_large,)),
    Benchmark(name="P7", title="greedy picks against submodlib", parts=(greedy_small,)),
    Benchmark(name="P8", title="one-shot scores against the public formula", parts=(one_shot_scores,)),
    Benchmark(
        name="P9",
        title="k-means++ against scikit-learn",
        parts=(
            partial(distance_sampling, shape=MANY_PROMPTS, least=2),
            partial(distance_sampling, shape=MANY_RESPONSES, least=3.5),
        ),
    ),
    Benchmark(
        name="P10",
        title="what whole pairs lose against the relaxed design",
        parts=(
            partial(rounding, selector=D, least=0.998),
            partial(rounding, selector=V, least=0.993),
            partial(rounding, selector=TRACE, least=0.993),
        ),
    ),
    Benchmark(
        name="P13",
        title="memory of a whole selection",
        parts=tuple(partial(selection_memory, selector=selector) for selector in (D, TRACE)),
    ),
    Benchmark(
        name="BIG",
        title="a million pairs on all cores",
        parts=(
            partial(million_pairs, selector=D, seconds=60, products=15),
            partial(million_pairs, selector=TRACE, seconds=240, products=45),
        ),
        threads=None,
    ),
    Benchmark(name="SCALING", title="time against the number of prompts", parts=(linear_growth,)),
    Benchmark(name="KERNEL", title="greedy picks in many dimensions", parts=(greedy_wide,)),
)
