"""The referee finds what was planted, and nothing where nothing was; the study of it is run and kept."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from flows.comparison.judgement import judge
from flows.comparison.known_answer import (
    PLANTED,
    RESULTS,
    RULES,
    KnownAnswerConfig,
    Rule,
    Scene,
    results,
    scenes,
    tried,
)
from flows.comparison.known_answer_study import report, summary, tables
from flows.comparison.synthetic import Plan, synthetic_evidence
from flows.config import load
from flows.publication import Published
from flows.studies import STUDIES
from tasks.design.inference import POWER, further_seeds, power
from tasks.design.statistics import LEVEL

SHIPPED = Path(__file__).parents[2] / "configs" / "study-referee.yaml"
COMMAND = Path(sys.executable).with_name("pairwright")
NUM_REPETITIONS = 200

TINY = KnownAnswerConfig(
    num_seeds=(3, 4), num_selectors=(2,), noises=("normal", "skewed"), effects=(2.0,), repetitions=4, more_repetitions=6
)


def silent(done: int, total: int, tokens_per_second: float = 0.0) -> None:
    pass


@pytest.mark.parametrize(("noise", "num_seeds"), [("normal", 3), ("normal", 10), ("t3", 5)])
def test_where_there_is_nothing_the_referee_finds_nothing(noise: str, num_seeds: int) -> None:
    scene = Scene(noise, num_seeds, num_selectors=3, effect=0.0)  # type: ignore[arg-type]
    _, num_wrong = tried(scene, "referee", NUM_REPETITIONS)
    assert num_wrong / NUM_REPETITIONS <= LEVEL


@pytest.mark.parametrize(("noise", "num_seeds", "effect", "least"), [("normal", 10, 2.0, 0.95), ("t3", 5, 2.0, 0.6)])
def test_what_was_planted_is_found_and_nothing_beside_it(
    noise: str, num_seeds: int, effect: float, least: float
) -> None:
    scene = Scene(noise, num_seeds, num_selectors=3, effect=effect)  # type: ignore[arg-type]
    num_found, num_wrong = tried(scene, "referee", NUM_REPETITIONS)
    assert num_found / NUM_REPETITIONS >= least
    assert num_wrong / NUM_REPETITIONS <= LEVEL


def test_losses_are_found_as_often_as_gains() -> None:
    def shown(effect: float) -> list[str]:
        plan = Plan(num_seeds=8, effects={PLANTED: effect})
        everyone = (judge(synthetic_evidence(plan, np.random.default_rng(seed))) for seed in range(30))
        return [one.standings[0].words.split(" uniform")[0] for one in everyone]

    gains, losses = shown(3.0), shown(-3.0)
    assert gains.count(f"{PLANTED} is above") == losses.count(f"{PLANTED} is below") == 30


def test_as_many_further_seeds_as_it_says_do_show_the_difference() -> None:
    column = np.array([0.02, 0.05, -0.01])
    further = further_seeds(column, 1)
    assert further is not None
    effect = column.mean() / column.std(ddof=1)
    num_found, _ = tried(Scene("normal", 3 + further, 1, float(effect)), "referee", NUM_REPETITIONS)
    assert num_found / NUM_REPETITIONS == pytest.approx(power(effect, 3 + further), abs=0.08)
    assert power(effect, 3 + further) >= POWER


def test_all_budgets_and_rounds_are_made_up_and_judged() -> None:
    plan = Plan(num_seeds=4, effects={"good": 8.0, "bad": -8.0}, budgets=(16, 32), num_rounds=2)
    judgement = judge(synthetic_evidence(plan, np.random.default_rng(0)))
    assert len(judgement.cells) == 3 * 2 * 2
    assert [one.cell.labels for one in judgement.standings] == [32, 32, 64, 64]
    verdicts = [(one.selector, one.cell.difference and one.cell.difference.verdict) for one in judgement.standings]
    assert verdicts == [("good", "above"), ("bad", "below")] * 2
    assert all(one.saving is not None and one.matched_kl is not None for one in judgement.standings)
    assert set(judgement.overlap) == set(judgement.above)


def test_a_seed_does_the_same_to_all_of_its_lineages() -> None:
    plan = Plan(num_seeds=200, effects={"other": 0.0})
    found = synthetic_evidence(plan, np.random.default_rng(0))
    wins = np.array([one.rounds[0].measures["win_base"] for one in found.lineages]).reshape(2, 200)
    assert np.corrcoef(wins)[0, 1] > 0.8
    pools = [one.rounds[0].pool for one in found.lineages]
    assert pools[:200] == pools[200:]


def test_the_rule_alone_says_what_the_referee_says() -> None:
    scene = Scene("t3", 4, 3, 2.0)
    assert tried(scene, "student", 40) == tried(scene, "referee", 40)


@pytest.mark.parametrize("rule", RULES)
def test_no_rule_shows_anything_of_two_seeds_but_with_great_luck(rule: Rule) -> None:
    num_found, num_wrong = tried(Scene("normal", 2, 1, 1.0), rule, 40)
    assert num_found + num_wrong < 10


def test_the_study_is_computed_once_and_told(tmp_path: Path) -> None:
    found, reused = results(TINY, tmp_path, silent)
    again, found_again = results(TINY, tmp_path, silent)
    assert (reused, found_again) == (False, True)
    assert again.equals(found)
    assert found.schema == RESULTS
    assert found.num_rows == len(scenes(TINY)) * len(RULES)
    null = {(row["rule"], row["repetitions"]) for row in found.to_pylist() if row["effect"] == 0}
    assert null == {("referee", 4), ("bootstrap", 4), ("student", 6), ("sign flips", 6)}
    grids = tables(TINY, found)
    assert [len(grid.rows) for grid in grids] == [4, 4]
    assert {len(row) for grid in grids for row in grid.rows} == {len(grids[0].headings), len(grids[1].headings)}
    said = summary(found)
    assert len(said) == 2 * len(RULES)
    assert said[0] in report(Published(grids, (), tuple(said), reused=False, out=tmp_path))


def test_the_shipped_study_is_the_default() -> None:
    assert load(SHIPPED, STUDIES["referee"].config) == KnownAnswerConfig()


def test_the_command_prints_the_tables_and_keeps_them(make_home: Callable[[], Path], prefect_server: str) -> None:
    home = make_home()
    config = home / "tiny.yaml"
    config.write_text(yaml.safe_dump(TINY.model_dump(mode="json")), encoding="utf-8")
    environment = {**os.environ, "PAIRWRIGHT_HOME": str(home), "PREFECT_API_URL": prefect_server}
    command = [COMMAND, "study", "referee", "--config", str(config), "--out", str(home / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "referee, where a difference is as likely as its opposite: false verdicts in" in " ".join(
        done.stdout.split()
    )
    assert pq.read_schema(home / "out" / "results.parquet").equals(RESULTS)
    assert "| normal | 3 | 2 |" in (home / "out" / "report.md").read_text(encoding="utf-8")
