"""Scores of given responses, shard by shard: Ray Data over torch actors."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from cluster.actors import Residence, resident
from cluster.scorers import Scored, Scoring, TorchScorer
from cluster.settings import TorchSettings
from cluster.shards import Report, Shard, over_shards
from tasks.labellers.rewards import AnyReward
from tasks.tables import RESPONSES, Table, check, features_schema, part_path, parts, write_part


@dataclass(frozen=True)
class ScoringJob:
    """Responses, how they are scored, and the folder that gets a file for each of theirs; `proxy` reads the texts."""

    responses: Table
    scoring: Scoring
    target: Path
    proxy: AnyReward | None = None

    def missing(self) -> list[Shard]:
        """The shards of the responses that have no file in the target yet."""
        shards = range(len(parts(self.responses.path)))
        return [{"shard": shard} for shard in shards if not part_path(self.target, shard).exists()]


def score(job: ScoringJob, model: Path, settings: TorchSettings, report: Report) -> float:
    """Write the job's missing shards; gives the models' seconds, summed over actors."""
    missing = job.missing()
    if not missing:
        return 0.0
    residence = Residence(settings.num_actors, settings.num_cpus, settings.num_gpus)
    with resident(TorchScorer, (model, settings), residence) as scorers:
        rows = over_shards(missing, score_shard, job=job, actors=scorers, report=report)
    return float(sum(row["seconds"] for row in rows))


def score_shard(shard: Shard, job: ScoringJob, scorer: Any) -> dict[str, Any]:
    """Have the model score one file of responses and write its own; gives the model's seconds."""
    import ray

    source = part_path(job.responses.path, shard["shard"])
    responses = check(pq.read_table(source), RESPONSES, str(source)).to_pylist()
    prompts = [response["messages"] for response in responses]
    tokens = [response["token_ids"] for response in responses]
    scored, seconds = ray.get(scorer.score.remote(prompts, tokens, job.scoring))
    proxies = _proxy_scores(responses, job.proxy)
    rows = [_feature(*of) for of in zip(responses, scored, proxies, strict=True)]
    write_part(part_path(job.target, shard["shard"]), rows, features_schema(len(scored[0].feature)))
    return {"seconds": seconds}


def _proxy_scores(responses: Sequence[dict[str, Any]], proxy: AnyReward | None) -> Sequence[float | None]:
    return [None] * len(responses) if proxy is None else proxy([response["text"] for response in responses])


def _feature(response: dict[str, Any], score: Scored, proxy_score: float | None) -> dict[str, Any]:
    return {
        "response_id": response["response_id"],
        "prompt_id": response["prompt_id"],
        "valid": response["fault"] is None,
        "num_tokens": len(response["token_ids"]),
        "logp_policy": score.logp_policy,
        "logp_reference": score.logp_reference,
        "feature": score.feature,
        "proxy_score": proxy_score,
    }
