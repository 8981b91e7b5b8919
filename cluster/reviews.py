"""Reviews: items that people judge in MLflow's review queues, and what they say there.

To MLflow an item is a trace. Its id follows from queue and item, so offering an item again finds it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlencode

from cluster.errors import InputError
from cluster.preflight import without_password
from cluster.review_items import (
    BRIEF,
    CONTENT,
    KIND,
    QUEUE_TAG,
    SCHEME_TAG,
    Item,
    Opinion,
    Reviewed,
    Scheme,
    reviewed,
    span_of,
    taken_tag,
    trace_info,
)
from cluster.tracking import KIND_TAG, Tracker

if TYPE_CHECKING:
    from mlflow.tracing.client import TracingClient

EMBEDDED_ADDRESS = "http://127.0.0.1:5000"
"""Where `pairwright ui` shows an embedded store unless another port is asked for."""
NOBODY = "default"
"""What MLflow calls a reviewer where nobody logs in."""
INSTRUCTION_LIMIT = 1000
PAGE = 100
"""Things that one answer of MLflow's lists."""
BATCH = 20
"""Items that one request brings, whose texts may be long."""
UNSUPPORTED = ("ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED")

Thing = TypeVar("Thing")


class ReviewsUnsupportedError(RuntimeError):
    """The tracking store or server has no review queues."""


@dataclass(frozen=True, kw_only=True)
class Reviews:
    """The review queues of one MLflow experiment."""

    tracker: Tracker

    def offer(self, queue: str, scheme: Scheme, items: Sequence[Item], *, run: str) -> str:
        """Make sure that a queue of this name holds these items, and return its id; what is there stays as it is.

        Raises:
            ReviewsUnsupportedError: the store or server has no review queues.
            InputError: the queue or its scheme was changed in MLflow.
        """
        client, experiment = self._client, str(self.tracker.client.get_run(run).info.experiment_id)
        with _supported():
            schema = _schema(client, experiment, scheme)
            identifier = _queue(client, experiment, queue, schema)
        there = {item.item_id for item in self._items(identifier)}
        tags = {QUEUE_TAG: identifier, SCHEME_TAG: schema.name}
        named = {item.trace_in(identifier): replace(item, tags={**item.tags, **tags}) for item in items}
        new = [trace for trace in named if trace not in there]
        for batch in (new[start : start + BATCH] for start in range(0, len(new), BATCH)):
            _start(client, {trace: named[trace] for trace in batch}, experiment, run=run)
            client.log_spans(experiment, [span_of(trace, named[trace]) for trace in batch])
            client.store.add_items_to_review_queue(identifier, item_ids=batch)
        return identifier

    def read(self, tags: Mapping[str, str]) -> Iterator[Reviewed]:
        """All items with these tags."""
        experiment = self.tracker.client.get_experiment_by_name(self.tracker.experiment)
        if experiment is None:
            return
        wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in {KIND_TAG: KIND, **tags}.items())
        find = partial(
            self._client.store.search_traces,
            filter_string=wanted,
            locations=[experiment.experiment_id],
            max_results=PAGE,
        )
        for info in _pages(lambda token: find(page_token=token)):
            yield reviewed(info)

    def content(self, trace: str) -> Any:
        """What was offered as the content of an item."""
        return self._client.get_trace(trace).data.spans[0].get_attribute(CONTENT)

    def take(self, trace: str, opinion: Opinion) -> None:
        """Note that an opinion was used; it stays in MLflow."""
        self._client.set_trace_tag(trace, taken_tag(opinion.reviewer), opinion.identifier)

    def pending(self, queue: str) -> list[str]:
        """The traces of the items of a queue that are to be judged."""
        return [str(item.item_id) for item in self._items(queue, status="pending")]

    def settle(self, queue: str, trace: str, *, by: str | None) -> None:
        """Count an item as judged by someone, or with None as one that is to be judged again."""
        status = "pending" if by is None else "complete"
        self._client.store.set_review_queue_item_status(queue, item_id=trace, status=status, completed_by=by)

    def address(self, queue: str) -> str:
        """Where a browser begins with the first item of the queue that is to be judged."""
        experiment, uri = self._client.store.get_review_queue(queue).experiment_id, self.tracker.tracking_uri
        base = without_password(uri) if uri.startswith(("http://", "https://")) else EMBEDDED_ADDRESS
        place = urlencode({"selectedQueueId": queue, "startReview": "true"})
        return f"{base}/#/experiments/{experiment}/review-queue?{place}"

    @property
    def _client(self) -> "TracingClient":
        from mlflow.tracing.client import TracingClient

        return TracingClient(self.tracker.tracking_uri)

    def _items(self, queue: str, *, status: str | None = None) -> Iterator[Any]:
        listed = self._client.store.list_review_queue_items

        def page(token: str | None) -> tuple[Sequence[Any], str | None]:
            found = listed(queue, status=status, max_results=PAGE, page_token=token)
            return found, found.token

        return _pages(page)


