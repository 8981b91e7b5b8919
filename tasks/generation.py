"""Generation: a policy writes responses, a pool for the round or answers to the held-out prompts."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from cluster.engines import EngineLimits, Sampling
from cluster.models import Policy, merged_checkpoint
from cluster.storage import StageKey
from tasks.progress import progress
from tasks.sampling import Drawn, SamplingJob, sample
from tasks.stages import Publish, RoundContext, run_stage, stage_task
from tasks.tables import RESPONSES, Table, read


class GenerationConfig(BaseModel):
    """How a policy writes responses."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_responses: Annotated[int, Field(ge=2)] = Field(4, description="responses to each prompt of a pool (K)")
    max_tokens: PositiveInt = Field(64, description="tokens of one response at most")
    max_model_len: PositiveInt = Field(512, description="tokens of prompt and response together at most")
    temperature: PositiveFloat = 1.0
    top_p: float = Field(1.0, gt=0, le=1)
    shard_size: PositiveInt = Field(8, description="prompts of one shard: what a killed run repeats at most")
    weights: Literal["adapter", "merged"] = Field("adapter", description="serve LoRA as it is, or merged into the base")
    max_lora_rank: int = Field(16, gt=0, le=512, description="largest rank that the engine makes room for")

    @model_validator(mode="after")
    def _leaves_room(self) -> "GenerationConfig":
        if self.max_tokens >= self.max_model_len:
            raise ValueError(
                f"max_tokens {self.max_tokens} leaves no room for a prompt in max_model_len {self.max_model_len}: "
                "lower it or raise max_model_len"
            )
        return self


@stage_task("{name}", retry_delays=[10, 60])
def generate_responses(
    prompts: Table, policy: Policy, config: GenerationConfig, here: RoundContext, *, name: str = "pool"
) -> Table:
    """Have the policy write `num_responses` responses to every prompt; `name` tells the round's stages apart."""
    sampling = Sampling(config.num_responses, config.max_tokens, config.temperature, config.top_p)
    facts = asdict(sampling) | {"shard_size": config.shard_size, "weights": config.weights, "seed": here.seed}

    def work(folder: Path) -> dict[str, Any]:
        model, served, rank = policy.model, policy, config.max_lora_rank
        if config.weights == "merged":
            model, rank = merged_checkpoint(policy, here.settings.cache), 0
            served = policy.model_copy(update={"adapter": None})
        job = SamplingJob(prompts, served, sampling, config.shard_size, here.seed, folder)
        with progress(f"{here.label} {name}") as report:
            drawn = sample(job, model, EngineLimits(config.max_model_len, rank), here.settings.engine, report)
        return _measures(folder, drawn)

    key = StageKey("responses", facts, [prompts.digest, policy.digest])
    return run_stage(key, work, here, publish=Publish(name, parquet=True))


def _measures(folder: Path, drawn: Drawn) -> dict[str, Any]:
    responses = read(folder, RESPONSES).select(["token_ids", "finish_reason", "fault"]).to_pylist()
    speed = {"tokens_per_engine_second": drawn.tokens / drawn.engine_seconds} if drawn.tokens else {}
    return speed | {
        "tokens": drawn.tokens,
        "model_seconds": drawn.engine_seconds,
        "mean_tokens": sum(len(row["token_ids"]) for row in responses) / len(responses),
        "share_truncated": sum(row["finish_reason"] == "length" for row in responses) / len(responses),
        "num_empty": sum(row["fault"] == "empty" for row in responses),
        "num_duplicate": sum(row["fault"] == "duplicate" for row in responses),
    }
