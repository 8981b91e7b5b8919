import numpy as np
import pytest

from tasks.design.environments import Linear
from tasks.design.environments.fitting import fit_policy
from tasks.design.selectors import SELECTORS

BUDGETS = (50, 100, 200, 400, 800, 1600)
SEEDS = 16


def utility(world, selector, budget, seed):
    selection = selector(world.pool, budget, np.random.default_rng([seed, budget]))
    index = world.index_of(selection)
    theta = fit_policy(world.differences(index), world.labels(index), beta=1.0, ridge=1.0)
    return world.target.utility_at(theta, 0.5)


def labels_saved(kind, *, fit, budget=400):
    """Labels that uniform pairs need for what the selector reaches, over those it spends; means over seeds."""
    environment = Linear(anisotropy=1.0, prompt_spread=0.3, fit=fit, residual="quadratic")
    worlds = [environment.draw(np.random.default_rng([5, seed])) for seed in range(SEEDS)]
    uniform = SELECTORS["uniform"]()
    curve = [np.mean([utility(w, uniform, b, seed) for seed, w in enumerate(worlds)]) for b in BUDGETS]
    reached = np.mean([utility(w, SELECTORS[kind](), budget, seed) for seed, w in enumerate(worlds)])
    return float(np.exp(np.interp(reached, np.maximum.accumulate(curve), np.log(BUDGETS)))) / budget


@pytest.mark.parametrize("kind", ["trace_design", "d_design"])
def test_designs_win_where_features_explain_the_reward_and_lose_that_where_they_do_not(kind):
    explained, mostly_unexplained = labels_saved(kind, fit=1.0), labels_saved(kind, fit=0.3)
    assert explained > 1.4
    assert mostly_unexplained < 1.1


def test_the_robust_design_wins_where_features_explain_the_reward_and_where_they_do_not():
    assert labels_saved("robust_design", fit=1.0) > 1.2
    assert labels_saved("robust_design", fit=0.3) > 1.2
