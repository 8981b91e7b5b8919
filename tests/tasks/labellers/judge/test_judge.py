import asyncio
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from tasks.labellers.judge import Judge, TokenPrices
from tasks.labellers.judge.endpoint import Endpoint
from tasks.labellers.ledger import Account, Ledger
from tasks.labellers.protocol import Answer, Ask, Question, Workplace

pytestmark = pytest.mark.labels

MakeQuestion = Callable[..., Question]
GOOD_FIRST = "[Response A]\ngood"


class Config(BaseModel):
    """Holds a labeller as the stage's config does."""

    model_config = ConfigDict(extra="forbid")

    labeller: Judge


def judge_of(endpoint: Any, *, concurrency: int = 1, **fields: Any) -> Judge:
    return Judge(
        model="m", endpoint=Endpoint(base_url=endpoint.url, max_retries=1, max_concurrency=concurrency), **fields
    )


def ask_all(judge: Judge, questions: Sequence[Question], workplace: Workplace) -> list[Answer]:
    """The answers in the order of the questions."""
    asks = [Ask(question=question) for question in questions]
    found = {ask.question.key: answer for chunk in judge(asks, workplace) for ask, answer in chunk}
    return [found[question.key] for question in questions]


@pytest.fixture
def fair(endpoint: Any) -> Any:
    """An endpoint that prefers a response that begins with good, wherever it stands."""

    def reply(request: dict[str, Any]) -> Any:
        is_first = GOOD_FIRST in request["messages"][0]["content"]
        return endpoint.completion("reasons\n[[A]]" if is_first else "reasons\n[[B]]")

    endpoint.reply = reply
    return endpoint


@pytest.fixture
def pairs(make_question: MakeQuestion) -> list[Question]:
    return [make_question("good", "bad"), make_question("awful", "good of its kind")]


def test_every_pair_is_asked_in_both_orders_and_answered_in_the_order_asked(
    fair: Any, pairs: list[Question], workplace: Workplace
) -> None:
    answers = ask_all(judge_of(fair), pairs, workplace)
    assert [answer.choice for answer in answers] == ["first", "second"]
    assert [text.index("good") < text.index("bad") for text in fair.texts[:2]] == [True, False]
    assert len(fair.requests) == 4
    assert all("say something" in text for text in fair.texts)
    assert (answers[0].detail["verdict_asked"], answers[0].detail["verdict_turned"]) == ("A", "B")
    assert answers[0].rationale == "reasons\n[[A]]\n\nreasons\n[[B]]"
    assert all(answer.probability is None for answer in answers)


@pytest.mark.parametrize("rule", ["tie", "abstain"])
def test_a_judge_that_prefers_a_place_prefers_no_response(
    rule: str, endpoint: Any, pairs: list[Question], workplace: Workplace
) -> None:
    judge = judge_of(endpoint, on_disagreement=rule)
    assert [answer.choice for answer in ask_all(judge, pairs, workplace)] == [rule, rule]


@pytest.mark.parametrize("at", [0, 1])
def test_one_order_without_a_verdict_is_an_abstention(
    at: int, endpoint: Any, pairs: list[Question], workplace: Workplace
) -> None:
    replies = [endpoint.completion("[[TIE]]"), endpoint.completion("[[TIE]]")]
    replies[at] = endpoint.completion("I can't say.")
    endpoint.script(*replies)
    (answer,) = ask_all(judge_of(endpoint), pairs[:1], workplace)
    assert answer.choice == "abstain"
    assert "I can't say." in answer.rationale


@pytest.mark.parametrize("text", ["[[A]]", None])
def test_a_reply_that_was_cut_or_is_empty_is_an_abstention(
    text: str | None, endpoint: Any, pairs: list[Question], workplace: Workplace
) -> None:
    endpoint.script(endpoint.completion(text, finish_reason="length" if text else "stop"))
    (answer,) = ask_all(judge_of(endpoint), pairs[:1], workplace)
    assert answer.choice == "abstain"
    assert answer.detail["tokens_in"] == 200


def test_the_cost_is_what_the_endpoint_counted_and_at_most_the_price(
    fair: Any, pairs: list[Question], workplace: Workplace
) -> None:
    judge = judge_of(fair, prices=TokenPrices(input=3.0, output=15.0))
    (answer,) = ask_all(judge, pairs[:1], workplace)
    assert answer.cost == pytest.approx(2 * (100 * 3 + 10 * 15) / 1e6)
    assert answer.cost < judge.price(pairs[0])
    assert (answer.detail["tokens_in"], answer.detail["tokens_out"]) == (200, 20)


