"""Deployments: one per config, with its schedule, and never two runs of a lineage at once."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.deployments.runner import RunnerDeployment
from prefect.schedules import Cron
from prefect.types.entrypoint import EntrypointType

from flows.config import LineageConfig
from flows.lineage import tune

if TYPE_CHECKING:
    from uuid import UUID


def deployment(config: LineageConfig) -> RunnerDeployment:
    """The deployment of a lineage: flow `tune`, started by the config's schedule, by hand, or by a retry."""
    schedule = config.schedule
    rounds = schedule.rounds_per_start if schedule else None
    made = tune.to_deployment(
        name=config.lineage,
        schedule=Cron(schedule.cron, timezone=schedule.timezone) if schedule else None,
        parameters={"config": config.model_dump(mode="json"), "max_rounds": rounds},
        concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE),
        tags=["pairwright", config.round.selection.selector.kind],
        description=f"Rounds of lineage {config.lineage}: selector {config.round.selection.selector.kind}, "
        f"{config.round.selection.budget} labels a round.",
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    return cast(RunnerDeployment, made)  # a coroutine only where a loop runs


def deploy(configs: Sequence[LineageConfig]) -> list["UUID"]:
    """Create or renew the deployments on the Prefect server; gives their ids."""
    return [cast("UUID", deployment(config).apply()) for config in configs]
