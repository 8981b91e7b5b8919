"""From a relaxed design to whole pairs within the limits, and into an order whose prefixes are designs too."""

import numpy as np

from tasks.design.arrays import Array, IntArray
from tasks.design.capped import Problem
from tasks.design.criterion import Criterion
from tasks.design.search import Design

_DECIMALS = 9
_GROWTH = 4
_FASTER = 2
_MANY = 512
_SHORTEST_LIST = 1024


def round_design(design: Design, problem: Problem) -> IntArray:
    """Flat indices of the valid pairs of largest weight that fit, best first.

    Weights that agree to 9 decimals tie, their difference being rounding; then the score decides, then the index. A
    bounded design has few fractional weights, so that taking the largest costs little.
    """
    pairs = np.flatnonzero(problem.limits.mask)
    price = 1.0 if problem.limits.costs is None else problem.limits.costs.ravel()[pairs]
    worth = design.scores.ravel()[pairs] / price
    order = np.lexsort((pairs, -worth, -np.round(design.weights.ravel()[pairs], _DECIMALS)))
    return problem.limits.take(pairs[order])


def order_by_gain(criterion: Criterion, chosen: IntArray) -> IntArray:
    """Order pairs so that every prefix is a good design for its size.

    Greedy: the pair that lowers the measure most, given those before it, comes next; once eight stand, a quarter of
    their number at a time, and half of it once they are hundreds. Each time their number has doubled all that are left
    are scored, in between only the best of those. Ties go by index.

    Args:
        criterion: what the pairs were chosen for.
        chosen: flat pair indices.
    """
    left, ordered, held = np.sort(chosen), np.zeros(0, dtype=np.intp), criterion.prior
    while len(left):
        goal = min(2 * len(ordered) + 1, len(chosen))
        listed = _by_worth(criterion, held, left)[: max(2 * goal, _SHORTEST_LIST)]
        while len(ordered) < goal:
            size = min(max(1, len(ordered) // (_GROWTH if goal < _MANY else _FASTER)), goal - len(ordered))
            block, listed = listed[:size], np.sort(listed[size:])
            held = held + criterion.added_information(block)
            ordered = np.concatenate([ordered, block])
            if len(ordered) < goal:
                listed = _by_worth(criterion, held, listed)
        left = np.setdiff1d(left, ordered)
    return ordered


def _by_worth(criterion: Criterion, held: Array, pairs: IntArray) -> IntArray:
    """The pairs by what each would add to the information held, ties in the order in which they came."""
    expansion = criterion.expand(held)
    gains = leverages = criterion.leverages_of(expansion, pairs)
    if expansion.gradient_root is not expansion.inverse_root:
        gains = criterion.gains_of(expansion, pairs)
    sorted_pairs: IntArray = pairs[np.argsort(-expansion.worth(gains, leverages), kind="stable")]
    return sorted_pairs
