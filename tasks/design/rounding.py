"""From a relaxed design to whole pairs: exactly the budget, all valid, none twice, caps kept."""

import numpy as np

from tasks.design.kernels import BoolArray, FloatArray, IntArray

_DECIMALS = 9


def check_budget(mask: BoolArray, budget: int, *, cap: int | None) -> None:
    """Refuse a budget that the valid pairs of `mask` (P, m) and a cap per prompt can't hold.

    Raises:
        ValueError: the budget is below 1, above the pairs of the pool, or above what the cap leaves of them.
    """
    if budget < 1:
        raise ValueError(f"budget {budget} selects nothing: raise selection.budget to 1 or more")
    per_prompt = mask.sum(axis=1)
    total = int(per_prompt.sum())
    if budget > total:
        remedy = "lower selection.budget or raise generation.num_responses"
        raise ValueError(f"budget {budget} exceeds the {total} pairs of the pool: {remedy}")
    left = total if cap is None else int(np.minimum(per_prompt, cap).sum())
    if budget > left:
        found = f"the {left} pairs that a cap of {cap} per prompt leaves of the pool's {total}"
        raise ValueError(f"budget {budget} exceeds {found}: lower selection.budget or raise max_pairs_per_prompt")


def take_in_order(order: IntArray, num_slots: int, *, budget: int, cap: int | IntArray | None) -> IntArray:
    """First `budget` flat pair indices of `order` within the cap, one number for all prompts or one each.

    Args:
        order: flat pair indices, each at most once.
        num_slots: pair slots of a prompt.
        budget: most pairs to take.
        cap: most pairs of one prompt; None: no limit.
    """
    if cap is None:
        return order[:budget]
    prompt = order // num_slots
    grouped = np.argsort(prompt, kind="stable")
    sizes = np.bincount(prompt)
    starts = np.cumsum(sizes) - sizes
    rank = np.empty_like(order)
    rank[grouped] = np.arange(len(order)) - starts[prompt[grouped]]
    room = cap[prompt] if isinstance(cap, np.ndarray) else np.full(len(order), cap)
    taken: IntArray = order[rank < room][:budget]
    return taken


def sort_pairs(weights: FloatArray, scores: FloatArray, *, pairs: IntArray) -> IntArray:
    """Flat indices `pairs` by falling weight, ties by falling score, then by rising index.

    Weights that agree to 9 decimals tie: their difference is rounding.
    """
    keys = (pairs, -scores.ravel()[pairs], -np.round(weights.ravel()[pairs], _DECIMALS))
    ordered: IntArray = pairs[np.lexsort(keys)]
    return ordered


def round_design(weights: FloatArray, scores: FloatArray, *, mask: BoolArray, budget: int, cap: int | None) -> IntArray:
    """Flat indices of the `budget` valid pairs of largest weight under the cap, best first.

    A bounded design has few fractional weights, so that taking the largest costs little.

    Args:
        weights: relaxed design, (P, m).
        scores: gain of each pair, (P, m).
        mask: pairs that may be chosen, (P, m).
        budget: pairs to choose.
        cap: most pairs of one prompt; None: no limit.

    Raises:
        ValueError: the budget can't be met, see `check_budget`.
    """
    check_budget(mask, budget, cap=cap)
    order = sort_pairs(weights, scores, pairs=np.flatnonzero(mask))
    return take_in_order(order, mask.shape[1], budget=budget, cap=cap)
