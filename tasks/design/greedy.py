"""Greedy designs: one pair after the other, each the best given those before it.

`greedy_design` maximises log det M, `forward_backward` minimises tr(H M^-1). Neither forms the pairs of the pool: what
a pick does to the scores of all others is computed from the responses. Scores that agree to nine digits tie, their
difference being rounding; the lowest flat index then wins.
"""

from abc import ABC, abstractmethod

import numpy as np

from tasks.design.arrays import Array, BoolArray, FloatArray, IntArray, namespace, to_like, to_numpy
from tasks.design.criterion import Criterion
from tasks.design.kernels import PairSpace, pair_slots
from tasks.design.limits import Limits
from tasks.design.measures import Expansion

_TIE = 1e-9
_LOST_DIGITS = 1e-5
_ROUNDING = 1e-13
_CLOSED = -1.0
_BLOCK = 256
_SHORT_BLOCK = 32
_SHORTLIST = 1024
_FEW = 128


def greedy_design(criterion: Criterion, limits: Limits) -> tuple[IntArray, FloatArray]:
    """Pairs that each have the largest a' M^-1 a given those before them, and so add most to log det M.

    As M grows a score only falls, so that one computed earlier bounds it from above (Minoux 1978). Picks come from a
    shortlist, whose scores are kept exact, as long as its best beats every bound outside it; then all are updated in
    one pass for the whole block of picks. The picks are those of the plain greedy.

    Args:
        criterion: the pool, and M = ridge I + prior to start from; its measure is not used.
        limits: what may be chosen. Under costs a pair that no longer fits is passed over.

    Returns:
        Flat pair indices in order of choice, and the score that each had when chosen.
    """
    search = _DeterminantSearch(criterion, _Allowance(limits, limits.budget))
    size = max(_SHORTLIST, 4 * criterion.space.dim)
    most = max(size, criterion.space.valid.size // 4)
    while search.best > 0 and search.allowance.left > 0:
        if search.advance(size) < _SHORT_BLOCK:
            size = min(most, int(1.6 * size))
    return _completed(search, limits)


def forward_backward(criterion: Criterion, limits: Limits) -> tuple[IntArray, FloatArray]:
    """Pairs that lower tr(H M^-1) most, one by one up to twice the budget or all that fit; those missed least then go.

    Args:
        criterion: the pool, M = ridge I + prior to start from, and `Trace` as the measure.
        limits: what may be chosen; floors hold in the first stage only.

    Returns:
        Flat pair indices in order of choice, and what each took off the trace when chosen.
    """
    search = _TraceSearch(criterion, _Allowance(limits, 2 * limits.budget))
    while search.best > 0:
        search.advance()
    costs = search.allowance.prices[np.array(search.chosen, dtype=np.intp)]
    if costs.sum() > limits.budget:
        kept = search.prune(costs, limits.budget)
        search.chosen, search.worth = ([taken[place] for place in kept] for taken in (search.chosen, search.worth))
    return _completed(search, limits)


def squared_distances(space: PairSpace, root: Array) -> FloatArray:
    """|T' (phi_a - phi_b)|^2 of every pair slot, (P, m), T = `root` (dim, q); 0 if rounding beside the prompt's."""
    ones = np.ones((len(space.valid), len(pair_slots(space.valid.shape[1])[0])))
    found = space.scores(ones, to_like(to_numpy(root), space.features))
    found[found <= _ROUNDING * found.max(axis=1, keepdims=True, initial=0.0)] = 0.0
    return found


def projections(space: PairSpace, vectors: FloatArray) -> FloatArray:
    """u' (phi_a - phi_b) of every row u of `vectors` (q, dim) and every pair slot, (q, P, m)."""
    first, second = pair_slots(space.valid.shape[1])
    mapped = np.empty((len(vectors), *space.valid.shape))
    for part, chunk in space.chunks(np.float64):
        flat = namespace(chunk).reshape(chunk, (-1, space.dim))
        mapped[:, part] = to_numpy(to_like(vectors, chunk) @ flat.T).reshape(len(vectors), *chunk.shape[:2])
    differences: FloatArray = mapped[..., first] - mapped[..., second]
    return differences


class _Allowance:
    """What limits still allow while pairs are chosen; a pair once closed stays closed."""

    def __init__(self, limits: Limits, budget: float) -> None:
        self._slots = limits.mask.shape[1]
        self._free = limits.mask.ravel().copy()
        self.prices = np.ones(limits.mask.size) if limits.costs is None else limits.costs.ravel()
        self.left = budget
        self._most = self._slots if limits.cap is None else limits.cap
        self._least = np.minimum(limits.mask.sum(axis=1), limits.floor)
        self._owed = int(self._least.sum())
        self._taken = np.zeros(len(limits.mask), dtype=np.intp)

    def take(self, pair: int) -> None:
        """Count a pair that was open as chosen."""
        prompt = pair // self._slots
        self._owed -= int(self._taken[prompt] < self._least[prompt])
        self._taken[prompt] += 1
        self.left -= float(self.prices[pair])
        self._free[pair] = False

    def closed(self, pairs: IntArray) -> BoolArray:
        """Which of the pairs may not come next."""
        taken = self._taken[pairs // self._slots]
        closed: BoolArray = ~self._free[pairs] | (taken >= self._most) | (self.prices[pairs] > self.left)
        if self._owed >= self.left:
            closed |= taken >= self._least[pairs // self._slots]
        return closed


class _Search(ABC):
    """A greedy search: what was chosen, and scores of all pairs, or bounds of them from above.

    Scores are updated by subtraction, with an error in proportion to the largest: once the best is small beside what
    it began with, all are computed anew.
    """

    def __init__(self, criterion: Criterion, allowance: _Allowance) -> None:
        self.criterion, self.allowance = criterion, allowance
        self.roots = np.sqrt(criterion.curvature.ravel())
        self.pairs = np.arange(criterion.mask.size)
        self.chosen: list[int] = []
        self.worth: list[float] = []
        self.refresh()

    @abstractmethod
    def refresh(self) -> None:
        """Compute everything anew from what was chosen."""

    def update(self, scores: FloatArray) -> None:
        """Take over the scores of all pairs."""
        self.scores, self.best = scores, self.close(self.pairs, scores)

    def close(self, pairs: IntArray, scores: FloatArray) -> float:
        """Mark the scores of pairs that may not come next; the best of the others."""
        scores[self.allowance.closed(pairs)] = _CLOSED
        return float(scores.max())

    def take(self, pair: int, score: float) -> None:
        """Choose a pair."""
        self.allowance.take(pair)
        self.chosen.append(pair)
        self.worth.append(score)

    def expansion(self) -> Expansion:
        """The measure around M with the pairs chosen so far."""
        added = self.criterion.added_information(np.array(self.chosen, dtype=np.intp))
        return self.criterion.expand(self.criterion.prior + added)

    def distances(self, root: Array) -> FloatArray:
        """|T' a|^2 of every pair, (P m,)."""
        return (self.criterion.curvature * squared_distances(self.criterion.space, root)).ravel()

    def rows(self, pairs: IntArray) -> FloatArray:
        """The vectors a of pairs, (n, dim)."""
        rows: FloatArray = to_numpy(self.criterion.space.rows(pairs)) * self.roots[pairs, None]
        return rows


class _DeterminantSearch(_Search):
    """Of `greedy_design`: M^-1 after the last block, and scores that bound those of today."""

    def refresh(self) -> None:
        """Compute M^-1 and its scores anew from what was chosen."""
        root = to_numpy(self.expansion().inverse_root)
        self.inverse = root @ root.T
        self.update(self.distances(root))
        self.trusted = _LOST_DIGITS * self.best

    def advance(self, size: int) -> int:
        """Choose a block from a shortlist of `size` pairs, update all scores if more are to come; count the block."""
        self.block = np.empty((0, self.criterion.space.dim))
        self._choose(*_shortlist(self.scores, size))
        if self.allowance.left > 0:
            self.inverse -= self.block.T @ self.block
            root = to_like(self.block.T, self.criterion.space.features)
            fall = self.criterion.space.scores(self.criterion.curvature, root).ravel()
            self.update(np.maximum(self.scores - fall, 0.0))
            if 0 <= self.best < self.trusted:
                self.refresh()
        return len(self.block)

    def _choose(self, pairs: IntArray, outside: float) -> None:
        """Choose among the pairs until one outside might win, a few at a time that stay in the processor's cache."""
        rows, scores, best = self.rows(pairs), self.scores[pairs], self.best
        while self._beats(best, outside):
            few, rival = _shortlist(scores, _FEW)
            begun = len(self.block)
            self._choose_few(pairs[few], rows[few], scores[few], max(rival, outside))
            scores = scores - np.square(rows @ self.block[begun:].T).sum(axis=1)
            best = self.close(pairs, scores)

    def _choose_few(self, pairs: IntArray, rows: FloatArray, scores: FloatArray, outside: float) -> None:
        """Choose among the pairs until one outside might win; add the v of M^-1 <- M^-1 - v v' to the block."""
        best = np.inf
        while self._beats(best, outside):
            place = _first_of_best(scores)
            self.take(int(pairs[place]), float(scores[place]))
            told = self.inverse @ rows[place] - (self.block @ rows[place]) @ self.block
            fall = told / np.sqrt(1 + rows[place] @ told)
            self.block = np.vstack([self.block, fall])
            scores = scores - np.square(rows @ fall)
            best = self.close(pairs, scores)

    def _beats(self, best: float, outside: float) -> bool:
        """Whether the best of a shortlist is the best of all; the first of a block always is."""
        picks = len(self.block)
        return picks == 0 or (picks < _BLOCK and best >= self.trusted and best * (1 - _TIE) > outside)


class _TraceSearch(_Search):
    """Of `forward_backward`: s / (1 + t) of every pair, s = a' M^-1 H M^-1 a and t = a' M^-1 a."""

    def refresh(self) -> None:
        """Compute M^-1, H and the scores anew from what was chosen."""
        expansion = self.expansion()
        self.tangent = _Tangent(expansion)
        self.gains, self.leverages = self.distances(expansion.gradient_root), self.distances(expansion.inverse_root)
        self.first = self.gains
        self.update(self.gains / (1 + self.leverages))

    def advance(self) -> None:
        """Choose one pair and update the scores of all."""
        pair = _first_of_best(self.scores)
        self.take(pair, float(self.scores[pair]))
        moved = self.tangent.move(self.rows(np.array([pair]))[0], 1)
        fall = projections(self.criterion.space, moved).reshape(2, -1) * self.roots
        self.gains = np.maximum(self.gains - 2 * fall[0] * fall[1], 0.0)
        self.leverages = np.maximum(self.leverages - np.square(fall[0]), 0.0)
        self.update(self.gains / (1 + self.leverages))
        if 0 <= self.best < _LOST_DIGITS * (self.first / (1 + self.leverages))[self.scores >= 0].max():
            self.refresh()

    def prune(self, costs: FloatArray, budget: float) -> IntArray:
        """Places of the pairs that are kept once those missed least are gone and the others fit the budget."""
        self.refresh()
        pairs = np.array(self.chosen)
        rows, gains, leverages = self.rows(pairs), self.gains[pairs], self.leverages[pairs]
        kept = np.ones(len(pairs), dtype=bool)
        while costs[kept].sum() > budget:
            missed = np.where(kept, gains / np.maximum(1 - leverages, _ROUNDING), np.inf)
            last = np.flatnonzero(missed <= missed.min() * (1 + _TIE))[-1]
            kept[last] = False
            fall = rows @ self.tangent.move(rows[last], -1).T
            gains = np.maximum(gains - 2 * fall[:, 0] * fall[:, 1], 0.0)
            leverages = leverages + np.square(fall[:, 0])
        return np.flatnonzero(kept)


class _Tangent:
    """M^-1 and M^-1 H M^-1, kept up to date as labels come and go."""

    def __init__(self, expansion: Expansion) -> None:
        inverse_root, gradient_root = to_numpy(expansion.inverse_root), to_numpy(expansion.gradient_root)
        self.inverse = inverse_root @ inverse_root.T
        self.slope = gradient_root @ gradient_root.T

    def move(self, row: FloatArray, sign: int) -> FloatArray:
        """Add (sign 1) or take away (-1) a label; u and w, (2, dim).

        With these t falls by sign (a'u)^2, and s by 2 (a'u)(a'w), for every pair a.
        """
        told, swayed = self.inverse @ row, self.slope @ row
        scale = 1 / np.sqrt(max(1 + sign * (row @ told), _ROUNDING))
        u = scale * told
        w = sign * scale * swayed - scale**2 * (row @ swayed) / 2 * u
        self.inverse -= sign * np.outer(u, u)
        self.slope -= np.outer(u, w) + np.outer(w, u)
        return np.stack([u, w])


def _completed(search: _Search, limits: Limits) -> tuple[IntArray, FloatArray]:
    """The pairs chosen and, where that leaves some of the budget, the first of the others that fit."""
    begun = np.array(search.chosen, dtype=np.intp)
    chosen = limits.take(np.concatenate([begun, np.setdiff1d(np.flatnonzero(limits.mask), begun)]))
    return chosen, np.pad(search.worth, (0, len(chosen) - len(begun)))


def _shortlist(scores: FloatArray, size: int) -> tuple[IntArray, float]:
    """Places of the largest scores in their order, the one to choose next among them; and the largest of the rest."""
    large = np.argpartition(-scores, size)[:size] if size < len(scores) else np.arange(len(scores))
    places = np.union1d(large, _first_of_best(scores))
    rest = scores.copy()
    rest[places] = _CLOSED
    return places, float(rest.max())


def _first_of_best(scores: FloatArray) -> int:
    return int(np.argmax(scores >= scores.max() * (1 - _TIE)))
