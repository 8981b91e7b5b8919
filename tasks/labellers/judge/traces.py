"""A judged pair as a trace: both orders as they were asked, and what follows from them as feedback."""

from collections.abc import Mapping, Sequence
from typing import Any

from cluster.traces import PAIR_TAG, Feedback, Step, Trace
from cluster.tracking import LINEAGE_TAG, ROUND_TAG
from tasks.labellers.judge.endpoint import Reply
from tasks.labellers.judge.session import Case
from tasks.labellers.protocol import Answer, Workplace


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
            name="preference",
            value=answer.choice,
            source="LLM_JUDGE",
            source_id=str(requests[0]["model"]),
            rationale=answer.rationale,
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
