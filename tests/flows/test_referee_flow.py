"""The referee as a user runs it: compared, killed, resumed, widened, redrawn, and refused what can't work."""

import copy
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from cluster.settings import Settings
from flows.cli import main
from flows.config import load
from flows.referee import UNIFORM, RefereeConfig, Stand, compare, planned, read_results
from flows.verdict import verdicts
from tasks.design.environments.table import FromTable
from tasks.referee import TrialError, draw_world
from tasks.utilities import read_utilities

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")

PLAIN = {"kind": "linear", "dim": 8, "num_prompts": 30, "num_responses": 3}
VALUES: dict[str, Any] = {
    "seeds": 25,
    "budgets": [12, 40],
    "uniform_budgets": [80],
    "bases": ["uniform", "best_worst"],
    "environments": {
        "plain": {"environment": PLAIN},
        "scored": {"environment": {**PLAIN, "fit": 0.5}, "proxies": [None, 0.6], "metric": "utility"},
    },
    "selectors": {
        "best_worst": {"kind": "best_worst"},
        "design": {"kind": "trace_design"},
        "capped": {"kind": "uniform", "max_pairs_per_prompt": 2},
    },
}
REAL = {"environments.plain": {"environment": {"kind": "table"}}}
NUM_TRIALS = 25 * (3 + 3 + 1)
"""Seeds, times uniform and two others in both environments, and best_worst where there are scores."""

BIN = Path(sys.executable).parent


@dataclass
class Bench:
    """A home, a config in it, and what the command leaves there."""

    home: Path
    config: Path

    @property
    def stand(self) -> Stand:
        return Stand(self.home / "store" / "trials", self.home / "store" / "referee" / self.config.stem)

    @property
    def trials(self) -> dict[Path, int]:
        """Finished trials, and when each was written."""
        return {path: path.stat().st_mtime_ns for path in self.stand.trials.glob("*.parquet")}

    def start(self) -> "subprocess.Popen[str]":
        command = [str(BIN / "pairwright"), "referee", str(self.config)]
        environment = {**os.environ, "PAIRWRIGHT_HOME": str(self.home)}
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


Killed = tuple[Bench, dict[Path, int], str]
Run = Callable[..., tuple[int, str, str]]
Write = Callable[[dict[str, Any]], Path]


@pytest.fixture(autouse=True)
def _environment(tmp_path: Path) -> Iterator[None]:
    """A home for commands that run in this process; the environment is as before afterwards."""
    before = dict(os.environ)
    os.environ["PAIRWRIGHT_HOME"] = str(tmp_path / "home")
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    """A bench whose referee was killed under way and run again; what the kill left, and what the second run said."""
    home = tmp_path_factory.mktemp("home")
    bench = Bench(home, home / "tiny.yaml")
    bench.config.write_text(yaml.safe_dump(VALUES), encoding="utf-8")
    first, deadline = bench.start(), time.monotonic() + 90
    while len(bench.trials) < 10:
        assert first.poll() is None, first.communicate()[0]
        assert time.monotonic() < deadline, "no trial ever ended"
        time.sleep(0.002)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    kept = bench.trials
    second = bench.start()
    said, _ = second.communicate(timeout=120)
    assert second.returncode == 0, said
    return bench, kept, said


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command in this process; gives its code and what it said on both channels."""

    def run_it(config: Path, *options: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pairwright", "referee", str(config), *options])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out, said.err

    return run_it


@pytest.fixture
def written(tmp_path: Path) -> Write:
    """Write a config: the values with those at dotted places changed."""

    def write(changes: dict[str, Any]) -> Path:
        values = copy.deepcopy(VALUES)
        for place, value in changes.items():
            *folders, last = place.split(".")
            inner = values
            for folder in folders:
                inner = inner[folder]
            inner[last] = value
        path = tmp_path / "referee.yaml"
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        return path

    return write


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Utilities of 12 prompts, six of them with 2 responses and six with 5."""
    random = np.random.default_rng(0)
    rows = [
        {
            "prompt_id": prompt,
            "generator": f"model-{generator}",
            "preference": float(random.random()),
            "num_chars": int(random.integers(10, 200)),
            "embedding": random.standard_normal(6).tolist(),
        }
        for prompt in range(12)
        for generator in range(5 if prompt % 2 else 2)
    ]
    path = tmp_path / "utilities.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_a_killed_referee_computes_what_is_missing_and_nothing_else(killed: Killed) -> None:
    bench, kept, said = killed
    assert 10 <= len(kept) < NUM_TRIALS, "the kill came too late"
    assert len(bench.trials) == NUM_TRIALS
    assert {path: written for path, written in bench.trials.items() if path in kept} == kept
    computed, reused = map(int, re.findall(r"trials: (\d+) computed, (\d+) found finished and reused", said)[0])
    assert computed + reused == NUM_TRIALS
    assert len(kept) <= reused <= len(kept) + 4, "workers may end a trial or two after the kill"


def test_the_results_are_complete_and_paired(killed: Killed) -> None:
    bench, _, _ = killed
    config = load(bench.config, RefereeConfig)
    found = list(verdicts(config, read_results(config, bench.stand)))
    assert [verdict.name for verdict in found] == ["plain", "scored", "scored-proxy-0.6"]
    assert [verdict.absent for verdict in found] == [("best_worst",), ("best_worst",), ()]
    bare, scored = found[1:]
    np.testing.assert_array_equal(bare.runs["design"].values, scored.runs["design"].values)
    assert scored.runs[UNIFORM].values.shape == (25, 3)
    assert set(scored.against_bases) == {
        (selector, base) for selector in ("design", "capped") for base in ("uniform", "best_worst")
    }
    assert found[0].against_bases == {}


