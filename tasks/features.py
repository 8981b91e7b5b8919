"""Features: what the policy and its reference make of every response, as log-probabilities and as a vector."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from cluster.models import Contrast
from cluster.scorers import Pooling, Scoring
from cluster.storage import StageKey
from tasks.progress import progress
from tasks.scoring import ScoringJob, score
from tasks.stages import Publish, RoundContext, run_stage, stage_task
from tasks.tables import Table


class FeaturesConfig(BaseModel):
    """Which vector stands for a response."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pooling: Pooling = Field("last", description="final-layer state of the last response token, or the mean over them")
    batch_size: PositiveInt = Field(16, description="responses scored together")


@stage_task("{name}")
def compute_features(
    responses: Table, contrast: Contrast, config: FeaturesConfig, here: RoundContext, *, name: str = "features"
) -> Table:
    """Score every response under the policy and its reference; `name` tells the round's stages apart."""
    policy, reference = contrast.policy, contrast.reference

    def work(folder: Path) -> dict[str, Any]:
        scoring = Scoring(policy.adapter, reference.adapter, config.pooling, config.batch_size)
        with progress(f"{here.label} {name}") as report:
            seconds = score(ScoringJob(responses, scoring, folder), policy.model, here.settings.torch, report)
        return {"model_seconds": seconds}

    facts = config.model_dump(include={"pooling"})
    key = StageKey("features", facts, [responses.digest, policy.digest, reference.digest])
    return run_stage(key, work, here, publish=Publish(name))
