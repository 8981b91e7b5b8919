"""A judged pair as a trace: both orders as they were asked, and what follows from them as feedback."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from cluster.traces import PAIR_TAG, Feedback, Step, Trace, log_traces
from cluster.tracking import LINEAGE_TAG, ROUND_TAG
from tasks.labellers.judge.endpoint import Reply
from tasks.labellers.judge.session import Case
from tasks.labellers.protocol import Answer, Workplace


class Scribe:
    """Writes traces to the round's run in a thread of its own, until MLflow doesn't take some.

    Leaving it waits for what is to be written; after an exception, only for what is being written.
    """

    def __init__(self, workplace: Workplace) -> None:
        self._workplace = workplace
        self._is_writing = workplace.tracker is not None and workplace.run is not None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="traces")
        self._written: list[Future[None]] = []

    @property
    def is_writing(self) -> bool:
        """Whether there is a run, and MLflow has taken all so far."""
        return self._is_writing

    def write(self, traces: Sequence[Trace]) -> None:
        """Have traces written after those before them."""
        self._written.append(self._thread.submit(self._write, traces))

    def _write(self, traces: Sequence[Trace]) -> None:
        tracker, run = self._workplace.tracker, self._workplace.run
        if self._is_writing and tracker is not None and run is not None:
            self._is_writing = log_traces(tracker, run, traces)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trail: TracebackType | None
    ) -> None:
        self._thread.shutdown(cancel_futures=error is not None)
        if error is None:
            for writing in self._written:
                writing.result()


def trace(
    case: Case, answer: Answer, *, requests: Sequence[Mapping[str, Any]], identity: str, workplace: Workplace
) -> Trace:
    """Describe one pair; `requests` are its two, as asked and turned, and `identity` is the judge's."""
    question = case.ask.question
    origin = (identity, workplace.lineage, str(workplace.round), question.key, str(case.ask.repetition))
    return Trace(
        name="judge a pair",
        identity="\n".join(origin),
        inputs={"prompt": question.prompt, "first": question.first, "second": question.second},
        outputs={"choice": answer.choice, "cost": answer.cost},
        steps=[
            _step("in the order asked", requests[0], case.asked),
            _step("turned round", requests[1], case.turned),
        ],
        tags={PAIR_TAG: question.key, LINEAGE_TAG: workplace.lineage, ROUND_TAG: f"{workplace.round:03d}"},
        feedback=Feedback(
            name="preference", value=answer.choice, model=str(requests[0]["model"]), rationale=answer.rationale
        ),
    )


def _step(name: str, request: Mapping[str, Any], reply: Reply) -> Step:
    outputs: dict[str, Any] = {"verdict": reply.verdict, "retries": reply.num_retries}
    outputs |= {"refusal": reply.refusal} if reply.refusal else {"reply": reply.text, "is_cut": reply.is_cut}
    return Step(
        name=name,
        inputs=request,
        outputs=outputs,
        started_ns=reply.started_ns,
        ended_ns=reply.ended_ns,
        tokens_in=reply.tokens_in,
        tokens_out=reply.tokens_out,
    )
