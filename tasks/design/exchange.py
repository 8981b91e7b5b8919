"""Polish a rounded design by exchanging blocks of chosen pairs for others (Fedorov exchange, many pairs at a time).

Rounding alone fails where pairs are near copies of one another: a relaxed design spreads its weight over the copies and
the largest weights then say nothing about which directions go together.
"""

import numpy as np

from tasks.design.arrays import BoolArray, FloatArray, IntArray
from tasks.design.capped import Problem
from tasks.design.limits import ranks_within
from tasks.design.measures import Expansion
from tasks.design.search import Effort

_MAX_ROUNDS = 12
_LEAST_GAIN = 1e-4
_PROPOSALS_PER_PLACE = 8


def exchange_pairs(problem: Problem, chosen: IntArray, *, lower_bound: float, effort: Effort) -> IntArray:
    """Exchange pairs while that lowers the objective by 1 part in 10,000 and a bound leaves room to gain.

    A round scores every pair once: chosen e leaves at its price, another enters for its worth. The cheapest leave for
    the best, an eighth of the budget at once; the block is halved until the objective, computed exactly, falls. With a
    least number of pairs per prompt a pair is exchanged within its prompt; with costs nothing is exchanged.

    Args:
        problem: criterion and limits.
        chosen: flat pair indices, within the limits.
        lower_bound: bound of the objective; a selection that comes within the tolerance of it is good enough.
        effort: its tolerance and seconds count.
    """
    criterion, limits = problem.criterion, problem.limits
    size = max(1, len(chosen) // 8) if limits.costs is None else 0
    held = criterion.prior + criterion.added_information(chosen)
    for _ in range(_MAX_ROUNDS):
        expansion = criterion.expand(held)
        if size == 0 or effort.out_of_time or expansion.efficiency(lower_bound) >= 1 - effort.tolerance:
            break
        leaving, entering = _rank_exchanges(problem, chosen, expansion, size=size)
        while size >= 1:
            left, block = leaving[:size], _entering_block(problem, chosen, leaving[:size], entering)
            trial = held + criterion.added_information(block) - criterion.added_information(left)
            improvement = expansion.objective - criterion.expand(trial).objective
            if len(block) == len(left) and expansion.relative(improvement) > _LEAST_GAIN:
                chosen, held = np.concatenate([np.setdiff1d(chosen, left), block]), trial
                break
            size //= 2
    return chosen


def _rank_exchanges(
    problem: Problem, chosen: IntArray, expansion: Expansion, *, size: int
) -> tuple[IntArray, IntArray]:
    """Pairs to give up, the cheapest first, and pairs to take in, the best first."""
    criterion, mask = problem.criterion, problem.limits.mask
    gains, leverages = criterion.gains_and_leverages(expansion, criterion.rough_precision)
    price = expansion.price(gains, leverages)
    worth = np.where(mask, expansion.worth(gains, leverages), -np.inf)
    worth.ravel()[chosen] = -np.inf
    if problem.limits.floor:
        return _within_prompts(price, worth, chosen)
    leaving = chosen[np.lexsort((chosen, price.ravel()[chosen]))]
    worth[problem.limits.room(np.setdiff1d(chosen, leaving[:size])) <= 0] = -np.inf
    others = np.flatnonzero(np.isfinite(worth))
    count = min(len(others), _PROPOSALS_PER_PLACE * size)
    best = others[np.argpartition(-worth.ravel()[others], count - 1)[:count]] if count else others
    return leaving, best[np.lexsort((best, -worth.ravel()[best]))]


def _within_prompts(price: FloatArray, worth: FloatArray, chosen: IntArray) -> tuple[IntArray, IntArray]:
    """The cheapest chosen pair of each prompt, with the best other one of that prompt in the same place."""
    held = np.full(price.shape, np.inf)
    held.ravel()[chosen] = price.ravel()[chosen]
    starts = np.arange(len(price)) * price.shape[1]
    net = worth.max(axis=1) - held.min(axis=1)
    order = np.flatnonzero(np.isfinite(net))
    order = order[np.argsort(-net[order], kind="stable")]
    return (starts + held.argmin(axis=1))[order], (starts + worth.argmax(axis=1))[order]


def _entering_block(problem: Problem, chosen: IntArray, leaving: IntArray, entering: IntArray) -> IntArray:
    """As many of the entering pairs as leave, within the room that their leaving makes."""
    if problem.limits.floor:
        return entering[: len(leaving)]
    prompt = entering // problem.limits.mask.shape[1]
    fits: BoolArray = ranks_within(prompt) < problem.limits.room(np.setdiff1d(chosen, leaving))[prompt]
    return entering[fits][: len(leaving)]
