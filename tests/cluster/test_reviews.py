"""Review queues on an embedded store, on an older server, and what becomes of texts in them."""

import json
import re
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

import cluster.reviews
from cluster.errors import InputError
from cluster.review_items import BRIEF, Item, Opinion, Preview, Reviewed, Scheme, verbatim
from cluster.reviews import Reviews, ReviewsUnsupportedError
from cluster.tracking import Tracker

pytestmark = pytest.mark.labels

SCHEME = Scheme(name="preference", options=["A", "B"], instruction="Which is better?")
HOSTILE = (
    "<script>alert(1)</script>\n<img src=x onerror=alert(1)>\n\n![a](http://h/p.png) [b](javascript:c) www.h.i",
    "# h\n- a\n1. b\n12) c\n> d\n===\n---\n```\ncode\n```\n~~~\n| a | b |\n|---|---|\n    in\n\ttab  two\n\n\n`x` *y*",
    "a\\\nb\\\\\n&lt;&#33;\n[r]: http://h\n<http://h> a@b.c\n+ x\n* * *\n:--\n-",
)


@pytest.fixture(scope="module")
def tracker(tracking_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    folder = tmp_path_factory.mktemp("reviews")
    path = shutil.copy(tracking_template, folder)
    return Tracker(tracking_uri=f"sqlite:///{path}", experiment="reviews", artifact_root=str(folder / "artifacts"))


@pytest.fixture(scope="module")
def reviews(tracker: Tracker) -> Reviews:
    return Reviews(tracker=tracker)


@pytest.fixture(scope="module")
def run(tracker: Tracker) -> str:
    return tracker.open_lineage("reviews", {})


def item(name: str, *, group: str, content: object = None) -> Item:
    preview = Preview(request="p", response="r")
    return Item(name=name, shown=preview, brief=preview, content=content, tags={"group": group})


def found(reviews: Reviews, group: str) -> list[Reviewed]:
    return sorted(reviews.read({"group": group}), key=lambda each: each.trace)


def say(reviews: Reviews, trace: str, value: object, **about: Any) -> str:
    """Write an assessment as MLflow's pages do, and give its id."""
    from mlflow.entities import AssessmentSource, Feedback

    source = AssessmentSource(source_type=about.pop("kind", "HUMAN"), source_id=about.pop("who", "ann"))
    opinion = Feedback(name=about.pop("name", "preference"), value=value, source=source, **about)
    return str(reviews._client.log_assessment(trace, opinion).assessment_id)


def test_offering_again_changes_nothing_and_later_items_are_added(reviews: Reviews, run: str) -> None:
    queue = reviews.offer("again", SCHEME, [item("a", group="again"), item("b", group="again")], run=run)
    before = found(reviews, "again")
    reviews.settle(queue, before[0].trace, by="ann")
    say(reviews, before[0].trace, "B")
    assert reviews.offer("again", SCHEME, [item(name, group="again") for name in "abc"], run=run) == queue
    after = found(reviews, "again")
    assert {each.trace for each in before} < {each.trace for each in after}
    assert len(after) == 3
    assert set(reviews.pending(queue)) == {each.trace for each in after} - {before[0].trace}
    assert [len(each.opinions) for each in after if each.trace == before[0].trace] == [1]


def test_an_offer_that_was_cut_short_is_completed(reviews: Reviews, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = type(reviews._client.store)

    def fail(*_: object, **__: object) -> None:
        raise ConnectionError

    with monkeypatch.context() as patch:
        patch.setattr(store, "add_items_to_review_queue", fail)
        with pytest.raises(ConnectionError):
            reviews.offer("cut", SCHEME, [item("a", group="cut", content="kept")], run=run)
    queue = reviews.offer("cut", SCHEME, [item("a", group="cut", content="kept")], run=run)
    (only,) = found(reviews, "cut")
    assert reviews.pending(queue) == [only.trace]
    assert reviews.content(only.trace) == "kept"


def test_an_item_of_the_same_name_in_another_queue_is_another_item(reviews: Reviews, run: str) -> None:
    for queue in ("one", "two"):
        reviews.offer(queue, SCHEME, [item("a", group="queues")], run=run)
    assert len(found(reviews, "queues")) == 2


def test_more_than_a_page_of_items_is_found(reviews: Reviews, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.reviews, "PAGE", 2)
    monkeypatch.setattr(cluster.reviews, "BATCH", 2)
    items = [item(name, group="pages") for name in "abcde"]
    queue = reviews.offer("pages", SCHEME, items, run=run)
    assert len(found(reviews, "pages")) == len(reviews.pending(queue)) == 5
    reviews.offer("pages", SCHEME, items, run=run)
    assert len(found(reviews, "pages")) == 5


def test_content_comes_back_exactly(reviews: Reviews, run: str) -> None:
    content = {"text": "\x00\ud800 <b> 👩‍👩‍👧 \r\n مرحبا", "long": "x" * 200_000, "parts": [1, 2.5, None]}
    reviews.offer("exact", SCHEME, [item("a", group="exact", content=content)], run=run)
    assert reviews.content(found(reviews, "exact")[0].trace) == content


def test_of_each_reviewer_the_newest_standing_opinion_is_read(reviews: Reviews, run: str) -> None:
    reviews.offer("said", SCHEME, [item("a", group="said")], run=run)
    trace = found(reviews, "said")[0].trace
    first = say(reviews, trace, "A", rationale="shorter")
    say(reviews, trace, "B", who="bob")
    say(reviews, trace, "A", kind="LLM_JUDGE", who="judge")
    say(reviews, trace, "A", name="another question", who="eve")
    second = say(reviews, trace, "B", rationale="truer", overrides=first)
    assert {(each.reviewer, each.value, each.comment) for each in found(reviews, "said")[0].opinions} == {
        ("ann", "B", "truer"),
        ("bob", "B", ""),
    }
    reviews._client.delete_assessment(trace, second)
    assert ("ann", "A", "shorter") in {
        (each.reviewer, each.value, each.comment) for each in found(reviews, "said")[0].opinions
    }


def test_a_taken_opinion_is_known_until_its_reviewer_says_something_new(reviews: Reviews, run: str) -> None:
    reviews.offer("taken", SCHEME, [item("a", group="taken")], run=run)
    trace = found(reviews, "taken")[0].trace
    say(reviews, trace, "A")

    def only() -> Opinion:
        (opinion,) = found(reviews, "taken")[0].opinions
        return opinion

    assert not only().taken
    reviews.take(trace, only())
    assert only().taken
    say(reviews, trace, "B", overrides=only().identifier)
    assert not only().taken


def test_a_scheme_that_asks_otherwise_gets_a_queue_of_its_own(reviews: Reviews, run: str) -> None:
    other = Scheme(name="preference", options=["A", "B", "tie"], instruction="Which is worse?")
    first = reviews.offer("asks", SCHEME, [item("a", group="asks")], run=run)
    second = reviews.offer("asks", other, [item("a", group="asks")], run=run)
    assert first != second
    assert reviews.offer("asks", other, [], run=run) == second
    assert reviews.offer("asks", SCHEME, [], run=run) == first


def test_a_scheme_that_was_changed_in_mlflow_is_refused(reviews: Reviews, run: str) -> None:
    mine = Scheme(name="changed", options=["A", "B"], instruction="one")
    store, queue = reviews._client.store, reviews.offer("changed", mine, [], run=run)
    experiment = store.get_review_queue(queue).experiment_id
    for name in mine.names:
        reviews.offer("changed", Scheme(name=name, options=["A", "B"], instruction="one"), [], run=run)
        store.update_label_schema(
            store.get_label_schema_by_name(experiment, name).schema_id, instruction="something else"
        )
    with pytest.raises(InputError, match="asks something else"):
        reviews.offer("changed", mine, [], run=run)


def test_an_embedded_store_is_addressed_where_the_ui_command_shows_it(reviews: Reviews, run: str) -> None:
    queue = reviews.offer("place", SCHEME, [item("a", group="place")], run=run)
    page = rf"http://127\.0\.0\.1:5000/#/experiments/\d+/review-queue\?selectedQueueId={queue}"
    assert re.fullmatch(rf"{page}&startReview=true", reviews.address(queue))


def test_a_file_store_has_no_review_queues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    tracker = Tracker(tracking_uri=f"file://{tmp_path}", experiment="old")
    with pytest.raises(ReviewsUnsupportedError, match="no review queues"):
        Reviews(tracker=tracker).offer("any", SCHEME, [], run=tracker.open_lineage("old", {}))


class OlderServer(BaseHTTPRequestHandler):
    """Knows runs, and no review queues."""

    def do_GET(self) -> None:
        known = "/runs/get" in self.path
        info = {"run_id": "r", "experiment_id": "1", "status": "RUNNING", "artifact_uri": "x"}
        body = json.dumps({"run": {"info": info, "data": {}}}) if known else "<title>404 Not Found</title>"
        self.send_response(200 if known else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def older_server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), OlderServer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_an_older_server_has_no_review_queues(older_server: str) -> None:
    with pytest.raises(ReviewsUnsupportedError, match="ENDPOINT_NOT_FOUND"):
        Reviews(tracker=Tracker(tracking_uri=older_server, experiment="x")).offer("any", SCHEME, [], run="r")


@given(st.text(alphabet=st.sampled_from("ab1 \t\n\\`*_[]<>&~|$#-+=:.)(!@/'\"{}%^,;?é٣\x00\x1b\r"), max_size=60))
@example(HOSTILE[0])
@example(HOSTILE[1])
@example(HOSTILE[2])
@example("")
def test_a_text_shows_as_itself_and_as_nothing_else(text: str) -> None:
    markdown = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    tokens = [token for block in markdown.parse(verbatim(text, 1000)) for token in (block.children or [block])]
    allowed = {"paragraph_open", "paragraph_close", "text", "text_special", "hardbreak"}
    assert {token.type for token in tokens} <= allowed | (set() if text else {"em_open", "em_close"})
    shown = "".join("\n" if token.type == "hardbreak" else token.content for token in tokens)
    plain = text.replace("\r\n", "\n").replace("\x00", "␀").replace("\x1b", "␛").replace("\r", "␍") or "(empty)"
    assert _spaced(shown) == _spaced(plain)


def test_a_long_text_is_cut_and_says_so() -> None:
    assert verbatim("x" * 1000, 400) == "x" * 400 + "\n\n*(the first 400 of 1000 characters: View full trace)*"


@pytest.mark.parametrize("address", ["http://h/x", "HTTPS://h/x", "www.h.i", "me@h.i"])
def test_an_address_makes_no_link(address: str) -> None:
    shown = verbatim(address, 100)
    assert not re.search(r"https?://|www\.|\w@", shown, re.IGNORECASE)
    assert shown.replace("\N{WORD JOINER}", "") == address


def _spaced(text: str) -> str:
    """Spaces of all kinds as one, and without those at the ends of lines, which nobody sees."""
    plain = text.replace("\N{WORD JOINER}", "").replace("\t", "    ").replace("\N{NO-BREAK SPACE}", " ")
    return "\n".join(line.rstrip(" ") for line in plain.split("\n"))


def test_every_database_gets_a_preview_that_it_keeps(
    reviews: Reviews, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Postgres answers: the column takes a thousand characters."""
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import BAD_REQUEST
    from mlflow.tracing.client import TracingClient

    real, refused = TracingClient.start_trace, []

    def start_trace(self: TracingClient, info: Any) -> Any:
        if len(info.response_preview) > BRIEF:
            refused.append(info.trace_id)
            raise MlflowException("value too long for type character varying(1000)", BAD_REQUEST)
        return real(self, info)

    monkeypatch.setattr(TracingClient, "start_trace", start_trace)
    shown, brief = Preview(request="p", response="r" * 5000), Preview(request="p", response="r")
    items = [Item(name=name, shown=shown, brief=brief, content=name, tags={"group": "brief"}) for name in "abc"]
    reviews.offer("brief", SCHEME, items, run=run)
    assert len(refused) == 1
    assert sorted(reviews.content(each.trace) for each in found(reviews, "brief")) == ["a", "b", "c"]