def test_a_reply_whose_tokens_nobody_counted_costs_the_bound(
    endpoint: Any, pairs: list[Question], workplace: Workplace
) -> None:
    endpoint.script(endpoint.completion("[[A]]", usage=None))
    judge = judge_of(endpoint, prices=TokenPrices(input=3.0, output=15.0))
    (answer,) = ask_all(judge, pairs[:1], workplace)
    assert answer.cost == pytest.approx(judge.price(pairs[0]) / 2)  # one attempt of the two that it reserves


def test_the_price_holds_for_texts_whose_every_byte_is_a_token(endpoint: Any, make_question: MakeQuestion) -> None:
    judge, question = judge_of(endpoint, prices=TokenPrices(input=1e6)), make_question("🙂" * 100, "é" * 50)
    num_bytes = len(judge.rubric.encode()) + 400 + 100 - len("{prompt}{first}{second}")
    assert judge.price(question) >= 2 * 2 * num_bytes


def test_a_request_says_what_the_config_says(fair: Any, pairs: list[Question], workplace: Workplace) -> None:
    ask_all(judge_of(fair, temperature=0.5, seed=7, max_tokens=9), pairs[:1], workplace)
    request = {name: value for name, value in fair.requests[0].items() if name != "messages"}
    assert request == {"model": "m", "temperature": 0.5, "seed": 7, "max_tokens": 9}
    assert [message["role"] for message in fair.requests[0]["messages"]] == ["user"]


def test_what_an_endpoint_knows_under_another_name_or_not_at_all_is_not_sent(
    fair: Any, pairs: list[Question], workplace: Workplace
) -> None:
    judge = judge_of(fair, temperature=None, seed=None, constrained=True)
    named = replace(judge, endpoint=replace(judge.endpoint, limit_name="max_completion_tokens"))
    ask_all(named, pairs[:1], workplace)
    assert set(fair.requests[0]) == {"model", "messages", "max_completion_tokens", "structured_outputs"}
    assert fair.requests[0]["structured_outputs"] == {"choice": ["[[A]]", "[[B]]", "[[TIE]]"]}


def test_requests_run_side_by_side_up_to_the_limit(
    endpoint: Any, make_question: MakeQuestion, workplace: Workplace
) -> None:
    endpoint.reply = lambda _: replace(endpoint.completion("[[A]]"), delay=0.05)
    questions = [make_question(str(i), "bad") for i in range(12)]
    answers = ask_all(judge_of(endpoint, concurrency=4), questions, workplace)
    assert len(answers) == 12
    assert 2 <= endpoint.most_at_once <= 4


def test_answers_are_handed_on_while_others_are_awaited(
    endpoint: Any, pairs: list[Question], workplace: Workplace
) -> None:
    release = threading.Event()

    def reply(request: dict[str, Any]) -> Any:
        if "awful" in request["messages"][0]["content"]:
            release.wait(10)
        return endpoint.completion("[[A]]")

    endpoint.reply = reply
    chunks = judge_of(endpoint, concurrency=2)([Ask(question=question) for question in pairs], workplace)
    (first,) = next(chunks)
    assert first[0].question == pairs[0]
    release.set()
    assert [ask.question for chunk in chunks for ask, _ in chunk] == pairs[1:]


def test_a_judge_waits_for_a_caller_who_is_slow_to_keep_its_answers(
    endpoint: Any, make_question: MakeQuestion, workplace: Workplace
) -> None:
    asks = [Ask(question=make_question(str(i), "bad")) for i in range(20)]
    chunks = judge_of(endpoint, concurrency=2)(asks, workplace)
    num_kept, deadline = len(next(chunks)), time.monotonic() + 20
    while len(endpoint.requests) < 8 and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    assert len(endpoint.requests) == 2 * 2 * 2
    assert num_kept + sum(len(chunk) for chunk in chunks) == 20


def test_whoever_stops_early_stops_the_judge(endpoint: Any, make_question: MakeQuestion, workplace: Workplace) -> None:
    endpoint.reply = lambda _: replace(endpoint.completion("[[A]]"), delay=0.05)
    asks = [Ask(question=make_question(str(i), "bad")) for i in range(100)]
    threads = threading.active_count()
    chunks = judge_of(endpoint, concurrency=2)(asks, workplace)
    next(chunks)
    chunks.close()
    num_requests = len(endpoint.requests)
    time.sleep(0.3)
    assert len(endpoint.requests) == num_requests < 20
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("judge", "traces"))]
    assert threading.active_count() <= threads + 2  # those of the endpoint's open connections


