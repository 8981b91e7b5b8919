"""The UIs of Prefect and MLflow over the embedded stores, on loopback."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from cluster.errors import InputError
from cluster.preflight import await_answer
from cluster.settings import Settings

HOST = "127.0.0.1"
START_ATTEMPTS = 60


def serve_uis(settings: Settings, *, prefect_port: int, mlflow_port: int, console: Console) -> None:
    """Run both servers until interrupted or until one of them ends.

    Raises:
        InputError: a server doesn't come up.
    """
    prefect, mlflow = f"http://{HOST}:{prefect_port}", f"http://{HOST}:{mlflow_port}"
    servers = [_prefect(prefect_port), _mlflow(settings, mlflow_port)]
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        for name, health in (("Prefect", f"{prefect}/api"), ("MLflow", mlflow)):
            await_answer(name, health, attempts=START_ATTEMPTS, timeout=settings.connect_timeout)
        console.print(f"Prefect {prefect}\nMLflow  {mlflow}\nCtrl-C stops both", highlight=False)
        os.wait()
        raise InputError("a server has ended: is its port taken? See its messages above")
    except KeyboardInterrupt:
        console.print("stopped")
    finally:
        for server in servers:
            server.terminate()
        for server in servers:
            server.wait()


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
