"""The theory study: findings on results made up, its config, and the command from end to end."""

import copy
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from mlflow import MlflowClient
from pydantic import ValidationError

from cluster.errors import InputError
from flows.config import load, load_config
from flows.referee import RefereeConfig, Stand, planned
from flows.theory import RESULTS, Gaps, TheoryConfig, gaps, results
from flows.theory_findings import findings
from flows.theory_report import ratios, tables
from tasks.design.arrays import FloatArray
from tasks.design.asymptotics import DESIGNS

CONFIGS = Path(__file__).parents[2] / "configs"
COMMAND = Path(sys.executable).with_name("pairwright")

TINY: dict[str, Any] = {
    "seeds": 2,
    "draws": 3,
    "num_labels": [20, 2000],
    "small": 20,
    "ridges": [0.01, 1.0],
    "worlds": {
        "table": {"kind": "tabular", "num_responses": 5},
        "context": {"kind": "linear", "num_prompts": 6, "num_responses": 3, "dim": 4, "reference_spread": 1.0},
    },
}


def made_up(change: Callable[[dict[str, FloatArray]], None]) -> list[str]:
    """Answers to results that are as predicted but for noise and a change (by design: n of 30 and 9000, 10, 20)."""
    rng, sizes, predicted = np.random.default_rng(0), np.array([30.0, 9000.0]), np.full(10, 5.0)
    values = {name: 5 / sizes[:, None, None] * rng.lognormal(0, 0.05, (2, 10, 20)) for name in DESIGNS}
    change(values)
    measured = Gaps(
        name="world",
        ridge=0.001,
        num_labels=sizes,
        values=values,
        predicted=dict.fromkeys(DESIGNS, predicted),
        untrained=predicted,
    )
    config = TheoryConfig(num_labels=(30, 9000), ridges=(0.001,))
    return [finding.answer for finding in findings(config, [measured])]


def silent(_done: int, _total: int, _speed: float = 0.0) -> None:
    """Report nothing."""


def scaled(factors: Mapping[str, tuple[float, float]]) -> Callable[[dict[str, FloatArray]], None]:
    """Multiply the gaps of designs at small and at large n."""

    def change(values: dict[str, FloatArray]) -> None:
        for name, factor in factors.items():
            values[name] *= np.array(factor)[:, None, None]

    return change


def test_of_equal_designs_only_closeness_and_the_prediction_hold() -> None:
    assert made_up(lambda _: None) == ["holds", "not shown", "not shown", "not shown", "holds"]


def test_all_findings_hold_where_results_say_so() -> None:
    def change(values: dict[str, FloatArray]) -> None:
        scaled({"uniform": (1.5, 1.0), "reference": (3.0, 1.0), "plug_in": (1.1, 1.0)})(values)
        values["reference"][:, :, ::2] *= 0.95
        values["reference"][:, :, 1::2] *= 1.05

    assert made_up(change) == ["holds"] * 5


def test_no_finding_holds_where_results_say_the_contrary() -> None:
    def change(values: dict[str, FloatArray]) -> None:
        scaled({"uniform": (0.5, 1.0), "plug_in": (1.7, 1.7), "reference": (0.2, 0.5)})(values)

    assert made_up(change) == ["does not hold"] * 5


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_a_prediction_that_is_missed_on_either_side_does_not_hold(factor: float) -> None:
    assert made_up(scaled({"oracle": (1.0, factor)}))[4] == "does not hold"


def test_a_theory_study_is_no_lineage() -> None:
    with pytest.raises(InputError, match="has 'worlds', so pairwright study theory takes it: name another"):
        load_config(CONFIGS / "study-theory.yaml")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"seeds": 1}, "greater than or equal to 2"),
        ({"draws": 1}, "greater than or equal to 2"),
        ({"num_labels": []}, "at least 1 item"),
        ({"num_labels": [300, 30]}, "num_labels [300, 30] does not rise"),
        ({"ridges": [1.0, 1.0]}, "ridges [1.0, 1.0] does not rise"),
        ({"ridges": [0.0]}, "greater than 0"),
        ({"worlds": {}}, "at least 1 item"),
        ({"worlds": {"real": {"kind": "table"}}}, "Input tag 'table' found using 'kind'"),
        ({"worlds": {"odd": {"kind": "linear", "dim": 3}}}, "dim is 3: pass an even number"),
        ({"colour": 1}, "Extra inputs are not permitted"),
    ],
)
def test_a_study_that_can_not_be_run_is_refused(change: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        TheoryConfig.model_validate(TINY | change)
    assert fault in str(refusal.value)


def test_a_world_in_which_the_theory_fails_is_refused_before_any_is_measured(tmp_path: Path) -> None:
    worlds = {**TINY["worlds"], "misfit": {"kind": "linear", "fit": 0.5}}
    with pytest.raises(InputError, match=r"worlds\.misfit: features leave 0\.\d+ of the utilities unexplained"):
        results(TheoryConfig.model_validate(TINY | {"worlds": worlds}), tmp_path, silent)
    assert not list(tmp_path.iterdir())


def test_a_finished_study_is_reused_and_a_wider_one_measures_what_is_missing(tmp_path: Path) -> None:
    config = TheoryConfig.model_validate(TINY)
    first, reused = results(config, tmp_path, silent)
    assert not reused
    assert first.num_rows == 2 * 2 * len(DESIGNS) * 2 * 3 * 2
    again, reused = results(config, tmp_path, silent)
    assert reused
    assert again.equals(first)
    kept, done = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}, list[int]()
    wider, reused = results(config.model_copy(update={"seeds": 3}), tmp_path, lambda _, total, __: done.append(total))
    assert not reused
    assert done == [2, 2]
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir() if path.name in kept} == kept
    assert wider.filter(np.asarray(wider["seed"]) < 2).equals(first)


