"""Traces: what was asked of a model and what it said, as MLflow shows it, with what was concluded as feedback."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from cluster.errors import InputError
from cluster.preflight import mask_passwords, reachable
from cluster.tracking import Tracker

if TYPE_CHECKING:
    from mlflow.entities import Assessment, Span, TraceInfo

PAIR_TAG = "pairwright.pair"
PREVIEW = 1000
"""Characters of a request or response that MLflow's list of traces shows."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Step:
    """What went in and what came out, such as one request to a model; times are nanoseconds since 1970."""

    name: str
    inputs: object
    """JSON-able, as are the outputs."""
    outputs: object
    started_ns: int
    ended_ns: int
    tokens_in: int | None = None
    tokens_out: int | None = None


@dataclass(frozen=True, kw_only=True)
class Feedback:
    """What was concluded, and the model that concluded it."""

    name: str
    value: str
    model: str
    rationale: str = ""


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One task and its requests (at least one); traces with one `identity` are one trace, however often logged."""

    name: str
    identity: str
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    steps: Sequence[Step]
    tags: Mapping[str, str]
    feedback: Feedback

    @property
    def trace_id(self) -> str:
        """MLflow's name of the trace, made from its identity."""
        return f"tr-{sha256(self.identity.encode()).hexdigest()[:32]}"

    @property
    def whole(self) -> Step:
        """From the first request to the last reply."""
        started, ended = min(step.started_ns for step in self.steps), max(step.ended_ns for step in self.steps)
        return Step(name=self.name, inputs=self.inputs, outputs=self.outputs, started_ns=started, ended_ns=ended)


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What MLflow's list of traces shows of one."""

    request: str
    response: str
    started_ns: int
    ended_ns: int
    tags: Mapping[str, str]


def log_traces(tracker: Tracker, run: str, traces: Sequence[Trace]) -> bool:
    """Write traces to the run's experiment, and return whether it took them; where it doesn't, a warning says why.

    A server that doesn't answer within seconds is not asked further; MLflow's own client tries for minutes.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.tracing.client import TracingClient

    try:
        reachable(tracker.tracking_uri, attempts=1)
        experiment = str(tracker.client.get_run(run).info.experiment_id)
        store = TracingClient(tracker.tracking_uri)
        store.log_spans(experiment, [each for trace in traces for each in _spans(trace)])
        for trace in traces:
            store.start_trace(_info(trace, experiment, run))
    except (InputError, MlflowException, NotImplementedError, OSError) as error:
        said = mask_passwords(str(error))
        logger.warning(
            "MLflow did not take %d traces of run %s; work goes on without traces: %s", len(traces), run, said
        )
        return False
    return True


def info(
    trace: str, listing: Listing, *, experiment: str, run: str, assessments: Sequence["Assessment"] = ()
) -> "TraceInfo":
    """A trace with this id as MLflow lists it, under the run that it came from; its spans lie in the store."""
    from mlflow.entities import TraceInfo, TraceState
    from mlflow.entities.trace_location import TraceLocation
    from mlflow.tracing.constant import TRACE_SCHEMA_VERSION_KEY, TraceMetadataKey, TraceTagKey

    return TraceInfo(
        trace_id=trace,
        trace_location=TraceLocation.from_experiment_id(experiment),
        request_time=listing.started_ns // 1_000_000,
        execution_duration=(listing.ended_ns - listing.started_ns) // 1_000_000,
        state=TraceState.OK,
        request_preview=listing.request,
        response_preview=listing.response,
        trace_metadata={TraceMetadataKey.SOURCE_RUN: run, TRACE_SCHEMA_VERSION_KEY: "3"},
        tags={TraceTagKey.SPANS_LOCATION: "TRACKING_STORE", **listing.tags},
        assessments=list(assessments),
    )


def span(trace: str, step: Step, *, position: int = 0, kind: str = "UNKNOWN", kept: Mapping[str, Any] = {}) -> "Span":
    """A step in the trace with this id: the root at position 0, the others below it.

    `kind` is MLflow's type of a span. What it `kept` beside the step comes back exactly; in the step itself, halves of
    characters, which no server takes, show as question marks.
    """
    from mlflow.entities import Span
    from mlflow.tracing.constant import SpanAttributeKey

    shown: dict[str, object] = {
        SpanAttributeKey.REQUEST_ID: trace,
        SpanAttributeKey.SPAN_TYPE: kind,
        SpanAttributeKey.INPUTS: step.inputs,
        SpanAttributeKey.OUTPUTS: step.outputs,
        **_usage(step),
    }
    exact = {key: json.dumps(value) for key, value in kept.items()}
    return Span.from_dict(
        {
            "trace_id": trace,
            "span_id": _span_id(trace, position),
            "parent_span_id": _span_id(trace, 0) if position else None,
            "name": step.name,
            "start_time_unix_nano": step.started_ns,
            "end_time_unix_nano": step.ended_ns,
            "status": {"code": "STATUS_CODE_OK"},
            "attributes": {key: _text(value) for key, value in shown.items()} | exact,
        }
    )


def _span_id(trace: str, position: int) -> str:
    return f"{(int(trace[-16:], 16) + position) % 2**64:016x}"


def _usage(step: Step) -> dict[str, object]:
    from mlflow.tracing.constant import SpanAttributeKey, TokenUsageKey

    if step.tokens_in is None or step.tokens_out is None:
        return {}
    counts = {TokenUsageKey.INPUT_TOKENS: step.tokens_in, TokenUsageKey.OUTPUT_TOKENS: step.tokens_out}
    return {SpanAttributeKey.CHAT_USAGE: {**counts, TokenUsageKey.TOTAL_TOKENS: step.tokens_in + step.tokens_out}}


def _info(trace: Trace, experiment: str, run: str) -> "TraceInfo":
    from mlflow.tracing.constant import TraceTagKey

    whole = trace.whole
    listing = Listing(
        request=_text(trace.inputs)[:PREVIEW],
        response=_text(trace.outputs)[:PREVIEW],
        started_ns=whole.started_ns,
        ended_ns=whole.ended_ns,
        tags={TraceTagKey.TRACE_NAME: trace.name, **trace.tags},
    )
    return info(trace.trace_id, listing, experiment=experiment, run=run, assessments=[_assessment(trace)])


def _assessment(trace: Trace) -> "Assessment":
    from mlflow.entities import AssessmentSource
    from mlflow.entities import Feedback as Assessed

    said = trace.feedback
    return Assessed(
        name=said.name,
        value=said.value,
        source=AssessmentSource(source_type="LLM_JUDGE", source_id=said.model),
        rationale=said.rationale,
        trace_id=trace.trace_id,
    )


def _spans(trace: Trace) -> list["Span"]:
    """The task as the root, and its requests below it."""
    requests = [
        span(trace.trace_id, step, position=position, kind="CHAT_MODEL")
        for position, step in enumerate(trace.steps, start=1)
    ]
    return [span(trace.trace_id, trace.whole, kind="EVALUATOR"), *requests]


def _text(value: object) -> str:
    """JSON, without the halves of characters that no store takes."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace").decode()
