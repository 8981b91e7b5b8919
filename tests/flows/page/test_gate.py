"""Who reaches the labelling page: logins, hosts, paths, ports."""

import asyncio
import os
import socket
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path

import pytest
from httpx import ASGITransport, AsyncClient
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from cluster.errors import InputError
from cluster.storage import Store
from flows.page import gate
from flows.page.gate import LOOPBACK, Gate
from flows.page.logins import VARIABLE, check_name, read_logins
from flows.page.server import check_lineage, hosts_of, listen
from tasks.labellers.ledger import Ledger

pytestmark = pytest.mark.labels

LOGINS = {"Ann": "correct horse", "Zoë": "pässword:1"}


def client(logins: Mapping[str, str] | None = None, hosts: tuple[str, ...] = LOOPBACK) -> TestClient:
    gate = Gate(app=PlainTextResponse("inside"), logins=logins or {}, hosts=hosts)
    return TestClient(gate, base_url="http://127.0.0.1:7861")


def basic(name: str, password: str) -> dict[str, str]:
    return {"authorization": f"Basic {b64encode(f'{name}:{password}'.encode()).decode()}"}


def test_what_the_page_needs_is_let_through_with_headers_that_keep_it_at_home() -> None:
    for path in ("/", "/config", "/assets/index.js", "/static/img/logo.svg", "/gradio_api/queue/join"):
        answer = client().get(path)
        assert answer.text == "inside", path
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/upload",
        "/gradio_api/info",
        "/gradio_api/openapi.json",
        "/gradio_api/proxy=http://example.com",
        "/gradio_api/call/any",
        "/gradio_api/vibe-code/",
        "/monitoring",
        "/docs",
    ],
)
def test_nothing_else_of_the_server_is_there(path: str) -> None:
    assert client().get(path).status_code == 404


def test_a_page_from_elsewhere_and_a_rebound_name_are_refused() -> None:
    assert client().get("/", headers={"host": "evil.example:7861"}).status_code == 403
    assert client().post("/gradio_api/queue/join", headers={"origin": "http://evil.example"}).status_code == 403
    assert client().post("/gradio_api/queue/join", headers={"origin": "null"}).status_code == 403
    assert client().post("/gradio_api/queue/join", headers={"origin": "http://127.0.0.1:7861"}).status_code == 200


def test_a_proxy_may_stand_before_a_page_with_logins_only() -> None:
    proxied = {"host": "labels.example", "origin": "https://labels.example", **basic("Ann", LOGINS["Ann"])}
    assert client(LOGINS, hosts_of("127.0.0.1", LOGINS)).get("/", headers=proxied).status_code == 200
    assert client({}, hosts_of("127.0.0.1", {})).get("/", headers=proxied).status_code == 403


def test_logins_open_the_gate_and_nothing_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "WRONG_LOGIN_SECONDS", 0.0)
    for name, password in LOGINS.items():
        assert client(LOGINS).get("/", headers=basic(name, password)).text == "inside"
    wrong = [
        basic("Ann", "pässword:1"),
        basic("Ann", ""),
        basic("Eve", ""),
        basic("", ""),
        {"authorization": "Basic ?"},
    ]
    for headers in ({}, *wrong):
        answer = client(LOGINS).get("/assets/index.js", headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Basic ")


def test_many_wrong_logins_at_once_wait_one_after_the_other_and_hold_nobody_else_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gate, "WRONG_LOGIN_SECONDS", 0.2)
    guarded = Gate(app=PlainTextResponse("inside"), logins=LOGINS)

    async def knock(password: str) -> tuple[int, float]:
        begun = time.monotonic()
        async with AsyncClient(transport=ASGITransport(guarded), base_url="http://127.0.0.1") as browser:
            answer = await browser.get("/", headers=basic("Ann", password))
        return answer.status_code, time.monotonic() - begun

    async def knock_at_once() -> list[tuple[int, float]]:
        return await asyncio.gather(*map(knock, ["guess"] * 4), knock(LOGINS["Ann"]))

    *wrong, (status, seconds) = asyncio.run(knock_at_once())
    assert [code for code, _ in wrong] == [401] * 4
    assert max(took for _, took in wrong) >= 0.8
    assert (status, seconds < 0.8) == (200, True)


def test_passwords_are_not_shown_with_the_gate() -> None:
    assert "horse" not in repr(Gate(app=PlainTextResponse(), logins=LOGINS))


def test_logins_come_from_a_file_before_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "logins"
    path.touch(mode=0o600)
    path.write_text("# people\n\nAnn:correct horse\n Zoë:pässword:1\n", encoding="utf-8")
    environment = {VARIABLE: "Bob:battery staple, Eve:12345678"}
    assert read_logins(path, environment) == LOGINS
    assert read_logins(None, environment) == {"Bob": "battery staple", "Eve": "12345678"}
    assert read_logins(None, {}) == {}


def test_a_file_of_logins_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "logins"
    path.write_text("Ann:correct horse\n", encoding="utf-8")
    path.chmod(0o640)
    with pytest.raises(InputError, match=r"mode 0640\): run chmod 600"):
        read_logins(path, {})
    with pytest.raises(InputError, match="can't be read"):
        read_logins(tmp_path / "none", {})


def test_all_faulty_logins_are_told_at_once_without_their_passwords() -> None:
    with pytest.raises(InputError) as caught:
        read_logins(None, {VARIABLE: "Ann:short,:correct horse,Bob:battery staple,Bob:battery staple,nothing"})
    said = str(caught.value)
    for fault in (
        "entry 1 has a password of fewer",
        "entry 2 has no name",
        "entry 4 repeats",
        "entry 5 has a password",
    ):
        assert fault in said
    assert not any(secret in said for secret in ("short", "horse", "staple"))


@pytest.mark.parametrize("name", ["", "  ", "a" * 65, "bell\x07", "line\nbreak"])
def test_a_name_that_nobody_can_read_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="1 to 64 characters"):
        check_name(name)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "labels.example"])
def test_another_host_without_logins_is_refused(host: str) -> None:
    with pytest.raises(InputError, match=r"--login FILE .* or PAIRWRIGHT_LABEL_LOGINS"):
        listen(host, 0, logins={})


def test_another_host_with_logins_is_listened_on() -> None:
    with listen("0.0.0.0", 0, logins=LOGINS) as on:
        assert on.getsockname()[0] == "0.0.0.0"


def test_a_port_that_is_taken_is_said_with_the_option_that_helps() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=rf"can't have port {port} of 127.0.0.1 .*--port"):
            listen("127.0.0.1", port, logins={})


def test_an_unknown_lineage_is_refused_and_the_waiting_ones_are_listed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no lineage 'nobody' is known: lineages with open questions are none"):
        check_lineage("nobody", Ledger.at(tmp_path / "ledger.sqlite"), Store(tmp_path))


def test_the_command_refuses_what_cannot_work_with_code_2(tmp_path: Path) -> None:
    environment = {**os.environ, "PAIRWRIGHT_HOME": str(tmp_path), VARIABLE: "Ann:short"}
    done = subprocess.run(
        [Path(sys.executable).with_name("pairwright"), "label", "nobody"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert f"{VARIABLE} does not fit: entry 1" in done.stderr
    assert "short" not in done.stderr
