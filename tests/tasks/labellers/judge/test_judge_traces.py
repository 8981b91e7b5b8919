import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from cluster.tracking import Tracker
from tasks.labellers.judge import Judge
from tasks.labellers.judge.endpoint import Endpoint
from tasks.labellers.protocol import Ask, Question, Workplace
from tasks.stages import RoundContext

pytestmark = pytest.mark.labels

MakeQuestion = Callable[..., Question]


@pytest.fixture
def judge(endpoint: Any) -> Judge:
    return Judge(model="m", endpoint=Endpoint(base_url=endpoint.url, max_concurrency=1))


@pytest.fixture
def tracked(workplace: Workplace, here: RoundContext) -> Workplace:
    return replace(workplace, tracker=here.tracker, run=here.run, lineage="demo", round=3)


def traces_of(tracked: Workplace) -> list[Any]:
    assert tracked.tracker is not None
    client = tracked.tracker.client
    experiment = client.get_run(tracked.run).info.experiment_id
    return list(client.search_traces(locations=[experiment], run_id=tracked.run))


def test_every_pair_is_one_trace_with_both_orders_and_the_choice_as_feedback(
    endpoint: Any, judge: Judge, make_question: MakeQuestion, tracked: Workplace
) -> None:
    endpoint.script(endpoint.completion("A is good.\n[[A]]"), endpoint.completion("B is good.\n[[B]]", usage=(7, 3)))
    question = make_question("good", "bad \ud83d half")
    list(judge([Ask(question=question)], tracked))
    (trace,) = traces_of(tracked)
    assert trace.info.tags["pairwright.pair"] == question.key
    assert trace.info.tags["pairwright.lineage"] == "demo"
    assert trace.info.tags["pairwright.round"] == "003"
    root, asked, turned = sorted(trace.data.spans, key=lambda span: (span.parent_id is not None, span.start_time_ns))
    assert root.inputs == {"prompt": "user: say something", "first": "good", "second": "bad ? half"}
    assert {asked.parent_id, turned.parent_id} == {root.span_id}
    assert asked.inputs["messages"] == endpoint.requests[0]["messages"]
    assert (asked.outputs["verdict"], turned.outputs["verdict"]) == ("A", "B")
    assert turned.outputs["reply"] == "B is good.\n[[B]]"
    assert root.start_time_ns <= asked.end_time_ns <= turned.end_time_ns <= root.end_time_ns
    assert trace.info.token_usage == {"input_tokens": 107, "output_tokens": 13, "total_tokens": 120}
    (said,) = trace.info.assessments
    assert (said.name, said.value, said.source.source_type, said.source.source_id) == (
        "preference",
        "first",
        "LLM_JUDGE",
        "m",
    )
    assert said.rationale == "A is good.\n[[A]]\n\nB is good.\n[[B]]"


def test_a_pair_asked_again_after_a_kill_has_no_second_trace(
    judge: Judge, make_question: MakeQuestion, tracked: Workplace
) -> None:
    asks = [Ask(question=make_question("good", word)) for word in ("bad", "worse")]
    list(judge(asks, tracked))
    list(judge(asks[:1], tracked))
    assert len(traces_of(tracked)) == 2


def test_no_trace_is_written_for_an_answer_that_was_not_kept(
    judge: Judge, make_question: MakeQuestion, tracked: Workplace
) -> None:
    chunks = judge([Ask(question=make_question("good", "bad"))], tracked)
    next(chunks)
    chunks.close()
    assert traces_of(tracked) == []


def test_a_store_that_takes_no_traces_costs_no_answer(
    judge: Judge, make_question: MakeQuestion, workplace: Workplace, caplog: pytest.LogCaptureFixture
) -> None:
    broken = replace(workplace, tracker=Tracker(tracking_uri="http://127.0.0.1:9", experiment="x"), run="none")
    (chunk,) = judge([Ask(question=make_question("good", "bad"))], broken)
    assert [answer.choice for _, answer in chunk] == ["tie"]
    assert "MLflow did not take 1 traces of run none" in caplog.text


def test_a_pair_that_was_not_taken_has_a_trace_with_the_reason(
    endpoint: Any, judge: Judge, make_question: MakeQuestion, tracked: Workplace
) -> None:
    refused = endpoint.faulty(status=400, body="too long")
    endpoint.reply = lambda request: refused if "good" in json.dumps(request) else endpoint.completion("[[A]]")
    list(judge([Ask(question=make_question("good", "bad"))], tracked))
    (trace,) = traces_of(tracked)
    assert trace.info.assessments[0].value == "abstain"
    assert "too long" in trace.data.spans[1].outputs["refusal"]
