"""Scores of given responses, shard by shard: Ray Data over torch actors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.actors import Residence, resident
from cluster.scorers import Scored, Scoring, TorchScorer
from cluster.settings import TorchSettings
from tasks.tables import RESPONSES, Table, check, features_schema, part_path, parts, write_part

Report = Callable[[int, int], None]
RELAY_CPUS = 0.1


@dataclass(frozen=True)
class ScoringJob:
    """Responses, how they are scored, and the folder that gets a file for each of theirs."""

    responses: Table
    scoring: Scoring
    target: Path

    def missing(self) -> list[dict[str, int]]:
        """The shards of the responses that have no file in the target yet."""
        shards = range(len(parts(self.responses.path)))
        return [{"shard": shard} for shard in shards if not part_path(self.target, shard).exists()]


def score(job: ScoringJob, model: Path, settings: TorchSettings, report: Report) -> float:
    """Write the job's missing shards; gives the models' seconds, summed over actors."""
    missing = job.missing()
    if not missing:
        return 0.0
    import ray

    seconds = 0.0
    residence = Residence(settings.num_actors, settings.num_cpus, settings.num_gpus)
    with resident(TorchScorer, (model, settings), residence) as scorers:
        relayed = ray.data.from_items(missing, override_num_blocks=len(missing)).map_batches(
            score_shards,
            fn_args=(job, scorers),
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.TaskPoolStrategy(size=settings.num_actors),
            num_cpus=RELAY_CPUS,
        )
        for done, row in enumerate(relayed.iter_rows(), start=1):
            seconds += row["seconds"]
            report(done, len(missing))
    return seconds


def score_shards(batch: pa.Table, job: ScoringJob, scorers: Sequence[Any]) -> pa.Table:
    """Have a model score each shard of the batch and write its file; gives a row of seconds a shard."""
    shards = [row["shard"] for row in batch.to_pylist()]
    return pa.Table.from_pylist([_score_shard(shard, job, scorers[shard % len(scorers)]) for shard in shards])


def _score_shard(shard: int, job: ScoringJob, scorer: Any) -> dict[str, Any]:
    import ray

    source = part_path(job.responses.path, shard)
    responses = check(pq.read_table(source), RESPONSES, str(source)).to_pylist()
    prompts = [response["messages"] for response in responses]
    tokens = [response["token_ids"] for response in responses]
    scored, seconds = ray.get(scorer.score.remote(prompts, tokens, job.scoring))
    rows = [_feature(response, score) for response, score in zip(responses, scored, strict=True)]
    write_part(part_path(job.target, shard), rows, features_schema(len(scored[0].feature)))
    return {"seconds": seconds}


def _feature(response: dict[str, Any], score: Scored) -> dict[str, Any]:
    return {
        "response_id": response["response_id"],
        "prompt_id": response["prompt_id"],
        "valid": response["fault"] is None,
        "num_tokens": len(response["token_ids"]),
        "logp_policy": score.logp_policy,
        "logp_reference": score.logp_reference,
        "feature": score.feature,
        "proxy_score": None,
    }
