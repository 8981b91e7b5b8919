"""Optimal designs: the pairs whose labels, taken together, leave least to be known; with a certificate."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Literal

import numpy as np

from tasks.design.arrays import FloatArray, IntArray, to_numpy
from tasks.design.capped import Problem, bounded_design
from tasks.design.criterion import Criterion, curvature_of, effective_rank, log_det_criterion, trace_criterion
from tasks.design.exchange import exchange_pairs
from tasks.design.fisher import fitted_fisher
from tasks.design.limits import limits_of
from tasks.design.pool import Pool
from tasks.design.rounding import order_by_gain, round_design
from tasks.design.search import Design, Effort
from tasks.design.selection import Certificate, Selection, selection_of
from tasks.design.selectors.base import Capped

_SUPPORT = 1e-6

Fisher = Literal["sampled", "fitted"]
FISHERS: dict[Fisher, Callable[[Pool], FloatArray]] = {
    "sampled": lambda pool: pool.policy_fisher,
    "fitted": fitted_fisher,
}
"""Ways to have the policy Fisher information of a pool."""


@dataclass(frozen=True, kw_only=True)
class Searching(Capped, ABC):
    """A selector that searches for a relaxed design.

    Attributes:
        max_pairs_per_prompt: cap on the pairs of one prompt; None: no cap.
        ridge: lambda in M = lambda I + prior + information of the chosen pairs, in units of that information.
        tolerance: certified relative gap at which the relaxed design is good enough.
        max_passes: times that all pairs are scored for it; the certificate holds even where they don't suffice.
        max_seconds: wall time after which its search stops; None: no limit.
    """

    ridge: float = 1e-3
    tolerance: float = 1e-3
    max_passes: int = 2000
    max_seconds: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("ridge", self.ridge), ("tolerance", self.tolerance)):
            if not 0 < value < np.inf:
                raise ValueError(f"{name} is {value}: pass a positive, finite number such as 1e-3")
        if self.max_passes < 1:
            raise ValueError(f"max_passes is {self.max_passes}: allow 1 or more")

    @abstractmethod
    def criterion(self, pool: Pool) -> Criterion:
        """What the design minimises."""

    def effort(self) -> Effort:
        """When a search that begins now ends."""
        seconds = np.inf if self.max_seconds is None else self.max_seconds
        return Effort(tolerance=self.tolerance, max_passes=self.max_passes, max_seconds=seconds)

    def unfinished(self, design: Design) -> tuple[str, ...]:
        """A note where a limit ended the search before the tolerance was reached."""
        if design.converged:
            return ()
        found = f"after {design.passes} passes at a gap of {design.gap:.2e}"
        return (f"the search stopped {found}, above the tolerance of {self.tolerance:.2e}",)


@dataclass(frozen=True, kw_only=True)
class _BoundedDesign(Searching):
    """Solve the relaxed design in which a pair is labelled at most once, round it, exchange, order it by gain.

    Deterministic: inclusion probabilities are undefined. A prefix of the order is a design for a smaller budget.

    Attributes:
        max_pairs_per_prompt: cap on the pairs of one prompt; None: no cap.
        min_pairs_per_prompt: least pairs of one prompt; equal to the cap it asks for exactly as many of each.
        ridge: lambda in M = lambda I + prior + information of the chosen pairs, in units of that information.
        tolerance: certified relative gap at which the relaxed design is good enough.
        max_passes: times that all pairs are scored for it; the certificate holds even where they don't suffice.
        max_seconds: wall time after which its search stops; None: no limit.
        logistic: weigh each pair by sigma'(z), the information of a label about its margin.
    """

    min_pairs_per_prompt: int = 0
    logistic: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        cap = self.max_pairs_per_prompt
        if self.min_pairs_per_prompt < 0 or (cap is not None and self.min_pairs_per_prompt > cap):
            raise ValueError(f"min_pairs_per_prompt is {self.min_pairs_per_prompt}: pass 0 up to the cap of {cap}")

    def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Selection:  # noqa: ARG002 (the protocol's)
        """Choose the pairs to label, ordered by what each adds to those before it; no randomness is used."""
        effort = self.effort()
        limits = limits_of(pool, budget, cap=self.max_pairs_per_prompt, floor=self.min_pairs_per_prompt)
        problem = Problem(self.criterion(pool), limits)
        design = bounded_design(problem, effort)
        rounded = round_design(design, problem)
        chosen = exchange_pairs(problem, rounded, goal=design.objective, effort=effort)
        ordered = order_by_gain(problem.criterion, chosen)
        certificate = certify(problem.criterion, design, chosen=ordered, begun=effort.begun)
        selection = selection_of(pool, ordered, scores=design.scores, notes=self.unfinished(design))
        return replace(selection, weights=design.weights.ravel()[ordered], certificate=certificate)


@dataclass(frozen=True, kw_only=True)
class TraceDesign(_BoundedDesign):
    """Minimise tr(H M^-1), the predicted suboptimality of the trained policy (L-optimality).

    The criterion is that of Han, Goyal and Ma, "Which Pairs to Compare for LLM Post-Training?" (arXiv:2606.19607). They
    are reported to optimise a distribution over pairs and to draw from it (`sampled_trace_design`); here the design
    knows from the start that a pair is labelled once. H is the pool's `policy_fisher`; one estimated from other
    prompts aims the design at those.

    Attributes:
        fisher: "sampled" is H as the pool has it; "fitted" that of a log-linear policy fitted to the pool's log_probs.
    """

    kind: Literal["trace_design"] = "trace_design"
    fisher: Fisher = "sampled"

    def criterion(self, pool: Pool) -> Criterion:
        """tr(H M^-1), H the policy Fisher information."""
        return trace_criterion(pool, ridge=self.ridge, fisher=FISHERS[self.fisher](pool), logistic=self.logistic)


@dataclass(frozen=True, kw_only=True)
class DDesign(_BoundedDesign):
    """Maximise log det M (D-optimality; Kiefer and Wolfowitz 1960): the smallest confidence ellipsoid."""

    kind: Literal["d_design"] = "d_design"

    def criterion(self, pool: Pool) -> Criterion:
        """-log det M."""
        return log_det_criterion(pool, ridge=self.ridge, logistic=self.logistic)


@dataclass(frozen=True, kw_only=True)
class ADesign(_BoundedDesign):
    """Minimise tr(M^-1) (A-optimality): the mean variance of the parameters, whichever of them matter."""

    kind: Literal["a_design"] = "a_design"

    def criterion(self, pool: Pool) -> Criterion:
        """tr(M^-1)."""
        return trace_criterion(pool, ridge=self.ridge, fisher=np.eye(pool.dim), logistic=self.logistic)


@dataclass(frozen=True, kw_only=True)
class VDesign(_BoundedDesign):
    """Minimise tr(H M^-1), H the mean information of all pairs of the pool (V- or I-optimality).

    The criterion of BAIT (Ash et al. 2021, "Gone Fishing"), solved as a relaxed design; `bait` solves it as they do.
    """

    kind: Literal["v_design"] = "v_design"

    def criterion(self, pool: Pool) -> Criterion:
        """tr(H M^-1), H the mean of a_e a_e' over all pairs of the pool."""
        return trace_criterion(
            pool, ridge=self.ridge, fisher=pool_information(pool, logistic=self.logistic), logistic=self.logistic
        )


def pool_information(pool: Pool, *, logistic: bool = True) -> FloatArray:
    """Mean of a_e a_e' over the valid pairs of a pool, (dim, dim)."""
    return to_numpy(pool.space.information(curvature_of(pool, logistic=logistic) / pool.num_pairs))


def certify(criterion: Criterion, design: Design, *, chosen: IntArray, begun: float) -> Certificate:
    """What the relaxed design proves about the chosen pairs.

    Args:
        criterion: what both minimise.
        design: the relaxed design.
        chosen: flat pair indices.
        begun: reading of `time.perf_counter` at the start.
    """
    held = criterion.prior + criterion.added_information(chosen)
    reached = criterion.expand(held)
    lower_bound = min(design.lower_bound, reached.objective)  # they can meet, and then differ by rounding
    return Certificate(
        objective=reached.objective,
        relaxed_objective=design.objective,
        lower_bound=lower_bound,
        efficiency=reached.efficiency(lower_bound),
        gap=design.gap,
        effective_rank=effective_rank(held),
        support_size=int((design.weights > _SUPPORT).sum()),
        passes=design.passes,
        seconds=perf_counter() - begun,
        converged=design.converged,
    )
