"""Selectors that ask where a posterior over the rewards is unsure.

Their sources train ensembles of reward models. Here the posterior is Laplace's approximation of a logistic model over
the pool's features: exact Gaussian variances, no training, and the prior alone before the first label.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.spatial.distance import cdist
from scipy.special import digamma, entr, expit, ndtr

from tasks.design.arrays import FloatArray, IntArray, to_numpy
from tasks.design.limits import Limits
from tasks.design.pool import Pool
from tasks.design.posterior import Posterior, laplace_posterior
from tasks.design.selection import Selection, selection_of
from tasks.design.selectors.base import Capped, Ranked, random_order

_QUADRATURE_NODES = 32
_PROMPTS_PER_BLOCK = 256


@dataclass(frozen=True, kw_only=True)
class Bayesian(Capped):
    """Judges pairs by a posterior over the rewards.

    Attributes:
        max_pairs_per_prompt: cap on the pairs of one prompt; None: no cap.
        ridge: prior precision of every feature's weight.
    """

    ridge: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.ridge < np.inf:
            raise ValueError(f"ridge is {self.ridge}: pass a positive, finite prior precision such as 1.0")

    def posterior(self, pool: Pool) -> Posterior:
        """The posterior given the labels held."""
        return laplace_posterior(pool, ridge=self.ridge)


@dataclass(frozen=True, kw_only=True)
class Bald(Bayesian, Ranked):
    """Label the pairs of largest Var[z] = beta^2 (phi_a - phi_b)' M^-1 (phi_a - phi_b), z the logit of the label.

    Pure exploration by disagreement, as `EnnUncertainty` of SEA (Liu et al., arXiv:2411.01493). Published: the variance
    over an ensemble's heads, one pair of each prompt. Ours: the posterior's variance, the best pairs of the whole pool.
    """

    kind: Literal["bald"] = "bald"

    def rank(self, pool: Pool, rng: np.random.Generator) -> FloatArray:  # noqa: ARG002 (the protocol's)
        """Variance of the logit, (P, m)."""
        return np.square(self.posterior(pool).logit_deviations)


@dataclass(frozen=True, kw_only=True)
class NearTie(Bayesian, Ranked):
    """Label the pairs whose order is least settled: largest Phi(-|E z| / sd z), the chance that sign E z is wrong.

    Zhao and Jun (arXiv:2602.01581) argue that labels belong where the confidence interval of z still holds 0. Their
    exact rule was not available to us: this surrogate is ours. Before any label every pair is a tie.
    """

    kind: Literal["near_tie"] = "near_tie"

    def rank(self, pool: Pool, rng: np.random.Generator) -> FloatArray:  # noqa: ARG002 (the protocol's)
        """Probability that the sign is wrong, (P, m); 0 where the responses have the same features."""
        posterior = self.posterior(pool)
        spread = posterior.logit_deviations
        settled = np.full_like(spread, np.inf)
        np.divide(np.abs(posterior.logits), spread, out=settled, where=spread > 0)
        probability: FloatArray = ndtr(-settled)
        return probability


@dataclass(frozen=True, kw_only=True)
class BalPm(Bayesian):
    """Greedily take the pair of largest I(label; theta) + w (log D - psi(n + 1)), with few prompts alike in a batch.

    The acquisition of BAL-PM (Melo et al., arXiv:2406.10023): the information of one label about the reward, and the
    gain in the entropy of the labelled prompts, for which D is the distance from the pair's prompt to its k-th nearest
    in the pool and n counts the labelled prompts within D. Weight and k are those of the released code, as is the
    dimension of 1 that the entropy is taken in. Ours: the posterior in place of an ensemble; the mean of its responses'
    features as a prompt's; and labels of earlier rounds leave out of n, as only differences are kept of them.

    A selection's `scores` are the information in nats.

    Attributes:
        max_pairs_per_prompt: cap on the pairs of one prompt; None: no cap.
        ridge: prior precision of every feature's weight.
        prompt_weight: w, nats of information that a nat of prompt entropy is worth.
        num_neighbours: k.
    """

    kind: Literal["bal_pm"] = "bal_pm"
    prompt_weight: float = 0.01
    num_neighbours: int = 13

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.prompt_weight < np.inf:
            raise ValueError(f"prompt_weight is {self.prompt_weight}: pass 0 or a positive, finite number")
        if self.num_neighbours < 1:
            raise ValueError(f"num_neighbours is {self.num_neighbours}: pass 1 or more")

    def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Selection:
        """Choose pair by pair; money that costs leave over goes to the most informative pairs that still fit."""
        limits = self.limits(pool, budget)
        posterior = self.posterior(pool)
        information = label_information(posterior.logits, posterior.logit_deviations)
        order = random_order(information, pool, rng)
        batch = _batch_of(pool, order, limits=limits, num_neighbours=self.num_neighbours)
        greedy = self._greedy(batch, information.ravel(), most=_most_pairs(limits), rng=rng)
        rest = order[~np.isin(order, greedy)]
        return selection_of(pool, limits.take(np.concatenate([greedy, rest])), scores=information)

    def _greedy(self, batch: "_Batch", information: FloatArray, *, most: int, rng: np.random.Generator) -> IntArray:
        chosen: list[int] = []
        while len(chosen) < most and batch.room.any():
            pairs = batch.heads()
            gain = information[pairs] + self.prompt_weight * batch.novelty()
            gain[batch.room == 0] = -np.inf
            best = int(rng.choice(np.flatnonzero(gain == gain.max())))
            chosen.append(int(pairs[best]))
            batch.take(best)
        return np.array(chosen, dtype=np.intp)


@dataclass(eq=False, kw_only=True)
class _Batch:
    """A batch in the making, seen from the n prompts that have pairs.

    Attributes:
        queue: flat pair indices prompt by prompt, the most informative of a prompt first.
        place: where in the queue the next pair of each prompt stands, (n,).
        room: pairs that each prompt may still give, (n,).
        features: of each prompt, (n, dim).
        reach: distance D from each prompt to its k-th nearest, (n,).
        crowd: pairs of the batch whose prompts lie within D, (n,).
    """

    queue: IntArray
    place: IntArray
    room: IntArray
    features: FloatArray
    reach: FloatArray
    crowd: IntArray

    def heads(self) -> IntArray:
        """Flat index of each prompt's next pair, (n,); of any pair where there is no room."""
        heads: IntArray = self.queue[np.minimum(self.place, len(self.queue) - 1)]
        return heads

    def novelty(self) -> FloatArray:
        """What a pair of each prompt adds to the entropy of prompts: log D - psi(n + 1), (n,)."""
        gain: FloatArray = np.log(np.maximum(self.reach, np.finfo(np.float64).tiny)) - digamma(self.crowd + 1)
        return gain

    def take(self, prompt: int) -> None:
        """Move the next pair of a prompt into the batch."""
        self.place[prompt] += 1
        self.room[prompt] -= 1
        self.crowd += cdist(self.features[prompt : prompt + 1], self.features)[0] <= self.reach


