"""A round that failed is retried from the Prefect UI and repeats only what was lost."""

import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import AwaitingRetry

from flows.history import STAGES, recorded


@pytest.fixture
def served(make_desk: Callable[[str], Any]) -> Iterator[Any]:
    """A desk whose deployment is served by a process of its own."""
    desk = make_desk("retried")
    desk.extra = {"PREFECT_RUNNER_POLL_FREQUENCY": "1"}
    desk.run("deploy")
    process = desk.start("serve")
    try:
        yield desk
    finally:
        process.terminate()
        process.wait(timeout=30)


def ended(client: SyncPrefectClient, flow_run: UUID, run_count: int) -> FlowRun:
    """The flow run, when it has ended for the `run_count`-th time."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        run = client.read_flow_run(flow_run)
        if run.run_count == run_count and run.state is not None and run.state.is_final():
            return run
        time.sleep(0.5)
    raise AssertionError(f"still {client.read_flow_run(flow_run).state} after {run_count} runs")


def retry(client: SyncPrefectClient, flow_run: UUID) -> None:
    """Do as the button *Retry*, once more where Prefect's runner calls the process crashed that had just ended."""
    for _ in range(3):
        client.set_flow_run_state(flow_run, AwaitingRetry(), force=False)
        time.sleep(2)
        state = client.read_flow_run(flow_run).state
        if state is None or state.type != StateType.CRASHED:
            return


def await_exit(desk: Any) -> None:
    deadline = time.monotonic() + 60
    while "Process exited" not in desk.log.read_text():
        assert time.monotonic() < deadline, "the failed run's process never ended"
        time.sleep(0.2)


def test_a_round_that_failed_in_training_is_retried_on_the_same_flow_run_and_keeps_its_pool(served: Any) -> None:
    stages = served.store.root / "stages"
    stages.mkdir(parents=True)
    obstacle = stages / "adapter"
    obstacle.write_text("a file where training wants a folder")
    with SyncPrefectClient(api=served.prefect) as client:
        deployment = client.read_deployment_by_name("tune/retried")
        started = client.create_flow_run_from_deployment(
            deployment.id, parameters=deployment.parameters | {"max_rounds": 1}
        )
        failed = ended(client, started.id, run_count=1)
        assert failed.state.type == StateType.FAILED
        assert "adapter" in failed.state.message
        begun = recorded(served.store, "retried", 0)
        assert tuple(begun) == STAGES[: STAGES.index("training")]
        pool = {path: path.stat().st_mtime_ns for path in begun["pool"].path.iterdir()}

        obstacle.unlink()
        await_exit(served)
        retry(client, started.id)
        retried = ended(client, started.id, run_count=2)
        assert retried.state.type == StateType.COMPLETED
        children = client.read_flow_runs(flow_run_filter=FlowRunFilter(name={"any_": ["retried-r000"]}))
        tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id={"any_": [child.id for child in children]}))

    assert tuple(recorded(served.store, "retried", 0)) == STAGES
    assert {path: path.stat().st_mtime_ns for path in pool} == pool
    states = [task.state.name for task in tasks if task.name == "retried-r000 pool"]
    assert sorted(states) == ["Completed", "Reused"]
    assert sorted(task.state.name for task in tasks if task.name == "retried-r000 train policy") == [
        "Completed",
        "Failed",
    ]


def test_a_deployment_has_the_schedule_of_its_config_and_lets_one_run_at_a_time(
    make_desk: Callable[[str], Any],
) -> None:
    desk = make_desk("scheduled")
    desk.config.write_text(desk.config.read_text() + "schedule: {cron: '30 3 * * *', timezone: Europe/Berlin}\n")
    assert "tune/scheduled" in desk.run("deploy")
    with SyncPrefectClient(api=desk.prefect) as client:
        deployment = client.read_deployment_by_name("tune/scheduled")
    assert [(s.schedule.cron, s.schedule.timezone, s.active) for s in deployment.schedules] == [
        ("30 3 * * *", "Europe/Berlin", True)
    ]
    assert deployment.global_concurrency_limit.limit == 1
    assert deployment.parameters["max_rounds"] == 1
    assert deployment.entrypoint == "flows.lineage.tune"
