"""Deployments: one per config, with its schedule, and never two runs of one at once."""

from collections.abc import Sequence
from functools import singledispatch
from typing import TYPE_CHECKING, Any, cast

from prefect import Flow
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.deployments.runner import RunnerDeployment
from prefect.schedules import Cron
from prefect.types.entrypoint import EntrypointType

from flows.comparison.config import ComparisonConfig
from flows.comparison.flow import compare
from flows.config import LineageConfig
from flows.lineage import tune

if TYPE_CHECKING:
    from uuid import UUID

Deployable = LineageConfig | ComparisonConfig


@singledispatch
def deployment(config: Deployable) -> RunnerDeployment:
    """The deployment of a config: started by its schedule, by hand, or by a retry."""
    raise TypeError(f"a {type(config).__name__} can't be deployed: expected a config of a lineage or a comparison")


@deployment.register
def _(config: LineageConfig) -> RunnerDeployment:
    selection = config.round.selection
    return _made(
        tune,
        config,
        name=config.lineage,
        tags=["pairwright", selection.selector.kind],
        description=f"Rounds of lineage {config.lineage}: selector {selection.selector.kind}, "
        f"{selection.budget} labels a round.",
    )


@deployment.register
def _(config: ComparisonConfig) -> RunnerDeployment:
    return _made(
        compare,
        config,
        name=config.comparison,
        tags=["pairwright", "comparison"],
        description=f"Comparison {config.comparison}: selectors {', '.join(config.selectors)} on "
        f"{config.base.lineage}, {len(config.seeds)} seeds.",
    )


def deploy(configs: Sequence[Deployable]) -> dict[str, "UUID"]:
    """Create or renew the deployments on the Prefect server; gives their ids by name."""
    made = [deployment(config) for config in configs]
    return {one.full_name: cast("UUID", one.apply()) for one in made}


def _made(
    flow: Flow[..., Any], config: Deployable, *, name: str, tags: list[str], description: str
) -> RunnerDeployment:
    schedule = config.schedule
    made = flow.to_deployment(
        name=name,
        schedule=Cron(schedule.cron, timezone=schedule.timezone) if schedule else None,
        parameters={
            "config": config.model_dump(mode="json"),
            "max_rounds": schedule.rounds_per_start if schedule else None,
        },
        concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE),
        tags=tags,
        description=description,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    return cast(RunnerDeployment, made)  # a coroutine only where a loop runs
