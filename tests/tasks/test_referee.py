"""Trials: named by what decides them, fair to all selectors, spent round by round, and kept as they end."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.special import logsumexp

from tasks.design.environments.fitting import fit_policy
from tasks.design.environments.linear import Linear
from tasks.design.environments.purchase import Purchase, present_pool
from tasks.design.environments.world import World
from tasks.design.pool import Pool
from tasks.design.selection import Selection
from tasks.design.selectors import SELECTORS
from tasks.design.selectors.base import Capped
from tasks.design.selectors.baselines import Uniform
from tasks.design.selectors.designs import TraceDesign
from tasks.referee import (
    OUTCOMES,
    Terms,
    Trial,
    TrialError,
    draw_world,
    reads_scores,
    run_trials,
    spend,
)

ENVIRONMENT = Linear(dim=4, num_prompts=30, num_responses=4, fit=0.7)
TERMS = Terms(ridge=1.0, divergences=(0.1, 0.5), code="0")
TRIAL = Trial(
    names=("plain", "uniform"),
    environment=ENVIRONMENT,
    proxy=None,
    seed=3,
    selector=Uniform(),
    budgets=(10, 40),
    terms=TERMS,
)


@dataclass(frozen=True, kw_only=True)
class Watcher(Capped):
    """Chooses uniformly, and keeps the pools that it is shown."""

    kind: str = "watcher"
    shown: list[Pool] = field(default_factory=list)

    def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Selection:
        self.shown.append(pool)
        return Uniform()(pool, budget, rng)


@dataclass(frozen=True, kw_only=True)
class Weigher(Capped):
    """Chooses uniformly; the first label counts three times."""

    kind: str = "weigher"

    def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Selection:
        weights = np.ones(budget)
        weights[0] = 3.0
        return replace(Uniform()(pool, budget, rng), loss_weights=weights)


@dataclass(frozen=True, kw_only=True)
class Fragile(Capped):
    """Can't do with more than 20 labels."""

    kind: str = "fragile"

    def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Selection:
        if budget > 20:
            raise ZeroDivisionError("too many")
        return Uniform()(pool, budget, rng)


def world_of(trial: Trial) -> World:
    return draw_world(trial.environment, trial.proxy, trial.seed, None)


@pytest.mark.parametrize(
    "changes",
    [
        {"environment": replace(ENVIRONMENT, fit=0.6)},
        {"proxy": 0.5},
        {"proxy": "length"},
        {"seed": 4},
        {"selector": Uniform(max_pairs_per_prompt=2)},
        {"budgets": (10, 41)},
        {"terms": replace(TERMS, ridge=2.0)},
        {"terms": replace(TERMS, table="other")},
        {"terms": replace(TERMS, num_rounds=2)},
        {"terms": replace(TERMS, divergences=(0.1,))},
    ],
    ids=str,
)
def test_what_decides_a_trial_is_in_its_digest(changes: dict[str, Any]) -> None:
    assert replace(TRIAL, **changes).digest != TRIAL.digest


def test_names_decide_nothing() -> None:
    assert replace(TRIAL, names=("other", "name")).digest == TRIAL.digest


def test_a_seed_is_one_world_whatever_the_proxy() -> None:
    bare, low, high = (world_of(replace(TRIAL, proxy=proxy)) for proxy in (None, 0.2, 0.9))
    for other in (low, high):
        np.testing.assert_array_equal(bare.pool.features, other.pool.features)
        np.testing.assert_array_equal(bare.draws, other.draws)
        np.testing.assert_array_equal(bare.target.utilities, other.target.utilities)
    assert bare.pool.scores is None
    assert high.pool.scores is not None
    assert not np.array_equal(bare.draws, world_of(replace(TRIAL, seed=4)).draws)


def test_scores_matter_to_those_that_need_or_read_them_alone() -> None:
    inner = {"kind": "mixture", "selector": SELECTORS["best_worst"]()}
    scored = {kind for kind, selector in SELECTORS.items() if reads_scores(selector())}
    assert {"best_worst", "top_gap", "adpo_offline"} <= scored
    assert not {"uniform", "trace_design", "mixture"} & scored
    assert reads_scores(SELECTORS["mixture"](**inner))


def test_the_whole_budget_is_spent_on_distinct_pairs() -> None:
    bought, facts = spend(world_of(TRIAL), TRIAL, 40)
    assert len(set(bought.index.tolist())) == 40
    assert facts["selection_seconds"] > 0


