"""Traces: what was asked of a model and what it said, as MLflow shows it, with what was concluded as feedback."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal

from cluster.tracking import Tracker

if TYPE_CHECKING:
    from mlflow.entities import Assessment, Span, TraceInfo

PAIR_TAG = "pairwright.pair"
PREVIEW = 1000
"""Characters of a request or response that MLflow's list of traces shows."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One request to a model; times are nanoseconds since 1970."""

    name: str
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    started_ns: int
    ended_ns: int
    tokens_in: int | None = None
    tokens_out: int | None = None


@dataclass(frozen=True, kw_only=True)
class Feedback:
    """What was concluded, and who concluded it."""

    name: str
    value: str
    source: Literal["LLM_JUDGE", "HUMAN", "CODE"]
    source_id: str
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
        return f"tr-{self.digest[:32]}"

    @property
    def digest(self) -> str:
        """SHA-256 of the identity."""
        return sha256(self.identity.encode()).hexdigest()


def log_traces(tracker: Tracker, run: str, traces: Sequence[Trace]) -> None:
    """Write traces to the run's experiment; where that fails, a warning says so and work goes on without them."""
    from mlflow.exceptions import MlflowException
    from mlflow.tracing.client import TracingClient

    try:
        experiment = str(tracker.client.get_run(run).info.experiment_id)
        store = TracingClient(tracker.tracking_uri)
        store.log_spans(experiment, [span for trace in traces for span in _spans(trace)])
        for trace in traces:
            store.start_trace(_info(trace, experiment, run))
    except (MlflowException, NotImplementedError, OSError) as error:
        logger.warning("MLflow did not take %d traces of run %s; work goes on: %s", len(traces), run, error)


def _info(trace: Trace, experiment: str, run: str) -> "TraceInfo":
    from mlflow.entities import TraceInfo, TraceState
    from mlflow.entities.trace_location import TraceLocation
    from mlflow.tracing.constant import TraceMetadataKey, TraceTagKey

    started, ended = _bounds(trace)
    spans_location = {TraceTagKey.SPANS_LOCATION: "TRACKING_STORE"}
    return TraceInfo(
        trace_id=trace.trace_id,
        trace_location=TraceLocation.from_experiment_id(experiment),
        request_time=started // 1_000_000,
        execution_duration=(ended - started) // 1_000_000,
        state=TraceState.OK,
        request_preview=_text(trace.inputs)[:PREVIEW],
        response_preview=_text(trace.outputs)[:PREVIEW],
        trace_metadata={TraceMetadataKey.SOURCE_RUN: run},
        tags={TraceTagKey.TRACE_NAME: trace.name, **spans_location, **trace.tags},
        assessments=[_assessment(trace)],
    )


def _assessment(trace: Trace) -> "Assessment":
    from mlflow.entities import AssessmentSource
    from mlflow.entities import Feedback as Assessed

    said = trace.feedback
    return Assessed(
        name=said.name,
        value=said.value,
        source=AssessmentSource(source_type=said.source, source_id=said.source_id),
        rationale=said.rationale,
        trace_id=trace.trace_id,
    )


def _spans(trace: Trace) -> list["Span"]:
    """The task as the root, and its requests below it."""
    from mlflow.tracing.constant import SpanAttributeKey, TokenUsageKey

    started, ended = _bounds(trace)
    whole = Step(name=trace.name, inputs=trace.inputs, outputs=trace.outputs, started_ns=started, ended_ns=ended)
    spans = [_span(trace, whole, position=0, attributes={SpanAttributeKey.SPAN_TYPE: "EVALUATOR"})]
    for position, step in enumerate(trace.steps, start=1):
        attributes: dict[str, Any] = {SpanAttributeKey.SPAN_TYPE: "CHAT_MODEL"}
        if step.tokens_in is not None and step.tokens_out is not None:
            attributes[SpanAttributeKey.CHAT_USAGE] = {
                TokenUsageKey.INPUT_TOKENS: step.tokens_in,
                TokenUsageKey.OUTPUT_TOKENS: step.tokens_out,
                TokenUsageKey.TOTAL_TOKENS: step.tokens_in + step.tokens_out,
            }
        spans.append(_span(trace, step, position=position, attributes=attributes))
    return spans


def _span(trace: Trace, step: Step, *, position: int, attributes: Mapping[str, Any]) -> "Span":
    from mlflow.entities import Span
    from mlflow.tracing.constant import SpanAttributeKey
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import Status, StatusCode

    fields = {
        SpanAttributeKey.REQUEST_ID: trace.trace_id,
        SpanAttributeKey.INPUTS: step.inputs,
        SpanAttributeKey.OUTPUTS: step.outputs,
        **attributes,
    }
    return Span(
        ReadableSpan(
            name=step.name,
            context=_context(trace, position),
            parent=_context(trace, 0) if position else None,
            attributes={key: _text(value) for key, value in fields.items()},
            status=Status(StatusCode.OK),
            start_time=step.started_ns,
            end_time=step.ended_ns,
        )
    )


def _context(trace: Trace, position: int) -> Any:
    from opentelemetry.trace import SpanContext

    return SpanContext(int(trace.digest[:32], 16), int(trace.digest[32:48], 16) + position, is_remote=False)


def _bounds(trace: Trace) -> tuple[int, int]:
    return min(step.started_ns for step in trace.steps), max(step.ended_ns for step in trace.steps)


def _text(value: object) -> str:
    """JSON, without the halves of characters that no store takes."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace").decode()
