"""Which selections are allowed: the budget, how many pairs of one prompt, and what a pair costs."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tasks.design.arrays import BoolArray, FloatArray, IntArray
from tasks.design.pool import Pool

_BISECTIONS = 60


@dataclass(frozen=True, eq=False, kw_only=True)
class Limits:
    """Valid pairs, at least `floor` and at most `cap` of one prompt, that use up the budget.

    Attributes:
        mask: pairs that may be chosen, (P, m).
        budget: number of pairs; with `costs`, what they may cost together.
        cap: most pairs of one prompt; None: no limit.
        floor: least pairs of one prompt; a prompt with fewer valid pairs gives all. `floor` = `cap` = b asks for
            exactly b of each.
        costs: price of each pair, (P, m); None: 1 each.

    Raises:
        ValueError: no selection is allowed.
    """

    mask: BoolArray
    budget: int
    cap: int | None = None
    floor: int = 0
    costs: FloatArray | None = None

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise ValueError(f"budget {self.budget} selects nothing: raise selection.budget to 1 or more")
        if self.costs is None:
            self._check_counts()
        else:
            self._check_costs(self.costs)

    def _check_counts(self) -> None:
        per_prompt = self.mask.sum(axis=1)
        total, least = int(per_prompt.sum()), int(np.minimum(per_prompt, self.floor).sum())
        if self.budget > total:
            remedy = "lower selection.budget or raise generation.num_responses"
            raise ValueError(f"budget {self.budget} exceeds the {total} pairs of the pool: {remedy}")
        left = total if self.cap is None else int(np.minimum(per_prompt, self.cap).sum())
        if self.budget > left:
            found = f"the {left} pairs that a cap of {self.cap} per prompt leaves of the pool's {total}"
            remedy = "lower selection.budget or raise max_pairs_per_prompt"
            raise ValueError(f"budget {self.budget} exceeds {found}: {remedy}")
        if self.budget < least:
            found = f"the {least} pairs that min_pairs_per_prompt {self.floor} asks for"
            raise ValueError(f"budget {self.budget} is below {found}: raise selection.budget or lower the minimum")

    def _check_costs(self, costs: FloatArray) -> None:
        if self.floor:
            raise ValueError("min_pairs_per_prompt and costs exclude each other: leave one of them out")
        cheapest = float(costs[self.mask].min(initial=np.inf))
        if cheapest > self.budget:
            raise ValueError(f"budget {self.budget} buys no pair, the cheapest costs {cheapest:.6g}: raise it")

    def best_vertex(self, scores: FloatArray) -> FloatArray:
        """Weights (P, m) in [0, 1] that maximise sum_e v_e s_e among the relaxed selections allowed.

        Zeros and ones, unless costs leave money for a part of a pair. Exact: counts per prompt and in all form a
        laminar family, in which taking the best that fits is optimal; a budget of costs is priced into the scores.

        Args:
            scores: s_e >= 0, (P, m).
        """
        return self._best_by_count(scores) if self.costs is None else self._best_by_cost(scores, self.costs)

    def _best_by_count(self, scores: FloatArray) -> FloatArray:
        ranked = np.where(self.mask, -scores, np.inf)
        vertex = np.zeros(ranked.size)
        if self.floor:
            forced = _smallest_of_rows(ranked, self.floor)
            vertex[forced] = np.isfinite(ranked.ravel()[forced])
        index = np.arange(ranked.size) if self.cap is None else _smallest_of_rows(ranked, self.cap)
        free = index[vertex[index] == 0]
        left = self.budget - int(vertex.sum())
        if left:
            vertex[free[np.argpartition(ranked.ravel()[free], left - 1)[:left]]] = 1.0
        return vertex.reshape(ranked.shape)

    def _best_by_cost(self, scores: FloatArray, costs: FloatArray) -> FloatArray:
        """Bisect the price of money: the two selections at its ends, mixed so that they spend the budget."""

        def best_at(price: float) -> npt.NDArray[np.float64]:
            value = np.where(self.mask, scores - price * costs, 0.0)
            kept = np.zeros(value.size, dtype=bool)
            kept[np.arange(value.size) if self.cap is None else _smallest_of_rows(-value, self.cap)] = True
            return (kept.reshape(value.shape) & (value > 0)).astype(np.float64)

        poor, rich = 0.0, float((scores / costs)[self.mask].max(initial=0.0))
        many, few = best_at(poor), np.zeros(scores.shape, dtype=np.float64)
        if (many * costs).sum() <= self.budget:
            return many
        for _ in range(_BISECTIONS):
            price = (poor + rich) / 2
            trial = best_at(price)
            if (trial * costs).sum() > self.budget:
                poor, many = price, trial
            else:
                rich, few = price, trial
        spent_many, spent_few = float((many * costs).sum()), float((few * costs).sum())
        share = (self.budget - spent_few) / (spent_many - spent_few)
        return share * many + (1 - share) * few

    def slack(self, scores: FloatArray, weights: FloatArray) -> float:
        """max_v sum_e (v_e - w_e) s_e over the relaxed selections allowed, at least 0."""
        return max(0.0, float(((self.best_vertex(scores) - weights) * scores).sum()))

    def take(self, order: IntArray) -> IntArray:
        """Flat pair indices of `order` that fit, in their order: the floors first, then whatever comes first.

        Args:
            order: flat indices of valid pairs, best first, each at most once.
        """
        if self.costs is not None:
            return self._take_by_cost(order, self.costs.ravel())
        rank = ranks_within(order // self.mask.shape[1])
        allowed = np.ones(len(order), dtype=bool) if self.cap is None else rank < self.cap
        forced = allowed & (rank < self.floor)
        free = np.flatnonzero(allowed & ~forced)[: self.budget - int(forced.sum())]
        forced[free] = True
        return order[forced]

    def _take_by_cost(self, order: IntArray, costs: FloatArray) -> IntArray:
        left, taken = float(self.budget), []
        room = np.full(len(self.mask), self.mask.shape[1] if self.cap is None else self.cap)
        prompts = order // self.mask.shape[1]
        for pair, prompt, cost in zip(order, prompts, costs[order], strict=True):
            if room[prompt] > 0 and cost <= left:
                taken.append(pair)
                room[prompt] -= 1
                left -= float(cost)
        return np.array(taken, dtype=np.intp)

    def room(self, chosen: IntArray) -> IntArray:
        """Count the pairs that each prompt may still take in, (P,)."""
        taken: IntArray = np.bincount(chosen // self.mask.shape[1], minlength=len(self.mask))
        return (self.mask.shape[1] if self.cap is None else self.cap) - taken


def limits_of(pool: Pool, budget: int, *, cap: int | None = None, floor: int = 0) -> Limits:
    """The limits of a pool's valid pairs.

    Raises:
        ValueError: no selection is allowed.
    """
    return Limits(mask=pool.pair_mask, budget=budget, cap=cap, floor=floor, costs=pool.costs)


def _smallest_of_rows(ranked: FloatArray, count: int) -> IntArray:
    """Flat indices of the `count` smallest entries of every row."""
    width = ranked.shape[1]
    index = np.arange(ranked.size)
    if count >= width:
        return index
    slots = np.argpartition(ranked, count - 1, axis=1)[:, :count]
    smallest: IntArray = (slots + index[::width, None]).ravel()
    return smallest


def ranks_within(groups: IntArray) -> IntArray:
    """How many entries of the same group stand before each entry, (n,)."""
    grouped = np.argsort(groups, kind="stable")
    sizes = np.bincount(groups)
    starts = np.cumsum(sizes) - sizes
    ranks = np.empty_like(groups)
    ranks[grouped] = np.arange(len(groups)) - starts[groups[grouped]]
    return ranks
