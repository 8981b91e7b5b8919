"""Scores of given responses, shard by shard: Ray Data over torch actors."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from cluster.actors import Residence, resident
from cluster.classifiers import TorchClassifier
from cluster.scorers import Scored, Scoring, TorchScorer
from cluster.settings import TorchSettings
from cluster.shards import Report, Shard, over_shards
from tasks.proxies import AnyProxy, ImplicitReward, RewardModel
from tasks.tables import JUDGED, RESPONSES, Table, check, features_schema, part_path, parts, write_part


@dataclass(frozen=True)
class ScoringJob:
    """Responses, how they are scored, and the folder that gets a file for each of theirs; and the proxy's say."""

    responses: Table
    scoring: Scoring
    target: Path
    proxy: AnyProxy | None = None

    @property
    def judged(self) -> Path:
        """Folder of what a reward model makes of the responses; work in progress, as its hidden name tells."""
        return self.target / ".judged"

    def missing(self) -> list[Shard]:
        """The shards of the responses that have no file in the target yet."""
        shards = range(len(parts(self.responses.path)))
        return [{"shard": shard} for shard in shards if not part_path(self.target, shard).exists()]


def score(job: ScoringJob, model: Path, settings: TorchSettings, report: Report) -> float:
    """Write the job's missing shards; gives the models' seconds, summed over actors."""
    missing = job.missing()
    if not missing:
        return 0.0
    judging = judge(job, missing, settings, report) if isinstance(job.proxy, RewardModel) else 0.0
    residence = Residence(settings.num_actors, settings.num_cpus, settings.num_gpus)
    with resident(TorchScorer, (model, settings), residence) as scorers:
        rows = over_shards(missing, score_shard, job=job, actors=scorers, report=report)
    return judging + float(sum(row["seconds"] for row in rows))


def judge(job: ScoringJob, shards: Sequence[Shard], settings: TorchSettings, report: Report) -> float:
    """Have the job's reward model score these shards, but for those that it has; gives its seconds, over actors.

    It is done before the scorers start, so that a GPU need not hold both. Its actors reserve no CPU: they compute only
    while the scorers wait, and what outlives a stage must leave CPUs to the next.
    """
    missing = [shard for shard in shards if not part_path(job.judged, shard["shard"]).exists()]
    if not missing or not isinstance(job.proxy, RewardModel):
        return 0.0
    residence = Residence(settings.num_actors, 0, settings.num_gpus)
    with resident(TorchClassifier, (job.proxy.resolve(), settings), residence) as classifiers:
        rows = over_shards(missing, judge_shard, job=job, actors=classifiers, report=report)
    return float(sum(row["seconds"] for row in rows))


def judge_shard(shard: Shard, job: ScoringJob, classifier: Any) -> dict[str, Any]:
    """Have the reward model score one file of responses and write its own; gives its seconds."""
    import ray

    responses = _responses(shard, job)
    prompts, texts = [row["messages"] for row in responses], [row["text"] for row in responses]
    scores, seconds = ray.get(classifier.score.remote(prompts, texts, job.scoring.batch_size))
    named = [row["response_id"] for row in responses]
    rows = [{"response_id": name, "proxy_score": score} for name, score in zip(named, scores, strict=True)]
    write_part(part_path(job.judged, shard["shard"]), rows, JUDGED)
    return {"seconds": seconds}


def score_shard(shard: Shard, job: ScoringJob, scorer: Any) -> dict[str, Any]:
    """Have the model score one file of responses and write its own; gives the model's seconds."""
    import ray

    responses = _responses(shard, job)
    prompts = [response["messages"] for response in responses]
    tokens = [response["token_ids"] for response in responses]
    scored, seconds = ray.get(scorer.score.remote(prompts, tokens, job.scoring))
    proxies = _proxy_scores(shard, job, responses, scored)
    rows = [_feature(*of) for of in zip(responses, scored, proxies, strict=True)]
    write_part(part_path(job.target, shard["shard"]), rows, features_schema(len(scored[0].feature)))
    return {"seconds": seconds}


def _responses(shard: Shard, job: ScoringJob) -> list[dict[str, Any]]:
    source = part_path(job.responses.path, shard["shard"])
    rows: list[dict[str, Any]] = check(pq.read_table(source), RESPONSES, str(source)).to_pylist()
    return rows


def _proxy_scores(
    shard: Shard, job: ScoringJob, responses: Sequence[dict[str, Any]], scored: Sequence[Scored]
) -> Sequence[float | None]:
    match job.proxy:
        case None:
            return [None] * len(responses)
        case ImplicitReward():
            return [score.logp_policy - score.logp_reference for score in scored]
        case RewardModel():
            source = part_path(job.judged, shard["shard"])
            scores: list[float] = check(pq.read_table(source), JUDGED, str(source)).column("proxy_score").to_pylist()
            return scores
        case reward:
            return reward([response["text"] for response in responses])


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