def test_tables_summary_report_and_figures_are_there(killed: Killed) -> None:
    bench, _, said = killed
    for heading in ("plain, no proxy: regret, difference to uniform", "scored, proxy 0.6: utility, difference"):
        assert heading in said
    summary = json.loads((bench.stand.out / "summary.json").read_text())
    assert [part["proxy"] for part in summary] == [None, None, "0.6"]
    assert set(summary[0]["selectors"]) == {"design", "capped"}
    report = (bench.stand.out / "report.md").read_text()
    assert "![plain, no proxy](plain.png)" in report
    assert "Not run here, for lack of what they need: best_worst." in report
    for name in ("plain", "scored", "scored-proxy-0.6"):
        assert (bench.stand.out / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_another_run_computes_nothing_and_a_redraw_needs_no_trial(killed: Killed, run: Run, tmp_path: Path) -> None:
    bench, _, _ = killed
    os.environ["PAIRWRIGHT_HOME"] = str(bench.home)
    code, out, _ = run(bench.config)
    assert (code, f"trials: 0 computed, {NUM_TRIALS} found finished and reused" in out) == (0, True)
    os.environ["PAIRWRIGHT_HOME"] = str(tmp_path / "elsewhere")
    code, again, _ = run(bench.config, "--redraw", "--out", str(bench.stand.out))
    assert code == 0
    assert again.splitlines()[:5] == out.splitlines()[:5]
    assert not (tmp_path / "elsewhere" / "store" / "trials").exists()


def test_a_wider_referee_lacks_only_what_is_new(killed: Killed) -> None:
    bench, _, _ = killed
    config = load(bench.config, RefereeConfig)
    wider = RefereeConfig.model_validate(
        {**VALUES, "seeds": 27, "selectors": {**VALUES["selectors"], "d_design": {"kind": "d_design"}}}
    )
    missing = [trial for trial in planned(wider, bench.stand, None) if not trial.path(bench.stand.trials).exists()]
    assert len(missing) == 27 * 2 + 2 * 7
    assert all(trial.path(bench.stand.trials).exists() for trial in planned(config, bench.stand, None))


def test_results_of_another_config_are_not_redrawn(killed: Killed, run: Run, written: Write) -> None:
    code, _, err = run(written({"ridge": 7.0}), "--redraw", "--out", str(killed[0].stand.out))
    assert code == 2
    assert "results.parquet is of another config than this: run the referee without --redraw" in err


def test_a_selector_that_fails_is_named_with_its_place(table: Path, tmp_path: Path) -> None:
    drawn = [draw_world(FromTable(dim=3), None, seed, read_utilities(table)) for seed in range(4)]
    sizes = [world.pool.num_pairs for world in drawn]
    assert min(sizes) < sizes[0], "seed 0 shows a pool that another seed does not have"
    config = RefereeConfig.model_validate(
        {
            "seeds": 4,
            "budgets": [5, sizes[0]],
            "environments": {"real": {"environment": {"kind": "table", "dim": 3}}},
            "selectors": {},
        }
    )
    stand = Stand(tmp_path / "trials", tmp_path / "out", table)
    place = rf"environment real, seed [1-3], selector uniform, budget {sizes[0]}: ValueError: budget \d+ exceeds"
    with pytest.raises(TrialError, match=place):
        compare(config, stand, Settings(home=tmp_path / "home"))
    assert not stand.results.exists()


@pytest.mark.parametrize("name", ["synthetic", "table"])
def test_the_shipped_configs_are_referees(name: str) -> None:
    config = load(Path(__file__).parents[2] / "configs" / f"referee-{name}.yaml", RefereeConfig)
    assert config.seeds >= 20
    assert list(config.bases) == [base for base in ("uniform", "best_worst", "top_gap") if base in config.selectors]


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"sedes": 3}, (), "sedes: no such key; check its spelling (found 3)"),
        ({"environments.plain.environment.anisotrpy": 1}, (), "plain.environment.linear.anisotrpy: no such key; check"),
        ({"selectors.design": {"kind": "nonsense"}}, (), "'nonsense' found using 'kind' does not match any"),
        ({"selectors.uniform": {"kind": "first_two"}}, (), "selectors.uniform is first_two: give that another name"),
        ({"bases": ["best"]}, (), "bases has ['best']: name some of the selectors ['uniform',"),
        ({"divergence": 0.7}, (), "divergence 0.7 is not read: put it among divergences"),
        ({"seeds": 1}, (), "seeds: Input should be greater than or equal to 2 (found 1)"),
        (
            {"uniform_budgets": [91]},
            (),
            "environments.plain: budget 91 of selector uniform exceeds the 90 pairs of the pool: lower budgets",
        ),
        (
            {"budgets": [61]},
            (),
            "environments.plain: budget 61 of selector capped exceeds the 60 pairs of the pool that max_pairs_per",
        ),
        (REAL, (), "environment plain is drawn from a table of utilities: name one with --table PARQUET"),
        (REAL, ("--table", "no.parquet"), "table no.parquet does not exist: name a Parquet file with --table"),
        ({}, ("--table", "some.parquet"), "--table some.parquet serves nobody: no environment of the config has kind"),
        ({"environments.plain.proxies": ["length"]}, (), "environments.plain: a length proxy needs the lengths"),
        ({}, ("--redraw",), "results.parquet does not exist: run the referee once without --redraw"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(
    run: Run,
    written: Write,
    tmp_path: Path,
    changes: dict[str, Any],
    options: tuple[str, ...],
    message: str,
) -> None:
    code, out, err = run(written(changes), *options)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "home" / "store" / "trials").exists()
