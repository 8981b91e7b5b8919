"""The bandit study: findings on results made up, its config, and the command from end to end."""

import copy
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from mlflow import MlflowClient
from pydantic import ValidationError

from cluster.errors import InputError
from flows.bandit import RESULTS, SOURCES, StudyConfig, cells, curves, mass_at_peak, results
from flows.config import load, load_config
from flows.findings import Finals, findings
from tasks.design.arrays import FloatArray

SHIPPED = Path(__file__).parents[2] / "configs" / "study-bandit.yaml"
COMMAND = Path(sys.executable).with_name("pairwright")

TINY: dict[str, Any] = {
    "seeds": 2,
    "reference": {"fit_steps": 20},
    "rewards": {"far": {"peak": 70, "width": 10}, "near": {"peak": 20, "width": 10}},
    "methods": {
        "ipo": {"objective": {"kind": "ipo"}},
        "best": {"objective": {"kind": "best_of_n"}},
        "pushed": {"objective": {"kind": "best_of_n", "negative": 0.2}},
    },
    "inner_steps": [4, 1],
    "num_epochs": 3,
    "num_states": 2,
    "num_draws": 3,
}

FAR, NEAR, BARE, ADDED, MARGIN = 0, 1, 0, 1, 2


def made_up(change: Callable[[FloatArray], None]) -> list[str]:
    """Answers to results (far and near; bare, added and margin; both sources; T of 1, 5 and 50; 10 seeds)."""
    values = 0.5 + 0.001 * np.random.default_rng(0).standard_normal((2, 3, 2, 3, 10))
    change(values)
    finals = Finals(
        values=values,
        far=np.array([True, False]),
        negative=np.array([False, True, True]),
        contrastive=np.array([False, False, True]),
        inner_steps=(1, 5, 50),
    )
    return [finding.answer for finding in findings(finals)]


def silent(_done: int, _total: int, _speed: float = 0.0) -> None:
    """Report nothing."""


def test_noise_shows_nothing() -> None:
    assert made_up(lambda _: None) == ["not shown"] * 4


def test_all_findings_hold_where_results_say_so() -> None:
    def change(values: FloatArray) -> None:
        values[FAR, :, 1] += 0.2
        values[NEAR, :, 1] += 0.01
        values[:, [ADDED, MARGIN]] += 0.1
        values[:, :, 1, 2] -= 0.05

    assert made_up(change) == ["holds"] * 4


def test_no_finding_holds_where_results_say_the_contrary() -> None:
    def change(values: FloatArray) -> None:
        values[FAR, :, 1] += 0.01
        values[NEAR, :, 1] += 0.2
        values[:, [ADDED, MARGIN]] -= 0.1
        values[:, :, 1, 2] += 0.05

    assert made_up(change) == ["does not hold"] * 4


def test_a_moderate_t_above_the_largest_is_enough_for_reuse_to_hurt() -> None:
    def change(values: FloatArray) -> None:
        values[:, :, 1, 0] -= 0.3
        values[:, :, 1, 1] += 0.05

    assert made_up(change)[3] == "holds"


def test_what_is_best_alone_is_not_complementary() -> None:
    def change(values: FloatArray) -> None:
        values[:, [ADDED, MARGIN], 0] += 0.3

    assert made_up(change)[2] == "does not hold"


def test_a_finding_tells_its_numbers() -> None:
    values = np.full((1, 2, 2, 1, 3), 0.25)
    values[:, :, 1] = 0.75
    masks = {"far": np.array([True]), "negative": np.array([False, True]), "contrastive": np.array([False, True])}
    first, second, _, last = map(str, findings(Finals(values=values, inner_steps=(1,), **masks)))
    assert "the config has nothing that could decide it" in first
    assert second.startswith("Negative gradients help: NOT SHOWN. with v. without +0.000 [0.000, 0.000]")
    assert last.endswith("NOT SHOWN. the config has nothing that could decide it.")


def test_the_defaults_are_the_shipped_config() -> None:
    assert load(SHIPPED, StudyConfig) == StudyConfig()


def test_a_study_is_no_lineage() -> None:
    with pytest.raises(InputError, match="has 'rewards', so pairwright study bandit takes it: name another"):
        load_config(SHIPPED)


