import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import expit
from scipy.stats import chi2, norm

from tasks.design.calibration import GAP_SPREAD, correlation_given, misfit_given, signal_of, within_prompts
from tasks.design.environments.linear import Linear
from tasks.design.environments.proxy import attach_proxy
from tasks.design.pool import Pool


def slope(gap, correlation):
    """kappa(m) by adaptive quadrature of its definition."""
    spread = GAP_SPREAD * np.sqrt(1 - correlation**2)
    centre = correlation * GAP_SPREAD * gap

    def integrand(x):
        return np.tanh(x / 2) * x * norm.pdf(x, centre, spread)

    whole, _ = quad(integrand, centre - 10 * spread, centre + 10 * spread, points=[0.0, centre], limit=200)
    return whole / GAP_SPREAD**2


def simulate(rng, size, correlation, *, pool=1):
    """Proxy gaps of the chosen response over the rejected one; of a larger pool the largest gaps are labelled."""
    gaps = np.sort(np.abs(rng.standard_normal(size * pool)))[-size:]
    utility = rng.normal(correlation * GAP_SPREAD * gaps, GAP_SPREAD * np.sqrt(1 - correlation**2))
    return np.where(rng.random(size) < expit(utility), gaps, -gaps)


def estimates(correlation, *, size, seeds, assumed=0.5, pool=1):
    """Posterior means and standard deviations of many simulated rounds, (seeds, 2)."""
    return np.array(
        [
            correlation_given(simulate(np.random.default_rng(seed), size, correlation, pool=pool), assumed=assumed)
            for seed in range(seeds)
        ]
    )


def slopes_of_their_own(seed, *, misfit, assumed, prompts=60, each=6, dim=4, slope=0.0):
    """misfit_given of logistic labels under theta and a delta of every prompt, at margins of theta alone."""
    rng = np.random.default_rng(seed)
    differences = rng.standard_normal((prompts * each, dim)) * np.sqrt(2 / dim)
    owners = np.repeat(np.arange(prompts), each)
    theta = slope * rng.standard_normal(dim)
    own = 2 * np.sqrt(misfit) * rng.standard_normal((prompts, dim))
    gaps = (differences * (theta + own[owners])).sum(axis=1)
    signs = np.where(rng.random(len(gaps)) < expit(gaps), 1.0, -1.0)
    residuals = expit(-signs * (differences @ theta))
    return misfit_given(signs[:, None] * differences, residuals, owners, assumed=assumed)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=20))
def test_without_correlation_every_label_is_worth_a_random_one(gaps):
    np.testing.assert_allclose(signal_of(np.array(gaps), 0.0), 1.0, rtol=0, atol=1e-12)


@pytest.mark.parametrize("correlation", [0.1, 0.3, 0.6, 0.9, 0.98])
def test_the_signal_is_the_square_of_the_labels_slope_by_quadrature(correlation):
    gaps = np.array([0.0, 0.05, 0.3, 0.7, 1.0, 1.6, 2.5, 4.0])
    expected = np.square([slope(gap, correlation) / slope(0.0, 0.0) for gap in gaps])
    np.testing.assert_allclose(signal_of(gaps, correlation), expected, rtol=2e-3)


def test_the_signal_is_what_simulated_labels_tell_of_their_gaps():
    """E[y g | m] / S^2 with y = +-1 the label: a regression of labels on gaps, counted."""
    rng = np.random.default_rng(0)

    def counted(gap, correlation):
        utility = rng.normal(correlation * GAP_SPREAD * gap, GAP_SPREAD * np.sqrt(1 - correlation**2), 400_000)
        return np.where(rng.random(400_000) < expit(utility), utility, -utility).mean()

    expected = [(counted(gap, 0.6) / counted(0.0, 0.0)) ** 2 for gap in (0.2, 1.0, 2.0)]
    np.testing.assert_allclose(signal_of(np.array([0.2, 1.0, 2.0]), 0.6), expected, rtol=0.02)


@settings(max_examples=40)
@given(correlation=st.floats(0.05, 0.98), top=st.floats(0.5, 1e4), seed=st.integers(0, 99))
def test_the_signal_rises_strictly_with_the_gap(correlation, top, seed):
    gaps = np.unique(np.random.default_rng(seed).uniform(0, top, 50))
    signal = signal_of(gaps, correlation)
    assert (np.diff(signal) > 0).all()
    assert signal[0] > 0


