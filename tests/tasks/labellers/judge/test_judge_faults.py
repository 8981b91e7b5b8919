import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import InputError, LabellerError
from tasks.labellers.judge import Judge, TokenPrices
from tasks.labellers.judge.endpoint import Endpoint
from tasks.labellers.ledger import Account, Ledger
from tasks.labellers.protocol import Answer, Ask, Question, Workplace

pytestmark = pytest.mark.labels

MakeQuestion = Callable[..., Question]
HTML = {"Content-Type": "text/html"}
FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "silent": ({"delay": 30.0}, "timed out"),
    "cut": ({"body": '{"choices": [', "is_cut": True}, "Connection error"),
    "busy": ({"status": 429, "body": '{"error": {"message": "slow down"}}'}, "HTTP status 429: .*slow down"),
    "broken": ({"status": 500, "body": "boom"}, "HTTP status 500: 'boom'"),
    "gateway": ({"status": 502, "body": "<html>bad gateway</html>", "headers": HTML}, "HTTP status 502"),
    "garbage": ({"body": b"\xff\x00{]"}, "what is no chat completion"),
    "html": ({"body": "<html>please\n log in</html>", "headers": HTML}, "'<html>please log in</html>'"),
    "error": ({"body": '{"error": {"message": "upstream"}}'}, "no chat completion: .*upstream"),
    "null": ({"body": "null"}, "no chat completion: 'null'"),
}


@pytest.fixture
def judge(endpoint: Any) -> Judge:
    return Judge(model="m", endpoint=Endpoint(base_url=endpoint.url, timeout=10.0, max_retries=1, max_concurrency=1))


def with_timeout(judge: Judge, seconds: float, *, max_retries: int = 1) -> Judge:
    return replace(judge, endpoint=replace(judge.endpoint, timeout=seconds, max_retries=max_retries))


def answer_of(judge: Judge, question: Question, workplace: Workplace) -> Answer:
    ((_, answer),) = [pair for chunk in judge([Ask(question=question)], workplace) for pair in chunk]
    return answer


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_passes_is_a_retry(
    fault: str, endpoint: Any, judge: Judge, make_question: MakeQuestion, workplace: Workplace
) -> None:
    endpoint.script(endpoint.faulty(**FAULTS[fault][0]), endpoint.completion("[[TIE]]"))
    patience = 1.0 if fault == "silent" else 10.0
    answer = answer_of(with_timeout(judge, patience), make_question("good", "bad"), workplace)
    assert answer.choice == "tie"
    assert answer.detail["retries"] == 1
    assert len(endpoint.requests) == 3


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_stays_is_an_error_that_counts_the_attempts_and_quotes_the_last(
    fault: str, endpoint: Any, judge: Judge, make_question: MakeQuestion, workplace: Workplace
) -> None:
    endpoint.script(endpoint.faulty(**FAULTS[fault][0]))
    patience = 0.5 if fault == "silent" else 10.0
    with pytest.raises(LabellerError, match=f"no reply in 2 attempts; the last brought .*{FAULTS[fault][1]}"):
        answer_of(with_timeout(judge, patience), make_question("good", "bad"), workplace)
    assert len(endpoint.requests) == 2


def test_faults_of_all_kinds_share_one_limit_of_attempts(
    endpoint: Any, judge: Judge, make_question: MakeQuestion, workplace: Workplace
) -> None:
    faults = [endpoint.faulty(**FAULTS[fault][0]) for fault in ("broken", "garbage", "busy")]
    endpoint.script(*faults)
    patient = with_timeout(judge, 10.0, max_retries=2)
    with pytest.raises(LabellerError, match="no reply in 3 attempts; the last brought HTTP status 429"):
        answer_of(patient, make_question("good", "bad"), workplace)
    assert len(endpoint.requests) == 3


def test_no_retries_are_no_retries(
    endpoint: Any, judge: Judge, make_question: MakeQuestion, workplace: Workplace
) -> None:
    endpoint.script(endpoint.faulty(status=503))
    with pytest.raises(LabellerError, match="no reply in 1 attempts"):
        answer_of(with_timeout(judge, 10.0, max_retries=0), make_question("good", "bad"), workplace)
    assert len(endpoint.requests) == 1


