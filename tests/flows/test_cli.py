"""The command: light to import, complete in its help, quiet on an empty home, and alone under its names."""

import os
import subprocess
import sys
from importlib.metadata import distribution, packages_distributions
from importlib.util import find_spec
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "trl", "peft", "vllm", "ray")
COMMANDS = (
    "run",
    "round",
    "deploy",
    "serve",
    "status",
    "lineage",
    "label",
    "referee",
    "compare",
    "study",
    "ui",
    "labels",
)
PACKAGES = ("flows", "tasks", "cluster")
COMMAND = Path(sys.executable).with_name("pairwright")


def pairwright(home: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PAIRWRIGHT_")}
    environment |= {"PAIRWRIGHT_HOME": str(home), "COLUMNS": "120"}
    return subprocess.run(
        [COMMAND, *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_importing_the_flows_loads_no_heavy_library() -> None:
    script = (
        f"import sys, flows.round, flows.cli, flows.deploy; print(*(name for name in {HEAVY} if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == []


def test_help_lists_every_command(tmp_path: Path) -> None:
    done = pairwright(tmp_path, "--help")
    assert done.returncode == 0
    listed = [line.strip("│ ").split()[0] for line in done.stdout.splitlines() if line.strip("│ ")]
    assert [word for word in listed if word in COMMANDS] == list(COMMANDS)


def test_help_touches_no_home(tmp_path: Path) -> None:
    assert pairwright(tmp_path / "home", "run", "--help").returncode == 0
    assert not (tmp_path / "home").exists()


def test_the_status_of_an_empty_home_says_so(tmp_path: Path) -> None:
    done = pairwright(tmp_path, "status")
    assert (done.returncode, done.stderr) == (0, "")
    assert " ".join(done.stdout.split()) == f"no lineage in {tmp_path}/store yet"


def test_a_round_below_zero_is_refused(tmp_path: Path) -> None:
    assert pairwright(tmp_path, "round", "any.yaml", "--round", "-1").returncode == 2


@pytest.mark.parametrize("package", PACKAGES)
def test_the_package_names_are_ours_alone(package: str) -> None:
    assert set(packages_distributions().get(package, [])) <= {"pairwright"}
    found = {Path(entry, package).resolve() for entry in sys.path if Path(entry, package).is_dir()}
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    assert found == {Path(spec.origin).resolve().parent}


def test_the_command_belongs_to_the_distribution() -> None:
    (entry,) = distribution("pairwright").entry_points.select(group="console_scripts")
    assert (entry.name, entry.value) == ("pairwright", "flows.cli:main")
