"""A lineage of two rounds whose labels come from people, through all that can happen to it on the way."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import ArtifactFilter, FlowRunFilter
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import AwaitingRetry

from cluster.tracking import Tracker
from flows.history import recorded
from flows.parking import ParkedRound, parked_round
from tasks.labellers.ledger import Entry, Ledger, OpenQuestion, Progress, Receipt, Spend
from tasks.labellers.protocol import Answer, Choice

NAME = "crowd"
BUDGET = 4
PEOPLE = {"kind": "people", "crew": "editors", "min_labels": 3, "deadline_hours": 0.001, "cost": 0.5}


@dataclass
class Server:
    """A Prefect server that can be killed and started again on its database."""

    folder: Path
    port: int
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    def start(self) -> None:
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        environment = {**os.environ, "PREFECT_HOME": str(self.folder), "PREFECT_API_URL": self.url}
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        await_that(self.answers, "the server never answered", seconds=180)

    def answers(self) -> bool:
        with SyncPrefectClient(api=self.url) as client:
            return client.api_healthcheck() is None

    def kill(self) -> None:
        kill(self.process)


@dataclass(frozen=True)
class Look:
    """How things stood at one moment."""

    run: FlowRun
    parked: ParkedRound | None
    progress: Progress
    spend: Spend
    open: list[OpenQuestion]
    pool: Mapping[str, int]
    """When each file of the round's pool was written."""
    children: int
    """Processes that work for `serve`."""
    is_free: bool
    """Whether another process can hold the lineage."""
    tracked: str
    """State of the round's run in MLflow."""


@dataclass
class Story:
    """What happened, in order."""

    desk: Any
    lineage: str = NAME
    budget: int = BUDGET
    looks: dict[str, Look] = field(default_factory=dict)
    receipts: dict[str, list[Receipt]] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)
    """What the commands printed that ran the round before any deployment."""
    states: dict[str, list[str]] = field(default_factory=dict)
    """States in which task runs and flow runs ended, by their names."""
    artifact: str = ""
    second_start: str = ""
    """State of a flow run that a schedule started while the round waited in another."""
    entries: list[Entry] = field(default_factory=list)

    @property
    def ledger(self) -> Ledger:
        return Ledger.at(self.desk.store.ledger)

    def look(self, moment: str, run: FlowRun, number: int) -> None:
        stages = recorded(self.desk.store, NAME, number)
        pool = sorted(stages["pool"].path.iterdir()) if "pool" in stages else []
        self.looks[moment] = Look(
            run=run,
            parked=parked_round(self.desk.store, NAME),
            progress=self.ledger.progress(NAME, number),
            spend=self.ledger.spend(NAME),
            open=self.ledger.open_questions(NAME),
            pool={path.name: path.stat().st_mtime_ns for path in pool},
            children=len(working(self.desk)),
            is_free=is_free(self.desk),
            tracked=tracked(self.desk, number),
        )

    def answer(self, moment: str, questions: list[OpenQuestion], choice: Choice = "first") -> None:
        """Answer as the labelling page does."""
        self.receipts[moment] = [
            self.ledger.answer(each.question, each.labeller, Answer(choice=choice, annotator="ann"))
            for each in questions
        ]