def test_a_budget_in_rounds_shows_what_was_learnt() -> None:
    watcher = Watcher()
    trial = replace(TRIAL, proxy=0.5, selector=watcher, terms=replace(TERMS, num_rounds=3))
    world = world_of(trial)
    bought, _ = spend(world, trial, 40)
    assert len(set(bought.index.tolist())) == 40
    assert [0 if pool.labels is None else len(pool.labels.margins) for pool in watcher.shown] == [0, 14, 27]
    assert [pool.num_pairs for pool in watcher.shown] == [180, 166, 153]
    third = watcher.shown[2]
    assert third.labels is not None
    assert third.labels.score_gaps is not None
    index = bought.index[:27]
    theta = fit_policy(world.differences(index), world.labels(index), beta=1.0, ridge=1.0)
    signs = np.where(world.labels(index), 1, -1)
    np.testing.assert_allclose(third.rewards, third.features @ theta)
    np.testing.assert_allclose(third.labels.margins, signs * third.margins.ravel()[index], atol=1e-12)
    np.testing.assert_allclose(third.labels.margins, third.labels.differences @ theta)
    np.testing.assert_allclose(third.labels.score_gaps, signs * third.differences_of(third.scores).ravel()[index])


def test_the_present_policy_keeps_what_a_prompt_has_in_all() -> None:
    world = world_of(TRIAL)
    index = np.arange(20)
    theta = fit_policy(world.differences(index), world.labels(index), beta=1.0, ridge=1.0)
    pool = present_pool(world, Purchase(index, np.ones(20), theta))
    np.testing.assert_allclose(logsumexp(pool.log_probs, axis=1), 0.0, atol=1e-12)
    ratios = pool.log_probs - world.pool.log_probs
    np.testing.assert_allclose(pool.differences_of(ratios), pool.margins, atol=1e-12)


def test_weights_of_a_selection_reach_the_fit() -> None:
    world = world_of(TRIAL)
    bought, _ = spend(world, replace(TRIAL, selector=Weigher()), 40)
    weights = np.array([3.0, *[1.0] * 39])
    shares = weights / weights.mean()
    expected = fit_policy(
        world.differences(bought.index), world.labels(bought.index), beta=1.0, ridge=1.0, weights=shares
    )
    np.testing.assert_allclose(bought.theta, expected)


def test_outcomes_are_kept_and_more_labels_teach_more(tmp_path: Path) -> None:
    trials = [replace(TRIAL, selector=TraceDesign(), seed=seed, budgets=(5, 150)) for seed in range(6)]
    for trial in trials:
        run_trials([trial], tmp_path, None)
    tables = [pq.read_table(trial.path(tmp_path)) for trial in trials]
    assert all(table.schema.equals(OUTCOMES) for table in tables)
    assert [table["labels"].to_pylist() for table in tables] == [[5, 150]] * 6
    few, many = np.mean([table["regret"].to_pylist() for table in tables], axis=0)
    assert 0 < many < few
    assert {len(frontier) for table in tables for frontier in table["frontier"].to_pylist()} == {2}


def test_every_pair_without_noise_loses_nothing(tmp_path: Path) -> None:
    for num_rounds in (1, 3):
        trial = replace(TRIAL, budgets=(20, 180), terms=replace(TERMS, num_rounds=num_rounds))
        run_trials([trial], tmp_path, None)
        some, every = pq.read_table(trial.path(tmp_path)).to_pylist()
        assert every["labels"] == world_of(TRIAL).pool.num_pairs
        for name in ("regret", "frontier"):
            assert every[f"without_noise_{name}"] == pytest.approx(every[f"best_{name}"], rel=1e-6)
            assert some[f"best_{name}"] == every[f"best_{name}"], "the world's own, whatever is bought"
        assert some["best_regret"] < some["without_noise_regret"]


def test_a_fit_without_noise_is_of_the_pairs_finally_bought(tmp_path: Path) -> None:
    trial = replace(TRIAL, selector=Weigher(), budgets=(30,), terms=replace(TERMS, num_rounds=3))
    world = world_of(trial)
    run_trials([trial], tmp_path, None)
    (row,) = pq.read_table(trial.path(tmp_path)).to_pylist()
    bought, _ = spend(world, trial, 30)
    shares = bought.weights / bought.weights.mean()
    chances = world.chances.ravel()[bought.index]
    theta = fit_policy(world.differences(bought.index), chances, beta=1.0, ridge=1.0, weights=shares)
    assert row["without_noise_regret"] == pytest.approx(world.target.regret(world.target.policy(theta), beta=1.0))
    assert row["without_noise_frontier"] == pytest.approx([world.target.utility_at(theta, at) for at in (0.1, 0.5)])


def test_the_same_trial_has_the_same_outcome(tmp_path: Path) -> None:
    kept = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        run_trials([TRIAL], folder, None)
        kept.append(pq.read_table(TRIAL.path(folder)).drop(["seconds", "selection_seconds"]))
    assert kept[0].equals(kept[1])


def test_an_error_names_its_place_and_keeps_what_ended_before(tmp_path: Path) -> None:
    fragile = replace(TRIAL, names=("plain", "glass"), selector=Fragile(), proxy=0.5)
    before = replace(TRIAL, proxy=0.5)
    place = r"environment plain, proxy 0\.5, seed 3, selector glass, budget 40: ZeroDivisionError: too many"
    with pytest.raises(TrialError, match=place):
        run_trials([before, fragile], tmp_path, None)
    assert [path.name for path in tmp_path.iterdir()] == [before.path(tmp_path).name]
