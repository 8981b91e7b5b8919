"""NOISE: what flipped labels cost a policy, and whether repeats, aggregation or the robust loss win it back.

A budget of labels buys one answer to each of as many random pairs, or three to each of a third of them. A log-linear
policy is trained to its optimum with the shipped objectives and a ridge, and its regret is exact. Every way has the
ridge, of RIDGES, that suits it best on seeds of their own, so that no loss is held back more or less than it wants.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import fmean, stdev

import numpy as np
import torch
from measuring import Finding
from scipy.special import expit

from tasks.design.arrays import BoolArray, FloatArray
from tasks.design.environments.tabular import Tabular
from tasks.design.environments.world import World
from tasks.labellers.aggregation import AnyAggregation, DawidSkene, Majority
from tasks.labellers.protocol import Label, Question
from tasks.objectives import AnyObjective
from tasks.objectives.contrastive import Dpo, Robust, SoftDpo
from tasks.objectives.pairs import Pairs, flip_rate, label_flip_rate

SEEDS, TUNING = range(20), range(100, 110)
RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
ALIKE, APART, HONEST = (0.2, 0.2, 0.2), (0.05, 0.2, 0.35), (0.0, 0.0, 0.0)
MOST_ROBUST = 0.45


@dataclass(frozen=True)
class Place:
    """Worlds, and labels spent there."""

    name: str
    environment: Tabular
    budgets: tuple[int, ...]


@dataclass(frozen=True)
class Way:
    """How a budget is spent and trained on: flips of three annotators, answers to a pair, and what becomes of them."""

    name: str
    flips: tuple[float, ...]
    repeats: int
    aggregation: AnyAggregation
    objective: AnyObjective


PLAIN = Way("1 answer, DPO", ALIKE, 1, Majority(), Dpo())
PLAIN_APART = Way("annotators of 5, 20, 35 %: 1 answer, DPO", APART, 1, Majority(), Dpo())
WAYS = (
    Way("no flips: 1 answer, DPO", HONEST, 1, Majority(), Dpo()),
    PLAIN,
    Way("1 answer, robust with the true rate", ALIKE, 1, Majority(), Robust(flip_rate=0.2)),
    Way("3 answers, majority, DPO", ALIKE, 3, Majority(), Dpo()),
    Way("3 answers, majority, robust, estimated rate", ALIKE, 3, Majority(), Robust(flip_rate="estimated")),
    Way("3 answers, shares of votes, soft_dpo", ALIKE, 3, Majority(), SoftDpo()),
    PLAIN_APART,
    Way("annotators of 5, 20, 35 %: 3 answers, majority, DPO", APART, 3, Majority(), Dpo()),
    Way("annotators of 5, 20, 35 %: 3 answers, Dawid-Skene, DPO", APART, 3, DawidSkene(), Dpo()),
    Way("annotators of 5, 20, 35 %: 3 answers, Dawid-Skene, soft_dpo", APART, 3, DawidSkene(), SoftDpo()),
)


@dataclass(frozen=True, eq=False)
class Lesson:
    """What a way trains on.

    Attributes:
        gaps: phi of the chosen response minus that of the rejected, (n, dim).
        probabilities: P(chosen), (n,).
        objective: with a number for its flip rate.
    """

    gaps: torch.Tensor
    probabilities: torch.Tensor
    objective: AnyObjective


@dataclass(frozen=True)
class Trained:
    """What a way came to: regrets, one a seed, and the ridge that it had."""

    regrets: list[float]
    ridge: float

    def __str__(self) -> str:
        return f"{_mean(self.regrets)} at {self.ridge:g}"

    def less(self, other: "Trained") -> list[float]:
        """Differences, seed by seed."""
        return [ours - theirs for ours, theirs in zip(self.regrets, other.regrets, strict=True)]


def noise(_repeats: int, place: Place) -> Iterator[Finding]:
    """Regret of every way at every budget, and less that of one answer a pair from the same annotators."""
    found = {way: [_trained(place, way, budget) for budget in place.budgets] for way in WAYS}
    for way, ours in found.items():
        plain = PLAIN_APART if way.flips == APART else PLAIN
        gains = [one.less(other) for one, other in zip(ours, found[plain], strict=True)]
        yield Finding(
            workload=f"{place.name}; {way.name}: regret at a ridge after {'/'.join(map(str, place.budgets))} labels",
            ours="; ".join(map(str, ours)),
            peer=""
            if way == plain
            else "difference to 1 answer, DPO: " + "; ".join(_mean(gain, "+") for gain in gains),
            number=fmean(ours[-1].regrets),
        )


def _mean(values: list[float], sign: str = "") -> str:
    return f"{fmean(values):{sign}.3f} (s.e. {stdev(values) / len(values) ** 0.5:.3f})"


def _trained(place: Place, way: Way, budget: int) -> Trained:
    """With the ridge that is best on seeds of their own."""
    worlds = {seed: place.environment.draw(np.random.default_rng([0, seed])) for seed in (*TUNING, *SEEDS)}
    lessons = {seed: _lesson(world, way, budget, seed) for seed, world in worlds.items()}

    def regret(seed: int, ridge: float) -> float:
        target, beta = worlds[seed].target, worlds[seed].pool.beta
        return target.regret(target.policy(fit(lessons[seed], beta=beta, ridge=ridge)), beta=beta)

    best = min(RIDGES, key=lambda ridge: fmean(regret(seed, ridge) for seed in TUNING))
    return Trained([regret(seed, best) for seed in SEEDS], best)


def _lesson(world: World, way: Way, budget: int, seed: int) -> Lesson:
    """Draw pairs and answers, the same for all ways as far as they ask for the same, and aggregate."""
    rng = np.random.default_rng([1, seed, budget])
    margins = world.pool.differences_of(world.utilities).ravel()
    index = rng.permutation(len(margins))[:budget]
    draws, turns, who = rng.random((budget, 3)), rng.random(budget) < 0.5, rng.integers(0, 3, (budget, 1))
    flips = np.array(way.flips)
    answers = draws < flips + (1 - 2 * flips) * expit(margins[index])[:, None]
    asked = np.tile(np.arange(3), (budget, 1)) if way.repeats == 3 else who
    num_pairs = budget // way.repeats
    questions, labels = _labels(answers[:num_pairs], asked[:num_pairs], turns)
    verdicts = way.aggregation(questions, labels)
    sides = torch.tensor([1.0 if one.choice == "first" else -1.0 for one in verdicts], dtype=torch.float64)
    given = torch.tensor([1.0 if one.probability is None else one.probability for one in verdicts], dtype=torch.float64)
    gaps = sides[:, None] * torch.from_numpy(world.differences(index[:num_pairs]).astype(np.float64))
    votes = [(one.votes_first, one.votes_second) for one in verdicts]
    return Lesson(gaps, torch.where(sides > 0, given, 1 - given), _resolved(way.objective, votes))


def _labels(answers: BoolArray, asked: np.ndarray, turns: BoolArray) -> tuple[list[Question], list[list[Label]]]:
    """Questions and labels, of the annotators asked, (n, repeats), by whether each prefers the first, (n, 3)."""
    keys = [f"{place:06}" for place in range(len(answers))]
    questions = [Question(key=key, messages=[{"role": None, "content": key}], first="a", second="b") for key in keys]
    labels = [
        [
            Label(
                key=key,
                repetition=repetition,
                choice="first" if firsts[annotator] else "second",
                probability=None,
                swapped=bool(turned),
                annotator=str(annotator),
                rationale="",
                cost=1.0,
                bought=True,
                detail={},
            )
            for repetition, annotator in enumerate(who)
        ]
        for key, firsts, who, turned in zip(keys, answers, asked, turns, strict=False)
    ]
    return questions, labels


def _resolved(objective: AnyObjective, votes: list[tuple[int, int]]) -> AnyObjective:
    """The objective with the flip rate of these labels in place of "estimated", as training resolves it."""
    if not isinstance(objective, Robust) or objective.flip_rate != "estimated":
        return objective
    rate = label_flip_rate(flip_rate(votes), [abs(one - other) for one, other in votes])
    return replace(objective, flip_rate=min(rate, MOST_ROBUST))


def fit(lesson: Lesson, *, beta: float, ridge: float) -> FloatArray:
    """theta (dim,) that minimises the summed loss + (ridge / 2) beta^2 |theta|^2, by Newton's damped method."""
    gaps, theta = lesson.gaps, torch.zeros(lesson.gaps.shape[1], dtype=torch.float64)
    nothing, tokens = torch.zeros(len(gaps), dtype=torch.float64), torch.ones(len(gaps), dtype=torch.long)

    def losses(ratios: torch.Tensor) -> torch.Tensor:
        pairs = Pairs(ratios, nothing, nothing, nothing, tokens, tokens, probabilities=lesson.probabilities)
        return lesson.objective(pairs, beta).sum()

    def total(at: torch.Tensor) -> float:
        return float(losses(gaps @ at) + ridge / 2 * beta**2 * at @ at)

    for _ in range(100):
        ratios = (gaps @ theta).requires_grad_()
        (first,) = torch.autograd.grad(losses(ratios), ratios, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), ratios)
        slope = gaps.T @ first.detach() + ridge * beta**2 * theta
        curvature = gaps.T @ (second[:, None] * gaps) + ridge * beta**2 * torch.eye(len(theta), dtype=torch.float64)
        step = torch.linalg.solve(curvature, slope)
        if step.abs().max() < 1e-8 * (1 + theta.abs().max()):
            return theta.numpy()
        length, begun = 1.0, total(theta)
        while total(theta - length * step) > begun + 1e-12 * abs(begun) - 1e-4 * length * float(slope @ step):
            length /= 2
        theta = theta - length * step
    raise ArithmeticError(f"no fit of {len(gaps)} pairs with {lesson.objective} and ridge {ridge}")
