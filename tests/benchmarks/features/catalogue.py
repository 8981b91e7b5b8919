"""All benchmarks of features, in the order in which they run."""

from functools import partial

from features.gpu import gpu_throughput
from features.memory import table_memory
from features.models import Case
from features.prefixes import stopped_gradient
from features.sketches import projection_quality
from features.speed import gradient_error, gradient_speed
from measuring import Benchmark

TINY = (
    Case(hidden=256, layers=4, dim=1024, count=64, looped=64),
    Case(hidden=64, layers=8, dim=1024, count=128, looped=128),
    Case(hidden=512, layers=4, dim=2048, count=32, looped=32),
)
DEMO = Case(hidden=None, layers=30, dim=1024, count=32, looped=8)

BENCHMARKS = (
    Benchmark(
        name="P11",
        title="gradients of all responses against a plain pass and against loops",
        parts=(
            *(partial(gradient_speed, case=case, silent=silent) for case in (*TINY, DEMO) for silent in (True, False)),
            *(partial(gradient_error, case=case) for case in (*TINY, DEMO)),
        ),
    ),
    Benchmark(
        name="P12",
        title="projections of gradients against a dense matrix",
        parts=tuple(partial(projection_quality, case=case) for case in TINY),
    ),
    Benchmark(
        name="PREFIX",
        title="prompts that are read once",
        parts=(
            partial(stopped_gradient, prompt=32, response=32),
            partial(stopped_gradient, prompt=128, response=32),
        ),
    ),
    Benchmark(name="MEMORY", title="vectors from shards to a pool", parts=(table_memory,)),
    Benchmark(
        name="P15",
        title="gradients on a GPU against its own products and against a loop",
        parts=tuple(partial(gpu_throughput, size=size) for size in ("0.5B", "1.5B")),
        threads=None,
        needs_gpu=True,
    ),
)
