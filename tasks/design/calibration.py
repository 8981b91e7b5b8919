"""What labels say of a proxy and of the features: how far to trust either.

A pair's utility gap is taken as normal with standard deviation S, and the proxy's gap, in units of its root mean square
m over the pool, as correlated with it: gap | m ~ N(rho S m, S^2 (1 - rho^2)).
"""

import numpy as np
from numpy.polynomial.hermite_e import hermegauss
from scipy.special import expit

from tasks.design.arrays import BoolArray, FloatArray, IntArray

GAP_SPREAD = 3.0
"""S, logits: that of a strong judge's preferences between responses of many models, as measured."""

_NODES, _MASS = hermegauss(31)
_CORRELATIONS = np.linspace(-0.98, 0.98, 99)
_PRIOR_SPREAD = 0.35


def signal_of(gaps: FloatArray, correlation: float) -> FloatArray:
    """(kappa(m) / kappa_0)^2, what a label is worth beside that of a random pair, of any shape.

    kappa(m) = E[tanh(gap / 2) gap | m] / S^2 is the slope of the expected label on whatever part of the gap the
    features explain: near-ties say little of it, since their labels are noise. kappa_0 is that without a proxy.

    Args:
        gaps: m >= 0, proxy gaps in units of their root mean square.
        correlation: rho, in (-1, 1).
    """
    grid = np.sinh(np.linspace(0.0, np.arcsinh(max(float(gaps.max(initial=0.0)), 1.0)), 200))  # fine where it bends
    slopes = _slope(grid, correlation) / _slope(np.zeros(1), 0.0)
    signal: FloatArray = np.square(np.interp(gaps, grid, slopes))
    return signal


def _slope(gaps: FloatArray, correlation: float) -> FloatArray:
    wide: FloatArray = _gaps_given(gaps, correlation)
    slope: FloatArray = (np.tanh(wide / 2) * wide) @ _MASS / (_MASS.sum() * GAP_SPREAD**2)
    return slope


def _gaps_given(gaps: FloatArray, correlation: float) -> FloatArray:
    """Utility gaps at the nodes of a Gauss-Hermite rule, (n, nodes)."""
    wide: FloatArray = GAP_SPREAD * (correlation * gaps[:, None] + np.sqrt(1 - correlation**2) * _NODES)
    return wide


def correlation_given(gaps: FloatArray, *, assumed: float) -> tuple[float, float]:
    """Posterior mean and standard deviation of rho given labels.

    The prior is normal about `assumed` with standard deviation 0.35, cut at -0.98 and 0.98. Chosen pairs tell as much
    as random ones: the chance of a label is conditional on its pair's gap.

    Args:
        gaps: proxy score of the chosen response minus that of the rejected, in units of the pool's root mean square
            gap, (n,).
        assumed: what to think before there are labels.
    """
    log_posterior = -np.square((_CORRELATIONS - assumed) / _PRIOR_SPREAD) / 2
    for place, correlation in enumerate(_CORRELATIONS):
        chances = expit(_gaps_given(gaps, float(correlation))) @ _MASS / _MASS.sum()
        log_posterior[place] += np.log(np.maximum(chances, 1e-300)).sum()
    mass = np.exp(log_posterior - log_posterior.max())
    mass /= mass.sum()
    mean = float(mass @ _CORRELATIONS)
    return mean, float(np.sqrt(mass @ np.square(_CORRELATIONS - mean)))


def misfit_given(
    differences: FloatArray, residuals: FloatArray, prompts: IntArray, *, assumed: float
) -> tuple[float, float]:
    """tau^2 and its standard deviation: variance of a prompt's own slopes beside a label's noise.

    Under labels y ~ sigma(g'(theta + delta_x)) with delta_x ~ N(0, 4 tau^2 I), residuals y - sigma(g'theta) of two
    labels of one prompt have covariance near tau^2 g_e'g_f / 4 [derived, first order in delta]. Their products are
    regressed on that, and the estimate is combined with a prior of mean and standard deviation `assumed` by precision,
    and cut at 0. It leans low: about two thirds of a planted 0.05, half of 0.2, for large slopes saturate [measured].

    Args:
        differences: g_e, of features with mean squared norm 1 over the pool, (n, dim).
        residuals: y - sigma(z) of the chosen response, 1 - sigma(z), (n,).
        prompts: prompt of each label, (n,).
        assumed: what to think before there are labels, above 0.
    """
    order = np.argsort(prompts, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(prompts[order])) + 1)
    moment = information = 0.0
    for group in groups:
        rows, left = differences[group], residuals[group]
        alike = rows @ rows.T / 4
        products = np.outer(left, left)
        above = np.triu_indices(len(group), 1)
        moment += float((alike[above] * products[above]).sum())
        information += float(np.square(alike[above]).sum())
    precision = information * 16  # a product of two residuals of variance 1/4 has variance 1/16
    prior = 1 / assumed**2
    mean = (16 * moment + prior * assumed) / (precision + prior)
    return max(0.0, mean), float(1 / np.sqrt(precision + prior))


def within_prompts(scores: FloatArray, others: FloatArray | None, valid: BoolArray) -> float | None:
    """Correlation of two numbers of the responses about their prompts' means; None where either doesn't vary.

    Args:
        scores: (P, K).
        others: (P, K); None: none are known.
        valid: responses that count, (P, K).
    """
    if others is None:
        return None
    a, b = (_about_means(values, valid) for values in (scores, others))
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size > 0 else None


def _about_means(values: FloatArray, valid: BoolArray) -> FloatArray:
    firsts = np.take_along_axis(values, valid.argmax(axis=1)[:, None], axis=1).astype(np.float64)
    wide = np.where(valid, values - firsts, 0.0)  # exact zeros where all are alike
    means = wide.sum(axis=1, keepdims=True) / np.maximum(valid.sum(axis=1, keepdims=True), 1)
    centred: FloatArray = (wide - means)[valid]
    return centred
