"""All benchmarks of training, in the order in which they run."""

from functools import partial

from measuring import Benchmark
from training.optune import regeneration
from training.problems import Case
from training.scheduling import accuracy, cost
from training.speed import reference_saved, step_speed

TINY = Case("Llama of 4 layers of 256", hidden=256, steps=12)
WORDS = Case("Llama of 4 layers of 128", hidden=128, steps=0, batch=16, micro=16)
DEMO = Case("SmolLM2-135M", hidden=None, steps=2)

BENCHMARKS = (
    Benchmark(
        name="P17",
        title="a training step against TRL's own, and the stored reference",
        parts=(*(partial(step_speed, case=case) for case in (TINY, DEMO)), partial(reference_saved, case=DEMO)),
        threads=None,
    ),
    Benchmark(name="SAMS", title="training on half of every batch", parts=(partial(cost, case=DEMO),), threads=None),
    Benchmark(
        name="FLIPS",
        title="held-out accuracy of batch schedulers, with true and with flipped labels",
        parts=(partial(accuracy, case=WORDS),),
        threads=None,
    ),
    Benchmark(
        name="OPTUNE", title="rounds that regenerate a share of their prompts", parts=(regeneration,), threads=None
    ),
)
