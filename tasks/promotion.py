"""Promotion: the registry's alias `champion` moves only through a gate, and the reason is kept either way."""

import json
from pathlib import Path
from typing import Any, Literal

from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, ConfigDict, Field
from scipy.stats import norm

from cluster.storage import Manifest, StageKey, write_json
from tasks.stages import ADAPTER, Publish, RoundContext, manifest_of, run_stage
from tasks.tables import Table

CHAMPION = "champion"
DECISION = "decision.json"


class PromotionConfig(BaseModel):
    """The gate: the lower confidence bound of a win rate has to exceed a threshold."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    against: Literal["base", "previous"] = Field("base", description="whose answers the policy has to beat")
    threshold: float = Field(0.5, ge=0, le=1, description="what the lower bound has to exceed")
    confidence: float = Field(0.95, gt=0, lt=1, description="of the one-sided bound")


@task(task_run_name="{here.label} promote policy", cache_policy=NO_CACHE)
def promote_policy(trained: Table, scores: Table, config: PromotionConfig, here: RoundContext) -> Table:
    """Register the adapter as a model version of the lineage, and make it champion if the gate holds."""

    def work(folder: Path) -> dict[str, Any]:
        decision = decide(manifest_of(scores), config)
        write_json(folder / DECISION, decision)
        return {"promoted": promoted, "lower_bound": bound, "reason": reason}
