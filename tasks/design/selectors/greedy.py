"""Greedy selectors: pair by pair, the one whose label would tell most given those before it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from logging import getLogger
from typing import ClassVar, Literal

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit

from tasks.design.arrays import FloatArray, IntArray, namespace, to_like, to_numpy
from tasks.design.criterion import Criterion, curvature_of
from tasks.design.greedy import forward_backward, greedy_design, projections, squared_distances
from tasks.design.kernels import logistic_curvature, pair_slots
from tasks.design.limits import Limits
from tasks.design.measures import LogDet, Trace, inverse_root, symmetric_root
from tasks.design.pool import Labels, Pool
from tasks.design.posterior import Posterior, laplace_posterior
from tasks.design.selection import Selection, selection_of
from tasks.design.selectors.base import Capped, Need

logger = getLogger(__name__)

_PRECISION = 1e-8
_MAX_STEPS = 100


@dataclass(frozen=True, kw_only=True)
class _Greedy(Capped, ABC):
    """Greedy choice under M = ridge I + sum of v_e phi_e phi_e' over labels held and pairs chosen.

    Deterministic. Ties go by the lowest index; so do pairs that tell nothing, once no other is left. Where pool and
    labels have fewer rows than numbers a row, all is computed in the space that the rows span, with the same result.

    Attributes:
        max_pairs_per_prompt: cap on the pairs of one prompt; None: no cap.
        ridge: multiple of the identity that M starts from.
    """

    ridge: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.ridge < np.inf:
            raise ValueError(f"ridge is {self.ridge}: pass a positive, finite number such as 1e-3")

    @abstractmethod
    def weigh(self, pool: Pool) -> tuple[FloatArray, FloatArray]:
        """v_e of every pair slot, (P, m), and of every label held, (n,)."""

    def prepare(self, pool: Pool) -> Pool:
        """The pool with the features that the selector uses."""
        return pool

    def search(self, criterion: Criterion, limits: Limits) -> tuple[IntArray, FloatArray]:
        """Flat pair indices in order of choice, and the score of each when chosen."""
        return greedy_design(criterion, limits)

    def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Selection:  # noqa: ARG002 (the protocol's)
        """Choose the pairs to label, in order of choice, with the score of each at that time; no randomness is used."""
        limits = self.limits(pool, budget)
        seen = compact(self.prepare(pool))
        pair_weights, label_weights = self.weigh(seen)
        rows = np.sqrt(label_weights)[:, None] * _differences(seen)
        criterion = Criterion(
            space=seen.space,
            curvature=np.where(seen.pair_mask, pair_weights, 0.0),
            mask=seen.pair_mask,
            prior=to_like(rows.T @ rows, seen.features),
            ridge=self.ridge,
            measure=LogDet(),
        )
        chosen, scores = self.search(criterion, limits)
        notes = () if scores.any() else ("no pair of the pool tells anything: the first ones were taken",)
        return replace(selection_of(pool, chosen, notes=notes), scores=scores)


@dataclass(frozen=True, kw_only=True)
class ActiveDpo(_Greedy):
    """Greedy phi' V^-1 phi, phi the difference of unit gradients, V = ridge I + sum phi phi' (D-optimality).

    Lin, Verma, Dai, Rus, Ng and Low, "ActiveDPO" (arXiv:2505.19241): gradients of the implicit reward, projected and
    scaled to unit norm; V over the pairs chosen before, without sigma' and without beta, updated within the batch. So
    they are reported; which vectors are scaled, whether labels of earlier rounds count, and the ridge are open, hence
    the options. The score here is the square of their norm.

    Attributes:
        normalise: "response" scales each response's features to unit norm before the difference is taken, and takes
            differences of labels held as they are; "pair" scales every difference to unit norm, those of labels too,
            so that the first pick among new directions is a tie; "none" scales nothing.
        count_held: V counts the labels held.
    """

    kind: Literal["active_dpo"] = "active_dpo"
    normalise: Literal["response", "pair", "none"] = "response"
    count_held: bool = True

    def prepare(self, pool: Pool) -> Pool:
        """Scale the responses."""
        if self.normalise != "response":
            return pool
        norms = to_numpy(namespace(pool.features).linalg.vector_norm(pool.features, axis=2))
        gains = to_like(_inverse(norms)[:, :, None], pool.features, norms.dtype.type)
        return replace(pool, features=pool.features * gains)

    def weigh(self, pool: Pool) -> tuple[FloatArray, FloatArray]:
        """1, or 1 / |phi|^2."""
        differences, pairs = _differences(pool), np.ones(pool.pair_mask.shape)
        labels = np.full(len(differences), float(self.count_held))
        if self.normalise != "pair":
            return pairs, labels
        squares = squared_distances(pool.space, np.eye(pool.dim))
        return _inverse(squares), labels * _inverse(np.square(differences).sum(axis=1))


@dataclass(frozen=True, kw_only=True)
class Apo(_Greedy):
    """Largest phi' V^-1 phi with V = ridge I + sum phi phi' over the labels held.

    Das, Chakraborty, Pacchiano and Chowdhury, "Active Preference Optimization" (arXiv:2402.10500), in its practical
    form without sigma'. Their release takes the best of scores that stay frozen over the batch, with a ridge of 1e-5 on
    embeddings of the last layer, and may take a pair twice; here none comes twice.

    Attributes:
        update_within_batch: add each pair chosen to V before the next is chosen.
    """

    kind: Literal["apo"] = "apo"
    ridge: float = 1e-5
    update_within_batch: bool = False

    def weigh(self, pool: Pool) -> tuple[FloatArray, FloatArray]:
        """1 each."""
        return np.ones(pool.pair_mask.shape), np.ones(len(_differences(pool)))

    def search(self, criterion: Criterion, limits: Limits) -> tuple[IntArray, FloatArray]:
        """One by one, or the best of the scores before the first of them."""
        if self.update_within_batch:
            return greedy_design(criterion, limits)
        root = criterion.expand(criterion.prior).inverse_root
        scores = (criterion.curvature * squared_distances(criterion.space, root)).ravel()
        pairs = np.flatnonzero(limits.mask)
        chosen = limits.take(pairs[np.argsort(-scores[pairs], kind="stable")])
        return chosen, scores[chosen]


@dataclass(frozen=True, kw_only=True)
class _Adpo(_Greedy, ABC):
    """Greedy v' H^-1 v: v = beta sqrt(mu (1 - mu)) phi, H = ridge I + sum v v', mu = sigma(z), z = beta phi' theta.

    Attributes:
        alpha: takes mu (1 - mu) of a candidate at max(|z| - alpha sd(z), 0), sd(z)^2 = beta^2 phi' H^-1 phi with the H
            of the labels held: its largest value within alpha standard deviations.
    """

    alpha: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha < np.inf:
            raise ValueError(f"alpha is {self.alpha}: pass a finite number of standard deviations, 0 or more")

    @abstractmethod
    def posterior(self, pool: Pool) -> Posterior:
        """N(theta_hat, H^-1) before the first pair is chosen."""

    def weigh(self, pool: Pool) -> tuple[FloatArray, FloatArray]:
        """beta^2 mu (1 - mu)."""
        posterior = self.posterior(pool)
        logits = np.abs(posterior.logits)
        if self.alpha:
            logits = np.maximum(logits - self.alpha * posterior.logit_deviations, 0.0)
        held = logistic_curvature(pool.beta * _differences(pool) @ posterior.mean)
        return pool.beta**2 * logistic_curvature(logits), pool.beta**2 * held


@dataclass(frozen=True, kw_only=True)
class Adpo(_Adpo):
    """Greedy v' H^-1 v, v = beta sqrt(mu (1 - mu)) phi, with mu as the labels held say (D-optimality).

    Kveton et al., "Active Learning for Direct Preference Optimization" (arXiv:2503.01076), their online ADPO; `alpha`
    is their equation 13, with 3 in their experiments. Derived here: their offset, the reference policy's log ratio, is
    absorbed by theta, which is then the shift from the reference; theta_hat is the ridge logistic fit to the labels
    held, and 0 without any; it stays as it is within the batch, where they learn each label before the next pair.
    """

    kind: Literal["adpo"] = "adpo"

    def posterior(self, pool: Pool) -> Posterior:
        """Of the labels held."""
        return laplace_posterior(pool, ridge=self.ridge)


@dataclass(frozen=True, kw_only=True)
class AdpoOffline(_Adpo):
    """Greedy v' H^-1 v, v = beta sqrt(mu (1 - mu)) phi, with mu as the outcomes of all pairs say (D-optimality).

    Kveton et al. (arXiv:2503.01076), their ADPO+, which picks the labels to train on from data that are labelled
    already. Reconstructed here: the known outcome of a pair is the probability sigma(score_a - score_b) under the
    proxy scores of the pool, and theta_hat the ridge logistic fit to those of all pairs of valid responses. H counts
    the labels held only. See `Adpo` for what else is derived.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"scores"})

    kind: Literal["adpo_offline"] = "adpo_offline"

    def posterior(self, pool: Pool) -> Posterior:
        """theta_hat of all outcomes, spread as the labels held leave it."""
        mean = fit_outcomes(pool, ridge=self.ridge)
        differences = pool.beta * _differences(pool)
        held = logistic_curvature(differences @ mean)[:, None] * differences
        return Posterior(pool=pool, mean=mean, inverse_root=inverse_root(held.T @ differences, self.ridge))


