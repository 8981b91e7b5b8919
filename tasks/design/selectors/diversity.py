"""Selectors that cover the pool: pairs unlike one another, whatever their labels would tell about the policy."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy.special import expit

from tasks.design.arrays import FloatArray
from tasks.design.pool import Pool
from tasks.design.selection import Selection, selection_of
from tasks.design.selectors.base import Capped
from tasks.design.spread import PairVectors, Spread, farthest_first, nearest_to_means, sample_by_distance


@dataclass(frozen=True, kw_only=True)
class Badge(Capped):
    """Draw pairs whose gradients are long and unlike: D^2 sampling on sigma(-|z_e|) sign(z_e) (phi_a - phi_b).

    BADGE (Ash et al. 2020, "Deep Batch Active Learning by Diverse, Uncertain Gradient Lower Bounds",
    arXiv:1906.03671) runs the seeding of k-means++ on the gradients that examples would have under their predicted
    label, the longest first, as its release does. Theirs are the gradients of a classifier's last layer. Ours is that
    of the preference loss, up to its sign and beta, if the response of larger implicit reward wins; where z = 0 the
    first of the pair does.

    Scores are squared distances from the nearest pair before.
    """

    kind: Literal["badge"] = "badge"

    def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Selection:
        """Draw the pairs to label."""
        limits = self.limits(pool, budget)
        vectors = PairVectors.of(pool.space, limits.mask, scales=predicted_slopes(pool.margins), oriented=True)
        return _measured(pool, sample_by_distance(vectors, limits, rng=rng))


@dataclass(frozen=True, kw_only=True)
class KCenter(Capped):
    """Take the pair farthest from all labelled and chosen ones: max_e min_c min(|g_e - c|, |g_e + c|).

    The greedy k-centre of Sener and Savarese (2018, "Active Learning for Convolutional Neural Networks: A Core-Set
    Approach", arXiv:1708.00489), which starts from the labels held. Ours: g_e = phi_a - phi_b has no sign, as either
    response could have come first; and without labels the longest vector starts. No randomness is used unless fewer
    pairs differ than the budget asks for.

    Scores are squared distances from the nearest pair before.
    """

    kind: Literal["k_center"] = "k_center"

    def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Selection:
        """Choose the pairs to label."""
        limits = self.limits(pool, budget)
        held = None if pool.labels is None else pool.labels.differences
        vectors = PairVectors.of(pool.space, limits.mask)
        return _measured(pool, farthest_first(vectors, limits, rng=rng, centres=held))


@dataclass(frozen=True, kw_only=True)
class KMeans(Capped):
    """Cluster the vectors g_e = phi_a - phi_b into as many clusters as pairs are chosen; take the nearest to each mean.

    Minimises sum_e min_c min(|g_e - c|^2, |g_e + c|^2) by Lloyd's algorithm from k-means++ seeds: the classical
    baseline of diverse selection. Ours: vectors without sign. Pairs come in the order of the seeds; they have no score.

    Attributes:
        max_pairs_per_prompt: cap on the pairs of one prompt; None: no cap.
        num_iterations: iterations of Lloyd's algorithm.
    """

    kind: Literal["k_means"] = "k_means"
    num_iterations: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_iterations < 1:
            raise ValueError(f"num_iterations is {self.num_iterations}: allow 1 or more")

    def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Selection:
        """Choose the pairs to label."""
        limits = self.limits(pool, budget)
        vectors = PairVectors.of(pool.space, limits.mask)
        spread = nearest_to_means(vectors, limits, rng=rng, num_iterations=self.num_iterations)
        return selection_of(pool, spread.pairs, notes=spread.notes)


def predicted_slopes(margins: FloatArray) -> FloatArray:
    """sigma(-|z|) sign(z), the slope of -log sigma(z) under the predicted label up to its sign; 1/2 at z = 0."""
    slopes: FloatArray = np.where(margins < 0, -1.0, 1.0) * expit(-np.abs(margins))
    return slopes


def _measured(pool: Pool, spread: Spread) -> Selection:
    return replace(selection_of(pool, spread.pairs, notes=spread.notes), scores=spread.squared_distances)
