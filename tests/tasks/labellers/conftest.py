"""What the tests of labellers share: questions, a place to work, and an endpoint that misbehaves on order."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cluster.rendering import Message, plain_text
from cluster.settings import Settings
from tasks.labellers.ledger import Entry, question_key
from tasks.labellers.protocol import Question, Workplace


@dataclass
class Scripted:
    """What the endpoint does with a request: after `delay` seconds it sends this."""

    body: str | bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})
    delay: float = 0.0
    is_cut: bool = False
    """Whether the connection ends in the middle of the body."""
    drips: bool = False
    """Whether the body begins with blanks that never end."""


@dataclass
class ScriptedEndpoint:
    """An HTTP server that speaks chat completions as `reply` says, and remembers what it was asked."""

    url: str
    reply: Callable[[dict[str, Any]], Scripted]
    models: Scripted
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    most_at_once: int = 0

    @property
    def texts(self) -> list[str]:
        """The messages that it got."""
        return [request["messages"][0]["content"] for request in self.requests]

    def script(self, *replies: Scripted) -> None:
        """Give these replies, one after the other, and the last one for ever after."""
        left = list(replies)
        self.reply = lambda _: left.pop(0) if len(left) > 1 else left[0]

    @staticmethod
    def faulty(**fields: Any) -> Scripted:
        """Something else than a good reply."""
        return Scripted(**fields)

    @staticmethod
    def completion(
        text: str | None, *, finish_reason: str = "stop", usage: tuple[int, int] | None = (100, 10)
    ) -> Scripted:
        """A chat completion as OpenAI's reference has it."""
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
        body: dict[str, Any] = {"id": "c", "object": "chat.completion", "created": 0, "model": "m"}
        body["choices"] = [choice]
        if usage is not None:
            body["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
        return Scripted(body=json.dumps(body))


@pytest.fixture
def endpoint() -> Iterator[ScriptedEndpoint]:
    """An endpoint with the model `m`, whose judge prefers whatever comes first until a test says otherwise."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    models = Scripted(body=json.dumps({"object": "list", "data": [{"id": "m", "object": "model"}]}))
    url = f"http://127.0.0.1:{server.server_port}/v1"
    scripted = ScriptedEndpoint(url=url, reply=lambda _: ScriptedEndpoint.completion("[[A]]"), models=models)
    server.scripted, server.closing = scripted, threading.Event()  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield scripted
    server.closing.set()  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def workplace(tmp_path: Path) -> Workplace:
    """A place to work without MLflow."""
    return Workplace(settings=Settings(home=tmp_path), lineage="demo", round=0)


@pytest.fixture
def make_question() -> Callable[..., Question]:
    """Make a question about two responses to a chat prompt."""

    def make(first: str, second: str, prompt: str = "say something") -> Question:
        messages = [{"role": "user", "content": prompt}]
        key = question_key(f"user: {prompt}", first=first, second=second)
        return Question(key=key, messages=messages, first=first, second=second)

    return make


@pytest.fixture(scope="session")
def make_entry() -> Callable[..., Entry]:
    """Make an answer of the ledger to two texts, anna's to `demo` until told otherwise."""

    def make(messages: Sequence[Message], texts: Sequence[str], **changes: Any) -> Entry:
        values: dict[str, Any] = {
            "key": question_key(plain_text(messages), first=texts[0], second=texts[1]),
            "messages": list(messages),
            "first": min(texts),
            "second": max(texts),
            "labeller": '{"kind": "people"}',
            "repetition": 0,
            "choice": "first",
            "probability": None,
            "swapped": False,
            "annotator": "anna",
            "rationale": "",
            "cost": 1.0,
            "lineage": "demo",
            "round": 0,
            "answered_at": datetime(2026, 11, 27, 3, tzinfo=UTC),
            "superseded": False,
            "detail": {},
        }
        return Entry(**values | changes)

    return make


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    at_once, lock = 0, threading.Lock()

    def do_GET(self) -> None:
        scripted: ScriptedEndpoint = self.server.scripted  # type: ignore[attr-defined]
        scripted.keys.append(self.headers.get("Authorization", ""))
        self._send(scripted.models)

    def do_POST(self) -> None:
        scripted: ScriptedEndpoint = self.server.scripted  # type: ignore[attr-defined]
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.lock:
            scripted.requests.append(request)
            scripted.keys.append(self.headers.get("Authorization", ""))
            _Handler.at_once += 1
            scripted.most_at_once = max(scripted.most_at_once, _Handler.at_once)
        try:
            reply = scripted.reply(request)
            self.server.closing.wait(reply.delay)  # type: ignore[attr-defined]
        finally:
            with self.lock:
                _Handler.at_once -= 1
        with suppress(ConnectionError):
            self._send(reply)

    def _send(self, reply: Scripted) -> None:
        body = reply.body.encode() if isinstance(reply.body, str) else reply.body
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        length = len(body) + (100 if reply.is_cut else 10_000 if reply.drips else 0)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        while reply.drips and not self.server.closing.is_set():  # type: ignore[attr-defined]
            self.wfile.write(b" ")
            time.sleep(0.05)
        self.wfile.write(body)
        self.close_connection = reply.is_cut

    def log_message(self, *_: object) -> None:
        """Stay silent."""
