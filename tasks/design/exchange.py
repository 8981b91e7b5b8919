"""Polish a rounded design by exchanging blocks of chosen pairs for others (Fedorov exchange, many pairs at a time).

Rounding alone fails where pairs are near copies of one another: a relaxed design spreads its weight over the copies and
the largest weights then say nothing about which directions go together.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tasks.design.arrays import FloatArray, IntArray
from tasks.design.capped import Problem
from tasks.design.limits import Limits, ranks_within
from tasks.design.measures import Expansion
from tasks.design.search import Effort

_MAX_ROUNDS = 12
_LEAST_GAIN = 1e-4
_PROPOSALS_PER_PLACE = 8


def exchange_pairs(problem: Problem, chosen: IntArray, *, goal: float, effort: Effort) -> IntArray:
    """Exchange pairs while that lowers the objective by 1 part in 10,000, up to a goal.

    A round scores every pair once: chosen e leaves at its price, another enters for its worth. The cheapest leave for
    the best, an eighth of the budget at once; the block is halved until the objective, computed exactly, falls. With a
    least number of pairs per prompt, pairs are also exchanged within their prompt; with costs nothing is exchanged.

    Args:
        problem: criterion and limits.
        chosen: flat pair indices, within the limits.
        goal: objective, such as that of the relaxed design; a selection within the tolerance of it is good enough.
        effort: its tolerance and seconds count.
    """
    if problem.limits.costs is not None:
        return chosen
    for propose in (_across_prompts, _within_prompts) if problem.limits.floor else (_across_prompts,):
        chosen = _exchange(problem, chosen, propose, goal=goal, effort=effort)
    return chosen


class _Propose(Protocol):
    """Pairs to give up and as many or more to take in, the best first, for blocks of at most `size`."""

    def __call__(self, state: "_State", chosen: IntArray, *, size: int) -> tuple[IntArray, IntArray]: ...


@dataclass(frozen=True, eq=False)
class _State:
    """What a pair would add, -inf where it is chosen, not valid or of small gain, and cost to give up; (P, m) each."""

    limits: Limits
    worth: FloatArray
    price: FloatArray

    @classmethod
    def of(cls, problem: Problem, chosen: IntArray, expansion: Expansion, *, size: int) -> "_State":
        """Leverages take a pass of their own: only pairs that are chosen or of large gain get theirs."""
        criterion, mask = problem.criterion, problem.limits.mask
        gains = criterion.gains(expansion, criterion.rough_precision)
        others = mask.ravel().copy()
        others[chosen] = False
        listed = np.concatenate([chosen, _largest(gains.ravel(), np.flatnonzero(others), count=size)])
        leverages = criterion.leverages_of(expansion, listed)
        worth, price = np.full(mask.shape, -np.inf), np.zeros(mask.shape)
        found = gains.ravel()[listed]
        price.ravel()[listed] = expansion.price(found, leverages)
        worth.ravel()[listed] = expansion.worth(found, leverages)
        worth.ravel()[chosen] = -np.inf
        return cls(problem.limits, worth, price)


def _exchange(problem: Problem, chosen: IntArray, propose: _Propose, *, goal: float, effort: Effort) -> IntArray:
    criterion, size = problem.criterion, max(1, len(chosen) // 8)
    held = criterion.prior + criterion.added_information(chosen)
    for _ in range(_MAX_ROUNDS):
        expansion = criterion.expand(held)
        if size == 0 or effort.out_of_time or expansion.efficiency(goal) >= 1 - effort.tolerance:
            break
        listed = problem.limits.mask.size if problem.limits.floor else 2 * _PROPOSALS_PER_PLACE * size
        state = _State.of(problem, chosen, expansion, size=listed)
        while size >= 1:
            leaving, entering = propose(state, chosen, size=size)
            trial = held + criterion.added_information(entering) - criterion.added_information(leaving)
            improvement = expansion.objective - criterion.expand(trial).objective
            if expansion.relative(improvement) > _LEAST_GAIN:
                chosen, held = np.concatenate([np.setdiff1d(chosen, leaving), entering]), trial
                break
            size //= 2
    return chosen


def _across_prompts(state: _State, chosen: IntArray, *, size: int) -> tuple[IntArray, IntArray]:
    """The cheapest pairs that their prompt can spare, for the best others that find room once those are gone."""
    limits, width = state.limits, state.worth.shape[1]
    leaving = chosen[np.lexsort((chosen, state.price.ravel()[chosen]))]
    prompt = leaving // width
    spare = np.bincount(prompt, minlength=len(limits.mask)) - limits.floor
    leaving = leaving[ranks_within(prompt) < spare[prompt]][:size]
    room = limits.room(np.setdiff1d(chosen, leaving))
    others = np.flatnonzero(np.isfinite(state.worth) & (room > 0)[:, None])
    best = _largest(state.worth.ravel(), others, count=_PROPOSALS_PER_PLACE * size)
    entering = best[np.lexsort((best, -state.worth.ravel()[best]))]
    entering = entering[ranks_within(entering // width) < room[entering // width]]
    whole = len(leaving) if len(entering) >= len(leaving) else 0  # the room was made by all that leave
    return leaving[:whole], entering[:whole]


def _within_prompts(state: _State, chosen: IntArray, *, size: int) -> tuple[IntArray, IntArray]:
    """The cheapest chosen pair of each prompt for the best other one of that prompt, where that gains most."""
    held: FloatArray = np.full(state.price.shape, np.inf)
    held.ravel()[chosen] = state.price.ravel()[chosen]
    starts = np.arange(len(held)) * held.shape[1]
    net = state.worth.max(axis=1) - held.min(axis=1)
    order = np.flatnonzero(np.isfinite(net))
    order = order[np.argsort(-net[order], kind="stable")][:size]
    return (starts + held.argmin(axis=1))[order], (starts + state.worth.argmax(axis=1))[order]


def _largest(values: FloatArray, pairs: IntArray, *, count: int) -> IntArray:
    """Those of the pairs that have the largest values, as many as asked for, in no order."""
    if count >= len(pairs):
        return pairs
    largest: IntArray = pairs[np.argpartition(-values[pairs], count)[:count]]
    return largest
