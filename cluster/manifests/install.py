"""Set up `.venv` from `cpu.lock`, or renew the lock; needs nothing but a Python with `venv` and `pip`.

uv does the work, since pip can't leave out the parts of vLLM that have no CPU build. It is told of every place that
pip is configured to look in.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "cluster" / "manifests" / "cpu.lock"
VENV = ROOT / ".venv"
PYTHON = str(VENV / "bin" / "python")
UV = str(VENV / "bin" / "uv")
STAMP = VENV / "pairwright.stamp"
UV_REQUIREMENT = "uv==0.13.8"
EXTRAS = ("cpu", "dev", "bench")
OLDEST_PYTHON = (3, 11)
SECTIONS = ("global", "install", ":env:")  # of pip's configuration, a later one wins
TRANSLATION = {
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "cert": ("SSL_CERT_FILE", " "),
}
TORCH_HINT = "PyTorch's CPU wheel index must be visible to pip, for example through pip's extra-index-url setting."


class SetUpError(Exception):
    """A step failed; its own message is already on the screen."""


def python_fault(version: tuple[int, int]) -> str | None:
    """Say what is wrong with running on this Python, if anything is."""
    if version >= OLDEST_PYTHON:
        return None
    return f"Python {version[0]}.{version[1]} is too old: 3.11 or newer is needed, name one with `make PYTHON=...`."


def pip_options(listing: str) -> dict[str, list[str]]:
    """Read the output of `pip config list` into the values of each option that uv has to know."""
    values: dict[str, dict[str, list[str]]] = {section: {} for section in SECTIONS}
    for line in listing.splitlines():
        key, _, value = line.partition("=")
        section, _, option = key.rpartition(".")
        if section in values and option in TRANSLATION:
            values[section][option] = str(ast.literal_eval(value)).split()
    return {option: entries for section in SECTIONS for option, entries in values[section].items()}


def uv_environment(listing: str, base: Mapping[str, str]) -> dict[str, str]:
    """Translate the output of `pip config list` for uv; what `base` already says stands."""
    translated = {"UV_INDEX_STRATEGY": "unsafe-best-match"}
    for option, entries in pip_options(listing).items():
        variable, separator = TRANSLATION[option]
        translated[variable] = separator.join(entries)
    return {**translated, **base}


def digest(parts: Iterable[bytes]) -> str:
    """Fingerprint what an installation depends on."""
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def expected_stamp() -> str:
    """Fingerprint the lock, the project file and the version of the running Python."""
    version = "{}.{}".format(*sys.version_info[:2])
    return digest([LOCK.read_bytes(), (ROOT / "pyproject.toml").read_bytes(), version.encode()])


def is_current() -> bool:
    """Tell whether the last finished installation was of this very tree."""
    return Path(PYTHON).exists() and STAMP.exists() and STAMP.read_text() == expected_stamp()


def misses_torch(message: str) -> bool:
    """Tell whether uv complains about not finding PyTorch."""
    return re.search(r"\btorch\b", message) is not None


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
    """Run one step, pass its messages on except the list of what changed, and raise a SetUpError if it fails."""
    said = []
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr or ():
            if not line.startswith((" + ", " - ", " ~ ")):
                said.append(line)
                print(line, end="", file=sys.stderr, flush=True)
    if process.returncode:
        raise SetUpError(TORCH_HINT if misses_torch("".join(said)) else f"Failed: {' '.join(command)}")


def create_venv() -> None:
    """Make `.venv` unless there is one with pip and the running version of Python."""
    probe = f"import pip, sys; sys.exit(sys.version_info[:2] != {tuple(sys.version_info[:2])})"
    if (
        Path(PYTHON).exists()
        and subprocess.run([PYTHON, "-c", probe], check=False, stderr=subprocess.DEVNULL).returncode == 0
    ):
        return
    run([sys.executable, "-m", "venv", "--clear", str(VENV)])


def prepare_uv() -> dict[str, str]:
    """Put uv into `.venv` and return the environment it runs in."""
    create_venv()
    run([PYTHON, "-m", "pip", "install", "-qq", "--disable-pip-version-check", UV_REQUIREMENT])
    listing = subprocess.run([PYTHON, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True).stdout
    return uv_environment(listing, os.environ)


def install() -> None:
    """Install the lock and the project; the stamp comes last, so that an interrupted installation is repeated."""
    print("Setting up .venv: some minutes the first time.", file=sys.stderr, flush=True)
    STAMP.unlink(missing_ok=True)
    environment = prepare_uv()
    command = [UV, "pip", "install", "--python", PYTHON, "--no-deps"]
    run([*command, "--requirements", str(LOCK)], environment)
    run([*command, "--no-build-isolation", "--editable", "."], environment)
    STAMP.write_text(expected_stamp())


def renew_lock() -> None:
    """Resolve the newest versions that pyproject.toml allows."""
    environment = prepare_uv()
    extras = [word for extra in EXTRAS for word in ("--extra", extra)]
    command = [UV, "pip", "compile", "pyproject.toml", "--python", PYTHON, *extras]
    run([*command, "--quiet", "--upgrade", "--no-header", "--no-annotate", "--output-file", str(LOCK)], environment)


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks and return the exit status."""
    parser = argparse.ArgumentParser(description="Set up .venv from cpu.lock.")
    parser.add_argument("--lock", action="store_true", help="renew cpu.lock instead")
    options = parser.parse_args(arguments)
    fault = python_fault((sys.version_info[0], sys.version_info[1]))
    if fault is not None:
        print(fault, file=sys.stderr)
        return 2
    try:
        if options.lock:
            renew_lock()
        elif not is_current():
            install()
    except SetUpError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
