import subprocess
import sys
from pathlib import Path

import pytest

from cluster.manifests import install

FILE_AND_ENVIRONMENT = r"""
:env:.find-links='/from/environment'
:env:.default-timeout='180'
global.cert='/certificates.crt'
global.extra-index-url='file:///a file:///b'
global.find-links='/from/file'
global.index-url='https://name:secret@index.example/simple?a=b'
"""


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("ROOT", "VENV"):
        monkeypatch.setattr(install, name, tmp_path)
    for name, file in {"LOCK": "cpu.lock", "STAMP": "stamp", "PYTHON": "python"}.items():
        monkeypatch.setattr(install, name, tmp_path / file)
        (tmp_path / file).write_text(file)
    (tmp_path / "pyproject.toml").write_text("[project]")
    install.STAMP.write_text(install.expected_stamp())
    return tmp_path


def test_every_place_pip_looks_in_is_told_to_uv() -> None:
    assert install.uv_environment(FILE_AND_ENVIRONMENT, {}) == {
        "UV_DEFAULT_INDEX": "https://name:secret@index.example/simple?a=b",
        "UV_INDEX": "file:///a file:///b",
        "UV_FIND_LINKS": "/from/environment",
        "SSL_CERT_FILE": "/certificates.crt",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
    }


@pytest.mark.parametrize("winner", ["install", ":env:"])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_narrower_section_wins_in_any_order(winner: str, *, reverse: bool) -> None:
    lines = ["global.find-links='/wide'", f"{winner}.find-links='/narrow'"]
    listing = "\n".join(sorted(lines, reverse=reverse))
    assert install.pip_options(listing) == {"find-links": ["/narrow"]}


def test_values_on_several_lines_of_the_file_are_separate_entries() -> None:
    listing = r"global.extra-index-url='\nfile:///a\nfile:///b'" + "\n" + r"global.find-links='/one\n/two'"
    environment = install.uv_environment(listing, {})
    assert environment["UV_INDEX"] == "file:///a file:///b"
    assert environment["UV_FIND_LINKS"] == "/one,/two"


def test_options_of_other_commands_are_left_alone() -> None:
    assert install.pip_options("download.find-links='/elsewhere'\nglobal.timeout='60'\n") == {}


def test_what_the_environment_tells_uv_stands() -> None:
    base = {"UV_FIND_LINKS": "/mine", "HOME": "/home"}
    environment = install.uv_environment("global.find-links='/pip'", base)
    assert environment == {**base, "UV_INDEX_STRATEGY": "unsafe-best-match"}


def test_an_unchanged_tree_is_current(tree: Path) -> None:
    assert install.is_current()


@pytest.mark.parametrize("name", ["cpu.lock", "pyproject.toml"])
def test_a_changed_file_calls_for_an_installation(tree: Path, name: str) -> None:
    (tree / name).write_text("changed")
    assert not install.is_current()


def test_another_python_calls_for_an_installation(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 99, 0))
    assert not install.is_current()


@pytest.mark.parametrize("name", ["stamp", "python"])
def test_half_an_environment_calls_for_an_installation(tree: Path, name: str) -> None:
    (tree / name).unlink()
    assert not install.is_current()


def test_an_interrupted_installation_leaves_no_stamp(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> dict[str, str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(install, "prepare_uv", interrupt)
    with pytest.raises(KeyboardInterrupt):
        install.install()
    assert not install.STAMP.exists()


def test_the_parts_of_a_digest_do_not_run_together() -> None:
    assert install.digest([b"ab", b"c"]) != install.digest([b"a", b"bc"])


def test_a_missing_pytorch_is_explained(tree: Path, capfd: pytest.CaptureFixture[str]) -> None:
    message = "there is no version of torch==2.13.0+cpu"
    step = [sys.executable, "-c", f"import sys; sys.exit({message!r})"]
    with pytest.raises(install.SetUpError, match="CPU wheel index must be visible to pip"):
        install.run(step)
    assert message in capfd.readouterr().err


def test_another_failure_names_its_step(tree: Path) -> None:
    with pytest.raises(install.SetUpError, match=r"Failed: .*exit"):
        install.run([sys.executable, "-c", "exit(3)"])


@pytest.mark.parametrize(("version", "fine"), [((3, 10), False), ((3, 11), True), ((3, 12), True), ((4, 0), True)])
def test_an_old_python_is_refused(version: tuple[int, int], *, fine: bool) -> None:
    assert (install.python_fault(version) is None) == fine


def test_an_old_python_ends_with_status_two(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 1))
    assert install.main([]) == 2
    assert "Python 3.9 is too old: 3.11 or newer" in capsys.readouterr().err


def test_the_script_runs_without_the_project() -> None:
    command = [sys.executable, "-I", "-S", install.__file__, "--help"]
    assert "cpu.lock" in subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_the_lock_names_versions_and_no_places() -> None:
    lines = install.LOCK.read_text().splitlines()
    assert all(line.partition("==")[2] for line in lines)
    assert not any("/" in line or "@" in line for line in lines)
    assert any(line.startswith("torch==") and line.endswith("+cpu") for line in lines)
