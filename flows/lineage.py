"""A lineage: its rounds one after the other, from the first that is unfinished."""

from prefect import flow

from cluster.session import ray_session
from cluster.settings import Settings
from cluster.storage import Store
from flows.config import LineageConfig
from flows.history import first_unfinished
from flows.opening import check_round, claim
from flows.round import preference_round


@flow(name="tune", flow_run_name="{config.lineage}")
def tune(config: LineageConfig, max_rounds: int | None = None) -> int:
    """Run the rounds that the lineage still lacks, `max_rounds` at most; gives how many it ran."""
    settings = Settings()
    check_round(config.round, settings)
    with claim(config.round, config.lineage, settings):
        first = first_unfinished(Store(settings.store), config)
        last = config.rounds if max_rounds is None else min(config.rounds, first + max_rounds)
        if first < last:
            with ray_session(settings):
                for number in range(first, last):
                    preference_round(config.round, config.lineage, number)
    return last - first
