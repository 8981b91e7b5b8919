"""The UIs of Prefect and MLflow over the embedded stores, on loopback."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from cluster.errors import InputError
from cluster.preflight import await_answer
from cluster.settings import Settings

HOST = "127.0.0.1"
START_SECONDS = 120


def serve_uis(settings: Settings, *, prefect_port: int, mlflow_port: int, console: Console) -> None:
    """Run both servers until interrupted or until one of them ends.

    Raises:
        InputError: a port is taken, or a server doesn't come up or ends.
    """
    _check_port("Prefect", prefect_port)
    _check_port("MLflow", mlflow_port)
    signal.signal(signal.SIGTERM, _interrupt)
    prefect, mlflow = f"http://{HOST}:{prefect_port}", f"http://{HOST}:{mlflow_port}"
    servers: dict[str, subprocess.Popen[bytes]] = {}
    try:
        servers["Prefect"] = _prefect(prefect_port)
        servers["MLflow"] = _mlflow(settings, mlflow_port)
        _await_start(servers, {"Prefect": f"{prefect}/api", "MLflow": mlflow}, settings.connect_timeout)
        console.print(f"Prefect {prefect}\nMLflow  {mlflow}\nCtrl-C stops both", highlight=False)
        while True:
            _check_running(servers)
            time.sleep(0.5)
    except KeyboardInterrupt:
        console.print("stopped")
    finally:
        for server in servers.values():
            server.terminate()
        for server in servers.values():
            server.wait()


def _check_port(name: str, port: int) -> None:
    try:
        socket.create_server((HOST, port)).close()
    except OSError as error:
        raise InputError(
            f"{name} can't have port {port} of {HOST} ({error.strerror}): "
            f"stop what listens there, or name another with --{name.lower()}-port"
        ) from error


def _check_running(servers: Mapping[str, "subprocess.Popen[bytes]"]) -> None:
    for name, server in servers.items():
        if (code := server.poll()) is not None:
            raise InputError(f"the server of {name} has ended with code {code}: its messages above say why")


def _await_start(
    servers: Mapping[str, "subprocess.Popen[bytes]"], addresses: Mapping[str, str], timeout: float
) -> None:
    deadline = time.monotonic() + START_SECONDS
    for name, address in addresses.items():
        while True:
            _check_running(servers)
            try:
                await_answer(name, address, attempts=1, timeout=timeout)
                break
            except InputError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.3)


def _prefect(port: int) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)]
    return subprocess.Popen(command, env={**os.environ, "PREFECT_API_URL": f"http://{HOST}:{port}/api"})


def _mlflow(settings: Settings, port: int) -> "subprocess.Popen[bytes]":
    command = [str(Path(sys.executable).with_name("mlflow")), "server", "--host", HOST, "--port", str(port)]
    command += ["--backend-store-uri", settings.tracking, "--workers", "1"]
    if settings.artifact_root is not None:
        command += ["--default-artifact-root", settings.artifact_root]
    return subprocess.Popen(command, env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"})


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
