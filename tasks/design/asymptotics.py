"""What labels drawn from a design teach once they are many: n times the expected suboptimality of the trained policy.

The policies are log-linear and the labeller Bradley-Terry with a utility in the span of the features, n pairs are drawn
from a design D with repetition, and training is DPO without regularisation. Then, as n grows,

    n E[J(pi*) - J(pi_n)] -> (beta / 2) tr(I(theta*) M_D(theta*)^+),
    M_D(theta) = sum_e D_e sigma'(z_e) g_e g_e',    g_e = beta (phi_a - phi_b),    z_e = theta'g_e.

Derived, from the second order of the gap and the asymptotic normality of maximum likelihood. Han, Goyal and Ma, "Which
Pairs to Compare for LLM Post-Training?" (arXiv:2606.19607), are reported to bound the gap by such a trace from both
sides, up to constants.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.linalg import eigh

from tasks.design.arrays import FloatArray, to_numpy
from tasks.design.criterion import curvature_of, trace_criterion
from tasks.design.environments.world import Target, World
from tasks.design.fisher import exact_fisher
from tasks.design.kernels import pair_slots
from tasks.design.pool import Pool
from tasks.design.search import Effort
from tasks.design.simplex import simplex_design

TOLERANCE = 1e-2
"""Relative gap to the best design at which the search for one ends."""

_RIDGE = 1e-9
"""Of a search, in units of the mean eigenvalue of M at even weights: directions that no pair shows stay finite."""

_RANK = 1e-10
_SPAN = 1e-6


def predicted_gap(information: FloatArray, fisher: FloatArray, *, beta: float) -> float:
    """(beta / 2) tr(I M^+); infinite where the policy's value bends along a direction of which labels say nothing.

    Args:
        information: M, of one label, (dim, dim).
        fisher: I, (dim, dim).
        beta: inverse temperature of the loss.
    """
    values, vectors = eigh(information)
    shown = values > _RANK * max(float(values[-1]), 0.0)
    bend = np.einsum("ij,ik,kj->j", vectors, fisher, vectors)
    if bend[~shown].sum() > _RANK * bend.sum():
        return float("inf")
    return beta / 2 * float((bend[shown] / values[shown]).sum())


def label_information(pool: Pool, design: FloatArray) -> FloatArray:
    """M_D of a design (P, m) at the policy whose implicit rewards the pool holds, (dim, dim)."""
    found: FloatArray = to_numpy(pool.space.information(design * curvature_of(pool)))
    return found


def even_design(pool: Pool) -> FloatArray:
    """Every pair alike, (P, m)."""
    design: FloatArray = pool.pair_mask / pool.num_pairs
    return design


def drawn_design(pool: Pool) -> FloatArray:
    """Both responses of a pair drawn from the policy, equal ones drawn again; prompts alike; (P, m).

    Raises:
        ValueError: the pool has no log_probs.
    """
    if pool.log_probs is None:
        raise ValueError("a design by the policy needs the log_probs of the responses, the pool has none")
    first, second = pair_slots(pool.valid.shape[1])
    products = np.exp(pool.log_probs[:, first] + pool.log_probs[:, second]) * pool.pair_mask
    design: FloatArray = products / products.sum(axis=1, keepdims=True) / pool.num_prompts
    return design


def best_design(pool: Pool, tolerance: float = TOLERANCE) -> FloatArray:
    """The design of least tr(I M_D^-1) at the policy whose implicit rewards and `fisher` the pool holds, (P, m)."""
    even = even_design(pool)
    level = float(np.trace(label_information(pool, even))) / pool.dim
    return simplex_design(trace_criterion(pool, ridge=_RIDGE * level), Effort(tolerance=tolerance), start=even).weights


@dataclass(frozen=True, eq=False)
class Limit:
    """A world in which all of the theory's premises hold, and what becomes of designs there.

    Policies are judged on the prompts of the pool: the deployment is what the designs know.

    Attributes:
        start: the pool as the reference policy leaves it: margins 0, I(theta_0).
        truth: the same at the best policy: true margins, I(theta*).
        target: the pool's prompts and responses under the reference.
    """

    start: Pool
    truth: Pool
    target: Target

    @classmethod
    def of(cls, world: World) -> "Limit":
        """The premises checked, policies judged on the pool's own prompts.

        Raises:
            ValueError: labels are flipped, the pool has no log_probs, or the utilities are not in the features' span.
        """
        pool = world.pool
        if world.flip_rate:
            raise ValueError(f"flip_rate is {world.flip_rate}: the theory's labels are Bradley-Terry, pass 0")
        if pool.log_probs is None:
            raise ValueError("the pool has no log_probs: the reference policy has to be known")
        _check_span(pool, world.utilities)
        features, log_reference = to_numpy(pool.features), np.where(pool.valid, pool.log_probs, -np.inf)
        target = Target(features=features, utilities=world.utilities, log_reference=log_reference)
        optimum = target.optimum(beta=pool.beta)
        start = replace(pool, fisher=exact_fisher(features, log_reference))
        truth = replace(pool, rewards=world.utilities, fisher=exact_fisher(features, optimum))
        return cls(start=start, truth=truth, target=target)

    @cached_property
    def designs(self) -> Mapping[str, FloatArray]:
        """By name, (P, m) each."""
        return {name: draw(self) for name, draw in DESIGNS.items()}

    def predicted(self, design: FloatArray) -> float:
        """n times the expected gap, as n grows, of a design (P, m)."""
        return predicted_gap(label_information(self.truth, design), self.truth.policy_fisher, beta=self.truth.beta)


DESIGNS: Mapping[str, Callable[[Limit], FloatArray]] = {
    "uniform": lambda limit: even_design(limit.start),
    "reference": lambda limit: drawn_design(limit.start),
    "plug_in": lambda limit: best_design(limit.start),
    "oracle": lambda limit: best_design(limit.truth),
}
"""Of the paper's synthetic study; `reference` and `plug_in` know the reference policy, `oracle` the best one."""


def _check_span(pool: Pool, utilities: FloatArray) -> None:
    """Refuse utilities that no policy of the family is best for."""
    centre = np.where(pool.valid, utilities, 0.0).sum(axis=1, keepdims=True) / pool.valid.sum(axis=1, keepdims=True)
    values = (utilities - centre)[pool.valid]
    rows = np.concatenate([to_numpy(chunk)[pool.valid[part]] for part, chunk in pool.space.chunks(np.float64)])
    missed = values - rows @ np.linalg.lstsq(rows, values, rcond=None)[0]
    share = float(np.linalg.norm(missed)) / max(float(np.linalg.norm(values)), 1e-300)
    if share > _SPAN:
        raise ValueError(f"features leave {share:.2g} of the utilities unexplained: pass a well-specified world")
