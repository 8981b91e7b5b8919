"""What many votes say of questions and of those who voted: arrays in, arrays out.

crowd-kit has the same models. Its gradient of noisy Bradley-Terry is wrong in every entry that belongs to an annotator
(1.4.2), its Dawid-Skene has no prior, so that few votes make infallible annotators, and both need a data frame.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.intp]

FIRST, SECOND, TIE = range(3)
"""What a vote is for."""

_MOST_STEPS = 1000
_SETTLED = 1e-9


@dataclass(frozen=True, eq=False)
class Votes:
    """m votes on n questions.

    Attributes:
        question, annotator: whose they are, (m,).
        choice: FIRST, SECOND or TIE, (m,).
        num_questions: n.
    """

    question: IntArray
    annotator: IntArray
    choice: IntArray
    num_questions: int

    @property
    def counts(self) -> FloatArray:
        """Votes of every kind, (n, 3)."""
        counts = np.zeros((self.num_questions, 3))
        np.add.at(counts, (self.question, self.choice), 1.0)
        return counts


@dataclass(frozen=True, eq=False)
class Bouts:
    """m comparisons of items by annotators, such as responses and labellers.

    Attributes:
        items: the item that was shown first and the other, (m, 2).
        annotator: (m,).
        sign: 1 where the item shown first won, -1 where the other, (m,).
        weight: (m,).
        num_items: items may be without any.
    """

    items: IntArray
    annotator: IntArray
    sign: FloatArray
    weight: FloatArray
    num_items: int


def alpha(votes: Votes) -> float | None:
    """Krippendorff's alpha, nominal: 1 is full agreement, 0 that of chance.

    One minus observed over expected disagreement, by coincidences ("Computing Krippendorff's Alpha-Reliability", 2011).

    Returns:
        None where it is not defined: no question has two votes, or all of theirs are of one kind.
    """
    counts = votes.counts
    counts = counts[counts.sum(axis=1) > 1]
    sizes, totals = counts.sum(axis=1), counts.sum(axis=0)
    expected = totals.sum() ** 2 - totals @ totals
    if not expected:
        return None
    observed = ((sizes**2 - (counts**2).sum(axis=1)) / (sizes - 1)).sum()
    return float(1 - (totals.sum() - 1) * observed / expected)


def dawid_skene(votes: Votes, *, right: float, wrong: float) -> FloatArray:
    """Chances that FIRST, SECOND and TIE are the true answer, (n, 3), where annotators have confusion matrices, by EM.

    How often each is true is estimated, with as many questions of either side counted before as answers of an
    annotator, and one tie. Ties are no answer where nobody gave it.

    Args:
        votes: of questions that have one or more; others get what is probable before anyone has voted.
        right: right answers that every annotator is taken to have given before, for each true answer.
        wrong: the same of wrong ones.
    """
    counts = votes.counts
    size = 3 if counts[:, TIE].any() else 2
    before = np.full((size, size), wrong / (size - 1))
    np.fill_diagonal(before, right)
    known = np.array([right + wrong, right + wrong, 1.0])[:size]
    asked = counts.sum(axis=1) > 0
    found = counts[:, :size] / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    for _ in range(_MOST_STEPS):
        held = found
        found = _expected(votes, _confusions(votes, held, before), _shares(held[asked], known))
        if np.abs(found - held)[asked].max(initial=0.0) <= _SETTLED:
            break
    return np.pad(found, ((0, 0), (0, 3 - size)))


def _confusions(votes: Votes, truth: FloatArray, before: FloatArray) -> FloatArray:
    """log P(annotator votes k | c is true), (annotators, c, k), of chances of each truth (n, c)."""
    matrices = np.tile(before, (votes.annotator.max(initial=-1) + 1, 1, 1))
    for choice in range(len(before)):
        of_it = votes.choice == choice
        np.add.at(matrices[:, :, choice], votes.annotator[of_it], truth[votes.question[of_it]])
    logs: FloatArray = np.log(matrices / matrices.sum(axis=2, keepdims=True))
    return logs


def _shares(truth: FloatArray, known: FloatArray) -> FloatArray:
    """Log of the mean chances of each truth (n, c), with questions counted before, (c,)."""
    totals = np.sort(truth, axis=0).sum(axis=0) + known  # the same to the last digit in any order
    logs: FloatArray = np.log(totals / totals.sum())
    return logs


def _expected(votes: Votes, confusions: FloatArray, shares: FloatArray) -> FloatArray:
    """Chances of each truth given the votes, (n, c)."""
    logs = np.tile(shares, (votes.num_questions, 1))
    np.add.at(logs, votes.question, confusions[votes.annotator, :, votes.choice])
    chances = np.exp(logs - logs.max(axis=1, keepdims=True))
    expected: FloatArray = chances / chances.sum(axis=1, keepdims=True)
    return expected


def noisy_bradley_terry(bouts: Bouts, *, spread: float, trust: float) -> FloatArray:
    """Most probable scores s of the items, (num_items,), logits (Bugakova et al. 2019, with priors).

    With the chance gamma of its annotator an answer follows sigma(s_first - s_second), else the item shown first wins
    with the annotator's chance sigma(q) whatever the items. Gaussian are the scores about 0 with deviation `spread`,
    the log-odds of gamma about those of `trust` and q about 0 with deviation 1.
    """
    num_annotators = int(bouts.annotator.max(initial=-1)) + 1
    middle = np.concatenate([np.zeros(bouts.num_items + num_annotators), np.full(num_annotators, logit(trust))])
    scale = np.concatenate([np.full(bouts.num_items, spread), np.ones(2 * num_annotators)])

    def loss(x: FloatArray) -> tuple[float, FloatArray]:
        value, slope = _surprise(bouts, *np.split(x, [bouts.num_items, bouts.num_items + num_annotators]))
        pull = (x - middle) / scale
        return value + float(pull @ pull) / 2, slope + pull / scale

    options = {"maxiter": _MOST_STEPS, "ftol": 1e-14, "gtol": 1e-8}
    found: FloatArray = minimize(loss, middle, jac=True, method="L-BFGS-B", options=options).x
    return found[: bouts.num_items]


def _surprise(bouts: Bouts, scores: FloatArray, sides: FloatArray, looks: FloatArray) -> tuple[float, FloatArray]:
    """-sum w log P of the bouts, and its gradient in scores, q and the log-odds of gamma, one after the other."""
    first, second = bouts.items.T
    gamma, sign = expit(looks)[bouts.annotator], bouts.sign
    fair, blind = expit(sign * (scores[first] - scores[second])), expit(sign * sides[bouts.annotator])
    chance = gamma * fair + (1 - gamma) * blind
    share = -bouts.weight / chance
    by_score, by_side = np.zeros(len(scores)), np.zeros(len(sides))
    step = share * gamma * sign * fair * (1 - fair)
    np.add.at(by_score, first, step)
    np.add.at(by_score, second, -step)
    np.add.at(by_side, bouts.annotator, share * (1 - gamma) * sign * blind * (1 - blind))
    by_look = np.bincount(bouts.annotator, share * gamma * (1 - gamma) * (fair - blind), minlength=len(looks))
    return float(-bouts.weight @ np.log(chance)), np.concatenate([by_score, by_side, by_look])
