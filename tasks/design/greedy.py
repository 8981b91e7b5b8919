"""Greedy designs: one pair after the other, each the best given those before it.

`greedy_design` maximises log det M, `forward_backward` minimises tr(H M^-1). Neither forms the pairs of the pool: what
a pick does to the scores of all others is computed from the responses. Scores that agree to nine digits tie, their
difference being rounding; the lowest flat index then wins.
"""

from dataclasses import dataclass, field

import numpy as np

from tasks.design.arrays import Array, BoolArray, FloatArray, IntArray, namespace, to_like, to_numpy
from tasks.design.criterion import Criterion
from tasks.design.kernels import PairSpace, pair_slots
from tasks.design.limits import Limits

_TIE = 1e-9
_LOST_DIGITS = 1e-4
_ROUNDING = 1e-13
_CLOSED = -1.0
_BLOCK = 256
_SHORT_BLOCK = 32
_SHORTLIST = 1024


def greedy_design(criterion: Criterion, limits: Limits) -> tuple[IntArray, FloatArray]:
    """Pairs that each have the largest a' M^-1 a given those before them, and so add most to log det M.

    As M grows a score only falls, so that one computed earlier bounds it from above (Minoux 1978). Picks come from a
    shortlist of the largest such bounds, whose scores are kept exact, for as long as its best beats every bound outside
    it; all bounds are then renewed in one pass for the whole block of picks. The picks are those of the plain greedy.

    Args:
        criterion: the pool, and M = ridge I + prior to start from; its measure is not used.
        limits: what may be chosen. Under costs a pair that no longer fits is passed over.

    Returns:
        Flat pair indices in order of choice, and the score that each had when chosen.
    """
    search = _Search(criterion, limits)
    size = max(_SHORTLIST, 4 * criterion.space.dim)
    most = max(size, criterion.space.valid.size)
    while search.best > 0:
        if search.advance(size) < _SHORT_BLOCK:
            size = min(most, int(1.6 * size))
    return _completed(search.chosen, search.scores, limits)


def frozen_design(criterion: Criterion, limits: Limits) -> tuple[IntArray, FloatArray]:
    """Pairs of largest a' M^-1 a while M stays as it was before the first of them; see `greedy_design`."""
    root = criterion.expand(criterion.prior).inverse_root
    scores = (criterion.curvature * squared_distances(criterion.space, root)).ravel()
    pairs = np.flatnonzero(limits.mask)
    chosen = limits.take(pairs[np.argsort(-scores[pairs], kind="stable")])
    return chosen, scores[chosen]


def forward_backward(criterion: Criterion, limits: Limits) -> tuple[IntArray, FloatArray]:
    """Pairs that lower tr(H M^-1) most, one by one up to twice the budget; then the ones missed least go.

    Where limits leave less than twice the budget, or further pairs tell nothing, the first stage ends there.

    Args:
        criterion: the pool, M = ridge I + prior to start from, and `Trace` as the measure.
        limits: what may be chosen; floors hold in the first stage only.

    Returns:
        Flat pair indices in order of choice, and what each took off the trace when chosen.
    """
    chosen, worth = _forward(criterion, _Allowance(limits, 2 * limits.budget))
    prices = _prices_of(limits)[chosen]
    if prices.sum() <= limits.budget:
        return _completed(chosen, worth, limits)
    kept = _backward(criterion, np.array(chosen), prices, budget=limits.budget)
    return np.array(chosen)[kept], np.array(worth)[kept]


def compact(space: PairSpace, held: FloatArray) -> tuple[PairSpace, FloatArray]:
    """The same pool and rows in as many dimensions as they span at most, where these are fewer than they have.

    Coordinates along an orthonormal basis of the span, from a QR factorisation, keep every inner product. What is
    orthogonal to the span no pair ever asks about.

    Args:
        space: features of the pool.
        held: further differences of features, such as those of labels, (n, dim).
    """
    prompts, anchors = np.arange(len(space.valid)), space.valid.argmax(axis=1)
    others = space.valid.copy()
    others[prompts, anchors] = False
    if others.sum() + len(held) >= space.dim:
        return space, held
    features = to_numpy(space.features).astype(np.float64)
    rows = (features - features[prompts, anchors][:, None])[others]
    turned = np.linalg.qr(np.concatenate([rows, held]).T, mode="r").T
    features = np.zeros((*space.valid.shape, turned.shape[1]))
    features[others] = turned[: len(rows)]
    return PairSpace.of(features, space.valid), turned[len(rows) :]


def squared_distances(space: PairSpace, root: Array) -> FloatArray:
    """|T' (phi_a - phi_b)|^2 of every pair slot, (P, m); 0 where it is rounding beside the prompt's largest.

    Args:
        space: features of the pool.
        root: T, (dim, q).
    """
    slots = (len(space.valid), len(pair_slots(space.valid.shape[1])[0]))
    found = space.scores(np.ones(slots), to_like(to_numpy(root), space.features))
    found[found <= _ROUNDING * found.max(axis=1, keepdims=True, initial=0.0)] = 0.0
    return found


