"""Lineages of one experiment that log at the same time."""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.tracking import Tracker


@pytest.fixture
def embedded(tracking_template: Path, tmp_path: Path) -> Tracker:
    path = shutil.copy(tracking_template, tmp_path / "mlflow.db")
    return Tracker(tracking_uri=f"sqlite:///{path}", experiment="pairwright", artifact_root=str(tmp_path / "artifacts"))


def test_lineages_that_record_one_dataset_at_the_same_time_both_have_it(embedded: Tracker) -> None:
    runs = [embedded.open_lineage(f"beside {number}", {}) for number in range(2)]
    start = threading.Barrier(2)

    def record(run: str) -> None:
        for number in range(10):
            start.wait(timeout=60)
            embedded.log_dataset(run, "shared", digest=f"{number}" * 64, source="/store/pool", context="pool")

    with ThreadPoolExecutor(2) as together:
        list(together.map(record, runs))
    for run in runs:
        assert len(embedded.client.get_run(run).inputs.dataset_inputs) == 10


def test_lineages_that_begin_an_experiment_at_the_same_time_share_it(embedded: Tracker) -> None:
    start = threading.Barrier(4)

    def begin(number: int) -> str:
        together = replace(embedded, experiment="begun together")
        start.wait(timeout=60)
        run = together.open_lineage(f"begun {number}", {})
        return str(together.client.get_run(run).info.experiment_id)

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(begin, range(4)))) == 1