@pytest.mark.parametrize("correlation", [0.3, 0.9])
def test_an_outlier_leaves_the_signals_of_the_other_gaps_alone(correlation):
    gaps = np.linspace(0, 4, 60)
    with_outlier = signal_of(np.append(gaps, 1000.0), correlation)[:-1]
    np.testing.assert_allclose(with_outlier, signal_of(gaps, correlation), rtol=3e-3)


def test_near_ties_lose_and_wide_gaps_gain_the_more_the_better_the_proxy():
    ties, wide = (
        [float(signal_of(np.array([gap]), rho)[0]) for rho in (0.0, 0.2, 0.4, 0.6, 0.8)] for gap in (0.0, 2.0)
    )
    assert (np.diff(ties) < 0).all()
    assert (np.diff(wide) > 0).all()


def test_signals_keep_the_shape_of_the_gaps():
    gaps = np.arange(12.0).reshape(3, 4)
    np.testing.assert_array_equal(signal_of(gaps, 0.5), signal_of(gaps.ravel(), 0.5).reshape(3, 4))


@pytest.mark.parametrize("pool", [1, 6])
@pytest.mark.parametrize("correlation", [-0.6, 0.0, 0.3, 0.6, 0.9])
def test_a_planted_correlation_is_recovered_from_any_choice_of_pairs(correlation, pool):
    found = estimates(correlation, size=400, seeds=50, pool=pool)
    errors = found[:, 0] - correlation
    assert (np.abs(errors) < 3 * found[:, 1]).mean() >= 0.92
    assert abs(errors.mean()) < 0.02 + 3.3 * errors.std() / np.sqrt(50)  # the prior draws by up to 0.02
    assert (found[:, 1] < 0.1).all()


@pytest.mark.parametrize("pool", [1, 6])
def test_the_posterior_is_as_wide_as_its_errors_however_pairs_were_chosen(pool):
    """With the truth drawn from the prior, misses in posterior standard deviations have mean 0 and variance 1."""
    misses = []
    for seed in range(150):
        rng = np.random.default_rng(1000 + seed)
        correlation = 2.0
        while abs(correlation) >= 0.98:
            correlation = rng.normal(0.4, 0.35)
        mean, spread = correlation_given(simulate(rng, 100, correlation, pool=pool), assumed=0.4)
        misses.append((correlation - mean) / spread)
    assert abs(np.mean(misses)) < 3.3 / np.sqrt(150)
    assert chi2.ppf(1e-3, 150) < np.square(misses).sum() < chi2.ppf(1 - 1e-3, 150)


def test_the_largest_gaps_bias_nothing_and_tell_more():
    drawn, largest = (estimates(0.5, size=128, seeds=60, pool=pool) for pool in (1, 8))
    apart = drawn[:, 0].mean() - largest[:, 0].mean()
    assert abs(apart) < 3.3 * np.sqrt((drawn[:, 0].var() + largest[:, 0].var()) / 60)
    assert largest[:, 1].mean() < 0.7 * drawn[:, 1].mean()


def test_a_nonsense_proxy_is_rejected_after_one_round_of_128_labels():
    """Below 0.1 in 75% of rounds of random pairs, in 88% of rounds of the largest gaps, over 60 seeds."""
    drawn, largest = (estimates(0.0, size=128, seeds=60, pool=pool)[:, 0] for pool in (1, 8))
    assert (drawn < 0.1).mean() >= 0.6
    assert (largest < 0.1).mean() >= 0.8
    assert max(drawn.max(), largest.max()) < 0.4


def test_a_useful_proxy_survives_one_round_of_128_labels():
    found = np.concatenate([estimates(0.4, size=128, seeds=40, pool=pool)[:, 0] for pool in (1, 8)])
    assert (found > 0.1).all()


def test_a_reversed_proxy_is_found_out_after_64_labels():
    found = estimates(-0.5, size=64, seeds=40)
    assert (found[:, 0] < 0).all()


