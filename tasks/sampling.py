"""Responses, shard by shard: Ray Data over vLLM actors.

Rows of the dataset are shards of prompts; one shard is one call of an engine and one Parquet file, written atomically.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.actors import Residence, resident
from cluster.engines import Adapter, EngineLimits, Sampled, Sampling, VllmEngine
from cluster.models import Policy
from cluster.settings import EngineSettings
from cluster.shards import Report, Shard, over_shards
from cluster.storage import digest_of
from tasks.tables import PROMPTS, RESPONSES, Table, part_path, read, write_part


@dataclass(frozen=True)
class SamplingJob:
    """A policy, the prompts it answers, how, and the folder that gets a file for each shard."""

    prompts: Table
    policy: Policy
    sampling: Sampling
    shard_size: int
    seed: int
    target: Path

    def missing(self) -> list[Shard]:
        """The shards that have no file yet, each as the slice [start, stop) of the prompts."""
        starts = range(0, self.prompts.rows, self.shard_size)
        slices = [(start, min(start + self.shard_size, self.prompts.rows)) for start in starts]
        return [
            {"shard": shard, "start": start, "stop": stop}
            for shard, (start, stop) in enumerate(slices)
            if not part_path(self.target, shard).exists()
        ]


@dataclass(frozen=True)
class Drawn:
    """What a job took: tokens drawn, and the engines' seconds, summed over engines."""

    tokens: int
    engine_seconds: float


def sample(job: SamplingJob, model: Path, limits: EngineLimits, settings: EngineSettings, report: Report) -> Drawn:
    """Write the job's missing shards; nothing starts where nothing is missing."""
    missing = job.missing()
    if not missing:
        return Drawn(0, 0.0)
    runtime = {"py_executable": str(settings.python)} if settings.python else {}
    residence = Residence(settings.num_engines, settings.num_cpus, settings.num_gpus, runtime)
    with resident(VllmEngine, (model, limits, settings), residence) as engines:
        rows = over_shards(missing, write_shard, job=job, actors=engines, report=report)
    return Drawn(sum(row["tokens"] for row in rows), sum(row["seconds"] for row in rows))


def write_shard(shard: Shard, job: SamplingJob, engine: Any) -> dict[str, Any]:
    """Have the engine answer a slice of the prompts and write the file; gives tokens and the engine's seconds."""
    import ray

    prompts = read(job.prompts.path, PROMPTS).slice(shard["start"], shard["stop"] - shard["start"]).to_pylist()
    adapter = Adapter(job.policy.name, job.policy.adapter) if job.policy.adapter else None
    seed = int(digest_of([job.seed, job.policy.digest, shard["shard"]])[:8], 16) % 2**31
    call = engine.sample.remote([prompt["messages"] for prompt in prompts], job.sampling, adapter=adapter, seed=seed)
    drawn, seconds = ray.get(call)
    shared = {
        "sampling": json.dumps(asdict(job.sampling) | {"seed": seed}),
        "policy": job.policy.name,
        "engine": ray.get(engine.version.remote()),
    }
    rows = [
        response_row(prompt, index, response, job.policy.name) | {"fault": fault} | shared
        for prompt, responses in zip(prompts, drawn, strict=True)
        for index, (response, fault) in enumerate(zip(responses, faults([one.text for one in responses]), strict=True))
    ]
    write_part(part_path(job.target, shard["shard"]), rows, RESPONSES)
    return {"tokens": sum(len(response["token_ids"]) for response in rows), "seconds": seconds}


def faults(texts: Sequence[str]) -> list[str | None]:
    """Why each response to a prompt can't form a pair: it is empty, or says what an earlier one says."""
    bare = [text.strip() for text in texts]
    return ["empty" if not text else "duplicate" if text in bare[:i] else None for i, text in enumerate(bare)]


def response_row(prompt: dict[str, Any], index: int, response: Sampled, policy: str) -> dict[str, Any]:
    """A row of RESPONSES, but for its fault and what it shares with others; `policy` says who wrote it."""
    return {
        "response_id": digest_of([prompt["prompt_id"], policy, index, response.token_ids])[:32],
        "prompt_id": prompt["prompt_id"],
        "messages": prompt["messages"],
        "index": index,
        "text": response.text,
        "token_ids": response.token_ids,
        "logprob": response.logprob,
        "finish_reason": response.finish_reason,
    }
