from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit

from tasks.design.pool import Labels, Pool
from tasks.design.posterior import laplace_posterior


@pytest.fixture(scope="session")
def make_pool() -> Callable[..., Pool]:
    """Gaussian features with spectrum (1, 2, ..., dim)^-decay, Gaussian rewards, about one response in three masked."""

    def build(shape: tuple[int, int, int] = (6, 4, 3), *, seed=0, decay=0.0, margin=1.0, masked=False) -> Pool:
        rng = np.random.default_rng(seed)
        num_prompts, num_responses, dim = shape
        features = rng.standard_normal(shape) * np.arange(1, dim + 1) ** -decay
        valid = rng.random((num_prompts, num_responses)) < (0.65 if masked else 2.0)
        rewards = margin * rng.standard_normal((num_prompts, num_responses))
        return Pool(features=features * valid[:, :, None], valid=valid, rewards=rewards, beta=0.7)

    return build


@pytest.fixture(scope="session")
def labels_of() -> Callable[..., Labels]:
    """Labels in doubt that hold just the given information at the given beta."""

    def build(information: np.ndarray, *, beta: float) -> Labels:
        values, vectors = np.linalg.eigh(information)
        differences = (vectors * np.sqrt(np.maximum(values, 0))).T * 2 / beta
        return Labels(differences=differences, margins=np.zeros(len(differences)))

    return build


@pytest.fixture(scope="session")
def pair_vectors() -> Callable[[Pool], np.ndarray]:
    """Every a_e of a pool, one after the other, zeros where a pair is not valid: the slow truth."""

    def build(pool: Pool) -> np.ndarray:
        rows = []
        for prompt in range(pool.num_prompts):
            for a in range(pool.valid.shape[1]):
                for b in range(a + 1, pool.valid.shape[1]):
                    margin = float(pool.rewards[prompt, a] - pool.rewards[prompt, b])
                    curvature = 1 / ((1 + np.exp(-margin)) * (1 + np.exp(margin)))
                    both = pool.valid[prompt, a] and pool.valid[prompt, b]
                    difference = pool.features[prompt, a] - pool.features[prompt, b]
                    rows.append(both * pool.beta * np.sqrt(curvature) * difference)
        return np.array(rows)

    return build


@pytest.fixture(scope="session")
def labelled(make_pool: Callable[..., Pool]) -> Callable[..., Pool]:
    """Pools with a third of their responses masked and 15 labels of a logistic model."""

    def build(shape: tuple[int, int, int] = (8, 5, 3), *, seed=0, masked=True) -> Pool:
        pool = make_pool(shape, seed=seed, masked=masked)
        rng = np.random.default_rng(seed)
        differences = rng.standard_normal((15, pool.dim))
        signs = np.where(rng.random(15) < expit(2 * differences.sum(axis=1)), 1.0, -1.0)
        return replace(pool, labels=Labels(differences=signs[:, None] * differences, margins=np.zeros(15)))

    return build


@pytest.fixture(scope="session")
def moments() -> Callable[[Pool], tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Mean rewards of the posterior, their deviations and every Var[z], from arrays of all pairs."""

    def build(pool: Pool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        posterior = laplace_posterior(pool, ridge=1.0)
        covariance = pool.beta**2 * posterior.inverse_root @ posterior.inverse_root.T
        difference = pool.features[:, :, None] - pool.features[:, None]
        variances = np.einsum("pijd,de,pije->pij", difference, covariance, difference)
        return posterior.rewards, posterior.deviations, variances

    return build