def _batch_of(pool: Pool, order: IntArray, *, limits: Limits, num_neighbours: int) -> _Batch:
    owners = order // pool.pair_mask.shape[1]
    prompts, counts = np.unique(owners, return_counts=True)
    features = to_numpy(pool.space.means)[prompts, 0].astype(np.float64)
    return _Batch(
        queue=order[np.argsort(owners, kind="stable")],
        place=np.cumsum(counts) - counts,
        room=counts if limits.cap is None else np.minimum(counts, limits.cap),
        features=features,
        reach=_distances_to_neighbour(features, num_neighbours),
        crowd=np.zeros(len(prompts), dtype=np.intp),
    )


def _most_pairs(limits: Limits) -> int:
    return limits.budget if limits.costs is None else int(limits.budget / limits.costs[limits.mask].min())


def _distances_to_neighbour(points: FloatArray, rank: int) -> FloatArray:
    """Distance from each point to the `rank`-th nearest other one, or to the farthest where there are fewer, (n,)."""
    found = np.empty(len(points))
    last = min(rank, len(points) - 1)
    for start in range(0, len(points), _PROMPTS_PER_BLOCK):
        block = slice(start, start + _PROMPTS_PER_BLOCK)
        found[block] = np.partition(cdist(points[block], points), last, axis=1)[:, last]
    return found


def label_information(logits: FloatArray, deviations: FloatArray) -> FloatArray:
    """Mutual information of a label and theta, H(E p) - E H(p) in nats with p = sigma(z), of the shape of `logits`.

    Gauss-Hermite quadrature over z ~ N(logits, deviations^2); Houlsby et al. (arXiv:1112.5745) name it BALD.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(_QUADRATURE_NODES)
    first, second, entropy = (np.zeros_like(logits) for _ in range(3))
    for node, weight in zip(nodes, weights / weights.sum(), strict=True):
        logit = logits + deviations * node
        p, q = expit(logit), expit(-logit)
        first += weight * p
        second += weight * q
        entropy += weight * (entr(p) + entr(q))
    information: FloatArray = np.maximum(entr(first) + entr(second) - entropy, 0.0)
    return information
