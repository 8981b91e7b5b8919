import socket
import subprocess
from pathlib import Path

import pytest

from cluster.errors import InputError
from cluster.preflight import git_state, mask_passwords, reachable, without_password


def test_a_silent_address_is_refused_without_its_password() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(InputError, match=rf"http://{address} \(.*; 2 attempts of 1 s\)") as refused:
            reachable(f"http://user:secret@{address}/", attempts=2, timeout=1.0)
    assert "secret" not in str(refused.value)


def test_a_server_that_never_replies_is_given_up() -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        with pytest.raises(InputError, match="timed out"):
            reachable(f"http://127.0.0.1:{mute.getsockname()[1]}", attempts=1, timeout=0.2)


@pytest.mark.parametrize(("scheme", "name"), [("sqlite:///", "runs.db"), ("file://", "mlruns")])
def test_a_folder_that_can_be_made_is_reachable_and_stays_unmade(tmp_path: Path, scheme: str, name: str) -> None:
    reachable(f"{scheme}{tmp_path}/new/deeper/{name}")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"can't be written \(Not a directory: .*/file\)"):
        reachable(f"sqlite:///{tmp_path}/file/runs.db")


def test_git_state_names_the_commit_and_whether_it_is_clean(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false")
        done = subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], capture_output=True, check=True)
        return done.stdout.decode().strip()

    git("init")
    assert git_state(tmp_path) == {}
    git("commit", "--allow-empty", "-m", "first")
    assert git_state(tmp_path) == {"git.commit": git("rev-parse", "HEAD"), "git.dirty": "false"}
    (tmp_path / "new").write_text("")
    assert git_state(tmp_path)["git.dirty"] == "true"


def test_git_state_is_empty_outside_a_checkout_and_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert git_state(tmp_path) == {}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path) == {}


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://user:secret@host:5000/mlflow/", "http://host:5000/mlflow"),
        ("https://token@host/v1?key=secret", "https://host/v1"),
        ("http://user:se@cret@host", "http://host"),
        ("http://[::1]:5000/", "http://[::1]:5000"),
    ],
)
def test_an_address_is_given_without_its_password(url: str, address: str) -> None:
    assert without_password(url) == address


@pytest.mark.parametrize(
    ("said", "masked"),
    [
        (
            "request to http://user:secret@host/api failed: https://t@h?",
            "request to http://***@host/api failed: https://***@h?",
        ),
        ("'postgresql+psycopg://user:se@cret@host/db'", "'postgresql+psycopg://***@host/db'"),
        ("http://host/people/me@host.org and me@host.org", "http://host/people/me@host.org and me@host.org"),
        ("http://host then http://user:secret@host", "http://host then http://***@host"),
        ("nothing to hide", "nothing to hide"),
    ],
)
def test_every_password_in_a_message_is_masked(said: str, masked: str) -> None:
    assert mask_passwords(said) == masked
