"""`pairwright ui` as a process: both servers up, both gone with it, and no start on a taken port."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PAIRWRIGHT = Path(sys.executable).with_name("pairwright")
HOST = "127.0.0.1"


def free_ports() -> tuple[int, int]:
    with socket.create_server((HOST, 0)) as first, socket.create_server((HOST, 0)) as second:
        return first.getsockname()[1], second.getsockname()[1]


@dataclass
class Ui:
    """A running `pairwright ui`, the leader of a session that all it starts belong to."""

    process: "subprocess.Popen[bytes]"
    home: Path
    prefect_port: int
    mlflow_port: int

    @property
    def output(self) -> str:
        return (self.home / "ui.log").read_text()

    def members(self) -> set[int]:
        """The processes of its session that are alive."""
        found = set()
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                with contextlib.suppress(OSError):
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                    if int(fields[3]) == self.process.pid and fields[0] != "Z":
                        found.add(int(entry.name))
        return found

    def left(self) -> set[int]:
        """Those that don't end with the command: ten seconds later they are still there."""
        deadline = time.monotonic() + 10
        while (found := self.members()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return found

    def command_of(self, pid: int) -> bytes:
        with contextlib.suppress(OSError):
            return Path(f"/proc/{pid}/cmdline").read_bytes()
        return b""

    def await_output(self, text: str) -> None:
        deadline = time.monotonic() + 90
        while text not in self.output:
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.1)

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=60)


@pytest.fixture
def open_ui(make_home: Callable[[], Path]) -> Iterator[Callable[[int, int], Ui]]:
    """Start it on a home of its own; whatever a test leaves of it is killed."""
    opened: list[Ui] = []

    def start(prefect_port: int, mlflow_port: int) -> Ui:
        home = make_home()
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "MLFLOW_T"))}
        command = [str(PAIRWRIGHT), "ui", "--prefect-port", str(prefect_port), "--mlflow-port", str(mlflow_port)]
        with (home / "ui.log").open("wb") as log:
            process = subprocess.Popen(
                command,
                env={**environment, "PAIRWRIGHT_HOME": str(home), "NO_COLOR": "1"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        opened.append(Ui(process, home, prefect_port, mlflow_port))
        return opened[-1]

    yield start
    for ui in opened:
        for pid in ui.members():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        ui.process.wait()


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())


def test_both_servers_answer_at_the_printed_addresses_and_end_with_the_command(
    open_ui: Callable[[int, int], Ui],
) -> None:
    ui = open_ui(*free_ports())
    prefect, mlflow = f"http://{HOST}:{ui.prefect_port}", f"http://{HOST}:{ui.mlflow_port}"
    ui.await_output("Ctrl-C stops both")
    assert f"Prefect {prefect}\nMLflow  {mlflow}\n" in ui.output
    assert get(f"{prefect}/api/health") == "true"
    assert get(f"{mlflow}/health") == "OK"
    assert f'"api_url":"{prefect}/api"' in get(f"{prefect}/ui-settings").replace(" ", "")
    assert (ui.home / "prefect" / "prefect.db").exists(), "the database of the home"
    assert len(ui.members()) >= 3

    assert ui.end(signal.SIGTERM) == 0
    assert ui.left() == set()
    for port in (ui.prefect_port, ui.mlflow_port):
        socket.create_server((HOST, port)).close()


def test_a_signal_while_the_servers_start_ends_them_too(open_ui: Callable[[int, int], Ui]) -> None:
    ui = open_ui(*free_ports())
    deadline = time.monotonic() + 60
    while len(ui.members()) < 3:
        assert time.monotonic() < deadline, ui.output
        time.sleep(0.05)
    assert ui.end(signal.SIGTERM) == 0
    assert ui.left() == set()


@pytest.mark.parametrize("taken", ["prefect", "mlflow"])
def test_a_taken_port_ends_it_with_code_2_and_the_option_that_helps(
    open_ui: Callable[[int, int], Ui], taken: str
) -> None:
    with socket.create_server((HOST, 0)) as other:
        ports = dict(zip(("prefect", "mlflow"), free_ports(), strict=True))
        ports[taken] = other.getsockname()[1]
        ui = open_ui(ports["prefect"], ports["mlflow"])
        assert ui.process.wait(timeout=60) == 2, ui.output
    assert "error:" in ui.output
    assert str(ports[taken]) in ui.output
    assert f"--{taken}-port" in ui.output
    assert ui.left() == set()


def test_a_server_that_ends_while_it_starts_is_noticed_at_once(open_ui: Callable[[int, int], Ui]) -> None:
    ui = open_ui(*free_ports())
    deadline = time.monotonic() + 60
    while not (mlflow := [pid for pid in ui.members() if b"--backend-store-uri" in ui.command_of(pid)]):
        assert time.monotonic() < deadline, ui.output
        time.sleep(0.05)
    os.kill(mlflow[0], signal.SIGKILL)
    assert ui.process.wait(timeout=20) == 2, ui.output
    assert "the server of MLflow has ended" in ui.output
    assert ui.left() == set()
