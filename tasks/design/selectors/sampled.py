"""Selectors that draw pairs by weight: baselines, and designs turned into distributions."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
from scipy.special import softmax

from tasks.design.arrays import FloatArray, IntArray
from tasks.design.criterion import Criterion, log_det_criterion, trace_criterion
from tasks.design.kernels import pair_slots
from tasks.design.limits import Limits
from tasks.design.pool import Pool
from tasks.design.sampling import draw, inclusion_probabilities, weighted_order
from tasks.design.search import Design
from tasks.design.selection import Selection, selection_of
from tasks.design.selectors.base import Capped, Need
from tasks.design.selectors.designs import FISHERS, Fisher, Searching
from tasks.design.simplex import simplex_design


@dataclass(frozen=True, eq=False, kw_only=True)
class Proposal:
    """What pairs are drawn by.

    Attributes:
        weights: draw weights >= 0 of every pair slot, (P, m), 0 where a pair is not valid.
        design: the design that the weights come from; None: there is none.
        notes: what a reader of the selection has to know.
    """

    weights: FloatArray
    design: Design | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Sampled(Capped, ABC):
    """Draws distinct pairs by weight.

    Without a cap the inclusion probabilities are min(1, c w), exactly. With a cap, or costs, pairs come one after the
    other by weight from those left, the ones that don't fit are passed over, and inclusion probabilities are left
    undefined. Pairs without weight are drawn, uniformly, only where those with weight don't fill the budget.
    """

    @abstractmethod
    def propose(self, pool: Pool, budget: int) -> Proposal:
        """What to draw by."""

    def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Selection:
        """Draw the pairs to label; their order is random too."""
        limits = self.limits(pool, budget)
        proposal = self.propose(pool, budget)
        chosen, probabilities = draw_pairs(proposal.weights, limits, rng)
        design, notes = proposal.design, (*proposal.notes, *_filled_up(proposal.weights, chosen))
        if design is None:
            return selection_of(pool, chosen, scores=proposal.weights, probabilities=probabilities, notes=notes)
        selection = selection_of(pool, chosen, scores=design.scores, probabilities=probabilities, notes=notes)
        return replace(selection, weights=design.weights.ravel()[chosen])


def draw_pairs(weights: FloatArray, limits: Limits, rng: np.random.Generator) -> tuple[IntArray, FloatArray | None]:
    """Flat indices of distinct valid pairs, and the inclusion probability of every pair slot (P, m) where it is known.

    Args:
        weights: draw weights >= 0 of every pair slot, (P, m).
        limits: what may be chosen; known are the probabilities of a plain budget.
        rng: source of all randomness.
    """
    pairs = np.flatnonzero(limits.mask)
    if limits.cap is not None or limits.costs is not None:
        return limits.take(pairs[weighted_order(weights.ravel()[pairs], rng)]), None
    probabilities = np.zeros(limits.mask.shape)
    probabilities[limits.mask] = inclusion_probabilities(weights[limits.mask], limits.budget)
    return pairs[draw(probabilities[limits.mask], rng)], probabilities


def _filled_up(weights: FloatArray, chosen: IntArray) -> tuple[str, ...]:
    without = int((weights.ravel()[chosen] == 0).sum())
    if without == 0:
        return ()
    return (f"{without} of {len(chosen)} pairs have no weight: drawn uniformly to fill the budget",)


@dataclass(frozen=True, kw_only=True)
class ReferenceWeighted(Sampled):
    """Draw each pair as often as the reference policy would write it: by pi_ref(a|x) pi_ref(b|x).

    Normalised within each prompt, prompts equally likely. A baseline of Han, Goyal and Ma, "Which Pairs to Compare for
    LLM Post-Training?" (arXiv:2606.19607), reported to be their weakest at a small budget: rare responses stay unseen.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"log_probs"})

    kind: Literal["reference_weighted"] = "reference_weighted"

    def propose(self, pool: Pool, budget: int) -> Proposal:  # noqa: ARG002 (other proposals need it)
        """Probabilities of one pair drawn under the reference policy."""
        return Proposal(weights=reference_weights(pool))


