from dataclasses import replace

import numpy as np
import pytest

from tasks.design import criterion as criterion_module
from tasks.design.criterion import log_det_criterion, trace_criterion
from tasks.design.pool import Labels, Pool
from tasks.design.search import Effort
from tasks.design.simplex import simplex_design

CRITERIA = [trace_criterion, log_det_criterion]


def pool_of(features, rewards=None, **parts):
    valid = np.ones(features.shape[:2], dtype=bool)
    return Pool(features=features, valid=valid, rewards=np.zeros(valid.shape) if rewards is None else rewards, **parts)


def one_pair_a_prompt(differences, margins=None, **parts):
    """Prompt e offers the single pair of difference e; `beta` is 1."""
    differences = np.asarray(differences, dtype=float)
    features = np.stack([differences, np.zeros_like(differences)], axis=1)
    rewards = None if margins is None else np.stack([margins, np.zeros_like(margins)], axis=1)
    return pool_of(features, rewards, beta=1.0, **parts)


def tournament(policy, edges=None):
    """One prompt whose K one-hot responses the policy writes with these probabilities; edges: pairs on offer."""
    size = len(policy)
    fisher = np.diag(policy) - np.outer(policy, policy)
    slots = list(zip(*np.triu_indices(size, 1), strict=True))
    offered = None if edges is None else np.array([[slot in edges for slot in slots]])
    return pool_of(np.eye(size)[None], beta=1.0, fisher=fisher, offered=offered)


def solve(criterion, tolerance=1e-6, **limits):
    design = simplex_design(criterion, Effort(tolerance=tolerance, **limits))
    assert design.weights.sum() == pytest.approx(1)
    assert (design.weights >= 0).all()
    assert not design.weights[~criterion.mask].any()
    return design


def multiplicative(criterion, steps):
    """The plain rule from the uniform design: all designs on the way."""
    weights = criterion.mask / criterion.mask.sum()
    for _ in range(steps):
        yield weights
        scores = criterion.gains(criterion.expand(criterion.information(weights)))
        weights = weights * scores**criterion.measure.power
        weights = weights / weights.sum()


def test_orthogonal_pairs_share_by_root_importance_over_length():
    lengths, importance = np.array([1.0, 2.0, 0.5, 1.5]), np.array([1.0, 3.0, 0.2, 2.0])
    pool = one_pair_a_prompt(np.diag(lengths), fisher=np.diag(importance))
    ratios = np.sqrt(importance) / lengths
    design = solve(trace_criterion(pool, ridge=1e-12, logistic=False))
    assert design.objective == pytest.approx(ratios.sum() ** 2, rel=1e-8)
    np.testing.assert_allclose(design.weights[:, 0], ratios / ratios.sum(), rtol=1e-4)


def test_orthogonal_pairs_share_the_log_determinant_evenly_whatever_their_length():
    pool = one_pair_a_prompt(np.diag([1.0, 2.0, 0.5, 1.5]))
    np.testing.assert_allclose(solve(log_det_criterion(pool, ridge=1e-12)).weights, 1 / 4, rtol=1e-5)


def test_even_edges_and_edges_by_the_policy_are_worth_the_same():
    policy = np.array([0.1, 0.2, 0.3, 0.4])
    criterion = trace_criterion(tournament(policy), ridge=1e-9, logistic=False)
    by_policy = np.outer(policy, policy)[np.triu_indices(4, 1)]
    expected = 3 * (1 - np.square(policy).sum()) / 2
    assert criterion.objective(np.full((1, 6), 1 / 6)) == pytest.approx(expected, rel=1e-6)
    assert criterion.objective(by_policy[None] / by_policy.sum()) == pytest.approx(expected, rel=1e-6)
    assert solve(criterion).objective < 0.99 * expected


@pytest.mark.parametrize("num_responses", [3, 6])
def test_responses_of_a_uniform_policy_are_compared_evenly(num_responses):
    policy = np.full(num_responses, 1 / num_responses)
    design = solve(trace_criterion(tournament(policy), ridge=1e-9, logistic=False), 1e-8)
    assert design.objective == pytest.approx((num_responses - 1) ** 2 / (2 * num_responses), rel=1e-6)
    np.testing.assert_allclose(design.weights, 1 / design.weights.size, atol=1e-4)


@pytest.mark.parametrize(
    "cuts", [{(0, 1): [1], (0, 2): [2], (0, 3): [3]}, {(0, 1): [0], (1, 2): [0, 1], (2, 3): [3]}], ids=["star", "path"]
)
def test_a_tree_weighs_its_edges_by_what_they_cut(cuts):
    policy = np.array([0.1, 0.2, 0.3, 0.4])
    sides = np.array([policy[cuts[edge]].sum() for edge in sorted(cuts)])
    roots = np.sqrt(sides * (1 - sides))
    pool = tournament(policy, edges=set(cuts))
    design = solve(trace_criterion(pool, ridge=1e-9, logistic=False))
    assert design.objective == pytest.approx(roots.sum() ** 2, rel=1e-6)
    np.testing.assert_allclose(design.weights[pool.pair_mask], roots / roots.sum(), rtol=1e-3)