def test_gaps_belong_to_their_cells(tmp_path: Path) -> None:
    config = TheoryConfig.model_validate(TINY)
    found, _ = results(config, tmp_path, silent)
    rows = found.to_pandas().set_index(["world", "ridge", "design", "num_labels", "seed", "draw"])
    for measured in gaps(config, found):
        for name in DESIGNS:
            place = measured.name, measured.ridge, name
            assert measured.values[name][1, 1, 2] == rows.loc[(*place, 2000, 1, 2), "gap"]
            assert measured.predicted[name][1] == rows.loc[(*place, 20, 1, 0), "predicted"]
            many = measured.scaled[name][:, 1] / measured.predicted[name]
            assert (np.abs(np.log(many)) < 2).all()


def test_tables_have_a_row_a_design_and_a_column_a_size(tmp_path: Path) -> None:
    config = TheoryConfig.model_validate(TINY)
    measured = gaps(config, results(config, tmp_path, silent)[0])
    grids = tables(config, measured)
    assert [grid.title.split(":")[0] for grid in grids] == [
        f"{world}, ridge {ridge:g}" for world in TINY["worlds"] for ridge in TINY["ridges"]
    ]
    for grid in grids:
        assert [row[0] for row in grid.rows] == ["uniform", "reference-weighted", "plug-in", "oracle"]
        assert grid.headings == ["design", "n = 20", "n = 2000", "predicted"]
    assert len(ratios(config, measured).rows) == len(grids) * len(DESIGNS)


@pytest.fixture(scope="module")
def ran(
    tmp_path_factory: pytest.TempPathFactory, make_home: Callable[[], Path], prefect_server: str
) -> tuple[Path, list[str]]:
    """A home in which the command ran twice, and what it said."""
    home = make_home()
    config = home / "tiny.yaml"
    config.write_text(yaml.safe_dump(copy.deepcopy(TINY)), encoding="utf-8")
    environment = {**os.environ, "PAIRWRIGHT_HOME": str(home), "PREFECT_API_URL": prefect_server}
    command = [COMMAND, "study", "theory", "--config", str(config), "--out", str(home / "out")]
    said = []
    for _ in range(2):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        said.append(done.stdout)
    return home, said


def test_the_command_prints_five_findings_for_each_world_and_ridge(ran: tuple[Path, list[str]]) -> None:
    home, (first, second) = ran
    flat = " ".join(first.split())
    assert len(re.findall(r": (?:HOLDS|DOES NOT HOLD|NOT SHOWN)\. ", flat)) == 5 * 2 * 2
    assert f"results, report and figures: {home / 'out'}" in first
    assert "computed" in first
    assert "found finished and reused" in second
    assert first.replace("computed", "found finished and reused") == second


def test_the_command_writes_results_report_and_figure(ran: tuple[Path, list[str]]) -> None:
    out = ran[0] / "out"
    assert pq.read_schema(out / "results.parquet").equals(RESULTS)
    report = (out / "report.md").read_text(encoding="utf-8")
    for words in (
        "table, ridge 0.01: plug-in is close to oracle: ",
        "| oracle | ",
        "](gaps.png)",
        "over the prediction",
    ):
        assert words in report
    assert (out / "gaps.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_tells_mlflow_once(ran: tuple[Path, list[str]]) -> None:
    client = MlflowClient(f"sqlite:///{ran[0]}/mlflow.db")
    experiment = client.get_experiment_by_name("pairwright-studies")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["draws"] == "3"
    assert set(run.data.tags) >= {f"finding.{place}" for place in range(1, 21)}
    assert {file.path for file in client.list_artifacts(run.info.run_id)} >= {
        "report.md",
        "gaps.png",
        "results.parquet",
    }


def test_the_shipped_study_of_direction_can_be_refereed(tmp_path: Path) -> None:
    config = load(CONFIGS / "study-direction.yaml", RefereeConfig)
    trials = planned(config, Stand(tmp_path, tmp_path), None)
    selectors = {trial.names[1] for trial in trials if trial.proxy == 1.0}
    assert selectors == {"smallest_gap", "largest_gap", "top_gap", "best_worst"}
    assert len({trial.digest for trial in trials}) < len(trials)  # one world, judged in two ways
