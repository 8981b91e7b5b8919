"""Proxies for the labeller, of any quality, put on a world's pool."""

from dataclasses import replace

import numpy as np

from tasks.design.arrays import BoolArray, FloatArray
from tasks.design.environments.base import centred
from tasks.design.environments.world import World


def attach_proxy(world: World, correlation: float, rng: np.random.Generator) -> World:
    """The world with a proxy of exactly this correlation with the utilities, pooled within prompts.

    Scores are the utilities about their prompts' means plus Gaussian noise, made orthogonal to them, that depends on
    nothing else; they spread as much as the utilities do, in logits.

    Args:
        world: of any environment.
        correlation: in [-1, 1].
        rng: source of the noise.

    Raises:
        ValueError: the correlation is out of range, or the pool has too few responses, or utilities all alike.
    """
    if not -1 <= correlation <= 1:
        raise ValueError(f"the proxy's correlation is {correlation}: pass a number from -1 to 1")
    valid = world.pool.valid
    signal = centred(world.utilities, valid)
    if not signal.any():
        raise ValueError("utilities don't differ within any prompt: nothing can correlate with them")
    scores = correlation * signal
    if abs(correlation) < 1:
        scores = scores + np.sqrt(1 - correlation**2) * _noise_beside(signal, valid, rng)
    return _with_scores(world, scores)


def _noise_beside(signal: FloatArray, valid: BoolArray, rng: np.random.Generator) -> FloatArray:
    """Noise as large as the signal and orthogonal to it, both about their prompts' means, (P, K)."""
    size = np.linalg.norm(signal)
    noise = centred(rng.standard_normal(valid.shape), valid)
    for _ in range(2):  # the second time takes off what rounding left
        noise = noise - (noise * signal).sum() / size**2 * signal
    rest = np.linalg.norm(noise)
    if rest <= 1e-9 * np.sqrt(valid.sum()):
        found = f"{int(valid.sum())} responses to {len(valid)} prompts leave noise no room beside the utilities"
        raise ValueError(f"{found}: pass a larger pool, or a correlation of 1 or -1")
    scaled: FloatArray = noise * (size / rest)
    return scaled


def length_proxy(world: World) -> World:
    """The world with a proxy that is length in disguise: log(1 + length), spread as the utilities are within prompts.

    Raises:
        ValueError: the pool has no lengths.
    """
    if world.pool.lengths is None:
        raise ValueError("a length proxy needs the lengths of the responses, the pool has none: draw from a table")
    scores = centred(np.log1p(world.pool.lengths), world.pool.valid)
    spread = np.linalg.norm(scores)
    return _with_scores(world, scores * (np.linalg.norm(centred(world.utilities, world.pool.valid)) / (spread or 1.0)))


def _with_scores(world: World, scores: FloatArray) -> World:
    return replace(world, pool=replace(world.pool, scores=scores))
