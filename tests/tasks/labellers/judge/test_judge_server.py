"""A judge on a real server: vLLM's own, on the CPU, with a random model that babbles."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.errors import InputError
from tasks.labellers.judge import Judge, TokenPrices
from tasks.labellers.judge.endpoint import Endpoint
from tasks.labellers.ledger import Account, Ledger
from tasks.labellers.protocol import Question, Workplace

pytestmark = pytest.mark.labels

MakeQuestion = Callable[..., Question]
RUBRIC = "{prompt}? A: {first} B: {second} end with [[A]] [[B]] or [[TIE]]"
ENGINE = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


@pytest.fixture(scope="module")
def served(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the tiny model behind vLLM's server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", port]
    command += ["--model", str(tiny_model), "--served-model-name", "tiny", "--max-model-len", "512"]
    command += ["--dtype", "float32", "--enforce-eager", "--max-num-seqs", "8"]
    log = tmp_path_factory.mktemp("vllm") / "log"
    with log.open("wb") as output:
        server = subprocess.Popen(command, env={**os.environ, **ENGINE}, stdout=output, stderr=output)
        try:
            _await_health(f"http://127.0.0.1:{port}/health", server, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            server.wait(timeout=60)


@pytest.fixture
def judge(served: str) -> Judge:
    return Judge(
        model="tiny",
        endpoint=Endpoint(base_url=served, timeout=120),
        prices=TokenPrices(input=1.0, output=2.0),
        rubric=RUBRIC,
        max_tokens=24,
    )


def test_a_model_that_babbles_abstains_and_is_paid_by_the_token(
    judge: Judge, make_question: MakeQuestion, workplace: Workplace, tmp_path: Path
) -> None:
    judge.check()
    served_before = _num_served(judge)
    questions = [make_question(word, "bad") for word in ("good", "happy", "nice", "fine")]
    ledger = Ledger.at(tmp_path / "ledger.sqlite")
    labels = [label for (label,) in ledger.buy(questions, judge, Account(lineage="one", round=0), workplace)]
    assert {label.choice for label in labels} == {"abstain"}
    assert _num_served(judge) - served_before == 2 * len(questions)
    assert all(label.detail["tokens_out"] <= 48 for label in labels)
    measures = judge.measures(labels)
    assert measures["unparsable_share"] == 1
    assert measures["refused_share"] == 0
    assert measures["tokens_in"] > 8 * 40
    assert measures["cost"] == pytest.approx((measures["tokens_in"] + 2 * measures["tokens_out"]) / 1e6)
    assert all(label.cost < judge.price(question) for label, question in zip(labels, questions, strict=True))


def test_a_constrained_judge_always_gives_a_verdict_and_shows_how_much_the_order_sways_it(
    judge: Judge, make_question: MakeQuestion, workplace: Workplace, tmp_path: Path
) -> None:
    questions = [make_question(str(number), "bad") for number in range(8)]
    ledger, account = Ledger.at(tmp_path / "ledger.sqlite"), Account(lineage="one", round=0)
    constrained = replace(judge, constrained=True)
    labels = [label for (label,) in ledger.buy(questions, constrained, account, workplace)]
    measures = constrained.measures(labels)
    assert measures["unparsable_share"] == 0
    assert 0 <= measures["order_dependent_share"] <= 1
    assert {label.choice for label in labels} <= {"first", "second", "tie"}


def test_a_conversation_that_is_too_long_for_the_model_is_an_abstention_with_the_servers_reason(
    judge: Judge, make_question: MakeQuestion, workplace: Workplace, tmp_path: Path
) -> None:
    questions = [make_question("x" * 2000, "bad"), make_question("good", "bad")]
    ledger = Ledger.at(tmp_path / "ledger.sqlite")
    constrained = replace(judge, constrained=True)
    (long,), (short,) = ledger.buy(questions, constrained, Account(lineage="one", round=0), workplace)
    assert long.choice == "abstain"
    assert "HTTP status 400" in long.rationale
    assert "512" in long.rationale
    assert short.choice != "abstain"


def test_a_limit_that_leaves_no_room_for_any_question_is_an_error(
    judge: Judge, make_question: MakeQuestion, workplace: Workplace, tmp_path: Path
) -> None:
    ledger = Ledger.at(tmp_path / "ledger.sqlite")
    with pytest.raises(InputError, match=r"refuses every question .*max_tokens"):
        ledger.buy(
            [make_question("good", "bad")], replace(judge, max_tokens=600), Account(lineage="one", round=0), workplace
        )
    assert ledger.spend("one").num_labels == 0


def test_a_model_that_the_server_has_not_is_refused_before_and_during_the_round(
    judge: Judge, make_question: MakeQuestion, workplace: Workplace, tmp_path: Path
) -> None:
    absent = replace(judge, model="absent")
    with pytest.raises(InputError, match=r"has no model 'absent': set labeller.model to one that it has \(tiny\)"):
        absent.check()
    with pytest.raises(InputError, match=r"HTTP status 404.*absent.*labeller\.model"):
        Ledger.at(tmp_path / "ledger.sqlite").buy(
            [make_question("good", "bad")], absent, Account(lineage="one", round=0), workplace
        )


def _num_served(judge: Judge) -> float:
    """Requests that the server has finished, by its own count."""
    with urllib.request.urlopen(judge.endpoint.address.replace("/v1", "/metrics"), timeout=10) as page:
        lines = page.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("vllm:request_success_total{"))


def _await_health(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 500
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"vLLM's server did not start:\n{log.read_text(errors='replace')[-4000:]}")
            time.sleep(0.5)
