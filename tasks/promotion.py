"""Promotion: the registry's alias `champion` moves only through a gate, and the reason is kept either way."""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from scipy.stats import norm

from cluster.storage import Manifest, StageKey, write_json
from tasks.stages import ADAPTER, Publish, RoundContext, manifest_of, run_stage, stage_task
from tasks.tables import Table

CHAMPION = "champion"
DECISION = "decision.json"


class PromotionConfig(BaseModel):
    """The gate: the lower confidence bound of a win rate has to exceed a threshold."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    against: Literal["base", "previous"] = Field("base", description="whose answers the policy has to beat")
    threshold: float = Field(0.5, ge=0, le=1, description="what the lower bound has to exceed")
    confidence: float = Field(0.95, gt=0, lt=1, description="of the one-sided bound")


@stage_task("promote policy")
def promote_policy(trained: Table, scores: Table, config: PromotionConfig, here: RoundContext) -> Table:
    """Register the adapter as a model version of the lineage, and make it champion if the gate holds."""

    def work(folder: Path) -> dict[str, Any]:
        decision = decide(manifest_of(scores), config)
        write_json(folder / DECISION, decision)
        return {"promoted": float(decision["promoted"]), "lower_bound": decision["lower_bound"]}

    key = StageKey("promotion", config.model_dump(), [trained.digest, scores.digest])
    table = run_stage(key, work, here, publish=Publish("promotion"))
    decision = json.loads((here.store.stage(key).path / DECISION).read_text(encoding="utf-8"))
    name = f"pairwright-{here.lineage}"
    tags = {"pairwright.digest": trained.digest, "pairwright.promotion": decision["reason"]}
    version = here.tracker.register_model(here.run, ADAPTER, name=name, tags=tags)
    here.tracker.log_text(here.run, decision["reason"] + "\n", artifact_file="promotion.txt")
    if decision["promoted"] and int(version) > int(here.tracker.get_alias(name, CHAMPION) or 0):
        here.tracker.set_alias(name, CHAMPION, version=version)  # an earlier round, run again, dethrones no later one
    return table


def decide(evaluation: Manifest, config: PromotionConfig) -> dict[str, Any]:
    """Whether the gate holds, the bound it looked at, and the reason in words."""
    rate = float(evaluation.measures[f"win_{config.against}"])
    error = float(evaluation.measures[f"win_{config.against}_se"])
    bound = rate - float(norm.ppf(config.confidence)) * error
    promoted = bool(bound > config.threshold)
    verdict, relation = ("promoted", "above") if promoted else ("not promoted", "not above")
    reason = (
        f"{verdict}: win rate against {config.against} is {rate:.3f} +- {error:.3f}, "
        f"its {config.confidence:.0%} lower bound {bound:.3f} is {relation} {config.threshold:.3f}"
    )
    return {"promoted": promoted, "lower_bound": bound, "reason": reason}
