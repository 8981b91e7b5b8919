"""Guards beside the win rate: what else a policy has become while it learned to win. Arrays in, numbers out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

Values = NDArray[np.float64]
Keep = NDArray[np.bool_]

RIDGE = 0.01
"""Precision of the normal prior of the weight of length, whose deviation is so 10 log-odds: felt where nothing else
bounds it."""

SHOWN = 2.0
"""Standard errors beyond which a gain or a loss counts as shown."""

_STEPS = 1000
_EXACT = 1e-10


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error; NaN where one unit alone tells of no spread."""

    value: float
    error: float

    @property
    def is_above(self) -> bool:
        """Whether it is shown to be above 0."""
        return self.value > SHOWN * self.error

    @property
    def is_below(self) -> bool:
        """Whether it is shown to be below 0."""
        return self.value < -SHOWN * self.error


def told(name: str, estimate: Estimate) -> dict[str, float]:
    """An estimate as two measures of a stage."""
    return {name: estimate.value, f"{name}_se": estimate.error}


def mean(values: Values) -> Estimate:
    """Mean over independent units (n,), n >= 1."""
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return Estimate(float(values.mean()), float(error))


def jackknife(statistic: Callable[[Keep], float], num_units: int) -> float:
    """Standard error of a statistic of independent units, from its values without each of them; NaN of one unit.

    sqrt((n - 1) / n sum_i (t_i - mean t)^2) (published: Efron and Tibshirani 1993, equation 11.5); of a mean it is the
    usual one.

    Args:
        statistic: of the units that a mask (n,) keeps.
        num_units: n.
    """
    if num_units < 2:
        return float("nan")
    without = np.array([statistic(np.arange(num_units) != left_out) for left_out in range(num_units)])
    return float(np.sqrt((num_units - 1) * without.var()))


def length_controlled_win_rate(wins: Values, gaps: Values) -> Estimate:
    """Chance of winning that is left at equal length; the error is the jackknife's over prompts.

    The logistic regression P(win) = sigma(theta + phi tanh(gap / s)), s the standard deviation of the gaps, is fitted
    by maximum likelihood to soft targets, a tie being half a win, and read at gap 0: sigma(theta). Published: the form
    of the length term and the reading (Dubois et al. 2024, arXiv:2404.04475, AlpacaEval 2). Ours: no term for the
    difficulty of a prompt, which AlpacaEval estimates from many models' answers to it and which two policies alone
    can't tell; all pairings of several responses, each prompt weighing 1, in place of one pairing a prompt; a prior on
    phi alone (`RIDGE`) in place of a cross-validated penalty, so that policies of equal length get the plain win rate.

    Where a policy wins all pairings, or loses all, or the gap is always the same, nothing tells length from merit, and
    the plain win rate is what is given.

    Args:
        wins: of every pairing of a policy's responses to a prompt with the other's, 1, 0.5 or 0, (prompts, pairings).
        gaps: tokens of the policy's response minus those of the other's, (prompts, pairings).
    """
    error = jackknife(lambda keep: _win_rate_at_equal_length(wins[keep], gaps[keep]), len(wins))
    return Estimate(_win_rate_at_equal_length(wins, gaps), error)


def _win_rate_at_equal_length(wins: Values, gaps: Values) -> float:
    plain, spread = float(wins.mean()), float(gaps.std())
    if spread == 0 or plain in {0.0, 1.0}:
        return plain
    return float(expit(_intercept(wins.ravel(), np.tanh(gaps / spread).ravel(), RIDGE / len(wins))))


def _intercept(wins: Values, lengths: Values, ridge: float) -> float:
    """Theta, by Newton steps that change no log-odds by more than 1; such always descend (Bach, arXiv:0910.4627)."""
    design = np.stack([np.ones_like(lengths), lengths], axis=1)
    penalty, found = np.array([0.0, ridge]), np.zeros(2)
    for _ in range(_STEPS):
        chances = expit(design @ found)
        slope = design.T @ (wins - chances) / len(wins) - penalty * found
        curvature = (design.T * (chances * (1 - chances))) @ design / len(wins) + np.diag(penalty)
        step = np.linalg.solve(curvature, slope)
        found += step / max(1.0, float(np.abs(step).sum()))
        if np.abs(step).max() < _EXACT:
            break
    return float(found[0])


def distinct_bigrams(responses: Sequence[Sequence[int]]) -> float:
    """Distinct bigrams of tokens over all bigrams of all responses, in [0, 1]; 0 where there is none.

    Published: distinct-2 (Li et al. 2016, arXiv:1510.03055), there of words. It falls with the number of responses and
    with their length, so that only equal numbers compare, and longer responses have less of it.
    """
    bigrams = [pair for tokens in responses for pair in pairwise(tokens)]
    return len(set(bigrams)) / len(bigrams) if bigrams else 0.0


def perplexity(logps: Values, num_tokens: Values) -> Estimate:
    """exp(-sum of log p / number of tokens), over all tokens of all texts; the error is the jackknife's over texts.

    Args:
        logps: log-probability of each text, summed over its tokens, nats, (n,).
        num_tokens: of each text, (n,).
    """

    def of(keep: Keep) -> float:
        return float(np.exp(-logps[keep].sum() / num_tokens[keep].sum()))

    return Estimate(of(np.ones(len(logps), dtype=np.bool_)), jackknife(of, len(logps)))


def share_right(likelihoods: Sequence[Values], answers: Sequence[int]) -> Estimate:
    """Share of questions whose right choice is the likeliest; of m choices that tie each is taken 1/m of the time.

    Choices without a finite likelihood are the last to be taken.

    Args:
        likelihoods: of the choices of each question.
        answers: index of each question's right choice.
    """
    taken = []
    for values, answer in zip(likelihoods, answers, strict=True):
        comparable = np.where(np.isnan(values), -np.inf, values)
        best = comparable == comparable.max()
        taken.append(best[answer] / best.sum())
    return mean(np.array(taken, dtype=np.float64))


def is_reward_hacked(reward_gain: Estimate, judge_gain: Estimate) -> bool:
    """Whether a policy is shown to have gained by the reward it learned from and to have lost by a judge's.

    Ours, of what Gao et al. (arXiv:2210.10760) call overoptimisation: "shown" is beyond `SHOWN` standard errors.
    """
    return reward_gain.is_above and judge_gain.is_below
