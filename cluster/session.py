"""Ray: join a cluster, or start a local one for the length of a block."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from cluster.actors import release
from cluster.settings import Settings

OBJECT_STORE_BYTES = 256 * 2**20


@contextmanager
def ray_session(settings: Settings) -> Iterator[None]:
    """Have Ray inside the block; only a Ray that was started here is shut down at its end."""
    import ray

    if ray.is_initialized():
        yield
        return
    _start(settings)
    try:
        yield
    finally:
        release()
        ray.shutdown()


def _start(settings: Settings) -> None:
    import ray

    quiet = {"logging_level": logging.WARNING, "log_to_driver": False, "namespace": "pairwright"}
    if settings.ray_address is not None:
        ray.init(settings.ray_address, **quiet)
    else:
        num_cpus = max(2, os.cpu_count() or 2)
        ray.init(num_cpus=num_cpus, include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **quiet)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