@pytest.mark.parametrize("criterion_of", CRITERIA)
def test_one_parameter_is_learned_from_the_longest_difference(make_pool, criterion_of):
    pool = make_pool((20, 4, 1), margin=0.0)
    design = solve(criterion_of(pool, ridge=1e-9))
    assert design.weights.ravel()[design.scores.argmax()] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("criterion_of", CRITERIA)
def test_one_parameter_of_known_size_is_learned_best_at_odds_of_eleven_to_one(criterion_of):
    margins = np.sort(np.append(np.linspace(0.01, 8, 200), 2.39936))
    pool = one_pair_a_prompt(margins[:, None], margins, fisher=np.eye(1))
    design = solve(criterion_of(pool, ridge=1e-12), 1e-9)
    assert margins[design.weights[:, 0].argmax()] == 2.39936
    best = {trace_criterion: 1 / 0.439229, log_det_criterion: -np.log(0.439229)}[criterion_of]
    assert design.objective == pytest.approx(best, rel=1e-5)


def test_slope_and_intercept_are_learned_best_at_two_opposite_margins():
    margins = np.sort(np.append(np.linspace(-6, 6, 200), [-1.543405, 1.543405]))
    pool = one_pair_a_prompt(np.stack([np.ones_like(margins), margins], axis=1), margins)
    design = solve(log_det_criterion(pool, ridge=1e-12), 1e-8)
    heavy = margins[design.weights[:, 0] > 0.1]
    np.testing.assert_allclose(heavy, [-1.543405, 1.543405])
    np.testing.assert_allclose(design.weights[design.weights > 0.1], 0.5, atol=0.02)


@pytest.mark.parametrize("criterion_of", CRITERIA)
@pytest.mark.parametrize("held", [0, 3])
def test_at_the_optimum_no_score_exceeds_the_mean_and_those_with_weight_attain_it(make_pool, criterion_of, held):
    pool = make_pool((40, 5, 6), decay=0.5, masked=True)
    labels = Labels(differences=0.1 * np.eye(6)[:held], margins=np.zeros(held))
    criterion = criterion_of(replace(pool, labels=labels), ridge=1e-3)
    design = solve(criterion, 1e-7)
    mean = (design.weights * design.scores).sum()
    assert design.converged
    assert design.scores.max() <= mean * (1 + 1e-5)
    assert design.scores[design.weights > 1e-3].min() >= mean * (1 - 1e-3)
    assert design.objective == criterion.objective(design.weights)
    np.testing.assert_array_equal(
        design.scores, criterion.gains(criterion.expand(criterion.information(design.weights)))
    )
    if not held and criterion_of is log_det_criterion:
        assert mean == pytest.approx(6, rel=0.05)


@pytest.mark.parametrize("criterion_of", CRITERIA)
def test_the_certificate_brackets_the_optimum_at_every_effort(make_pool, criterion_of):
    criterion = criterion_of(make_pool((60, 5, 8), seed=3, decay=1.0), ridge=1e-4)
    best = solve(criterion, 1e-8)
    stages = [solve(criterion, 1e-8, max_passes=passes) for passes in range(2, best.passes)]
    assert best.converged
    assert len(stages) > 2
    for passes, stage in enumerate(stages, start=2):
        assert stage.passes == passes
        assert not stage.converged
        assert stage.lower_bound <= best.objective + 1e-9 * abs(best.objective)
        assert best.lower_bound <= stage.objective
    assert stages[0].lower_bound < best.lower_bound
    assert stages[-1].gap < 1e-2 * stages[0].gap


@pytest.mark.parametrize("criterion_of", CRITERIA)
@pytest.mark.parametrize("held", [0, 3])
def test_the_multiplicative_rule_never_raises_the_measure_and_ends_in_the_same_design(make_pool, criterion_of, held):
    pool = make_pool((12, 4, 4), seed=held, decay=0.5, masked=True)
    labels = Labels(differences=np.eye(4)[:held], margins=np.zeros(held))
    criterion = criterion_of(replace(pool, labels=labels), ridge=1e-2)
    *_, last = designs = list(multiplicative(criterion, 1500))
    objectives = np.array([criterion.objective(weights) for weights in designs[:200]])
    design = solve(criterion, 1e-7)
    assert (np.diff(objectives) <= 1e-12 * np.abs(objectives[1:])).all()
    assert criterion.objective(last) == pytest.approx(design.objective, rel=1e-5)
    assert design.objective <= criterion.objective(last) + 1e-7 * abs(design.objective)
    np.testing.assert_allclose(criterion.information(last), criterion.information(design.weights), atol=1e-2)


