from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from tasks.design.criterion import trace_criterion
from tasks.design.pool import Pool
from tasks.design.selectors.baselines import Uniform
from tasks.design.selectors.designs import TraceDesign


def select(pool, budget, *, cap=None, tolerance=1e-3):
    selector = TraceDesign(max_pairs_per_prompt=cap, tolerance=tolerance)
    return selector(pool, budget, np.random.default_rng(0))


def ordered_pairs(selection):
    return list(zip(selection.prompt.tolist(), selection.first.tolist(), selection.second.tolist(), strict=True))


def objective_of(pool, selection, ridge=1e-3):
    criterion = trace_criterion(pool, ridge=ridge)
    weights = np.zeros(pool.pair_mask.shape)
    slots = {pair: slot for slot, pair in enumerate(combinations(range(pool.valid.shape[1]), 2))}
    for prompt, first, second in ordered_pairs(selection):
        weights[prompt, slots[first, second]] = 1
    return criterion.objective(weights)


@pytest.mark.parametrize("cap", [None, 2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_the_certificate_brackets_the_best_of_all_selections(make_pool, pair_vectors, seed, cap):
    pool = make_pool((3, 3, 2), seed=seed, decay=1.0)
    vectors, fisher = pair_vectors(pool), pool.policy_fisher
    best = np.inf
    for subset in combinations(range(9), 4):
        if cap is None or np.bincount(np.array(subset) // 3).max() <= cap:
            rows = vectors[list(subset)]
            best = min(best, np.trace(fisher @ np.linalg.inv(rows.T @ rows + 1e-3 * np.eye(2))))
    certificate = select(pool, 4, cap=cap).certificate
    assert certificate.converged
    assert certificate.lower_bound <= certificate.relaxed_objective
    assert certificate.lower_bound <= best <= certificate.objective * (1 + 1e-12)
    assert certificate.objective <= 1.25 * best
    assert certificate.efficiency == pytest.approx(certificate.lower_bound / certificate.objective)


def test_the_certificate_describes_the_selection(make_pool, pair_vectors):
    pool = make_pool((30, 5, 4), masked=True, decay=1.0)
    selection = select(pool, 25)
    certificate = selection.certificate
    differences = pool.features[selection.prompt, selection.first] - pool.features[selection.prompt, selection.second]
    margins = pool.rewards[selection.prompt, selection.first] - pool.rewards[selection.prompt, selection.second]
    rows = pool.beta * differences / (2 * np.cosh(margins / 2))[:, None]
    held = rows.T @ rows
    assert certificate.objective == pytest.approx(np.trace(pool.policy_fisher @ np.linalg.inv(held + 1e-3 * np.eye(4))))
    assert certificate.effective_rank == pytest.approx(np.trace(held) ** 2 / np.trace(held @ held))
    assert certificate.support_size >= 25
    assert certificate.seconds > 0
    assert 0.9 < certificate.efficiency <= 1


def test_a_prefix_is_nearly_as_good_as_the_design_of_its_size(make_pool):
    pool = make_pool((60, 5, 6), decay=1.0)
    whole = select(pool, 120)
    for size, times in ((12, 1.6), (30, 1.1), (60, 1.05)):
        designed = select(pool, size)
        prefix = replace(whole, prompt=whole.prompt[:size], first=whole.first[:size], second=whole.second[:size])
        drawn = Uniform()(pool, size, np.random.default_rng(0))
        assert objective_of(pool, prefix) <= times * designed.certificate.objective
        assert objective_of(pool, prefix) < 0.5 * objective_of(pool, drawn)


def test_copies_of_a_pair_do_not_stand_together_at_the_front():
    """Two directions, many copies of each: a front of one direction would know nothing of the other."""
    features = np.zeros((40, 2, 2))
    features[:20, 0, 0], features[20:, 0, 1] = 1.0, 0.9
    pool = Pool(features=features, valid=np.ones((40, 2), dtype=bool), rewards=np.zeros((40, 2)), beta=1.0)
    order = select(pool, 20).prompt < 20
    assert [int(order[:size].sum()) for size in (2, 4, 8)] == [1, 2, 4]


def test_the_design_has_less_than_half_the_objective_of_uniform_pairs_on_an_anisotropic_pool(make_pool):
    pool = make_pool((200, 6, 12), decay=1.5, margin=0.5)
    designed = select(pool, 100).certificate.objective
    uniform = [objective_of(pool, Uniform()(pool, 100, np.random.default_rng(seed))) for seed in range(10)]
    assert designed < 0.5 * min(uniform)


def test_pairs_of_settled_margin_are_left_to_pairs_in_doubt(make_pool):
    pool = make_pool((40, 2, 3), margin=0.0)
    rewards = pool.rewards.copy()
    rewards[:20, 0] = 12.0
    selection = select(replace(pool, rewards=rewards), 15)
    assert selection.prompt.min() >= 20


def test_labels_already_held_turn_the_design_to_what_they_leave_open(labels_of):
    features = np.zeros((20, 2, 2))
    features[:10, 0, 0] = features[10:, 0, 1] = 1.0
    pool = Pool(features=features, valid=np.ones((20, 2), dtype=bool), rewards=np.zeros((20, 2)), beta=1.0)
    fresh = select(pool, 10)
    informed = select(replace(pool, labels=labels_of(np.diag([100.0, 0.0]), beta=1.0)), 10)
    assert (fresh.prompt < 10).sum() == 5
    assert (informed.prompt < 10).sum() == 0


def test_the_target_of_the_policy_steers_the_design():
    features = np.zeros((20, 2, 2))
    features[:10, 0, 0] = features[10:, 0, 1] = 1.0
    pool = Pool(features=features, valid=np.ones((20, 2), dtype=bool), rewards=np.zeros((20, 2)), beta=1.0)
    assert (select(replace(pool, fisher=np.diag([0.0, 1.0])), 10).prompt >= 10).all()


@pytest.mark.parametrize("budget", [5, 30])
def test_swapping_responses_swaps_the_pairs_and_nothing_else(make_pool, budget):
    pool = make_pool((20, 5, 4), decay=1.0, masked=True)
    order = np.random.default_rng(1).permutation(5)
    mirrored = replace(
        pool, features=pool.features[:, order], valid=pool.valid[:, order], rewards=pool.rewards[:, order]
    )
    original, found = select(pool, budget), select(mirrored, budget)
    assert {(p, *sorted((order[a], order[b]))) for p, a, b in ordered_pairs(found)} == set(ordered_pairs(original))


@pytest.mark.parametrize("budget", [5, 30])
def test_permuting_prompts_permutes_the_selection(make_pool, budget):
    pool = make_pool((20, 5, 4), decay=1.0)
    order = np.random.default_rng(2).permutation(20)
    shuffled = replace(pool, features=pool.features[order], valid=pool.valid[order], rewards=pool.rewards[order])
    original, found = select(pool, budget), select(shuffled, budget)
    assert {(order[p], a, b) for p, a, b in ordered_pairs(found)} == set(ordered_pairs(original))


@pytest.mark.parametrize("size", [1.0, 1e4])
def test_what_all_responses_of_a_prompt_share_changes_nothing(make_pool, size):
    pool = make_pool((20, 5, 4), decay=1.0)
    shift = size * np.random.default_rng(3).standard_normal((20, 1, 4))
    original, found = select(pool, 30), select(replace(pool, features=pool.features + shift), 30)
    assert set(ordered_pairs(found)) == set(ordered_pairs(original))
    assert found.certificate.objective == pytest.approx(original.certificate.objective, rel=1e-9)


def test_a_larger_pool_never_has_a_worse_bound(make_pool):
    pool = replace(make_pool((30, 5, 4), decay=1.0), fisher=np.eye(4))
    part = replace(pool, features=pool.features[:15], valid=pool.valid[:15], rewards=pool.rewards[:15])
    whole, half = (select(each, 20).certificate for each in (pool, part))
    assert whole.lower_bound <= half.relaxed_objective


@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1e3, 1e8])
@pytest.mark.parametrize("rank", [1, 3, 6])
def test_features_of_any_size_and_rank_leave_finite_numbers(scale, rank):
    rng = np.random.default_rng(rank)
    features = scale * rng.standard_normal((12, 4, rank)) @ rng.standard_normal((rank, 6))
    pool = Pool(features=features, valid=np.ones((12, 4), dtype=bool), rewards=np.zeros((12, 4)), beta=0.1)
    selection = select(pool, 20, cap=2)
    certificate = selection.certificate
    assert len(set(ordered_pairs(selection))) == 20
    assert np.isfinite([certificate.objective, certificate.relaxed_objective, certificate.effective_rank]).all()
    assert 0 < certificate.lower_bound <= certificate.objective
    assert 1 - 1e-9 <= certificate.effective_rank <= rank + 1e-6


@pytest.mark.parametrize("shape", [(1, 6, 3), (9, 2, 3), (1, 2, 1)])
def test_one_prompt_two_responses_or_a_single_pair_are_pools_too(make_pool, shape):
    pool = make_pool(shape)
    for budget in range(1, pool.num_pairs + 1):
        assert len(set(ordered_pairs(select(pool, budget)))) == budget


def test_responses_that_are_all_alike_still_fill_the_budget():
    ones = np.ones((4, 3, 2))
    pool = Pool(features=ones, valid=np.ones((4, 3), dtype=bool), rewards=np.zeros((4, 3)), beta=0.1)
    selection = select(pool, 7, cap=2)
    assert len(set(ordered_pairs(selection))) == 7
    assert not selection.scores.any()
    assert selection.certificate.efficiency == 1
    assert selection.certificate.effective_rank == 0


def test_a_pair_of_equal_responses_is_the_last_to_be_chosen(make_pool):
    pool = make_pool((10, 3, 4))
    features = pool.features.copy()
    features[:, 1] = features[:, 0]
    selection = select(replace(pool, features=features), 20)
    assert (0, 1) not in {(a, b) for _, a, b in ordered_pairs(selection)}
