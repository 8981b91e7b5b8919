"""Intervals cover, corrections hold the family-wise error, and saved labels are read where they were measured."""

import numpy as np
import pytest

from tasks.design.statistics import LEVEL, Reading, band, compare, compare_pairs, labels_saved

BUDGETS = (100, 200, 400, 800)
MORE = (*BUDGETS, 1600, 3200)
NUM_SEEDS = 20
NUM_WORLDS = 200


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def curves(factor: float, noise: float, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A selector's values at BUDGETS and uniform's at MORE: log(factor B) and log B, with a level shared by a seed."""
    world = 0.5 * random.standard_normal((NUM_SEEDS, 1))
    selector = np.log(factor * np.array(BUDGETS)) + world + noise * random.standard_normal((NUM_SEEDS, len(BUDGETS)))
    uniform = np.log(MORE) + world + noise * random.standard_normal((NUM_SEEDS, len(MORE)))
    return selector, uniform


def test_intervals_of_differences_cover() -> None:
    random = rng()
    found = [compare(random.normal(0.3, 1.0, (NUM_SEEDS, 4)), random, 1000) for _ in range(NUM_WORLDS)]
    covered = np.mean([entry.low <= 0.3 <= entry.high for family in found for entry in family])
    assert covered == pytest.approx(1 - LEVEL, abs=0.03)


def test_without_any_difference_a_family_seldom_has_a_verdict() -> None:
    random, false, alone = rng(), 0, 0
    for _ in range(NUM_WORLDS):
        shared = random.standard_normal((NUM_SEEDS, 1))
        family = compare(shared + random.standard_normal((NUM_SEEDS, 12)), random, 1000)
        false += any(entry.verdict != "no difference shown" for entry in family)
        alone += any(entry.p_value <= LEVEL for entry in family)
    assert false / NUM_WORLDS <= LEVEL + 0.03
    assert alone / NUM_WORLDS > 0.15, "without the correction there would be many"


def test_large_differences_are_shown_with_their_sign_and_do_not_hide_each_other() -> None:
    values = rng().standard_normal((NUM_SEEDS, 3)) + np.array([2.0, -2.0, 0.0])
    verdicts = [entry.verdict for entry in compare(values, rng())]
    assert verdicts == ["above", "below", "no difference shown"]


def test_adjusted_p_values_are_no_smaller_and_keep_the_order() -> None:
    family = compare(rng().standard_normal((NUM_SEEDS, 10)) + np.linspace(0, 0.8, 10), rng())
    assert all(entry.adjusted >= entry.p_value for entry in family)
    ranked = sorted(family, key=lambda entry: -abs(entry.mean / entry.error))
    assert [entry.adjusted for entry in ranked] == sorted(entry.adjusted for entry in ranked)


def test_the_order_of_seeds_means_nothing() -> None:
    selector, uniform = curves(1.5, 0.2, rng())
    order = rng(1).permutation(NUM_SEEDS)
    difference = selector - uniform[:, :4]
    assert compare(difference, rng(2)) == compare(difference[order], rng(2))
    assert labels_saved(selector, uniform, (BUDGETS, MORE), rng(2)) == labels_saved(
        selector[order], uniform[order], (BUDGETS, MORE), rng(2)
    )
    np.testing.assert_allclose(band(selector, rng(2)), band(selector[order], rng(2)))


def test_differences_without_spread_are_what_they_are() -> None:
    same, shifted = compare(np.stack([np.zeros(5), np.full(5, 0.1)], axis=1), rng())
    assert (same.mean, same.low, same.high, same.adjusted, same.verdict) == (0, 0, 0, 1, "no difference shown")
    assert (shifted.low, shifted.high, shifted.verdict) == (shifted.mean, shifted.mean, "above")


def test_one_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="found the values of 1 seeds: run 2 or more"):
        compare(np.zeros((1, 3)), rng())


def test_a_value_that_is_not_finite_is_refused_with_its_place() -> None:
    values = np.zeros((3, 2))
    values[1, 0] = np.nan
    with pytest.raises(ValueError, match="values hold nan in row 1, column 0"):
        compare(values, rng())


def test_each_selector_is_compared_with_each_base() -> None:
    level = rng().standard_normal((NUM_SEEDS, 2))
    values = {"uniform": level, "strong": level + 1.0, "ours": level + 0.5}
    found = compare_pairs(values, ["uniform", "strong"], rng())
    assert {name: [entry.verdict for entry in entries] for name, entries in found.items()} == {
        ("ours", "uniform"): ["above", "above"],
        ("ours", "strong"): ["below", "below"],
    }


def test_a_planted_factor_is_found_exactly_without_noise() -> None:
    selector, uniform = curves(1.5, 0.0, rng())
    savings = labels_saved(selector, uniform, (BUDGETS, MORE), rng())
    for saving in savings:
        assert saving.factor.value == pytest.approx(1.5, rel=1e-6)
        assert (saving.factor.bound, saving.low.bound, saving.high.bound) == ("", "", "")
        assert (saving.low.value, saving.high.value) == pytest.approx((1.5, 1.5), rel=1e-6)


def test_intervals_of_a_planted_factor_cover() -> None:
    random, covered, found = rng(), [], []
    for _ in range(30):
        savings = labels_saved(*curves(1.5, 0.3, random), (BUDGETS, MORE), random)
        covered += [saving.low.value <= 1.5 <= saving.high.value for saving in savings]
        found += [saving.factor.value for saving in savings]
    assert np.median(found) == pytest.approx(1.5, rel=0.03)
    assert np.mean(covered) > 0.88


def test_nothing_is_read_beyond_what_was_measured() -> None:
    selector, uniform = curves(1.0, 0.0, rng())
    far = labels_saved(selector + 9, uniform, (BUDGETS, MORE), rng())
    assert [saving.factor for saving in far] == [Reading(MORE[-1] / budget, "≥") for budget in BUDGETS]
    assert str(far[0]) == "≥32.00 [≥32.00, ≥32.00]"
    behind = labels_saved(selector - 9, uniform, (BUDGETS, MORE), rng())
    assert [saving.factor for saving in behind] == [Reading(MORE[0] / budget, "≤") for budget in BUDGETS]


def test_uniform_saves_nothing_against_itself() -> None:
    uniform = curves(1.0, 0.0, rng())[1]
    savings = labels_saved(uniform, uniform, (MORE, MORE), rng())
    assert [saving.factor.value for saving in savings] == pytest.approx([1.0] * len(MORE))
    assert {saving.factor.bound for saving in savings} == {""}


def test_a_dip_of_the_curve_is_levelled_and_its_beginning_counts() -> None:
    uniform = np.tile([0.0, 2.0, 1.0, 3.0], (4, 1))
    (saving,) = labels_saved(np.full((4, 1), 1.5), uniform, ((100,), BUDGETS), rng())
    assert saving.factor.value == pytest.approx(2.0)


def test_a_single_budget_of_uniform_gives_bounds() -> None:
    uniform = np.zeros((4, 1))
    readings = [labels_saved(np.full((4, 1), x), uniform, ((100,), (100,)), rng())[0].factor for x in (-1, 0, 1)]
    assert [str(reading) for reading in readings] == ["≤1.00", "1.00", "≥1.00"]