def test_a_wait_that_the_endpoint_asks_for_is_kept(
    endpoint: Any, judge: Judge, make_question: MakeQuestion, workplace: Workplace
) -> None:
    endpoint.script(endpoint.faulty(status=429, headers={"Retry-After": "1.5"}), endpoint.completion("[[TIE]]"))
    started = time.monotonic()
    answer = answer_of(judge, make_question("good", "bad"), workplace)
    assert time.monotonic() - started >= 1.5
    assert answer.detail["seconds"] >= 1.5


def test_a_wait_of_an_hour_is_not_kept_but_said(
    endpoint: Any, judge: Judge, make_question: MakeQuestion, workplace: Workplace
) -> None:
    endpoint.script(endpoint.faulty(status=429, body="quota", headers={"Retry-After": "3600"}))
    with pytest.raises(LabellerError, match="no reply in 1 attempts; the last brought HTTP status 429: 'quota'"):
        answer_of(judge, make_question("good", "bad"), workplace)


def test_a_reply_that_never_ends_is_given_up(
    endpoint: Any, judge: Judge, make_question: MakeQuestion, workplace: Workplace
) -> None:
    endpoint.script(endpoint.faulty(drips=True))
    once = with_timeout(judge, 0.5, max_retries=0)
    with pytest.raises(LabellerError, match=r"had not ended after 0.5 s"):
        answer_of(once, make_question("good", "bad"), workplace)


def test_a_completion_without_choices_is_an_abstention(
    endpoint: Any, judge: Judge, make_question: MakeQuestion, workplace: Workplace
) -> None:
    endpoint.script(endpoint.faulty(body='{"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 0}}'))
    answer = answer_of(judge, make_question("good", "bad"), workplace)
    assert answer.choice == "abstain"
    assert answer.detail["tokens_in"] == 10


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_pair_that_the_endpoint_does_not_take_is_an_abstention_with_the_reason(
    status: int, endpoint: Any, judge: Judge, make_question: MakeQuestion, workplace: Workplace
) -> None:
    def reply(request: dict[str, Any]) -> Any:
        is_long = "long" in request["messages"][0]["content"].partition("[Prompt]")[2]
        return endpoint.faulty(status=status, body="too many tokens") if is_long else endpoint.completion("[[TIE]]")

    endpoint.reply = reply
    questions = [make_question("long", "bad"), make_question("longer", "bad"), make_question("good", "bad")]
    paid = replace(judge, prices=TokenPrices(input=1.0, output=1.0))
    found = [
        answer for chunk in paid([Ask(question=question) for question in questions], workplace) for _, answer in chunk
    ]
    assert [answer.choice for answer in found] == ["abstain", "abstain", "tie"]
    assert f"HTTP status {status}: 'too many tokens'" in found[0].rationale
    assert [answer.detail["refused"] for answer in found] == [1, 1, 0]
    assert len(endpoint.requests) == 8  # two a pair, and one to see whether everything is refused, after two refusals
    assert [found[0].cost, found[1].cost] == pytest.approx([110 / 1e6] * 2)  # that of the one


def test_settings_that_the_endpoint_does_not_take_are_an_error_and_not_an_abstention(
    endpoint: Any, judge: Judge, make_question: MakeQuestion, workplace: Workplace
) -> None:
    endpoint.script(endpoint.faulty(status=400, body="Unsupported parameter: 'max_tokens'"))
    asks = [Ask(question=make_question(str(i), "bad")) for i in range(20)]
    with pytest.raises(InputError, match=r"refuses every question .*Unsupported parameter: 'max_tokens'"):
        list(judge(asks, workplace))
    assert len(endpoint.requests) == 2


def test_an_endpoint_that_takes_nothing_any_more_ends_the_round_and_its_refusals_are_no_answers(
    endpoint: Any, judge: Judge, make_question: MakeQuestion, workplace: Workplace, tmp_path: Path
) -> None:
    questions = [make_question(str(i), "bad") for i in range(20)]
    endpoint.script(*[endpoint.completion("[[TIE]]")] * 4, endpoint.faulty(status=400, body="credit is used up"))
    ledger, account = Ledger.at(tmp_path / "ledger.sqlite"), Account(lineage="demo", round=0)
    with pytest.raises(InputError, match=r"refuses every question .*credit is used up"):
        ledger.buy(questions, judge, account, workplace)
    assert len(endpoint.requests) == 7
    assert (ledger.progress("demo", 0).num_answered, ledger.progress("demo", 0).num_abstained) == (2, 0)