@pytest.mark.parametrize("assumed", [0.0, 0.2, 0.5])
def test_without_labels_the_correlation_is_the_assumed_one_but_for_the_cut(assumed):
    mean, spread = correlation_given(np.zeros(0), assumed=assumed)
    grid = np.linspace(-0.999, 0.999, 4001)
    mass = norm.pdf(grid, assumed, 0.35)
    assert mean == pytest.approx(grid @ mass / mass.sum(), abs=5e-3)
    assert assumed - 0.07 <= mean <= assumed + 1e-12
    assert 0.25 < spread <= 0.35


def test_ties_of_the_proxy_say_nothing_of_it():
    np.testing.assert_allclose(
        correlation_given(np.zeros(50), assumed=0.3), correlation_given(np.zeros(0), assumed=0.3)
    )


def test_turning_every_label_and_the_assumption_round_turns_the_correlation_round():
    gaps = simulate(np.random.default_rng(3), 40, 0.4)
    mean, spread = correlation_given(gaps, assumed=0.3)
    assert correlation_given(-gaps, assumed=-0.3) == pytest.approx((-mean, spread))


@settings(max_examples=20)
@given(size=st.floats(1.0, 1e6), flips=st.integers(0, 20))
def test_gaps_of_any_size_leave_the_posterior_finite(size, flips):
    gaps = np.full(20, size) * np.where(np.arange(20) < flips, -1, 1)
    mean, spread = correlation_given(gaps, assumed=0.5)
    assert -1 < mean < 1
    assert 0 <= spread < 0.7


@pytest.mark.parametrize("correlation", [0.0, 0.6])
def test_the_correlation_of_a_proxy_on_a_worlds_pool_is_recovered_from_best_against_worst(correlation):
    """Utilities as far apart as assumed; pairs chosen by the proxy's own gaps."""
    world = Linear(num_prompts=250, num_responses=6, reward_scale=GAP_SPREAD / np.sqrt(2))
    found = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        drawn = attach_proxy(world.draw(rng), correlation, rng)
        gaps = drawn.pool.differences_of(drawn.pool.scores)
        pairs = np.abs(gaps).argmax(axis=1) + np.arange(250) * gaps.shape[1]
        signed = gaps.ravel()[pairs] * np.where(drawn.labels(pairs), 1, -1)
        found.append(correlation_given(signed / np.sqrt(np.mean(gaps**2)), assumed=0.5)[0])
    assert np.mean(found) == pytest.approx(correlation, abs=0.05)


def test_misfit_is_the_regression_of_residual_products_by_hand():
    rng = np.random.default_rng(0)
    prompts = np.array([7, 2, 7, 2, 7, 5])
    differences, residuals = rng.standard_normal((6, 3)), rng.random(6)
    precision, moment = 1 / 0.3**2, 0.3 / 0.3**2
    for e in range(6):
        for f in range(e):
            if prompts[e] == prompts[f]:
                alike = differences[e] @ differences[f] / 4
                moment += 16 * alike * residuals[e] * residuals[f]
                precision += 16 * alike**2
    found = misfit_given(differences, residuals, prompts, assumed=0.3)
    assert found == pytest.approx((max(0.0, moment / precision), precision**-0.5))


@pytest.mark.parametrize("slope", [0.0, 0.5])
def test_small_planted_misfit_is_recovered_on_average(slope):
    """First order in delta: what is planted, times the slope of a label over 1/4, squared, is found."""
    found = np.array(
        [slopes_of_their_own(seed, misfit=0.03, assumed=10.0, slope=slope, prompts=1500)[0] for seed in range(12)]
    )
    assert 0.6 * 0.03 < found.mean() < 1.05 * 0.03


def test_found_misfit_grows_with_the_planted_one():
    means = [
        np.mean([slopes_of_their_own(seed, misfit=misfit, assumed=10.0, prompts=400)[0] for seed in range(6)])
        for misfit in (0.0, 0.05, 0.2, 0.8)
    ]
    assert (np.diff(means) > 0.015).all()


@pytest.mark.parametrize("slope", [0.0, 0.5, 1.0])
def test_without_misfit_none_is_found_beyond_chance(slope):
    """Cut at 0, the mean of a centred normal is 0.4 standard deviations; those of the residuals are at most 1/2."""
    found = np.array([slopes_of_their_own(seed, misfit=0.0, assumed=10.0, slope=slope) for seed in range(60)])
    assert found[:, 0].mean() < 0.6 * found[:, 1].mean()
    assert (found[:, 0] < 3.3 * found[:, 1]).all()
    assert (found[:, 0] == 0).mean() > 0.2


