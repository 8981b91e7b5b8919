"""The default: a design that knows that features don't explain everything, and how far to listen to a proxy."""

from dataclasses import dataclass, replace
from time import perf_counter
from typing import ClassVar, Literal

import numpy as np
from scipy.special import expit

from tasks.design.arrays import FloatArray, IntArray
from tasks.design.calibration import correlation_given, misfit_given, signal_of, within_prompts
from tasks.design.kernels import pair_slots
from tasks.design.limits import limits_of
from tasks.design.pool import Pool
from tasks.design.robust import Effects, Outlook, robust_pairs, unit_features
from tasks.design.selection import SampledCertificate, Selection, selection_of
from tasks.design.selectors.base import Capped, Need
from tasks.design.selectors.mixture import with_uniform

_FULL_TRUST = 0.5
_LENGTH = 0.8
_DROPPED = 0.1
_NO_WEIGHTS = "no weights: costs leave the inclusion probabilities undefined"


@dataclass(frozen=True, kw_only=True)
class RobustDesign(Capped):
    """Minimise tr(H M^-1) where a reward is not all in the features: spread over prompts, and over what a proxy tells.

    Ours. Every prompt has slopes of its own (`tasks.design.robust`), so that many labels of one prompt repeat
    themselves; labels of pairs that a proxy finds far apart say more (`tasks.design.calibration`). Both beliefs are
    corrected by the labels already held. Without misfit and proxy it is a greedy `trace_design`; with a proxy that is
    trusted fully, from a correlation of 0.5, and few pairs a prompt it is `best_worst`, begun at the prompts of the
    largest gaps.

    Deterministic but for the uniform share, which keeps every pair possible and shows what the beliefs overlook. A pair
    of the design has inclusion probability 1, each other pair the same chance to be in that share (less where a cap
    leaves its prompt little room).

    Attributes:
        max_pairs_per_prompt: cap on the pairs of one prompt; None: no cap.
        proxy_correlation: correlation of the proxy's scores with the labeller's utilities within prompts to assume
            before labels tell, in [0, 1).
        misfit: variance of a prompt's own slopes to assume before labels tell, in units of a label's noise, for
            features of mean squared norm 1; 0: the features explain every reward, whatever labels say.
        ridge: lambda in M = lambda I + information, in labels on such features.
        uniform_share: part of the budget that is drawn at random from all other pairs, in [0, 1].
        weighting: "none" leaves the loss alone; "inverse" weighs labels by 1 / inclusion probability, which aims at the
            loss over the whole pool.
    """

    reads: ClassVar[frozenset[Need]] = frozenset({"scores"})

    kind: Literal["robust_design"] = "robust_design"
    proxy_correlation: float = 0.5
    misfit: float = 0.1
    ridge: float = 20.0
    uniform_share: float = 0.1
    weighting: Literal["none", "inverse"] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.proxy_correlation < 1:
            raise ValueError(f"proxy_correlation is {self.proxy_correlation}: pass a number from 0 to below 1")
        if not 0 <= self.misfit < np.inf:
            raise ValueError(f"misfit is {self.misfit}: pass 0 or a positive, finite number such as 0.1")
        if not 0 < self.ridge < np.inf:
            raise ValueError(f"ridge is {self.ridge}: pass a positive, finite number such as 20")
        if not 0 <= self.uniform_share <= 1:
            raise ValueError(f"uniform_share is {self.uniform_share}: pass a part of the whole, from 0 to 1")

    def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Selection:
        """Choose the pairs to label."""
        begun, limits = perf_counter(), self.limits(pool, budget)
        beliefs = self._beliefs(pool)
        picked, effects = self._design(pool, budget - round(self.uniform_share * budget), beliefs.outlook)
        chosen, probabilities = with_uniform(picked, limits, rng)
        effects.include(np.setdiff1d(chosen, picked), beliefs.outlook.signal)
        selection = selection_of(pool, chosen, probabilities=probabilities, notes=beliefs.notes)
        weights = None if selection.inclusion_probabilities is None else 1 / selection.inclusion_probabilities
        certificate = SampledCertificate(
            objective=effects.expand().objective,
            effective_sample_size=len(chosen) if weights is None else float(weights.sum() ** 2 / (weights**2).sum()),
            uniform_share=1 - len(picked) / len(chosen),
            misfit=beliefs.outlook.misfit,
            proxy_correlation=beliefs.correlation,
            length_correlation=beliefs.length_correlation,
            seconds=perf_counter() - begun,
        )
        if self.weighting == "none":
            return replace(selection, certificate=certificate)
        notes = (*beliefs.notes, _NO_WEIGHTS) if weights is None else beliefs.notes
        return replace(selection, certificate=certificate, loss_weights=weights, notes=notes)

    def _design(self, pool: Pool, budget: int, outlook: Outlook) -> tuple[IntArray, Effects]:
        """The pairs that are not left to chance; none where the budget buys none."""
        cheapest = 1.0 if pool.costs is None else float(pool.costs[pool.pair_mask].min())
        if budget < cheapest:
            return np.zeros(0, dtype=np.intp), Effects.of(pool, outlook)
        return robust_pairs(pool, limits_of(pool, budget, cap=self.max_pairs_per_prompt), outlook)

    def _beliefs(self, pool: Pool) -> "_Beliefs":
        misfit = _misfit(pool, self.misfit)
        gaps, scale = _gaps(pool)
        outlook = Outlook(misfit=misfit, ridge=self.ridge, signal=np.ones(pool.pair_mask.shape), trust=0.0)
        if pool.scores is None:
            return _Beliefs(outlook=outlook)
        if scale == 0:
            return _Beliefs(
                outlook=outlook, notes=("all proxy scores of a prompt are equal: chosen without the proxy",)
            )
        correlation = _correlation(pool, scale, assumed=self.proxy_correlation)
        length = within_prompts(pool.scores, pool.lengths, pool.valid)
        notes = _notes(correlation, length)
        trusted = max(0.0, correlation)
        if trusted >= _DROPPED:
            signal = signal_of(gaps / scale, trusted)
            outlook = replace(outlook, signal=signal, trust=min(1.0, trusted / _FULL_TRUST))
        return _Beliefs(outlook=outlook, correlation=correlation, length_correlation=length, notes=notes)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Beliefs:
    """What is expected of labels, and what a reader has to know of it."""

    outlook: Outlook
    correlation: float | None = None
    length_correlation: float | None = None
    notes: tuple[str, ...] = ()