def test_only_the_near_peak_of_the_shipped_config_has_much_mass() -> None:
    config = StudyConfig()
    assert {name for name, reward in config.rewards.items() if mass_at_peak(config, reward) >= 1} == {"r5"}


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"seeds": 1}, "greater than or equal to 2"),
        ({"threshold": -0.1}, "greater than or equal to 0"),
        ({"methods": {"odd": {"objective": {"kind": "odd"}}}}, "Input tag 'odd' found using 'kind'"),
        ({"methods": {"soft": {"objective": {"kind": "soft_dpo"}}}}, "Input tag 'soft_dpo' found using 'kind'"),
        ({"methods": {"b": {"objective": {"kind": "best_of_n", "negative": -1}}}}, "negative is -1"),
        ({"methods": {}}, "at least 1 item"),
        ({"rewards": {"out": {"peak": 100, "width": 10}}}, "rewards.out.peak 100 is no action: expected at most 99"),
        ({"rewards": {"flat": {"peak": 50, "width": 0}}}, "greater than 0"),
        ({"inner_steps": [5, 5]}, "has one twice"),
        ({"inner_steps": [0]}, "greater than 0"),
        ({"num_draws": 1}, "greater than or equal to 2"),
        ({"colour": 1}, "Extra inputs are not permitted"),
    ],
)
def test_a_study_that_can_not_be_run_is_refused(change: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        StudyConfig.model_validate(TINY | change)
    assert fault in str(refusal.value)


def test_all_methods_ask_for_equally_many_rewards(tmp_path: Path) -> None:
    config = StudyConfig.model_validate(TINY)
    found, reused = results(config, tmp_path, silent)
    assert not reused
    assert found.num_rows == 2 * 3 * 2 * 2 * 2 * 4
    last = found.to_pandas().query("epoch == 3")
    assert set(last["num_queries"]) == {3 * 2 * 3}
    assert set(zip(last["inner_steps"], last["num_steps"], strict=True)) == {(1, 3), (4, 12)}
    assert dict(zip(last["method"], last["negative"], strict=True)) == {"ipo": True, "best": False, "pushed": True}


def test_a_finished_study_is_reused_and_a_changed_one_is_not(tmp_path: Path) -> None:
    config = StudyConfig.model_validate(TINY)
    first, _ = results(config, tmp_path, silent)
    again, reused = results(config, tmp_path, silent)
    assert reused
    assert again.equals(first)
    _, reused = results(config.model_copy(update={"threshold": 0.2}), tmp_path, silent)
    assert not reused
    computed, _ = results(config, tmp_path / "elsewhere", silent)
    assert computed.equals(first)


def test_a_seed_is_the_same_among_more_seeds(tmp_path: Path) -> None:
    few, more = (StudyConfig.model_validate(TINY | {"seeds": seeds}) for seeds in (2, 3))
    one, other = (curves(config, results(config, tmp_path, silent)[0]) for config in (few, more))
    for cell in cells(few):
        np.testing.assert_allclose(one[cell], other[cell][:, :2], rtol=1e-12)


def test_curves_belong_to_their_cells(tmp_path: Path) -> None:
    config = StudyConfig.model_validate(TINY)
    found, _ = results(config, tmp_path, silent)
    rows = found.to_pandas().set_index(["world", "method", "source", "inner_steps", "seed", "epoch"])["reward"]
    for cell, values in curves(config, found).items():
        for place, world in enumerate(config.rewards):
            row = rows[world, cell.method, cell.source, cell.inner_steps, 1, 2]
            assert row == values[place, 1, 2]


@pytest.fixture(scope="module")
def ran(
    tmp_path_factory: pytest.TempPathFactory, make_home: Callable[[], Path], prefect_server: str
) -> tuple[Path, list[str]]:
    """A home in which the command ran twice, and what it said."""
    home = make_home()
    config = home / "tiny.yaml"
    config.write_text(yaml.safe_dump(copy.deepcopy(TINY)), encoding="utf-8")
    environment = {**os.environ, "PAIRWRIGHT_HOME": str(home), "PREFECT_API_URL": prefect_server}
    command = [COMMAND, "study", "bandit", "--config", str(config), "--out", str(home / "out")]
    said = []
    for _ in range(2):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        said.append(done.stdout)
    return home, said


def test_the_command_prints_four_findings_and_where_its_files_lie(ran: tuple[Path, list[str]]) -> None:
    home, (first, second) = ran
    flat = " ".join(first.split())
    assert len(re.findall(r": (?:HOLDS|DOES NOT HOLD|NOT SHOWN)\. ", flat)) == 4
    assert f"results, report and figures: {home / 'out'}" in first
    assert "computed" in first
    assert "found finished and reused" in second
    assert first.replace("computed", "found finished and reused") == second


def test_the_command_writes_results_report_and_figures(ran: tuple[Path, list[str]]) -> None:
    out = ran[0] / "out"
    assert pq.read_schema(out / "results.parquet").equals(RESULTS)
    report = (out / "report.md").read_text(encoding="utf-8")
    for words in ("Negative gradients help: ", "| ipo, on_policy, 4 | 18 |", "## near", "![far](far.png)"):
        assert words in report
    for world in ("far", "near"):
        assert (out / f"{world}.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_tells_mlflow_once(ran: tuple[Path, list[str]]) -> None:
    client = MlflowClient(f"sqlite:///{ran[0]}/mlflow.db")
    experiment = client.get_experiment_by_name("pairwright-studies")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["num_epochs"] == "3"
    assert set(run.data.tags) >= {f"finding.{place}" for place in (1, 2, 3, 4)}
    assert "finding_1/1" in run.data.metrics
    assert {file.path for file in client.list_artifacts(run.info.run_id)} >= {"report.md", "far.png", "results.parquet"}


def test_a_config_that_does_not_fit_ends_the_command_with_code_2(tmp_path: Path) -> None:
    config = tmp_path / "odd.yaml"
    config.write_text(yaml.safe_dump(TINY | {"seeds": 1}), encoding="utf-8")
    environment = {**os.environ, "PAIRWRIGHT_HOME": str(tmp_path / "home")}
    command = [COMMAND, "study", "bandit", "--config", str(config)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "seeds: Input should be greater than or equal to 2 (found 1)" in done.stderr


def test_sources_are_those_that_findings_count_on() -> None:
    assert SOURCES == ("offline", "on_policy")