def test_the_stated_spread_of_the_misfit_is_that_of_repeated_rounds():
    """Without misfit and at margins of 0 residuals have variance 1/4; the half above the cut shows the spread."""
    found = np.array([slopes_of_their_own(seed, misfit=0.0, assumed=10.0) for seed in range(120)])
    above = found[found[:, 0] > 0, 0]
    assert np.sqrt(np.mean(above**2)) == pytest.approx(found[:, 1].mean(), rel=0.3)


@pytest.mark.parametrize("assumed", [0.02, 0.1, 1.0])
def test_labels_of_distinct_prompts_leave_the_misfit_as_assumed(assumed):
    rng = np.random.default_rng(1)
    found = misfit_given(rng.standard_normal((30, 4)), rng.random(30), np.arange(30), assumed=assumed)
    assert found == pytest.approx((assumed, assumed))
    assert misfit_given(np.zeros((0, 4)), np.zeros(0), np.zeros(0, dtype=int), assumed=assumed)[0] == pytest.approx(
        assumed
    )


def test_the_order_the_names_and_the_orientation_of_labels_leave_the_misfit_alone():
    rng = np.random.default_rng(2)
    prompts = rng.integers(5, size=20)
    differences, residuals = rng.standard_normal((20, 3)), rng.random(20)
    expected = misfit_given(differences, residuals, prompts, assumed=0.1)
    order, signs = rng.permutation(20), np.where(rng.random(20) < 0.5, -1.0, 1.0)
    renamed = np.array([40, 3, 17, 9, 0])[prompts]
    found = misfit_given((signs[:, None] * differences)[order], (signs * residuals)[order], renamed[order], assumed=0.1)
    assert found == pytest.approx(expected)


def test_the_correlation_within_prompts_is_that_of_centred_values():
    rng = np.random.default_rng(0)
    valid = rng.random((20, 6)) < 0.7
    scores, others = (rng.standard_normal((20, 6)) + 50 * rng.standard_normal((20, 1)) for _ in range(2))
    others += scores
    a, b = (
        np.concatenate([row[keep] - row[keep].mean() for row, keep in zip(values, valid, strict=True) if keep.any()])
        for values in (scores, others)
    )
    found = within_prompts(np.where(valid, scores, 1e6), np.where(valid, others, -1e6), valid)
    assert found == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-9)


@settings(max_examples=30)
@given(seed=st.integers(0, 999), scale=st.floats(0.01, 100), shift=st.floats(-100, 100))
def test_the_correlation_within_prompts_is_affine_invariant_and_symmetric(seed, scale, shift):
    rng = np.random.default_rng(seed)
    scores, others = rng.standard_normal((2, 4, 3))
    valid = np.ones((4, 3), dtype=bool)
    expected = within_prompts(scores, others, valid)
    moved = scale * scores + shift * rng.standard_normal((4, 1))
    assert within_prompts(moved, others, valid) == pytest.approx(expected, abs=1e-7)
    assert within_prompts(-scores, others, valid) == pytest.approx(-expected)
    assert within_prompts(others, scores, valid) == pytest.approx(expected)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1 / 3, 7.0, 1e9 + 0.1])
def test_nothing_correlates_with_what_is_the_same_within_every_prompt(constant):
    valid = np.ones((5, 3), dtype=bool)
    alike = constant * np.array([[1.0], [2.0], [3.0], [5.0], [7.0]]) * np.ones((5, 3))
    scores = np.random.default_rng(0).standard_normal((5, 3))
    assert within_prompts(scores, alike, valid) is None
    assert within_prompts(alike, scores, valid) is None
    assert within_prompts(alike, alike, valid) is None
    assert within_prompts(scores, None, valid) is None


def test_a_pool_takes_no_scores_that_are_no_numbers():
    scores = np.zeros((2, 3))
    scores[1, 2] = np.nan
    with pytest.raises(ValueError, match="scores holds nan at prompt 1, response 2: recompute it"):
        Pool(
            features=np.ones((2, 3, 1)),
            valid=np.ones((2, 3), dtype=bool),
            rewards=np.zeros((2, 3)),
            beta=1.0,
            scores=scores,
        )