def _gaps(pool: Pool) -> tuple[FloatArray, float]:
    """Proxy gaps of every pair slot, (P, m), and their root mean square over pairs of valid responses; 0 without one.

    Pairs that are not offered count: those labelled so far may be the ones of the largest gaps.
    """
    if pool.scores is None:
        return np.zeros(pool.pair_mask.shape), 0.0
    first, second = pair_slots(pool.valid.shape[1])
    joined = pool.valid[:, first] & pool.valid[:, second]
    gaps = np.where(joined, np.abs(pool.differences_of(pool.scores)), 0.0)
    return gaps, float(np.sqrt(np.mean(np.square(gaps[joined]))))


def _correlation(pool: Pool, scale: float, *, assumed: float) -> float:
    if pool.labels is None or pool.labels.score_gaps is None:
        return assumed
    return correlation_given(pool.labels.score_gaps / scale, assumed=assumed)[0]


def _misfit(pool: Pool, assumed: float) -> float:
    labels = pool.labels
    if labels is None or labels.prompts is None or assumed == 0:
        return assumed
    _, scale = unit_features(pool, even=False)
    residuals = expit(-labels.margins)
    return misfit_given(labels.differences / scale, residuals, labels.prompts, assumed=assumed)[0]


def _notes(correlation: float, length: float | None) -> tuple[str, ...]:
    notes = []
    if correlation < _DROPPED:
        notes.append(f"the proxy's correlation is put at {correlation:.2f}: chosen without the proxy")
    if length is not None and abs(length) >= _LENGTH:
        notes.append(f"the proxy's scores correlate {length:.2f} with length within prompts: it may measure that alone")
    return tuple(notes)
