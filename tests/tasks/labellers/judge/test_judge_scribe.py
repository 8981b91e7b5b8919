import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from cluster.errors import LabellerError
from cluster.tracking import Tracker
from tasks.labellers.judge import Judge
from tasks.labellers.judge.endpoint import Endpoint
from tasks.labellers.judge.traces import Scribe
from tasks.labellers.protocol import Ask, Question, Workplace

pytestmark = pytest.mark.labels

RUN = {"run": {"info": {"run_id": "r", "experiment_id": "1", "status": "RUNNING", "artifact_uri": "x"}, "data": {}}}


@dataclass
class ScriptedStore:
    """An MLflow server that says whether it is well, and finds a run or doesn't; None: it hangs up."""

    address: str
    health: int = 200
    runs: int | None = 200
    delay: float = 0.0
    paths: list[str] = field(default_factory=list)


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        store: ScriptedStore = self.server.scripted  # type: ignore[attr-defined]
        path = self.path.partition("?")[0]
        store.paths.append(path)
        time.sleep(store.delay)
        status = store.health if path == "/health" else store.runs
        if status is not None:
            body = json.dumps(RUN if status == 200 else {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no run"})
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        """Stay silent."""


@pytest.fixture
def store() -> Iterator[ScriptedStore]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        scripted = ScriptedStore(address=f"127.0.0.1:{server.server_port}")
        server.scripted = scripted  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield scripted
        server.shutdown()


@pytest.fixture
def tracked(store: ScriptedStore, workplace: Workplace) -> Workplace:
    tracker = Tracker(tracking_uri=f"http://user:secret@{store.address}", experiment="x")
    return replace(workplace, tracker=tracker, run="r")


@pytest.fixture
def judge(endpoint: Any) -> Judge:
    return Judge(model="m", endpoint=Endpoint(base_url=endpoint.url, max_concurrency=1, max_retries=0))


@pytest.fixture
def asks(make_question: Callable[..., Question]) -> list[Ask]:
    return [Ask(question=make_question(str(i), "bad")) for i in range(6)]


def test_a_store_that_is_down_is_asked_once_and_not_waited_for(
    store: ScriptedStore, tracked: Workplace, judge: Judge, asks: list[Ask]
) -> None:
    store.health = 503
    started = time.monotonic()
    assert sum(len(chunk) for chunk in judge(asks, tracked)) == len(asks)
    assert store.paths == ["/health"]
    assert time.monotonic() - started < 10


def test_a_store_that_takes_no_traces_is_given_one_batch(
    store: ScriptedStore, tracked: Workplace, judge: Judge, asks: list[Ask]
) -> None:
    store.runs = 404
    assert sum(len(chunk) for chunk in judge(asks, tracked)) == len(asks)
    assert store.paths == ["/health", "/api/2.0/mlflow/runs/get"]


def test_a_judge_that_fails_while_the_store_is_down_fails_at_once(
    store: ScriptedStore, tracked: Workplace, endpoint: Any, judge: Judge, asks: list[Ask]
) -> None:
    store.health = 503
    endpoint.script(*[endpoint.completion("[[TIE]]")] * 8, endpoint.faulty(status=500))
    started = time.monotonic()
    with pytest.raises(LabellerError, match="500"):
        list(judge(asks, tracked))
    assert store.paths == ["/health"]
    assert time.monotonic() - started < 10


def test_after_an_exception_only_what_is_being_written_is_waited_for(store: ScriptedStore, tracked: Workplace) -> None:
    store.delay = 0.3

    def interrupted() -> None:
        with Scribe(tracked) as scribe:
            for _ in range(5):
                scribe.write([])
            time.sleep(0.1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert store.paths.count("/health") == 1


def test_without_an_exception_everything_is_written(store: ScriptedStore, tracked: Workplace) -> None:
    with Scribe(tracked) as scribe:
        for _ in range(3):
            scribe.write([])
    assert scribe.is_writing
    assert store.paths.count("/health") == 3


def test_what_mlflow_says_of_its_address_is_logged_without_the_password(
    store: ScriptedStore, tracked: Workplace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    store.runs = None
    with Scribe(tracked) as scribe:
        scribe.write([])
    assert f"http://***@{store.address}" in caplog.text
    assert "secret" not in caplog.text
