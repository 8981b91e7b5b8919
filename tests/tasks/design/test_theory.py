from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from scipy.special import expit

from tasks.design.capped import Problem, bounded_design
from tasks.design.limits import Limits
from tasks.design.pool import Labels, Pool
from tasks.design.search import Effort
from tasks.design.selectors import SELECTORS

DESIGNS = ["trace_design", "d_design", "a_design", "v_design"]
every_design = pytest.mark.parametrize("kind", DESIGNS)


def criterion_of(kind, pool, **options):
    return SELECTORS[kind](**options).criterion(pool)


def solve(criterion, budget, *, cap=None, floor=0, **effort):
    limits = Limits(mask=criterion.mask, budget=budget, cap=cap, floor=floor)
    return bounded_design(Problem(criterion, limits), Effort(**effort))


def select(kind, pool, budget, **options):
    return SELECTORS[kind](**options)(pool, budget, np.random.default_rng(0))


def chosen(selection):
    return set(zip(selection.prompt.tolist(), selection.first.tolist(), selection.second.tolist(), strict=True))


def unit_of(kind, design, pool):
    """What a relative gap of 1 stands for."""
    return pool.dim if kind == "d_design" else design.objective


@every_design
def test_of_known_margins_along_one_direction_the_one_most_worth_a_label_is_2_39936(kind):
    margins = np.arange(1, 8001) / 1000
    features = np.stack([margins, np.zeros(8000)], axis=1)
    pool = Pool(features=features[:, :, None], valid=np.ones((8000, 2), bool), rewards=features, beta=1.0)
    selection = select(kind, pool, 1, ridge=1e-9)
    assert margins[selection.prompt[0]] == pytest.approx(2.39936, abs=6e-4)
    information = {"d_design": np.exp(-selection.certificate.objective)}
    fisher = SELECTORS[kind]().criterion(pool).objective(np.zeros((8000, 1))) * 1e-3
    found = information.get(kind, fisher / selection.certificate.objective)
    assert found == pytest.approx(0.439229, abs=1e-6)
    assert expit(margins[selection.prompt[0]]) == pytest.approx(0.916778, abs=5e-5)


def test_slope_and_position_bias_are_told_apart_best_by_margins_of_plus_and_minus_1_543405():
    margins = np.arange(-4000, 4001) / 1000
    features = np.zeros((8001, 2, 2))
    features[:, 0] = np.stack([np.ones(8001), margins], axis=1)
    pool = Pool(features=features, valid=np.ones((8001, 2), bool), rewards=features[:, :, 1], beta=1.0)
    selection = select("d_design", pool, 2, ridge=1e-9, tolerance=1e-6)
    np.testing.assert_allclose(np.sort(margins[selection.prompt]), [-1.543405, 1.543405], atol=5e-3)
    curvature = expit(1.543405) * expit(-1.543405)
    optimum = -np.log((2 * curvature * 1.543405) ** 2)
    assert optimum <= selection.certificate.objective
    assert selection.certificate.lower_bound == pytest.approx(optimum, abs=1e-6)  # the grid is a little off
    assert selection.certificate.objective == pytest.approx(optimum, abs=3e-6)
    assert expit(1.543405) == pytest.approx(0.823959, abs=1e-6)