def test_a_judge_works_inside_a_running_event_loop(fair: Any, pairs: list[Question], workplace: Workplace) -> None:
    async def inside() -> list[Answer]:
        return ask_all(judge_of(fair), pairs, workplace)

    assert [answer.choice for answer in asyncio.run(inside())] == ["first", "second"]


def test_repetitions_have_seeds_of_their_own_and_cold_ones_say_nothing_new(
    fair: Any, pairs: list[Question], workplace: Workplace
) -> None:
    asks = [Ask(question=pairs[0], repetition=repetition) for repetition in range(3)]
    assert judge_of(fair).repeats_itself
    assert not judge_of(fair, temperature=1.0).repeats_itself
    assert not judge_of(fair, temperature=None).repeats_itself
    assert len([answer for chunk in judge_of(fair, temperature=1.0, seed=5)(asks, workplace) for answer in chunk]) == 3
    assert sorted({request["seed"] for request in fair.requests}) == [5, 6, 7]


def test_the_ledger_buys_a_pair_once_and_its_detail_comes_back_for_the_measures(
    endpoint: Any, pairs: list[Question], workplace: Workplace, tmp_path: Path
) -> None:
    judge = judge_of(endpoint, prices=TokenPrices(input=3.0, output=15.0))
    ledger = Ledger.at(tmp_path / "ledger.sqlite")
    bought = ledger.buy(pairs, judge, Account(lineage="one", round=0, budget=1.0), workplace)
    again = ledger.buy(pairs, judge, Account(lineage="two", round=0, budget=1.0), workplace)
    assert len(endpoint.requests) == 4
    measures = [judge.measures([label for of_pair in labels for label in of_pair]) for labels in (bought, again)]
    assert measures[0] == measures[1]
    assert measures[0]["order_dependent_share"] == 1
    assert measures[0]["first_shown_share"] == 1
    assert measures[0]["tokens_in"] == 400
    assert measures[0]["cost"] == pytest.approx(4 * 450 / 1e6)
    assert ledger.spend("two").cost == pytest.approx(4 * 450 / 1e6)


def test_the_identity_names_what_shapes_replies_and_not_where_they_come_from(endpoint: Any) -> None:
    judge = judge_of(endpoint)
    same = [
        replace(judge, endpoint=Endpoint(base_url="http://elsewhere/v1", timeout=1)),
        replace(judge, prices=TokenPrices(input=1)),
        replace(judge, temperature=0),
    ]
    others = [
        replace(judge, model="n"),
        replace(judge, rubric="{prompt}{first}{second}"),
        replace(judge, temperature=None),
        replace(judge, temperature=1),
        replace(judge, seed=1),
        replace(judge, max_tokens=1),
        replace(judge, on_disagreement="abstain"),
        replace(judge, constrained=True),
    ]
    assert {judge.identity} == {other.identity for other in same}
    assert len({judge.identity, *(other.identity for other in others)}) == 1 + len(others)
    assert json.loads(judge.identity)["kind"] == "judge"


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"rubric": "{prompt}"}, "rubric"),
        ({"temperature": -1}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"on_disagreement": "first"}, "on_disagreement"),
        ({"api_key": "secret"}, "api_key"),
        ({"prices": {"input": -1}}, r"prices\.input"),
        ({"prices": {"output": float("inf")}}, r"prices\.output"),
        ({"endpoint": {"timeout": 0}}, "timeout"),
        ({"endpoint": {"max_retries": -1}}, "max_retries"),
        ({"endpoint": {"max_concurrency": 0}}, "max_concurrency"),
        ({"endpoint": {"base_url": "localhost:8000"}}, "expected http"),
        ({"endpoint": {"base_url": "http://me:secret@host/v1"}}, "holds a password"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(values: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        Config.model_validate({"labeller": {"model": "m", **values}})


def test_a_config_of_plain_values_is_a_judge() -> None:
    values = {"kind": "judge", "model": "m", "endpoint": {"base_url": "http://h/v1"}, "prices": {"input": 1}}
    assert Config.model_validate({"labeller": values}).labeller == Judge(
        model="m", endpoint=Endpoint(base_url="http://h/v1"), prices=TokenPrices(input=1.0)
    )
