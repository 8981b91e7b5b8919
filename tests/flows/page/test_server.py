"""What annotators are told of a round that goes on."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from cluster.settings import Settings
from cluster.storage import Store
from flows.page.server import go_on
from flows.parking import ParkedRound, note
from tasks.labellers.terms import Terms
from tasks.parking import Waiting

pytestmark = pytest.mark.labels


class Hanging(BaseHTTPRequestHandler):
    """A server that is well, and hangs up on whoever asks it anything."""

    def do_GET(self) -> None:
        if self.path == "/health":
            self.send_response(200)
            self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hanging() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hanging) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def test_annotators_are_not_told_the_password_in_an_address(
    tmp_path: Path, hanging: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    settings = Settings(home=tmp_path, tracking_uri=f"http://lab:s3cret-word@{hanging}")
    waiting = Waiting(lineage="ours", round=0, num_wanted=1, terms=Terms(), said="waits")
    note(Store(settings.store), ParkedRound(waiting=waiting, until=1, review_queue=True))
    said = go_on("ours", settings)
    assert f"http://***@{hanging}" in said
    assert "s3cret" not in said
    assert "MLflow's review queue can't be read" in said