@pytest.mark.parametrize("kind", ["trace_design", "d_design"])
def test_adding_removing_and_swapping_a_label_change_the_measure_as_worth_and_price_say(make_pool, pair_vectors, kind):
    pool = make_pool((4, 3, 3))
    criterion, weights, vectors = criterion_of(kind, pool, ridge=0.05), np.full((4, 3), 1.5), pair_vectors(pool)
    expansion = criterion.expand(criterion.information(weights))
    gains, leverages = criterion.gains(expansion).ravel(), criterion.leverages_of(expansion, np.arange(12))
    assert criterion.gains_of(expansion, np.arange(12)) == pytest.approx(gains)
    inverse = expansion.inverse_root @ expansion.inverse_root.T
    bent = inverse @ pool.policy_fisher @ inverse
    assert leverages == pytest.approx(np.einsum("ei,ij,ej->e", vectors, inverse, vectors))

    def change(added, removed):
        changed = weights.ravel().copy()
        changed[added] += 1
        changed[removed] -= 1
        return criterion.objective(changed.reshape(4, 3)) - expansion.objective

    for pair in range(12):
        assert change([pair], []) == pytest.approx(-expansion.worth(gains, leverages)[pair], rel=1e-9)
        assert change([], [pair]) == pytest.approx(expansion.price(gains, leverages)[pair], rel=1e-9)
        other = (pair + 5) % 12
        both = vectors[[pair, other]].T
        between = np.diag([1.0, -1.0]) + both.T @ inverse @ both
        swapped = -np.log(-np.linalg.det(between))
        if kind == "trace_design":
            swapped = -np.trace(np.linalg.solve(between, both.T @ bent @ both))
        assert change([pair], [other]) == pytest.approx(swapped, rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("kind", ["trace_design", "d_design"])
@pytest.mark.parametrize("seed", range(3))
def test_the_best_step_is_the_best_of_a_fine_grid(make_pool, kind, seed):
    criterion = criterion_of(kind, make_pool((8, 4, 5), seed=seed, decay=1.0))
    half = np.random.default_rng(seed).permutation(48).reshape(8, 6) < 24
    begin, end = criterion.information(half * 1.0), criterion.information(~half * 1.0)
    expansion, grid = criterion.expand(begin), np.linspace(0, 1, 1001)
    step = expansion.best_step(end - begin)
    values = [criterion.expand(begin + share * (end - begin)).objective for share in grid]
    assert 0 < grid[np.argmin(values)] < 1
    assert abs(step - grid[np.argmin(values)]) <= 1.01e-3
    assert criterion.expand(begin + step * (end - begin)).objective <= min(values) + 1e-12
    assert expansion.best_step(end) == 1
    assert expansion.best_step(-begin / 2) == 0


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("cap", [None, 2])
@every_design
def test_the_certificate_brackets_the_optimum_after_any_number_of_passes(make_pool, kind, cap, held):
    pool = make_pool((20, 5, 6), seed=3, decay=1.0)
    if held:
        differences = np.random.default_rng(0).standard_normal((8, 6))
        pool = replace(pool, labels=Labels(differences=differences, margins=differences[:, 0]))
    criterion = criterion_of(kind, pool)
    best = solve(criterion, 24, cap=cap, tolerance=1e-5, max_passes=3000)
    stages = [solve(criterion, 24, cap=cap, tolerance=1e-12, max_passes=passes) for passes in (1, 2, 3, 5, 8, 13, 21)]
    assert best.converged
    for stage in stages:
        plain = stage.objective - stage.gap * unit_of(kind, stage, pool)
        assert plain <= stage.lower_bound <= best.objective + 1e-12
        assert best.lower_bound <= stage.objective + 1e-12
    assert (np.diff([stage.objective for stage in stages[1:]]) < 0).all()
    assert stages[0].gap > 10 * stages[-1].gap > 0


@every_design
def test_optimal_weights_are_one_above_a_threshold_score_and_zero_below(make_pool, kind):
    pool, tolerance = make_pool((60, 5, 3), decay=1.0), 1e-5
    design = solve(criterion_of(kind, pool), 150, tolerance=tolerance, max_passes=3000)
    threshold = np.sort(design.scores, axis=None)[-150]
    above = design.scores - threshold
    broken = (np.where(above > 0, 1 - design.weights, design.weights) * np.abs(above)).sum()
    assert broken == pytest.approx(design.gap * unit_of(kind, design, pool), rel=1e-6)
    assert broken <= tolerance * unit_of(kind, design, pool)
    assert ((design.weights > 0.05) & (design.weights < 0.95)).sum() <= 2 * 6  # dim (dim + 1) / 2 at an optimum


@every_design
def test_equal_least_and_most_pairs_of_a_prompt_are_met_exactly(make_pool, kind):
    pool = make_pool((12, 5, 4), masked=True)
    exact = np.minimum(pool.pair_mask.sum(axis=1), 2)
    design = solve(criterion_of(kind, pool), int(exact.sum()), cap=2, floor=2)
    selection = select(kind, pool, int(exact.sum()), max_pairs_per_prompt=2, min_pairs_per_prompt=2)
    assert exact.min() < 2
    np.testing.assert_allclose(design.weights.sum(axis=1), exact, atol=1e-12)
    assert np.bincount(selection.prompt, minlength=12).tolist() == exact.tolist()
    assert selection.certificate.efficiency > 0.8


def transformed(pool, matrix):
    fisher = matrix @ pool.policy_fisher @ matrix.T
    return replace(pool, features=pool.features @ matrix.T, fisher=(fisher + fisher.T) / 2)


@every_design
def test_sides_prompts_and_what_responses_share_mean_nothing(make_pool, kind):
    pool, rng = make_pool((15, 4, 5), decay=0.5, masked=True), np.random.default_rng(4)
    plain = select(kind, pool, 20)
    shared = rng.standard_normal((15, 1, 5))
    shifted = replace(pool, features=pool.features + 10 * shared, rewards=pool.rewards + shared[:, :, 0])
    turned = transformed(pool, np.linalg.qr(rng.standard_normal((5, 5)))[0])
    flipped = replace(pool, features=-pool.features, rewards=-pool.rewards)
    for same in (shifted, turned, flipped):
        selection = select(kind, same, 20)
        assert chosen(selection) == chosen(plain)
        assert selection.certificate.objective == pytest.approx(plain.certificate.objective, rel=1e-8)
    prompts, responses = rng.permutation(15), rng.permutation(4)
    mixed = {name: getattr(pool, name)[prompts][:, responses] for name in ("features", "valid", "rewards")}
    selection = select(kind, replace(pool, **mixed), 20)
    ends = np.sort(responses[np.stack([selection.first, selection.second])], axis=0)
    assert set(zip(prompts[selection.prompt].tolist(), *ends.tolist(), strict=True)) == chosen(plain)


@pytest.mark.parametrize(("kind", "matters"), [("trace_design", 0), ("d_design", 0), ("v_design", 0), ("a_design", 1)])
def test_the_coordinates_of_the_features_matter_to_the_a_design_only(make_pool, kind, matters):
    pool = make_pool((15, 4, 4), seed=1)
    matrix = np.diag([1.0, 5.0, 0.2, 30.0]) @ (np.eye(4) + 0.3)
    plain, other = (select(kind, each, 25, ridge=1e-12) for each in (pool, transformed(pool, matrix)))
    assert (chosen(plain) != chosen(other)) == bool(matters)
    shift = 2 * np.log(np.linalg.det(matrix)) if kind == "d_design" else 0
    same = other.certificate.objective + shift == pytest.approx(plain.certificate.objective, rel=1e-6)
    assert same != bool(matters)


@pytest.mark.parametrize("scale", [1e-8, 1e8])
@every_design
def test_the_scale_of_the_features_means_nothing_if_the_ridge_goes_with_it(make_pool, kind, scale):
    pool = make_pool((15, 4, 4), seed=2, masked=True)
    plain = select(kind, pool, 20)
    scaled = select(kind, replace(pool, features=scale * pool.features), 20, ridge=1e-3 * scale**2)
    power, shift = {"a_design": (scale**-2, 0), "d_design": (1, -8 * np.log(scale))}.get(kind, (1, 0))
    assert chosen(scaled) == chosen(plain)
    assert scaled.certificate.objective == pytest.approx(power * plain.certificate.objective + shift, rel=1e-8)


@every_design
def test_the_curvature_of_a_label_is_irrelevant_at_the_reference_policy_and_relevant_away(make_pool, kind):
    pool = replace(make_pool((30, 4, 4)), rewards=np.zeros((30, 4)))
    with_it = select(kind, pool, 30, ridge=1e-3)
    without = select(kind, pool, 30, ridge=4e-3, logistic=False)
    assert chosen(with_it) == chosen(without)
    away = make_pool((30, 4, 4), margin=3.0)
    criterion, weights = criterion_of(kind, away), np.zeros((2, 30 * 6))
    for row, logistic in zip(weights, (True, False), strict=True):
        design = solve(criterion_of(kind, away, logistic=logistic), 30)
        row[:] = design.weights.ravel()
    informed, blind = (criterion.objective(row.reshape(30, 6)) for row in weights)
    assert informed < (blind - 4 * np.log(1.2) if kind == "d_design" else blind / 1.2)


@every_design
def test_without_the_curvature_margins_of_pairs_and_labels_mean_nothing(make_pool, kind):
    pool, rng = make_pool((6, 4, 3), margin=3.0), np.random.default_rng(8)
    differences, margins = rng.standard_normal((2, 5, 3))
    held = replace(pool, labels=Labels(differences=differences, margins=3 * margins[:, 0]))
    still = Labels(differences=differences, margins=np.zeros(5))
    doubtful = replace(pool, rewards=np.zeros((6, 4)), labels=still)
    weights = rng.random((6, 6))
    blind, even = (criterion_of(kind, each, logistic=False).objective(weights) for each in (held, doubtful))
    assert blind == pytest.approx(even, rel=1e-12)
    informed = [criterion_of(kind, each).objective(weights) for each in (held, replace(held, labels=still))]
    assert informed[0] > informed[1]  # labels that were foreseen tell less


@pytest.mark.parametrize("kind", ["trace_design", "d_design", "a_design"])
def test_more_labels_and_larger_pools_never_make_the_optimum_worse(make_pool, kind):
    pool = make_pool((20, 4, 4), seed=5)
    criterion = criterion_of(kind, pool)
    optima = [solve(criterion, budget, tolerance=1e-5, max_passes=3000) for budget in (5, 6, 20, 60, 120)]
    assert (np.diff([optimum.objective for optimum in optima]) < 0).all()
    order, bounds = np.random.default_rng(6).permutation(120), []
    for size in (20, 40, 80, 120):
        offered = np.isin(np.arange(120), order[:size]).reshape(20, 6)
        part = criterion_of(kind, replace(pool, offered=offered, fisher=pool.policy_fisher))
        bounds.append(solve(part, 12, tolerance=1e-4, max_passes=3000))
    for smaller, larger in pairwise(bounds):
        assert larger.lower_bound <= smaller.objective
        assert larger.objective < smaller.lower_bound  # strictly here, every part being far from enough


@pytest.fixture
def degenerate(make_pool):
    pool = make_pool((6, 4, 5))
    flat = make_pool((6, 4, 2)).features @ np.random.default_rng(7).standard_normal((2, 5))
    return {
        "features of rank 2 in 5 dimensions": (replace(pool, features=flat), 9),
        "more dimensions than pairs": (make_pool((2, 3, 20)), 4),
        "no difference between responses": (replace(pool, features=np.ones((6, 4, 5))), 7),
        "one prompt": (make_pool((1, 6, 3)), 5),
        "two responses": (make_pool((20, 2, 3)), 7),
        "one label": (pool, 1),
        "every pair": (pool, 36),
        "tiny features": (replace(pool, features=1e-8 * pool.features), 9),
        "huge features": (replace(pool, features=1e8 * pool.features), 9),
        "huge features in single precision": (replace(pool, features=(1e8 * pool.features).astype(np.float32)), 9),
        "margins far beyond doubt": (replace(pool, rewards=1e4 * pool.rewards), 9),
    }


@every_design
def test_degenerate_pools_still_give_a_whole_selection_with_an_honest_certificate(degenerate, kind):
    for name, (pool, budget) in degenerate.items():
        selection = select(kind, pool, budget)
        found = selection.certificate
        assert len(chosen(selection)) == budget, name
        assert 0 <= found.efficiency <= 1, name
        assert found.lower_bound <= found.objective < np.inf, name
        assert found.converged != bool(selection.notes), name
        assert name == "one label" or found.converged, name
        assert name != "every pair" or found.efficiency == pytest.approx(1, abs=1e-12), name


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["features", "rewards"])
def test_numbers_that_are_none_are_refused_with_their_place(make_pool, name, bad):
    pool = make_pool((600, 4, 3))
    broken = getattr(pool, name).copy()
    broken[555, 2] = bad
    with pytest.raises(ValueError, match=rf"{name} holds {bad} at prompt 555, response 2"):
        replace(pool, **{name: broken})
    with pytest.raises(ValueError, match=rf"differences of the labels hold {bad} at label 2"):
        Labels(differences=np.array([[0.0], [1.0], [bad]]), margins=np.zeros(3))