@pytest.mark.parametrize("criterion_of", CRITERIA)
def test_labels_held_turn_the_design_to_what_they_leave_open(criterion_of):
    pool = one_pair_a_prompt(np.eye(2), fisher=np.eye(2))
    labels = Labels(differences=np.array([[10.0, 0.0]]), margins=np.zeros(1))
    design = solve(criterion_of(replace(pool, labels=labels), ridge=1e-9))
    np.testing.assert_allclose(design.weights[:, 0], [0, 1], atol=1e-6)


@pytest.mark.parametrize("criterion_of", CRITERIA)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
@pytest.mark.parametrize("rank", [1, 3])
def test_features_of_any_size_and_rank_leave_a_certified_design(criterion_of, scale, rank):
    rng = np.random.default_rng(rank)
    features = scale * rng.standard_normal((12, 4, rank)) @ rng.standard_normal((rank, 6))
    design = solve(criterion_of(pool_of(features, beta=0.1), ridge=1e-6), 1e-3)
    assert design.converged
    assert np.isfinite([design.objective, design.lower_bound]).all()
    assert design.lower_bound <= design.objective


@pytest.mark.parametrize("criterion_of", CRITERIA)
def test_a_pool_without_differences_is_weighed_evenly(criterion_of):
    design = solve(criterion_of(pool_of(np.ones((5, 3, 2)), beta=0.1), ridge=1e-3))
    assert design.converged
    assert design.gap == 0
    np.testing.assert_allclose(design.weights, 1 / 15)


@pytest.mark.parametrize("criterion_of", CRITERIA)
def test_a_single_pair_gets_all_weight(make_pool, criterion_of):
    design = solve(criterion_of(make_pool((1, 2, 3)), ridge=1e-6))
    np.testing.assert_allclose(design.weights, [[1.0]])
    assert design.lower_bound == pytest.approx(design.objective)


def test_a_pool_without_valid_pairs_is_refused(make_pool):
    pool = replace(make_pool((3, 2, 2)), valid=np.array([[True, False]] * 3))
    with pytest.raises(ValueError, match="no pair is valid"):
        simplex_design(log_det_criterion(pool, ridge=1.0))


@pytest.mark.parametrize("criterion_of", CRITERIA)
def test_a_pair_of_equal_responses_gets_no_weight_even_from_a_start_that_gives_it_all(make_pool, criterion_of):
    pool = make_pool((10, 3, 4))
    features = pool.features.copy()
    features[:, 1] = features[:, 0]
    criterion = criterion_of(replace(pool, features=features), ridge=1e-3)
    start = np.zeros((10, 3))
    start[:, 0] = 1.0
    for design in (solve(criterion), simplex_design(criterion, Effort(tolerance=1e-6), start=start)):
        assert design.converged
        assert not design.weights[:, 0].any()


@pytest.mark.parametrize("criterion_of", CRITERIA)
def test_a_start_near_the_optimum_saves_passes(make_pool, criterion_of):
    criterion = criterion_of(make_pool((60, 5, 8), decay=1.0), ridge=1e-4)
    fresh = solve(criterion, 1e-4)
    again = simplex_design(criterion, Effort(tolerance=1e-4), start=7 * fresh.weights)
    assert again.passes == 1
    assert again.objective == pytest.approx(fresh.objective, rel=1e-12)


@pytest.mark.parametrize("criterion_of", CRITERIA)
def test_single_precision_passes_lead_to_a_design_certified_in_double_precision(make_pool, monkeypatch, criterion_of):
    criterion = criterion_of(make_pool((60, 5, 8), decay=1.0), ridge=1e-4)
    double = solve(criterion, 1e-3)
    monkeypatch.setattr(criterion_module, "_LARGE_POOL", 1)
    single = solve(criterion, 1e-3)
    assert single.converged
    assert single.scores.dtype == np.float64
    assert single.objective == criterion.objective(single.weights)
    assert single.lower_bound <= double.objective
    assert double.lower_bound <= single.objective


def test_passes_are_those_that_score_all_pairs(make_pool, monkeypatch):
    scored, gains = [], criterion_module.Criterion.gains
    monkeypatch.setattr(criterion_module.Criterion, "gains", lambda *args: scored.append(0) or gains(*args))
    design = solve(log_det_criterion(make_pool((60, 5, 8), decay=1.0), ridge=1e-4), 1e-6)
    assert design.passes == len(scored)
    assert design.passes < 20


def test_a_search_without_time_is_evaluated_and_says_so(make_pool):
    design = solve(trace_criterion(make_pool((60, 5, 8), decay=1.0), ridge=1e-4), 1e-9, max_seconds=0.0)
    assert design.passes == 2
    assert not design.converged


def test_rounding_ends_a_search_that_asks_for_too_much(make_pool):
    design = solve(log_det_criterion(make_pool((60, 5, 8), decay=1.0), ridge=1e-4), 1e-30)
    assert design.passes < 200
    assert not design.converged
    assert design.gap < 1e-5
