"""Contextual log-linear worlds: a prompt decides what the properties of a response are worth."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import log_softmax

from tasks.design.arrays import FloatArray, IntArray
from tasks.design.environments.base import (
    UtilityTable,
    centred,
    check_at_least,
    check_flips,
    check_positive,
    pair_draws,
    uniform_log_probs,
)
from tasks.design.environments.world import Target, World
from tasks.design.fisher import exact_fisher, fisher_of
from tasks.design.pool import Pool

NUM_TARGET_PROMPTS = 300
"""Fresh prompts on which policies are judged."""

_NUM_TEMPLATES = 3
_TEMPLATE_NORM = 2.0
_COPY_NOISE = 0.05
_FAINT = 0.4
_STRONG = float(np.sqrt(2 - _FAINT**2))

_ORDINARY, _CLUSTER, _COPY = 0, 1, 2


@dataclass(frozen=True, eq=False, kw_only=True)
class _Prompts:
    """Contexts x, (P, k), and responses a, (P, K, k)."""

    contexts: FloatArray
    responses: FloatArray

    @property
    def features(self) -> FloatArray:
        """[a; x * a], (P, K, 2 k)."""
        return np.concatenate([self.responses, self.contexts[:, None] * self.responses], axis=2)


@dataclass(frozen=True, kw_only=True)
class Linear:
    """Utility that is linear in [a; x * a], up to a residual.

    The features of a synthetic study of Han, Goyal and Ma (arXiv:2606.19607), as reported: [x; a; x * a], x of the
    prompt, a of the response, and their elementwise product. The block x is the same for all responses to a prompt,
    cancels in every comparison, and is left out. All else is ours: x ~ N(0, I), a ~ N(0, s^2 diag(j^-anisotropy)) with
    a scale s of the prompt's own, theta ~ N(0, I), scaled, and a reference of the same log-linear family. The mean
    squared norm of the pool's responses about their prompts' means is 1. The deployment is fresh prompts.

    Attributes:
        dim: length of a feature vector, even.
        num_prompts: prompts of the pool.
        num_responses: responses to each prompt.
        beta: inverse temperature of the preference loss.
        anisotropy: exponent of the power law of the variances of a; 0: all alike.
        prompt_spread: standard deviation of log s: how much prompts differ in how far apart their responses are.
        reward_scale: standard deviation of the pool's utilities within prompts, logits, but for chance.
        reference_spread: standard deviation of log pi_0 within prompts of the pool, before it is normalised, with
            log pi_0 linear in the features; the pool's `fisher` is then its own under pi_0. 0: uniform.
        duplicates: share of the prompts that are near copies of one of three, whose responses have twice the norm.
        target_share: share of the pool that comes from a cluster, to which the whole deployment belongs; the pool's
            `fisher` is then the deployment's. Contexts vary along the second half of their coordinates in the cluster,
            along the first half elsewhere, and little along the other. None: the deployment is like the pool.
        flip_rate: chance that a label is turned round.
        fit: correlation within prompts of the utility and its linear part, but for chance; 1: well specified.
        residual: the rest of the utility. "independent" is Gaussian noise of each response, as large for all of them;
            "quadratic" is phi' A phi with Gaussian A: what a linear model misses of a smooth utility. It grows with the
            features, as misfit does on real preferences.

    Raises:
        ValueError: a field is out of range.
    """

    kind: Literal["linear"] = "linear"
    dim: int = 32
    num_prompts: int = 150
    num_responses: int = 8
    beta: float = 1.0
    anisotropy: float = 0.0
    prompt_spread: float = 0.0
    reward_scale: float = 1.0
    reference_spread: float = 0.0
    duplicates: float = 0.0
    target_share: float | None = None
    flip_rate: float = 0.0
    fit: float = 1.0
    residual: Literal["independent", "quadratic"] = "independent"

    def __post_init__(self) -> None:
        if self.dim < 2 or self.dim % 2:
            raise ValueError(f"dim is {self.dim}: pass an even number, half for a and half for x * a")
        check_at_least(1, num_prompts=self.num_prompts)
        check_at_least(2, num_responses=self.num_responses)
        check_at_least(0, anisotropy=self.anisotropy, prompt_spread=self.prompt_spread)
        check_at_least(0, reference_spread=self.reference_spread)
        check_positive(beta=self.beta, reward_scale=self.reward_scale)
        check_flips(self.flip_rate)
        if not 0 <= self.duplicates <= 1:
            raise ValueError(f"duplicates is {self.duplicates}: pass a share from 0 to 1")
        if not 0 < self.fit <= 1:
            raise ValueError(f"fit is {self.fit}: pass a correlation above 0, up to 1")
        if self.target_share is not None and not 0 < self.target_share <= 1 - self.duplicates:
            most = f"{1 - self.duplicates:g}, which duplicates leave"
            raise ValueError(f"target_share is {self.target_share}: pass a share above 0, up to {most}, or None")

    def draw(self, rng: np.random.Generator, table: UtilityTable | None = None) -> World:  # noqa: ARG002 (the protocol's)
        """Draw one world; no table is used."""
        pooled, judged = self._draw_features(rng)
        utilities, judged_utilities = self._draw_utilities(pooled, judged, rng)
        valid = np.ones(utilities.shape, dtype=np.bool_)
        draws = pair_draws(valid, rng)
        log_probs, judged_log_probs = self._draw_references(pooled, judged, rng)
        aim = (pooled, log_probs) if self.target_share is None else (judged, judged_log_probs)
        pool = Pool(
            features=pooled,
            valid=valid,
            rewards=np.zeros(valid.shape),
            beta=self.beta,
            fisher=self._fisher(*aim),
            log_probs=log_probs,
        )
        target = Target(features=judged, utilities=judged_utilities, log_reference=judged_log_probs)
        return World(pool=pool, utilities=utilities, draws=draws, flip_rate=self.flip_rate, target=target)

    def _fisher(self, features: FloatArray, log_probs: FloatArray) -> FloatArray | None:
        """What the pool says of the deployment; None: as its responses, taken for draws of the policy, have it."""
        if self.reference_spread:
            return exact_fisher(features, log_probs)
        return None if self.target_share is None else fisher_of(features, np.isfinite(log_probs))

    def _draw_references(
        self, pooled: FloatArray, judged: FloatArray, rng: np.random.Generator
    ) -> tuple[FloatArray, FloatArray]:
        """log pi_0 of the pool and of the deployment, (P, K) and (Q, K)."""
        if not self.reference_spread:
            first, second = (uniform_log_probs(np.ones(features.shape[:2], np.bool_)) for features in (pooled, judged))
            return first, second
        theta = rng.standard_normal(self.dim)
        theta *= self.reference_spread / np.sqrt(_spread((pooled @ theta)[:, :, None]))
        return log_softmax(pooled @ theta, axis=1), log_softmax(judged @ theta, axis=1)

    def _draw_features(self, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        """phi of the pool and of the deployment, (P, K, dim) and (Q, K, dim)."""
        templates = self._prompts(np.full(_NUM_TEMPLATES, _ORDINARY), rng)
        cluster = self.target_share or 0.0
        roles = _roles(self.num_prompts, cluster=cluster, copies=self.duplicates, rng=rng)
        pooled = self._features(roles, templates, rng)
        if self.target_share is None:
            roles = _roles(NUM_TARGET_PROMPTS, cluster=0.0, copies=self.duplicates, rng=rng)
        else:
            roles = np.full(NUM_TARGET_PROMPTS, _CLUSTER)
        judged = self._features(roles, templates, rng)
        norm = np.sqrt(_spread(pooled))
        return pooled / norm, judged / norm

    def _features(self, roles: IntArray, templates: _Prompts, rng: np.random.Generator) -> FloatArray:
        """phi of prompts in given roles, before scaling, (P, K, dim)."""
        prompts, noise = self._prompts(roles, rng), self._prompts(roles, rng)
        template = rng.integers(_NUM_TEMPLATES, size=len(roles))
        copies = _Prompts(
            contexts=templates.contexts[template] + _COPY_NOISE * noise.contexts,
            responses=_TEMPLATE_NORM * (templates.responses[template] + _COPY_NOISE * noise.responses),
        )
        found: FloatArray = np.where((roles == _COPY)[:, None, None], copies.features, prompts.features)
        return found

    def _prompts(self, roles: IntArray, rng: np.random.Generator) -> _Prompts:
        """Independent prompts, of the cluster or else ordinary."""
        half = self.dim // 2
        contexts = rng.standard_normal((len(roles), half))
        if self.target_share is not None:
            second = np.arange(half) >= half // 2
            contexts *= np.where(second == (roles == _CLUSTER)[:, None], _STRONG, _FAINT)
        scales = np.exp(self.prompt_spread * rng.standard_normal((len(roles), 1, 1)))
        deviations = np.arange(1, half + 1) ** (-self.anisotropy / 2)
        responses = scales * deviations * rng.standard_normal((len(roles), self.num_responses, half))
        return _Prompts(contexts=contexts, responses=responses)

    def _draw_utilities(
        self, pooled: FloatArray, judged: FloatArray, rng: np.random.Generator
    ) -> tuple[FloatArray, FloatArray]:
        """Utilities of the pool and of the deployment, (P, K) and (Q, K)."""
        theta, bend = rng.standard_normal(self.dim), rng.standard_normal((self.dim, self.dim))
        linear, curved = pooled @ theta, _quadratic(pooled, bend)
        part = self.fit * self.reward_scale / np.sqrt(_spread(linear[:, :, None]))
        rest = self.reward_scale * np.sqrt(1 - self.fit**2)
        if self.residual == "independent":
            first, second = (rest * rng.standard_normal(features.shape[:2]) for features in (pooled, judged))
        else:
            rest /= np.sqrt(_spread(curved[:, :, None]))
            first, second = rest * curved, rest * _quadratic(judged, bend)
        return part * linear + first, part * (judged @ theta) + second


def _spread(values: FloatArray) -> float:
    """Mean squared norm of responses (P, K, dim) about their prompts' means."""
    within = centred(values, np.ones(values.shape[:2], dtype=np.bool_))
    return float(np.square(within).sum(axis=2).mean())


def _quadratic(features: FloatArray, bend: FloatArray) -> FloatArray:
    """phi' A phi of every response, (P, K)."""
    values: FloatArray = ((features @ bend) * features).sum(axis=2)
    return values


def _roles(size: int, *, cluster: float, copies: float, rng: np.random.Generator) -> IntArray:
    """What so many prompts are, in random order: shares, rounded, of the cluster and of copies, the others ordinary."""
    first = round(cluster * size)
    roles = np.full(size, _ORDINARY)
    roles[:first] = _CLUSTER
    roles[first : first + round(copies * size)] = _COPY
    return rng.permutation(roles)