def test_long_pairs_between_others_cost_no_question_about_the_settings(
    endpoint: Any, judge: Judge, make_question: MakeQuestion, workplace: Workplace
) -> None:
    refused, good = endpoint.faulty(status=400, body="too long"), endpoint.completion("[[TIE]]")
    endpoint.script(good, refused, good, refused, good)
    asks = [Ask(question=make_question(str(i), "bad")) for i in range(3)]
    choices = [answer.choice for chunk in judge(asks, workplace) for _, answer in chunk]
    assert choices == ["abstain", "abstain", "tie"]
    assert len(endpoint.requests) == 6


@pytest.mark.parametrize("status", [500, 404, 200])
def test_an_error_quotes_no_key(
    status: int,
    endpoint: Any,
    judge: Judge,
    make_question: MakeQuestion,
    workplace: Workplace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k-secret\n")
    endpoint.script(endpoint.faulty(status=status, body='{"error": {"message": "Bearer k-secret is wrong"}}'))
    with pytest.raises((InputError, LabellerError), match=r"Bearer \*\*\* is wrong") as failed:
        answer_of(with_timeout(judge, 10.0, max_retries=0), make_question("good", "bad"), workplace)
    assert "k-secret" not in "".join(traceback.format_exception(failed.value))


def test_what_is_kept_of_a_refusal_holds_no_key(
    endpoint: Any, judge: Judge, make_question: MakeQuestion, workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k-secret")
    endpoint.script(endpoint.completion("[[TIE]]"), endpoint.faulty(status=400, body="too long for k-secret"))
    assert answer_of(judge, make_question("good", "bad"), workplace).rationale.endswith("'too long for ***'")


@pytest.mark.parametrize(
    ("status", "hint"),
    [(401, "api_key_env"), (403, "may use this model"), (404, r"labeller\.model"), (405, "base_url")],
)
def test_a_refused_key_model_or_address_ends_the_round_at_once(
    status: int, hint: str, endpoint: Any, judge: Judge, make_question: MakeQuestion, workplace: Workplace
) -> None:
    endpoint.script(endpoint.faulty(status=status, body="no"))
    with pytest.raises(InputError, match=f"HTTP status {status}: 'no'.*{hint}"):
        answer_of(judge, make_question("good", "bad"), workplace)
    assert len(endpoint.requests) == 1


def test_what_was_answered_before_a_failure_is_kept_and_not_asked_again(
    endpoint: Any, judge: Judge, make_question: MakeQuestion, workplace: Workplace, tmp_path: Path
) -> None:
    questions = [make_question(word, "bad") for word in ("one", "two", "three", "four")]
    endpoint.reply = lambda _: (
        endpoint.faulty(status=500) if len(endpoint.requests) > 5 else endpoint.completion("[[TIE]]")
    )
    ledger, account = Ledger.at(tmp_path / "ledger.sqlite"), Account(lineage="demo", round=0)
    with pytest.raises(LabellerError, match="HTTP status 500"):
        ledger.buy(questions, judge, account, workplace)
    assert ledger.spend("demo").num_labels == 2
    endpoint.requests.clear()
    endpoint.script(endpoint.completion("[[TIE]]"))
    labels = ledger.buy(questions, judge, account, workplace)
    assert [label.choice for (label,) in labels] == ["tie"] * 4
    assert len(endpoint.requests) == 4
    assert not any(word in text for word in ("\none\n", "\ntwo\n") for text in endpoint.texts)


def test_pairs_under_way_when_one_fails_are_finished_and_nothing_is_begun(
    endpoint: Any, judge: Judge, make_question: MakeQuestion, workplace: Workplace
) -> None:
    def reply(request: dict[str, Any]) -> Any:
        if "fails" in request["messages"][0]["content"]:
            return endpoint.faulty(status=401)
        return replace(endpoint.completion("[[TIE]]"), delay=0.2)

    endpoint.reply = reply
    wide = replace(judge, endpoint=replace(judge.endpoint, max_concurrency=3))
    asks = [Ask(question=make_question(first, "bad")) for first in ("one", "two", "fails", "three", "four")]
    found = []
    with pytest.raises(InputError, match="401"):
        found.extend(ask.question.first for chunk in wide(asks, workplace) for ask, _ in chunk)
    assert len(endpoint.requests) == 5