@dataclass(frozen=True, kw_only=True)
class Bait(_Greedy):
    """Minimise tr(H M^-1), H the mean information of all pairs of the pool, forward and then backward (V-optimality).

    Ash, Goel, Krishnamurthy and Kakade 2021, "Gone Fishing" (arXiv:2106.09675): twice the budget is chosen greedily,
    each time the pair of largest s / (1 + t), s = a' M^-1 H M^-1 a and t = a' M^-1 a; then the one of least s / (1 - t)
    goes until the budget is met. Derived here: a is the gradient of a pair's margin times beta sqrt(sigma'); labels
    held count in full, where their release weighs them by their share. Scores are s / (1 + t) when chosen.
    """

    kind: Literal["bait"] = "bait"

    def weigh(self, pool: Pool) -> tuple[FloatArray, FloatArray]:
        """beta^2 sigma'."""
        labels = np.zeros(0) if pool.labels is None else logistic_curvature(pool.labels.margins)
        return curvature_of(pool), pool.beta**2 * labels

    def search(self, criterion: Criterion, limits: Limits) -> tuple[IntArray, FloatArray]:
        """Forward, then backward."""
        information = criterion.space.information(criterion.curvature / criterion.mask.sum())
        root = to_like(symmetric_root(to_numpy(information)), criterion.space.features)
        return forward_backward(replace(criterion, measure=Trace(root)), limits)