def projections(space: PairSpace, vectors: FloatArray) -> FloatArray:
    """(phi_a - phi_b)' u of every pair slot and vector u, (q, P, m).

    Args:
        space: features of the pool.
        vectors: (q, dim).
    """
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
        self._prices = _prices_of(limits)
        self._left = budget
        self._most = self._slots if limits.cap is None else limits.cap
        self._least = np.minimum(limits.mask.sum(axis=1), limits.floor)
        self._owed = int(self._least.sum())
        self._taken = np.zeros(len(limits.mask), dtype=np.intp)

    def take(self, pair: int) -> None:
        """Count a pair that was open as chosen."""
        prompt = pair // self._slots
        self._owed -= int(self._taken[prompt] < self._least[prompt])
        self._taken[prompt] += 1
        self._left -= float(self._prices[pair])
        self._free[pair] = False

    def closed(self, pairs: IntArray) -> BoolArray:
        """Which of the pairs may not come next."""
        taken = self._taken[pairs // self._slots]
        open_ = self._free[pairs] & (taken < self._most) & (self._prices[pairs] <= self._left)
        if self._owed >= self._left:
            open_ &= taken < self._least[pairs // self._slots]
        return ~open_


@dataclass(eq=False)
class _Search:
    """The state of `greedy_design`: M^-1 after the last block, and bounds of all scores that were exact under it."""

    criterion: Criterion
    limits: Limits
    chosen: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.allowance = _Allowance(self.limits, self.limits.budget)
        self.pairs = np.arange(self.limits.mask.size)
        self.refresh()

    def refresh(self) -> None:
        """Compute M^-1 and all scores anew, before repeated subtraction has cost them their digits."""
        added = self.criterion.added_information(np.array(self.chosen, dtype=np.intp))
        root = to_numpy(self.criterion.expand(self.criterion.prior + added).inverse_root)
        self.inverse = root @ root.T
        self.bounds = (self.criterion.curvature * squared_distances(self.criterion.space, root)).ravel()
        self._close()
        self.reliable = _LOST_DIGITS * self.best

    def advance(self, size: int) -> int:
        """Choose a block of pairs from a shortlist of `size`, renew the bounds of the others, and count the block."""
        pairs, outside = self._shortlist(size)
        block = self._choose(pairs, outside)
        self.inverse -= block.T @ block
        root = to_like(block.T, self.criterion.space.features)
        self.bounds -= self.criterion.space.scores(self.criterion.curvature, root).ravel()
        np.maximum(self.bounds, 0.0, out=self.bounds)
        self._close()
        if self.best < self.reliable:
            self.refresh()
        return len(block)

    def _close(self) -> None:
        self.bounds[self.allowance.closed(self.pairs)] = _CLOSED
        self.best = float(self.bounds.max())

    def _shortlist(self, size: int) -> tuple[IntArray, float]:
        """Open pairs of largest bound by index, among them the one to choose next; and the largest bound outside."""
        order = np.argpartition(-self.bounds, size - 1)[:size] if size < len(self.bounds) else self.pairs
        pairs = np.union1d(order[self.bounds[order] >= 0], _first_of_best(self.bounds))
        outside = self.bounds.copy()
        outside[pairs] = _CLOSED
        return pairs, float(outside.max())

    def _choose(self, pairs: IntArray, outside: float) -> FloatArray:
        """Choose among the pairs while none outside can win; the vectors v of M^-1 <- M^-1 - v v', (picks, dim)."""
        rows = to_numpy(self.criterion.space.rows(pairs)) * np.sqrt(self.criterion.curvature.ravel()[pairs])[:, None]
        scores, block, picks = self.bounds[pairs], np.empty((_BLOCK, rows.shape[1])), 0
        best = self.best
        while picks == 0 or (picks < _BLOCK and best >= self.reliable and best * (1 - _TIE) > outside):
            place = _first_of_best(scores)
            self._take(int(pairs[place]), float(scores[place]))
            told = self.inverse @ rows[place] - (block[:picks] @ rows[place]) @ block[:picks]
            block[picks] = told / np.sqrt(1 + rows[place] @ told)
            scores = np.maximum(scores - np.square(rows @ block[picks]), 0.0)
            scores[self.allowance.closed(pairs)] = _CLOSED
            best, picks = float(scores.max()), picks + 1
        return block[:picks]

    def _take(self, pair: int, score: float) -> None:
        self.allowance.take(pair)
        self.chosen.append(pair)
        self.scores.append(score)


@dataclass(eq=False)
class _Tangent:
    """M^-1 and M^-1 H M^-1, kept up to date as labels come and go."""

    inverse: FloatArray
    slope: FloatArray

    @classmethod
    def at(cls, criterion: Criterion, chosen: IntArray) -> "_Tangent":
        """Around the prior and the pairs chosen."""
        expansion = criterion.expand(criterion.prior + criterion.added_information(chosen))
        inverse_root, gradient_root = to_numpy(expansion.inverse_root), to_numpy(expansion.gradient_root)
        return cls(inverse_root @ inverse_root.T, gradient_root @ gradient_root.T)

    def move(self, row: FloatArray, sign: int) -> FloatArray:
        """Add (+1) or take away (-1) a label; u and w, (2, dim), with which t falls by +-(a'u)^2, s by 2 (a'u)(a'w).

        The sign is that of the move; s = a' M^-1 H M^-1 a and t = a' M^-1 a of every pair a.
        """
        told, swayed = self.inverse @ row, self.slope @ row
        scale = 1 / np.sqrt(1 + sign * (row @ told))
        u = scale * told
        w = sign * scale * (swayed - sign * scale**2 * (row @ swayed) / 2 * told)
        self.inverse -= sign * np.outer(u, u)
        self.slope -= np.outer(u, w) + np.outer(w, u)
        return np.stack([u, w])


def _forward(criterion: Criterion, allowance: _Allowance) -> tuple[list[int], list[float]]:
    """Pairs by what each takes off the trace, until nothing is open or nothing tells any more."""
    chosen: list[int] = []
    taken_off: list[float] = []
    pairs, reliable = np.arange(criterion.mask.size), np.inf
    while True:
        if reliable == np.inf:
            tangent = _Tangent.at(criterion, np.array(chosen, dtype=np.intp))
            gains, leverages = _gains_and_leverages(criterion, chosen)
        worth = np.maximum(gains / (1 + leverages), 0.0)
        worth[allowance.closed(pairs)] = _CLOSED
    return chosen, taken_off