def reference_weights(pool: Pool) -> FloatArray:
    """pi_ref(a|x) pi_ref(b|x) over the valid pairs, normalised within each prompt that has any, (P, m).

    log pi_ref is log pi less the implicit reward over beta.

    Raises:
        ValueError: the pool has no log_probs.
    """
    if pool.log_probs is None:
        raise ValueError("the pool has no log_probs: the reference policy is unknown")
    reference = pool.log_probs.astype(np.float64) - pool.rewards.astype(np.float64) / pool.beta
    first, second = pair_slots(pool.valid.shape[1])
    joint = np.where(pool.pair_mask, reference[:, first] + reference[:, second], -np.inf)
    paired = pool.pair_mask.any(axis=1)
    weights = np.zeros(joint.shape)
    weights[paired] = softmax(joint[paired], axis=1)
    return weights


@dataclass(frozen=True, kw_only=True)
class _SimplexSampled(Searching, Sampled, ABC):
    """Solve the textbook design, a distribution over pairs, and draw by it.

    The design describes labels that are drawn with repetition, so that its gap bounds no selection of distinct pairs:
    it is told in a note, and there is no certificate. M is per label: labels already held count as prior / budget.

    Attributes:
        max_pairs_per_prompt: cap on the pairs of one prompt; None: no cap.
        ridge: lambda in M = lambda I + prior / budget + sum_e w_e a_e a_e', in units of one label's information.
        tolerance: certified relative gap at which the design is good enough.
        max_passes: times that all pairs are scored for it.
        max_seconds: wall time after which its search stops; None: no limit.
    """

    def propose(self, pool: Pool, budget: int) -> Proposal:
        """The design and its weights."""
        criterion = self.criterion(pool)
        design = simplex_design(replace(criterion, prior=criterion.prior / budget), self.effort())
        notes = (_summary(design), *self.unfinished(design))
        return Proposal(weights=design.weights, design=design, notes=notes)


def _summary(design: Design) -> str:
    support = int((design.weights > 0).sum())
    return f"simplex design: objective {design.objective:.6g}, gap {design.gap:.2e}, support {support}"


@dataclass(frozen=True, kw_only=True)
class SampledTraceDesign(_SimplexSampled):
    """Minimise tr(H M^-1) over distributions on the pairs, then draw distinct pairs by it.

    The mode of Han, Goyal and Ma, "Which Pairs to Compare for LLM Post-Training?" (arXiv:2606.19607), as reported:
    M = lambda I + sum_e w_e g_e g_e' with g = beta (phi_a - phi_b) and lambda = 1e-3, no factor sigma', Frank-Wolfe
    over the simplex, then sampling without replacement with probability proportional to w. Ours are another solver for
    the same optimum, certified, and inclusion probabilities that are exactly min(1, c w), where drawing one after the
    other would flatten them. `trace_design` knows from the start that a pair is labelled once.

    Attributes:
        max_pairs_per_prompt: cap on the pairs of one prompt; None: no cap.
        ridge: lambda, in units of one label's information.
        tolerance: certified relative gap at which the design is good enough.
        max_passes: times that all pairs are scored for it.
        max_seconds: wall time after which its search stops; None: no limit.
        logistic: weigh each pair by sigma'(z), the information of a label about its margin.
        fisher: "sampled" is H as the pool has it; "fitted" that of a log-linear policy fitted to the pool's log_probs,
            as they are reported to do.
    """

    kind: Literal["sampled_trace_design"] = "sampled_trace_design"
    logistic: bool = False
    fisher: Fisher = "sampled"

    def criterion(self, pool: Pool) -> Criterion:
        """tr(H M^-1), H the policy Fisher information."""
        return trace_criterion(pool, ridge=self.ridge, fisher=FISHERS[self.fisher](pool), logistic=self.logistic)


@dataclass(frozen=True, kw_only=True)
class Dope(_SimplexSampled):
    """Maximise log det M over distributions on the pairs, then draw distinct pairs by it.

    Mukherjee et al., "Optimal Design for Human Preference Elicitation" (arXiv:2404.13895), for lists of two, without a
    factor sigma'. They draw with replacement and have no ridge; ours are distinct pairs, with inclusion probabilities
    min(1, c w), and a small ridge that keeps M invertible where the pairs don't span the features.
    """

    kind: Literal["dope"] = "dope"
    ridge: float = 1e-6

    def criterion(self, pool: Pool) -> Criterion:
        """-log det M."""
        return log_det_criterion(pool, ridge=self.ridge, logistic=False)