def compact(pool: Pool) -> Pool:
    """The same pool and labels in as many dimensions as they have rows, where these are fewer.

    Coordinates along an orthonormal basis of all differences, from a QR factorisation, keep every inner product; what
    is orthogonal to all of them no label tells about. The policy Fisher information is left out.
    """
    prompts, anchors = np.arange(pool.num_prompts), pool.valid.argmax(axis=1)
    others = pool.valid.copy()
    others[prompts, anchors] = False
    labels = pool.labels or Labels(differences=np.zeros((0, pool.dim)), margins=np.zeros(0))
    if others.sum() + len(labels.margins) >= pool.dim:
        return pool
    features = to_numpy(pool.features).astype(np.float64)
    rows = (features - features[prompts, anchors][:, None])[others]
    turned = np.asarray(np.linalg.qr(np.concatenate([rows, labels.differences]).T, mode="r")).T
    features = np.zeros((*pool.valid.shape, turned.shape[1]))
    features[others] = turned[: len(rows)]
    held = Labels(differences=turned[len(rows) :], margins=labels.margins)
    return replace(pool, features=features, labels=held, fisher=None)


def fit_outcomes(pool: Pool, *, ridge: float) -> FloatArray:
    """theta_hat that minimises the loss of all pairs of valid responses plus ridge |theta|^2 / 2, (dim,).

    The loss of a pair is the cross-entropy of sigma(z), z = beta theta' (phi_a - phi_b), under the outcome
    sigma(score_a - score_b). Newton's method with exact line search; ends within 1e-8 standard deviations.
    """
    first, second = pair_slots(pool.valid.shape[1])
    both = pool.valid[:, first] & pool.valid[:, second]
    outcomes = expit(pool.differences_of(np.asarray(pool.scores)))
    signs = pool.beta * (np.eye(pool.valid.shape[1])[first] - np.eye(pool.valid.shape[1])[second])
    theta, logits = np.zeros(pool.dim), np.zeros(both.shape)

    def slope(length: float) -> float:
        pull = (moves * (outcomes - expit(logits + length * moves))).sum()
        return float(ridge * (theta + length * step) @ step - pull)

    for _ in range(_MAX_STEPS):
        root = inverse_root(to_numpy(pool.space.information(both * pool.beta**2 * logistic_curvature(logits))), ridge)
        pull = np.tensordot((both * (outcomes - expit(logits))) @ signs, to_numpy(pool.features), 2)
        ascent = root.T @ (pull - ridge * theta)
        if np.linalg.norm(ascent) <= _PRECISION:
            return theta
        step = root @ ascent
        moves = both * pool.beta * projections(pool.space, step[None])[0]
        length = 1.0 if slope(1.0) <= 0 or slope(0.0) >= 0 else brentq(slope, 0.0, 1.0)
        theta, logits = theta + length * step, logits + length * moves
    logger.warning("the logistic fit to %d pairs is %.1e short", both.sum(), np.linalg.norm(ascent))
    return theta


def _differences(pool: Pool) -> FloatArray:
    """phi_chosen - phi_rejected of the labels held, (n, dim) float64."""
    return np.zeros((0, pool.dim)) if pool.labels is None else pool.labels.differences.astype(np.float64)


def _inverse(values: FloatArray) -> FloatArray:
    """1 / value, and 0 for 0."""
    return np.divide(1.0, values, out=np.zeros_like(values), where=values > 0)
