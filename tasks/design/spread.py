"""Pairs that lie far apart: k-means++ sampling, farthest-first traversal and k-means over the pairs of a pool.

A pair vector v_e = omega_e (phi_a - phi_b) is never formed for the whole pool. Its product with a centre c is
omega_e (phi_a' c - phi_b' c): one number for each response, then a subtraction for each pair.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array

from tasks.design.arrays import BoolArray, FloatArray, IntArray, to_numpy
from tasks.design.kernels import PairSpace, pair_slots
from tasks.design.limits import Limits

_CENTRES_AT_ONCE = 32
_ROWS_AT_ONCE = 4096
_NUMBERS_AT_ONCE = 1 << 18
_ROUNDING = 256


@dataclass(frozen=True, eq=False, kw_only=True)
class PairVectors:
    """The n pair vectors v_e = omega_e (phi_a - phi_b), seen from their responses.

    Attributes:
        responses: features about the mean of their prompt, in the precision that they came in, (P K, dim).
        pairs: flat pair indices, increasing, (n,).
        first: row in `responses` of every pair's first response, (n,).
        second: row of the other, (n,).
        scales: omega_e, (n,).
        squared_norms: |v_e|^2, (n,).
        oriented: whether v and -v differ; if not, the distance is that of the nearer of the two.
    """

    responses: FloatArray
    pairs: IntArray
    first: IntArray
    second: IntArray
    scales: FloatArray
    squared_norms: FloatArray
    oriented: bool

    @classmethod
    def of(
        cls, space: PairSpace, mask: BoolArray, *, scales: FloatArray | None = None, oriented: bool = False
    ) -> "PairVectors":
        """The vectors of the pairs in a mask (P, m); `scales` (P, m) holds omega, None: 1 each."""
        responses, pairs = _centred(space), np.flatnonzero(mask)
        prompt, slot = np.divmod(pairs, mask.shape[1])
        first, second = (prompt * space.valid.shape[1] + end[slot] for end in pair_slots(space.valid.shape[1]))
        omega = (np.ones(mask.shape) if scales is None else scales).ravel()[pairs].astype(responses.dtype)
        return cls(
            responses=responses,
            pairs=pairs,
            first=first,
            second=second,
            scales=omega,
            squared_norms=omega * omega * _squared_lengths(responses, first, second),
            oriented=oriented,
        )

    def rows(self, places: IntArray) -> FloatArray:
        """v_e of the pairs at some places of `pairs`, (len(places), dim)."""
        differences = self.responses[self.first[places]] - self.responses[self.second[places]]
        rows: FloatArray = self.scales[places, None] * differences
        return rows

    def squared_distances(self, centres: FloatArray) -> Iterator[FloatArray]:
        """|v_e - c|^2 of every pair, (n,), for one centre of (k, dim) after the other; 0 for copies of the centre.

        The product is inflated by 256 units of rounding, without which a copy of a centre could seem to differ from
        it. For vectors of similar length no distance is then off by more than that share of their squared lengths.
        """
        inflated = 2 * (1 + _ROUNDING * np.finfo(self.responses.dtype).eps)
        for start in range(0, len(centres), _CENTRES_AT_ONCE):
            block = centres[start : start + _CENTRES_AT_ONCE].astype(self.responses.dtype)
            for projected, squared_norm in zip(inflated * block @ self.responses.T, _squares(block), strict=True):
                distances = projected[self.first]
                distances -= projected[self.second]
                distances *= self.scales
                if not self.oriented:
                    np.abs(distances, out=distances)
                np.subtract(self.squared_norms, distances, out=distances)
                distances += squared_norm
                yield np.maximum(distances, 0.0, out=distances)

    def assign(self, centres: FloatArray) -> tuple[IntArray, FloatArray, float]:
        """Nearest of the centres (k, dim) to every pair (n,), the sign that it is met with (n,), and the inertia.

        The inertia is the sum of the squared distances to the nearest centre.
        """
        nearest, signs, inertia = np.empty(len(self.pairs), dtype=np.intp), np.empty_like(self.scales), 0.0
        squared_norms = _squares(centres)
        for part, products in self._products(centres):
            costs = -2 * (products if self.oriented else np.abs(products))
            costs += squared_norms
            nearest[part] = costs.argmin(axis=1)
            at = np.arange(len(costs)), nearest[part]
            signs[part] = np.where((products[at] < 0) & (not self.oriented), -1.0, 1.0)
            inertia += float((self.squared_norms[part] + costs[at]).sum(dtype=np.float64))
        return nearest, signs, inertia

    def _products(self, centres: FloatArray) -> Iterator[tuple[slice, FloatArray]]:
        """Slices of the pairs, and their products with all centres."""
        step = max(1, _NUMBERS_AT_ONCE // len(centres))
        for start in range(0, len(self.pairs), step):
            part = slice(start, start + step)
            lowest, highest = int(self.first[part].min()), int(self.second[part].max())
            projected = self.responses[lowest : highest + 1] @ centres.T
            products = projected[self.first[part] - lowest]
            products -= projected[self.second[part] - lowest]
            products *= self.scales[part, None]
            yield part, products


@dataclass(frozen=True, eq=False, kw_only=True)
class Spread:
    """Pairs in order of choice.

    Attributes:
        pairs: flat pair indices, (k,).
        squared_distances: from the nearest centre at the time of choice, that of the first from the origin; 0 for
            pairs drawn at random, (k,).
        notes: says how many were drawn at random, if any.
    """

    pairs: IntArray
    squared_distances: FloatArray
    notes: tuple[str, ...] = ()


class _Basket:
    """The pairs taken so far, and which others still fit within the limits."""

    def __init__(self, vectors: PairVectors, limits: Limits) -> None:
        self.vectors, self.limits = vectors, limits
        self.places: list[int] = []
        self._prompts = vectors.pairs // limits.mask.shape[1]
        self._room = limits.room(vectors.pairs[:0])
        self._left = float(limits.budget)
        self._costs = np.ones(len(vectors.pairs)) if limits.costs is None else limits.costs.ravel()[vectors.pairs]
        self.fits: BoolArray = self._costs <= self._left

    def take(self, place: int) -> None:
        """Take a pair that fits."""
        prompt = self._prompts[place]
        self.places.append(place)
        self._room[prompt] -= 1
        self._left -= float(self._costs[place])
        self.fits &= self._costs <= self._left
        self.fits[place] = False
        if self._room[prompt] == 0:
            self.fits[self._prompts == prompt] = False

    def filled_up(self, rng: np.random.Generator, distances: list[float]) -> Spread:
        """What was taken, and after it random pairs as long as any fit."""
        taken = self.vectors.pairs[self.places]
        others = rng.permutation(np.setdiff1d(self.vectors.pairs, taken))
        chosen = self.limits.take(np.concatenate([taken, others]))
        added = len(chosen) - len(taken)
        note = f"the distances name no further pair: the last {added} of {len(chosen)} were drawn at random"
        squared = np.concatenate([distances, np.zeros(len(chosen) - len(distances))])
        return Spread(pairs=chosen, squared_distances=squared, notes=(note,) if added else ())


class _Search:
    """A choice pair by pair, by the squared distance to the nearest centre: 0 for what does not fit."""

    def __init__(self, vectors: PairVectors, limits: Limits) -> None:
        self._vectors, self._basket = vectors, _Basket(vectors, limits)
        self._distances: list[float] = []
        self.nearest = np.full(len(vectors.pairs), np.inf, dtype=vectors.responses.dtype)

    def approach(self, centres: FloatArray) -> None:
        """Add centres, (k, dim)."""
        for distances in self._vectors.squared_distances(centres):
            np.minimum(self.nearest, distances, out=self.nearest)
        self.nearest[~self._basket.fits] = 0.0

    def take(self, place: int, squared_distance: float) -> None:
        """Take a pair and make it a centre."""
        self._basket.take(place)
        self._distances.append(squared_distance)
        self.approach(self._vectors.rows(np.array([place])))

    def take_longest(self) -> None:
        """Take the pair that is farthest from the origin, unless all lie there."""
        lengths = np.where(self._basket.fits, self._vectors.squared_norms, 0.0)
        longest = int(lengths.argmax())
        if lengths[longest] > 0:
            self.take(longest, float(lengths[longest]))
        else:
            self.nearest[:] = 0.0

    def finish(self, rng: np.random.Generator) -> Spread:
        """What was taken, filled up at random."""
        return self._basket.filled_up(rng, self._distances)


def sample_by_distance(vectors: PairVectors, limits: Limits, *, rng: np.random.Generator) -> Spread:
    """Draw pairs with probability proportional to the squared distance from those before (D^2 sampling).

    The seeding of k-means++ (Arthur and Vassilvitskii 2007), except that the longest vector comes first. Each other
    pick takes one uniform number, and the pair at which the running sum of squared distances exceeds that share.
    """
    search = _Search(vectors, limits)
    search.take_longest()
    while search.nearest.any():
        mass = np.cumsum(search.nearest, dtype=np.float64)
        place = int(np.searchsorted(mass, rng.random() * mass[-1], side="right"))
        search.take(place, float(search.nearest[place]))
    return search.finish(rng)


def farthest_first(
    vectors: PairVectors, limits: Limits, *, rng: np.random.Generator, centres: FloatArray | None = None
) -> Spread:
    """Take the pair farthest from the centres and from those before (Gonzalez 1985); ties go by index.

    Args:
        vectors: the pairs.
        limits: which of them fit.
        rng: draws what is left once nothing differs any more.
        centres: (k, dim); None: the longest vector comes first.
    """
    search = _Search(vectors, limits)
    if centres is None or len(centres) == 0:
        search.take_longest()
    else:
        search.approach(centres)
    while search.nearest.any():
        place = int(search.nearest.argmax())
        search.take(place, float(search.nearest[place]))
    return search.finish(rng)


def nearest_to_means(vectors: PairVectors, limits: Limits, *, rng: np.random.Generator, num_iterations: int) -> Spread:
    """Cluster the pairs by k-means, as many clusters as pairs fit, and take the nearest pair to every centre.

    Args:
        vectors: the pairs.
        limits: which of them fit.
        rng: draws the seeds, see `sample_by_distance`, and what is left where fewer pairs differ than fit.
        num_iterations: iterations of Lloyd's algorithm.
    """
    seeds = sample_by_distance(vectors, limits, rng=rng)
    distinct = seeds.pairs[seeds.squared_distances > 0]
    centres = vectors.rows(np.searchsorted(vectors.pairs, distinct))
    for _ in range(num_iterations if len(centres) else 0):
        centres, _ = move_centres(vectors, centres)
    basket = _Basket(vectors, limits)
    for distances in vectors.squared_distances(centres):
        if basket.fits.any():
            basket.take(int(np.where(basket.fits, distances, np.inf).argmin()))
    return basket.filled_up(rng, [])


def move_centres(vectors: PairVectors, centres: FloatArray) -> tuple[FloatArray, float]:
    """One iteration of Lloyd's algorithm: the means of the pairs nearest to each centre, and the inertia before.

    Where the sign of a pair means nothing its vector enters with the sign in which it is nearer. A centre that no
    pair is nearest to stays.

    Args:
        vectors: the pairs.
        centres: (k, dim).
    """
    nearest, signs, inertia = vectors.assign(centres)
    weights = signs * vectors.scales
    ends = np.concatenate([vectors.first, vectors.second])
    entries = (np.concatenate([weights, -weights]), (np.tile(nearest, 2), ends))
    sums = coo_array(entries, shape=(len(centres), len(vectors.responses))).tocsr() @ vectors.responses
    sizes = np.bincount(nearest, minlength=len(centres))[:, None]
    means: FloatArray = np.where(sizes > 0, sums / np.maximum(sizes, 1), centres).astype(centres.dtype)
    return means, inertia


def _centred(space: PairSpace) -> FloatArray:
    """Features about the mean of their prompt on the host, (P K, dim)."""
    responses = np.empty((*space.valid.shape, space.dim), dtype=space.precision)
    for part, chunk in space.chunks(space.precision):
        responses[part] = to_numpy(chunk)
    return responses.reshape(-1, space.dim)


def _squares(rows: FloatArray) -> FloatArray:
    squares: FloatArray = np.einsum("ij,ij->i", rows, rows)
    return squares


def _squared_lengths(responses: FloatArray, first: IntArray, second: IntArray) -> FloatArray:
    """|phi_a - phi_b|^2, from differences, which loses less to rounding than Gram matrices."""
    lengths = np.empty(len(first), dtype=responses.dtype)
    for start in range(0, len(first), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        lengths[part] = _squares(responses[first[part]] - responses[second[part]])
    return lengths