@contextmanager
def _supported() -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    try:
        yield
    except NotImplementedError as error:
        raise ReviewsUnsupportedError(f"the tracking store has no review queues ({error})") from error
    except MlflowException as error:
        if error.error_code not in UNSUPPORTED:
            raise
        raise ReviewsUnsupportedError(f"the tracking server has no review queues ({error.error_code})") from error


def _start(client: "TracingClient", items: Mapping[str, Item], experiment: str, *, run: str) -> None:
    """Make traces, with short previews from the first on that the database finds too long."""
    from mlflow.exceptions import MlflowException

    is_brief = False
    for trace, item in items.items():
        if not is_brief:
            try:
                client.start_trace(trace_info(trace, item, experiment, run=run, preview=item.shown))
                continue
            except MlflowException as error:
                if error.error_code != "BAD_REQUEST" or max(map(len, astuple(item.shown))) <= BRIEF:
                    raise
                is_brief = True
        client.start_trace(trace_info(trace, item, experiment, run=run, preview=item.brief))


def _schema(client: "TracingClient", experiment: str, scheme: Scheme) -> Any:
    """The label schema of this scheme; one of the same name that asks something else keeps it."""
    from mlflow.genai.label_schemas import InputCategorical

    asks, instruction = InputCategorical(options=list(scheme.options)), scheme.instruction[:INSTRUCTION_LIMIT]
    make = partial(
        client.store.create_label_schema,
        experiment,
        type="feedback",
        input=asks,
        instruction=instruction,
        enable_comment=True,
    )
    for name in scheme.names:
        find = partial(client.store.get_label_schema_by_name, experiment, name)
        found = _found_or_made(find, partial(make, name=name))
        if (found.input, found.instruction) == (asks, instruction):
            return found
    raise InputError(
        f"label schema {scheme.names[1]!r} asks something else than it did when it was made: delete it in MLflow"
    )


def _queue(client: "TracingClient", experiment: str, name: str, schema: Any) -> str:
    """The queue of this name that asks by this schema; a queue that holds items can't ask anything else."""
    make = partial(
        client.store.create_review_queue,
        experiment,
        queue_type="custom",
        users=[NOBODY],
        schema_ids=[schema.schema_id],
    )
    for candidate in (name, f"{name} ({schema.name})"):
        find = partial(client.store.get_review_queue_by_name, experiment, name=candidate)
        found = _found_or_made(find, partial(make, name=candidate))
        if schema.schema_id in found.schema_ids:
            return str(found.queue_id)
    raise InputError(f"review queue {name!r} asks something else than it did when it was made: delete it in MLflow")


def _found_or_made(find: Callable[[], Thing], make: Callable[[], Thing]) -> Thing:
    from mlflow.exceptions import MlflowException

    try:
        return find()
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    try:
        return make()
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return find()


def _pages(page: Callable[[str | None], tuple[Sequence[Thing], str | None]]) -> Iterator[Thing]:
    token = None
    while True:
        things, token = page(token)
        yield from things
        if not token:
            return
