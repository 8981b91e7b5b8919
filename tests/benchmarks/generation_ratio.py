"""Generation through Ray Data against the same engine called directly: tokens per second, and their ratio.

    python tests/benchmarks/generation_ratio.py [--responses 2048] [--max-tokens 16] [--repeats 2]

Both sides answer the same prompts in the same shards with the demo's model, after a warm-up; engine starts are left
out on both. The sides take turns. Exit code 1 where the ratio of the medians is below the target.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from cluster.engines import EngineLimits, Sampling, VllmEngine
from cluster.models import base_policy
from cluster.session import ray_session
from cluster.settings import Settings
from flows.config import load_config
from tasks.prompts import read_prompts
from tasks.sampling import SamplingJob, sample
from tasks.tables import PROMPTS, Table, part_path, parts, write_part

TARGET = 0.9
DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"


def main() -> int:
    """Measure, print, and say whether the target is met."""
    options = _options()
    settings = Settings()
    config = load_config(DEMO).round
    policy = base_policy(config.model, settings.cache)
    sampling = Sampling(num_responses=8, max_tokens=options.max_tokens, temperature=1.0, top_p=1.0)
    limits = EngineLimits(max_model_len=256, max_lora_rank=0)
    rows = read_prompts(config.prompts.path)
    rows = (rows * (options.responses // (8 * len(rows)) + 1))[: options.responses // 8]

    with tempfile.TemporaryDirectory() as scratch, ray_session(settings):
        folder = Path(scratch)
        write_part(part_path(folder / "prompts", 0), rows, PROMPTS)
        prompts = Table(path=folder / "prompts", rows=len(rows), digest="benchmark")

        def through_ray(attempt: int, num_prompts: int) -> float:
            some = prompts.model_copy(update={"rows": num_prompts})
            job = SamplingJob(some, policy, sampling, options.shard_size, attempt, folder / f"pool-{attempt}")
            started = time.perf_counter()
            drawn = sample(job, policy.model, limits, settings.engine, lambda *_: None)
            seconds = time.perf_counter() - started
            assert len(parts(job.target)) == -(-num_prompts // options.shard_size)
            return drawn.tokens / seconds

        engine = VllmEngine(policy.model, limits, settings.engine)

        def direct(attempt: int, num_prompts: int) -> float:
            messages = [row["messages"] for row in rows[:num_prompts]]
            started, tokens = time.perf_counter(), 0
            for start in range(0, num_prompts, options.shard_size):
                shard = messages[start : start + options.shard_size]
                drawn, _ = engine.sample(shard, sampling, adapter=None, seed=attempt + start)
                tokens += sum(len(response.token_ids) for responses in drawn for response in responses)
            return tokens / (time.perf_counter() - started)

        speeds = _take_turns(
            {"direct": direct, "through_ray": through_ray}, options.repeats, len(rows), options.shard_size
        )
    medians = {side: statistics.median(values) for side, values in speeds.items()}
    ratio = medians["through_ray"] / medians["direct"]
    print(json.dumps({"responses": options.responses, "tokens_per_second": speeds, "ratio": round(ratio, 3)}, indent=2))
    return 0 if ratio >= TARGET else 1


def _take_turns(
    sides: dict[str, Callable[[int, int], float]], repeats: int, num_prompts: int, warm_up: int
) -> dict[str, list[float]]:
    for side in sides.values():
        side(-1, warm_up)
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for attempt in range(repeats):
        for name, side in sides.items():
            speeds[name].append(round(side(attempt, num_prompts), 1))
    return speeds


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--responses", type=int, default=2048)
    parser.add_argument("--max-tokens", type=int, default=16)
    parser.add_argument("--shard-size", type=int, default=16, help="prompts of one shard")
    parser.add_argument("--repeats", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
