"""Preflight: what is looked at before anything expensive starts."""

import re
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from ipaddress import ip_address
from pathlib import Path
from ssl import SSLError
from urllib.parse import urlsplit

from cluster.errors import InputError

CREDENTIALS = re.compile(r"(?<=://)[^\s/?#]*@")
"""In an address, as far as the last @ before its path."""


def reachable(tracking_uri: str, *, attempts: int = 3, timeout: float = 5.0) -> None:
    """Check that a tracking store can be used, `timeout` seconds an attempt, before anything expensive starts.

    Raises:
        InputError: a server doesn't answer.
        InputError: the folder of a SQLite or file store can't be written.
    """
    if tracking_uri.startswith(("http://", "https://")):
        await_answer("MLflow", tracking_uri, attempts=attempts, timeout=timeout)
    elif (path := local_path(tracking_uri)) is not None:
        _probe_folder(path.parent, tracking_uri)


def git_state(folder: Path) -> dict[str, str]:
    """Describe the checkout around a folder as tags; empty outside a checkout, before a commit, or without git."""
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain")
    if commit is None or changes is None:
        return {}
    return {"git.commit": commit, "git.dirty": "true" if changes else "false"}


def local_path(tracking_uri: str) -> Path | None:
    """Return the path inside a SQLite or file address, or None for a server."""
    for scheme in ("sqlite:///", "file://"):
        if tracking_uri.startswith(scheme):
            return Path(tracking_uri.removeprefix(scheme).partition("?")[0])
    return None


def await_answer(server: str, url: str, *, attempts: int = 3, timeout: float = 5.0) -> None:
    """Wait for a server to answer at `url`/health, `timeout` seconds an attempt.

    Raises:
        InputError: it doesn't; the message names the server and its address without a password.
    """
    address = without_password(url)
    problem = ""
    for attempt in range(attempts):
        time.sleep(0.5 * attempt)
        problem = _ask(f"{address}/health", timeout)
        if not problem:
            return
    raise InputError(
        f"{server} doesn't answer at {address} ({problem}; {attempts} attempts of {timeout:g} s): "
        "start the server or correct its address"
    )


def without_password(url: str) -> str:
    """The address of a server without user, password and query, and without a slash at its end."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"


def mask_passwords(text: str) -> str:
    """A message in which every address has *** for user and password."""
    return CREDENTIALS.sub("***@", text)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine itself, whom nobody else reaches under it."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _ask(url: str, timeout: float) -> str:
    """Return what is wrong; a refusal or an untrusted certificate is an answer too."""
    try:
        with urllib.request.urlopen(url, timeout=timeout):
            return ""
    except urllib.error.HTTPError as error:
        error.close()
        return f"HTTP status {error.code}" if error.code >= 500 else ""
    except urllib.error.URLError as error:
        return "" if isinstance(error.reason, SSLError) else str(error.reason)
    except OSError as error:
        return str(error)


def _probe_folder(folder: Path, tracking_uri: str) -> None:
    nearest = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            return
    except OSError as error:
        raise InputError(
            f"tracking store {tracking_uri} can't be written ({error.strerror}: {nearest}): "
            "give it a folder that this user may write"
        ) from error


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
