"""All benchmarks of labels, in the order in which they run."""

from functools import partial

from labels.noise import Place, noise
from measuring import Benchmark

from tasks.design.environments.tabular import Tabular

PLACES = (
    Place("60 responses of 1 prompt, utilities that differ by 0.5", Tabular(reward_scale=0.5), (60, 180, 600)),
    Place("60 responses of 1 prompt, by 2", Tabular(reward_scale=2.0), (60, 180, 600)),
    Place(
        "4 responses of 40 prompts, by 2",
        Tabular(num_prompts=40, num_responses=4, reward_scale=2.0),
        (60, 120, 240),
    ),
)

BENCHMARKS = (
    Benchmark(
        name="NOISE",
        title="labels of which one in five is flipped: more pairs, or more answers to each",
        parts=tuple(partial(noise, place=place) for place in PLACES),
    ),
)
