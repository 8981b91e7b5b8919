import json
import socket
import traceback
from typing import Any

import pytest

from cluster.errors import InputError
from tasks.labellers.judge import Judge
from tasks.labellers.judge.endpoint import Endpoint

pytestmark = pytest.mark.labels


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "JUDGE_KEY"):
        monkeypatch.delenv(name, raising=False)


def judge_at(url: str | None, model: str = "m", **fields: Any) -> Judge:
    return Judge(model=model, endpoint=Endpoint(base_url=url, **fields))


def test_an_endpoint_that_serves_the_model_passes_without_a_key_on_this_machine(endpoint: Any) -> None:
    judge_at(endpoint.url).check()
    assert endpoint.requests == []


def test_the_key_comes_from_the_variable_that_the_config_names(endpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "k-1")
    judge_at(endpoint.url, api_key_env="JUDGE_KEY").check()
    assert endpoint.keys == ["Bearer k-1"]


def test_a_key_that_ends_in_a_newline_is_sent_without_it(endpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", " k-1\n")
    judge_at(endpoint.url, api_key_env="JUDGE_KEY").check()
    assert endpoint.keys == ["Bearer k-1"]


@pytest.mark.parametrize("key", ["k-1\nk-2", "k-\N{EN DASH}1", "k-\x7f1"])
def test_a_key_that_no_request_can_carry_is_refused_by_the_name_of_its_variable(
    key: str, endpoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", key)
    with pytest.raises(InputError, match=r"JUDGE_KEY, .* holds other characters than printable ASCII") as refused:
        judge_at(endpoint.url, api_key_env="JUDGE_KEY").check()
    assert "k-" not in "".join(traceback.format_exception(refused.value))
    assert endpoint.keys == []


@pytest.mark.parametrize("status", [401, 200])
def test_an_endpoint_that_repeats_the_key_is_quoted_without_it(
    status: int, endpoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "k-secret")
    endpoint.models = endpoint.faulty(
        status=status, body=json.dumps({"error": {"message": "x" * 265 + "k-secret is wrong"}})
    )
    with pytest.raises(InputError, match=r"x\*\*\* ") as refused:
        judge_at(endpoint.url, api_key_env="JUDGE_KEY").check()
    assert "k-" not in "".join(traceback.format_exception(refused.value))


def test_a_model_that_is_not_served_is_refused_with_those_that_are(endpoint: Any) -> None:
    with pytest.raises(InputError, match=r"has no model 'n': set labeller.model to one that it has \(m\)"):
        judge_at(endpoint.url, "n").check()


def test_nobody_at_the_address_is_said_without_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://me:secret@127.0.0.1:{port}/v1")
    with pytest.raises(InputError, match=f"no judge answers at http://127.0.0.1:{port}/v1") as refused:
        judge_at(None).check()
    assert "secret" not in str(refused.value)


def test_a_silent_endpoint_is_not_waited_for_longer_than_its_timeout(endpoint: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        with pytest.raises(InputError, match="no judge answers"):
            judge_at(url, timeout=0.2).check()


@pytest.mark.parametrize("body", ["<html>hello</html>", "[]", '{"data": [1]}', '{"models": []}'])
def test_a_server_that_is_no_endpoint_is_refused_with_what_it_said(body: str, endpoint: Any) -> None:
    endpoint.models = endpoint.faulty(body=body)
    with pytest.raises(InputError, match=r"is no OpenAI-compatible endpoint .*/v1"):
        judge_at(endpoint.url).check()


@pytest.mark.parametrize(("status", "hint"), [(401, "api_key_env"), (404, "ends in /v1"), (500, "base_url")])
def test_a_refused_list_of_models_is_bad_input(status: int, hint: str, endpoint: Any) -> None:
    endpoint.models = endpoint.faulty(status=status, body="no")
    with pytest.raises(InputError, match=f"HTTP status {status}: 'no'.*{hint}"):
        judge_at(endpoint.url).check()


@pytest.mark.parametrize("url", [None, "https://judge.example/v1", "http://10.0.0.1:8000/v1"])
def test_a_missing_key_is_said_before_anything_is_sent_elsewhere(url: str | None) -> None:
    with pytest.raises(InputError, match=r"JUDGE_KEY, which labeller\.endpoint\.api_key_env names, is not set"):
        judge_at(url, api_key_env="JUDGE_KEY").check()


def test_an_endpoint_elsewhere_may_need_no_key() -> None:
    with pytest.raises(InputError, match=r"no judge answers at http://judge\.invalid/v1"):
        judge_at("http://judge.invalid/v1", api_key_env=None).check()


@pytest.mark.parametrize(
    ("url", "is_here"),
    [
        ("http://localhost:8000/v1", True),
        ("http://127.8.0.1/v1", True),
        ("http://[::1]:8000/v1", True),
        ("http://localhost.example/v1", False),
        ("http://0.0.0.0.example/v1", False),
    ],
)
def test_only_this_machine_needs_no_key(url: str, is_here: bool) -> None:
    if is_here:
        assert Endpoint(base_url=url).client() is not None
    else:
        with pytest.raises(InputError, match="OPENAI_API_KEY"):
            Endpoint(base_url=url).client()
