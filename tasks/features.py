"""Features: what the policy and its reference make of every response, as log-probabilities and as a vector."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from cluster.models import Contrast
from cluster.scorers import Pooling, Scoring
from cluster.storage import StageKey
from tasks.progress import progress
from tasks.proxies import AnyProxy, identity_of
from tasks.scoring import ScoringJob, score
from tasks.stages import Publish, RoundContext, run_stage, stage_task
from tasks.tables import Table


class FeaturesConfig(BaseModel):
    """Which vector stands for a response, and what stands in for the labeller."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pooling: Pooling = Field("last", description="final-layer state of the last response token, or the mean over them")
    proxy: Annotated[AnyProxy, Field(discriminator="kind")] | None = Field(
        None, description="what scores every response, for the selectors that need scores"
    )
    batch_size: PositiveInt = Field(16, description="responses scored together")


@stage_task("{name}")
def compute_features(
    responses: Table, contrast: Contrast, config: FeaturesConfig, here: RoundContext, *, name: str = "features"
) -> Table:
    """Score every response under the policy, its reference and the proxy; `name` tells the round's stages apart."""
    policy, reference = contrast.policy, contrast.reference

    def work(folder: Path) -> dict[str, Any]:
        if not responses.rows:
            return {"model_seconds": 0.0}
        scoring = Scoring(policy.adapter, reference.adapter, config.pooling, config.batch_size)
        with progress(f"{here.label} {name}") as report:
            job = ScoringJob(responses, scoring, folder, config.proxy)
            seconds = score(job, policy.model, here.settings.torch, report)
        return {"model_seconds": seconds}

    facts = {"pooling": config.pooling, "proxy": identity_of(config.proxy)}
    key = StageKey("features", facts, [responses.digest, policy.digest, reference.digest])
    return run_stage(key, work, here, publish=Publish(name))
