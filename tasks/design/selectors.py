"""Selectors: ways to spend a labelling budget on a pool."""  # noqa: A005 (only ever tasks.design.selectors)

from dataclasses import dataclass
from time import perf_counter
from typing import Literal, Protocol, get_args

import numpy as np

from tasks.design.capped import BoundedProblem, Design, bounded_design
from tasks.design.criterion import TraceCriterion, effective_rank, trace_criterion
from tasks.design.exchange import exchange_pairs
from tasks.design.kernels import IntArray
from tasks.design.pool import Certificate, Pool, Selection
from tasks.design.rounding import check_budget, round_design, sort_pairs, take_in_order

_SUPPORT = 1e-6


class Selector(Protocol):
    """Chooses exactly `budget` distinct valid pairs; all randomness comes from `rng`.

    Raises:
        ValueError: the pool can't hold the budget.
    """

    def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Selection:
        """Choose the pairs to label."""
        ...


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """Draw pairs uniformly without replacement: the baseline of every comparison.

    Without a cap each pair is included with probability budget / num_pairs. Under a cap the pairs come in uniform
    order and those of a full prompt are passed over; inclusion probabilities are then left undefined.
    """

    kind: Literal["uniform"] = "uniform"
    max_pairs_per_prompt: int | None = None

    def __post_init__(self) -> None:
        _check_cap(self.max_pairs_per_prompt)

    def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Selection:
        """Choose the pairs to label; their order is random too."""
        cap = self.max_pairs_per_prompt
        check_budget(pool.pair_mask, budget, cap=cap)
        order = rng.permutation(np.flatnonzero(pool.pair_mask))
        prompt, first, second = pool.pairs(take_in_order(order, pool.pair_mask.shape[1], budget=budget, cap=cap))
        probabilities = np.full(budget, budget / pool.num_pairs) if cap is None else None
        return Selection(prompt=prompt, first=first, second=second, inclusion_probabilities=probabilities)


@dataclass(frozen=True, kw_only=True)
class TraceDesign:
    """Minimise tr(H M^-1), the predicted suboptimality of the trained policy, with at most one label per pair.

    The criterion is that of Han, Goyal and Ma, "Which Pairs to Compare for LLM Post-Training?" (arXiv:2606.19607). They
    are reported to optimise a distribution over pairs and to draw from it; here the design knows from the start that
    a pair is labelled once, its largest weights are taken and then exchanged while that helps. That is deterministic:
    inclusion probabilities are undefined.

    Attributes:
        kind: name of the selector.
        ridge: lambda in M = lambda I + prior + information of the chosen pairs, in units of that information.
        tolerance: certified relative gap at which the relaxed design is good enough.
        max_iterations: Frank-Wolfe steps at most; the certificate holds even where they don't suffice.
        max_pairs_per_prompt: cap on the pairs of one prompt; None: no cap.
    """

    kind: Literal["trace_design"] = "trace_design"
    ridge: float = 1e-3
    tolerance: float = 1e-3
    max_iterations: int = 200
    max_pairs_per_prompt: int | None = None

    def __post_init__(self) -> None:
        _check_cap(self.max_pairs_per_prompt)
        for name, value in (("ridge", self.ridge), ("tolerance", self.tolerance)):
            if not 0 < value < np.inf:
                raise ValueError(f"{name} is {value}: pass a positive, finite number such as 1e-3")
        if self.max_iterations < 1:
            raise ValueError(f"max_iterations is {self.max_iterations}: allow 1 or more Frank-Wolfe steps")

    def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Selection:  # noqa: ARG002 (the protocol's)
        """Choose the pairs to label, by weight in the design, then by score; no randomness is used."""
        begun = perf_counter()
        cap = self.max_pairs_per_prompt
        check_budget(pool.pair_mask, budget, cap=cap)
        criterion = trace_criterion(pool, ridge=self.ridge)
        problem = BoundedProblem(criterion=criterion, budget=budget, cap=cap)
        design = bounded_design(problem, tolerance=self.tolerance, max_iterations=self.max_iterations)
        rounded = round_design(design.weights, design.scores, mask=pool.pair_mask, budget=budget, cap=cap)
        chosen = exchange_pairs(problem, rounded, goal=(1 + self.tolerance) * design.lower_bound)
        chosen = sort_pairs(design.weights, design.scores, pairs=chosen)
        prompt, first, second = pool.pairs(chosen)
        return Selection(
            prompt=prompt,
            first=first,
            second=second,
            weights=design.weights.ravel()[chosen],
            scores=design.scores.ravel()[chosen],
            certificate=_certify(criterion, design, chosen=chosen, begun=begun),
        )


# The one place to add a selector.
AnySelector = Uniform | TraceDesign
SELECTORS: dict[str, type[AnySelector]] = {selector.kind: selector for selector in get_args(AnySelector)}


def _check_cap(cap: int | None) -> None:
    if cap is not None and cap < 1:
        raise ValueError(f"max_pairs_per_prompt is {cap}: pass 1 or more, or leave it out for no cap")


def _certify(criterion: TraceCriterion, design: Design, *, chosen: IntArray, begun: float) -> Certificate:
    whole = np.zeros(criterion.mask.size)
    whole[chosen] = 1.0
    held = criterion.information(whole.reshape(criterion.mask.shape))
    objective = criterion.expand(held).objective
    lower_bound = min(design.lower_bound, objective)  # they can meet, and then differ by rounding
    return Certificate(
        objective=objective,
        relaxed_objective=design.objective,
        lower_bound=lower_bound,
        efficiency=lower_bound / objective if objective > 0 else 1.0,
        effective_rank=effective_rank(held),
        support_size=int((design.weights > _SUPPORT).sum()),
        iterations=design.iterations,
        seconds=perf_counter() - begun,
        converged=design.converged,
    )
