"""Polish a rounded design by exchanging blocks of chosen pairs for others (Fedorov exchange, many pairs at a time).

Rounding alone fails where pairs are near copies of one another: a relaxed design spreads its weight over the copies and
the largest weights then say nothing about which directions go together.
"""

import numpy as np

from tasks.design.capped import BoundedProblem
from tasks.design.criterion import Expansion
from tasks.design.kernels import FloatArray, IntArray
from tasks.design.rounding import take_in_order

_MAX_ROUNDS = 12
_LEAST_GAIN = 1e-4
_PROPOSALS_PER_PLACE = 8


def exchange_pairs(problem: BoundedProblem, chosen: IntArray, *, goal: float) -> IntArray:
    """Exchange pairs while the objective lies above `goal` and an exchange lowers it by 1 part in 10,000.

    A round scores every pair once: chosen e leaves at the price s / (1 - t), another enters for the gain s / (1 + t),
    t = a' M^-1 a. The cheapest leave for the best, an eighth of the budget at once; the block is halved until the
    objective, computed exactly, falls.

    Args:
        problem: criterion, budget and cap.
        chosen: flat pair indices, within the limits.
        goal: objective that is good enough, such as a lower bound.
    """
    criterion, size = problem.criterion, max(1, len(chosen) // 8)
    held = criterion.information(_indicator(problem, chosen))
    for _ in range(_MAX_ROUNDS):
        expansion = criterion.expand(held)
        if expansion.objective <= goal:
            break
        leaving, entering = _rank_exchanges(problem, chosen, expansion=expansion, size=size)
        while size >= 1:
            room = _room(problem, chosen, leaving[:size])
            block = take_in_order(entering, criterion.mask.shape[1], budget=size, cap=room)
            trial = held + _change(problem, leaving[:size], entering=block)
            reached = criterion.expand(trial).objective
            if len(block) == size and reached < (1 - _LEAST_GAIN) * expansion.objective:
                break
            size //= 2
        if size == 0:
            break
        chosen, held = np.concatenate([np.setdiff1d(chosen, leaving[:size]), block]), trial
    return chosen


def _rank_exchanges(
    problem: BoundedProblem, chosen: IntArray, *, expansion: Expansion, size: int
) -> tuple[IntArray, IntArray]:
    """Chosen pairs from the cheapest to lose, and the others that find room, best first."""
    criterion = problem.criterion
    gains = criterion.gains(expansion, criterion.rough_dtype).ravel()
    leverages = criterion.leverages(expansion, criterion.rough_dtype).ravel()
    prices = gains[chosen] / np.maximum(1 - leverages[chosen], 1e-9)
    worth = np.where(criterion.mask.ravel(), gains / (1 + leverages), -1.0)
    worth[chosen] = -1.0
    leaving = chosen[np.lexsort((chosen, prices))]
    worth.reshape(criterion.mask.shape)[_room(problem, chosen, leaving[:size]) <= 0] = -1.0
    others = np.flatnonzero(worth >= 0)
    count = min(len(others), _PROPOSALS_PER_PLACE * size)
    best = others[np.argpartition(-worth[others], count - 1)[:count]] if count else others
    return leaving, best[np.lexsort((best, -worth[best]))]


def _room(problem: BoundedProblem, chosen: IntArray, leaving: IntArray) -> IntArray:
    """Count the pairs that each prompt may take in once `leaving` are gone, (P,)."""
    num_prompts, num_slots = problem.criterion.mask.shape
    taken, freed = (np.bincount(pairs // num_slots, minlength=num_prompts) for pairs in (chosen, leaving))
    limit = num_slots if problem.cap is None else problem.cap
    room: IntArray = limit - taken + freed
    return room


def _change(problem: BoundedProblem, leaving: IntArray, *, entering: IntArray) -> FloatArray:
    gained, lost = (problem.criterion.added_information(_indicator(problem, pairs)) for pairs in (entering, leaving))
    return gained - lost


def _indicator(problem: BoundedProblem, pairs: IntArray) -> FloatArray:
    indicator = np.zeros(problem.criterion.mask.size)
    indicator[pairs] = 1.0
    return indicator.reshape(problem.criterion.mask.shape)