def await_that(seen: Callable[[], bool], complaint: str, *, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not seen():
        assert time.monotonic() < deadline, complaint
        time.sleep(0.3)


def kill(process: "subprocess.Popen[bytes] | None") -> None:
    """End it as a power cut does, with all that it started."""
    if process is None or process.poll() is not None:
        return
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in family:
        member.kill()
    process.wait()


def working(desk: Any) -> list[int]:
    """Processes that `serve` has started and that have not ended."""
    found = []
    for child in psutil.Process(desk.process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if child.status() != psutil.STATUS_ZOMBIE:
                found.append(child.pid)
    return found


def is_free(desk: Any) -> bool:
    script = (
        "from pathlib import Path; from cluster.storage import Store\n"
        f"with Store(Path({str(desk.store.root)!r})).hold_lineage({NAME!r}): pass"
    )
    return subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=120, check=False).returncode == 0


def tracked(desk: Any, number: int) -> str:
    client = Tracker(tracking_uri=f"sqlite:///{desk.home / 'mlflow.db'}", experiment="pairwright").client
    runs = client.search_runs(
        [client.get_experiment_by_name("pairwright").experiment_id],
        f"tags.`pairwright.kind` = 'round' and tags.`pairwright.round` = '{number:03d}'",
    )
    return str(runs[0].info.status) if runs else "none"


def state_of(client: SyncPrefectClient, run: UUID, since: FlowRun | None, *types: StateType) -> FlowRun:
    """The flow run, when it has come to a state of these types after one that was seen before."""
    found: list[FlowRun] = []

    def seen() -> bool:
        found[:] = [client.read_flow_run(run)]
        state = found[0].state
        is_new = since is None or since.state is None or (state is not None and state.id != since.state.id)
        return is_new and state is not None and state.type in types

    await_that(seen, f"the flow run never came to {types}", seconds=400)
    return found[0]


def await_rest(desk: Any) -> None:
    await_that(lambda: not working(desk), "the flow run's process never ended", seconds=60)


@pytest.fixture(scope="module")
def served(
    make_desk: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory, tiny_values: dict[str, Any]
) -> Iterator[tuple[Any, Server]]:
    """A desk with a server of its own, and a config whose labels come from people."""
    desk = make_desk(NAME)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        server = Server(tmp_path_factory.mktemp("own-prefect"), int(probe.getsockname()[1]))
    values = yaml.safe_load(desk.config.read_text())
    values["round"]["selection"] |= {"budget": BUDGET, "offer_rounds": 0}
    values["round"]["prompts"] |= {"num_prompts": 4, "num_held_out": 2}
    values["round"]["labelling"] = {"labeller": PEOPLE}
    values["round"]["training"]["save_steps"] = 100
    desk.config.write_text(yaml.safe_dump(values))
    desk.prefect = server.url
    desk.extra = {"PREFECT_RUNNER_POLL_FREQUENCY": "1", "PAIRWRIGHT_POLL_SECONDS": "1"}
    server.start()
    try:
        yield desk, server
    finally:
        kill(getattr(desk, "process", None))
        server.kill()


@pytest.fixture(scope="module")
def story(served: tuple[Any, Server]) -> Story:
    desk, server = served
    story = Story(desk)
    run = begin(story)
    come_too_early(story, run)
    lose_power(story, server)
    fail_behind_the_labels(story, run)
    retry(story, run)
    finish(story, run)
    return story


def begin(story: Story) -> UUID:
    """The command runs the round first and leaves it; a deployment takes it over and is suspended."""
    desk = story.desk
    story.said = {"run": desk.run("run", "--rounds", "2"), "round": desk.run("round", "--round", "0")}
    desk.run("deploy")
    desk.process = desk.start("serve")
    with SyncPrefectClient(api=desk.prefect) as client:
        deployment = client.read_deployment_by_name(f"tune/{NAME}")
        run = client.create_flow_run_from_deployment(deployment.id)
        parked = state_of(client, run.id, None, StateType.PAUSED, StateType.FAILED, StateType.CRASHED)
        await_rest(desk)
        story.look("parked", parked, 0)
        deployment.parameters["config"]["round"]["labelling"]["labeller"]["min_labels"] = 2
        other = client.create_flow_run_from_deployment(deployment.id, parameters=deployment.parameters)
        ended = state_of(client, other.id, None, StateType.COMPLETED, StateType.FAILED, StateType.PAUSED)
        story.second_start = f"{ended.state and ended.state.name}: {ended.state and ended.state.message}"
        artifacts = client.read_artifacts(artifact_filter=ArtifactFilter(flow_run_id={"any_": [run.id]}))
    story.artifact = str(artifacts[0].data)
    return run.id


def come_too_early(story: Story, run: UUID) -> None:
    """Somebody presses Resume before enough have answered."""
    story.answer("one", story.ledger.open_questions(NAME)[:1])
    with SyncPrefectClient(api=story.desk.prefect) as client:
        before = client.read_flow_run(run)
        client.resume_flow_run(run)
        state_of(client, run, before, StateType.RUNNING)
        again = state_of(client, run, before, StateType.PAUSED, StateType.FAILED, StateType.CRASHED)
        await_rest(story.desk)
        story.look("too early", again, 0)


def lose_power(story: Story, server: Server) -> None:
    """Server and worker die while the round waits, and somebody answers before they are back."""
    kill(story.desk.process)
    server.kill()
    story.answer("in the dark", story.ledger.open_questions(NAME)[:1], "second")
    stages = story.desk.store.root / "stages"
    (stages / "adapter").write_text("a file where training wants a folder")
    server.start()
    story.desk.process = story.desk.start("serve")


def fail_behind_the_labels(story: Story, run: UUID) -> None:
    """The poller finds enough answers after the deadline; training fails, and the others answer too late."""
    waiting = story.ledger.open_questions(NAME)
    with SyncPrefectClient(api=story.desk.prefect) as client:
        failed = state_of(client, run, None, StateType.FAILED, StateType.CRASHED, StateType.COMPLETED)
        await_rest(story.desk)
        story.look("failed", failed, 0)
    story.answer("late", waiting[:1])


def retry(story: Story, run: UUID) -> None:
    """Mended and retried, the round ends without asking anybody; the next one parks."""
    (story.desk.store.root / "stages" / "adapter").unlink()
    with SyncPrefectClient(api=story.desk.prefect) as client:
        before = client.read_flow_run(run)
        client.set_flow_run_state(run, AwaitingRetry(), force=False)
        parked = state_of(client, run, before, StateType.PAUSED, StateType.FAILED, StateType.CRASHED)
        await_rest(story.desk)
        story.look("next", parked, 1)


def finish(story: Story, run: UUID) -> None:
    """All answer, and the poller lets the last round go on."""
    story.answer("all", story.ledger.open_questions(NAME))
    with SyncPrefectClient(api=story.desk.prefect) as client:
        story.look("done", state_of(client, run, None, StateType.COMPLETED, StateType.FAILED, StateType.CRASHED), 1)
        flows = client.read_flow_runs()
        tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id={"any_": [each.id for each in flows]}))
    for one in (*tasks, *flows):
        if one.state is not None and one.state.name is not None:
            story.states.setdefault(one.name, []).append(one.state.name)
    story.entries = list(story.ledger.entries())
