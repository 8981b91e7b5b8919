"""Scores of given responses, shard by shard: Ray Data over torch actors."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.actors import Residence, resident
from cluster.classifiers import TorchClassifier
from cluster.settings import TorchSettings
from cluster.shards import Report, Shard, over_shards
from tasks.feature_tables import dim_of, facts_of, features_schema, read_features, write_features
from tasks.proxies import AnyProxy, ImplicitReward, RewardModel
from tasks.scorers import NOT_FINITE, TOO_LONG, Scores, Scoring, TorchScorer
from tasks.tables import ARROW, JUDGED, RESPONSES, Table, check, part_path, parts, write_part

JUDGED_TOGETHER = 16
"""Responses that a reward model scores together, where no batch size is given."""


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
        return [{"shard": shard} for shard in shards if not part_path(self.target, shard, ARROW).exists()]


def score(job: ScoringJob, model: Path, settings: TorchSettings, report: Report) -> dict[str, float]:
    """Write the job's missing shards; gives the models' seconds, summed over actors, and tokens a second of the policy.

    Tokens are those of prompts and responses, each counted once however many passes read it.
    """
    missing = job.missing()
    if not missing:
        return {"model_seconds": 0.0}
    judging = judge(job, missing, settings, report) if isinstance(job.proxy, RewardModel) else 0.0
    residence = Residence(settings.num_actors, settings.num_cpus, settings.num_gpus)
    with resident(TorchScorer, (model, settings), residence) as scorers:
        rows = over_shards(missing, score_shard, job=job, actors=scorers, report=report)
    seconds = float(sum(row["seconds"] for row in rows))
    return {"model_seconds": judging + seconds, "tokens_per_second": sum(row["tokens"] for row in rows) / seconds}


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
    scores, seconds = ray.get(classifier.score.remote(prompts, texts, job.scoring.batch_size or JUDGED_TOGETHER))
    named = [row["response_id"] for row in responses]
    rows = [{"response_id": name, "proxy_score": score} for name, score in zip(named, scores, strict=True)]
    write_part(part_path(job.judged, shard["shard"]), rows, JUDGED)
    return {"seconds": seconds}


def score_shard(shard: Shard, job: ScoringJob, scorer: Any) -> dict[str, Any]:
    """Have the model score one file of responses and write its own; gives the model's seconds and the tokens read."""
    import ray

    responses = _responses(shard, job)
    prompts = [response["messages"] for response in responses]
    tokens = [response["token_ids"] for response in responses]
    scores: Scores = ray.get(scorer.score.remote(prompts, tokens, job.scoring))
    table = _features(responses, scores, _proxy_scores(shard, job, responses, scores))
    facts = {"space": job.scoring.features.space, **scores.facts}
    write_features(part_path(job.target, shard["shard"], ARROW), table, facts)
    return {"seconds": scores.seconds, "tokens": scores.tokens}


def summary(folder: Path) -> dict[str, Any]:
    """Measures of finished features: what could not be scored, and how the others were."""
    table = read_features(folder)
    faults = table.column("fault").to_pylist()
    facts = {name: fact for name, fact in facts_of(table.schema).items() if name != "space"}
    counts = {f"num_{fault}": faults.count(fault) for fault in (TOO_LONG, NOT_FINITE)}
    return {**facts, **counts, "dim": dim_of(table.schema)}


def _responses(shard: Shard, job: ScoringJob) -> list[dict[str, Any]]:
    source = part_path(job.responses.path, shard["shard"])
    rows: list[dict[str, Any]] = check(pq.read_table(source), RESPONSES, str(source)).to_pylist()
    return rows


def _proxy_scores(
    shard: Shard, job: ScoringJob, responses: Sequence[dict[str, Any]], scores: Scores
) -> Sequence[float | None]:
    match job.proxy:
        case None:
            return [None] * len(responses)
        case ImplicitReward():
            gaps: list[float] = np.nan_to_num(scores.logp_policy - scores.logp_reference).tolist()
            return gaps
        case RewardModel():
            source = part_path(job.judged, shard["shard"])
            judged: list[float] = check(pq.read_table(source), JUDGED, str(source)).column("proxy_score").to_pylist()
            return judged
        case reward:
            return reward([response["text"] for response in responses])


def _features(responses: Sequence[dict[str, Any]], scores: Scores, proxy_scores: Sequence[float | None]) -> pa.Table:
    flat, dim = pa.array(scores.vectors.reshape(-1)), scores.vectors.shape[1]
    faults = [response["fault"] or fault for response, fault in zip(responses, scores.faults, strict=True)]
    columns = {
        "response_id": [response["response_id"] for response in responses],
        "prompt_id": [response["prompt_id"] for response in responses],
        "valid": [fault is None for fault in faults],
        "fault": scores.faults,
        "num_tokens": [len(response["token_ids"]) for response in responses],
        "logp_policy": pa.array(scores.logp_policy, from_pandas=True),
        "logp_reference": pa.array(scores.logp_reference, from_pandas=True),
        "feature": pa.FixedSizeListArray.from_arrays(flat, dim),
        "proxy_score": proxy_scores,
    }
    return pa.table(columns, schema=features_schema(dim))
