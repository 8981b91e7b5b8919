"""Lineages whose answer is known: evidence made up with a planted effect, or none, to try the referee on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from flows.comparison.config import Thresholds
from flows.comparison.evidence import COSTS, Evidence, LineageFacts, RoundFacts
from flows.comparison.judged import UNIFORM
from tasks.design.arrays import FloatArray, IntArray

Noise = Literal["normal", "t3", "skewed"]
NOISES: tuple[Noise, ...] = get_args(Noise)
"""What lineages differ in by chance, of variance 1: normal; Student's t with 3 degrees of freedom, whose tails are
heavy; an exponential for all selectors beside a normal for uniform, so that their differences aren't symmetric."""

SPREAD = 0.02
"""Standard deviation of a lineage's win rate by chance."""

OFFERED, CHOSEN = 40, 10
"""Pairs of a pool, and those of them that a selector chooses."""

_PAIRED = np.sqrt(2) * SPREAD
"""Standard deviation of a paired difference."""

_LEARNT = 0.03
"""Win rate that a round adds."""

_SEEDS_DIFFER = 0.05
"""Standard deviation of what a seed does to all its lineages."""


Shape = tuple[int, ...]
Draw = Callable[[np.random.Generator, Shape], FloatArray]


def _normal(rng: np.random.Generator, shape: Shape) -> FloatArray:
    return rng.standard_normal(shape)


def _heavy(rng: np.random.Generator, shape: Shape) -> FloatArray:
    draws: FloatArray = rng.standard_t(3, shape) / np.sqrt(3)
    return draws


def _skewed(rng: np.random.Generator, shape: Shape) -> FloatArray:
    return rng.standard_exponential(shape) - 1


_DRAWS: Mapping[Noise, tuple[Draw, Draw]] = {
    "normal": (_normal, _normal),
    "t3": (_heavy, _heavy),
    "skewed": (_normal, _skewed),
}
"""Of uniform, and of the others."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A comparison to make up.

    Attributes:
        num_seeds: of each selector.
        effects: by selector, what it adds to uniform's mean, in standard deviations of a paired difference; it grows
            over rounds, and is whole after the last.
        budgets: labels a round.
        num_rounds: of each lineage.
        noise: of a lineage's win rate in a round, anew in every round.
    """

    num_seeds: int
    effects: Mapping[str, float]
    budgets: tuple[int, ...] = (64,)
    num_rounds: int = 1
    noise: Noise = "normal"
    thresholds: Thresholds = field(default_factory=Thresholds)

    @property
    def selectors(self) -> tuple[str, ...]:
        """Uniform, and those with an effect or with none."""
        return (UNIFORM, *self.effects)


def synthetic_evidence(plan: Plan, rng: np.random.Generator) -> Evidence:
    """Lineages of all selectors, budgets and seeds; a seed does the same to all of its own."""
    shape = (len(plan.selectors), len(plan.budgets), plan.num_seeds, plan.num_rounds)
    win = 0.5 + _LEARNT * np.arange(1, plan.num_rounds + 1) + _SEEDS_DIFFER * rng.standard_normal((plan.num_seeds, 1))
    uniform, others = _DRAWS[plan.noise]
    win = win + SPREAD * np.concatenate([uniform(rng, (1, *shape[1:])), others(rng, (shape[0] - 1, *shape[1:]))])
    effects = _PAIRED * np.array([0.0, *plan.effects.values()])
    win = win + effects[:, None, None, None] * np.arange(1, plan.num_rounds + 1) / plan.num_rounds
    choices = rng.permuted(np.broadcast_to(np.arange(OFFERED), (*shape, OFFERED)), axis=-1)[..., :CHOSEN]
    lineages = [
        _lineage(plan, (selector, budget, seed), win[place], choices[place])
        for place in np.ndindex(shape[:3])
        for selector, budget, seed in [(plan.selectors[place[0]], plan.budgets[place[1]], place[2])]
    ]
    return Evidence(
        comparison="synthetic",
        metric="win_base",
        seeds=tuple(range(plan.num_seeds)),
        budgets=plan.budgets,
        num_rounds=plan.num_rounds,
        selectors=plan.selectors,
        lineages=tuple(lineages),
        confounds=(),
        thresholds=plan.thresholds.model_dump(),
        kinds=dict.fromkeys(plan.selectors, "synthetic"),
    )


def _lineage(plan: Plan, place: tuple[str, int, int], win: FloatArray, choices: IntArray) -> LineageFacts:
    selector, budget, seed = place
    return LineageFacts(
        lineage=f"synthetic-{selector}-b{budget}-s{seed}",
        selector=selector,
        seed=seed,
        budget=budget,
        rounds=tuple(_round(place, number, float(win[number]), choices[number]) for number in range(plan.num_rounds)),
        missing=(),
        why="",
    )


def _round(place: tuple[str, int, int], number: int, win: float, chosen: IntArray) -> RoundFacts:
    """A round whose reward goes with its win rate; the first one's pool is all lineages' of a seed."""
    selector, budget, seed = place
    pool = f"{seed}" if number == 0 else f"{selector}-{budget}-{seed}-{number}"
    style = {"num_tokens": 40.0, "num_tokens_base": 40.0, "distinct_2": 0.6, "distinct_2_base": 0.6}
    return RoundFacts(
        number=number,
        measures={"win_base": win, "reward": 2 * win - 1, "reward_base": 0.0, "kl": 0.5 * (number + 1), **style},
        num_labels=budget,
        cost=float(budget),
        seconds=dict.fromkeys(COSTS, 1.0),
        model_seconds=4.0,
        certificate={},
        pool=pool,
        pairs=tuple(f"{pool}/{pair}" for pair in chosen),
    )
