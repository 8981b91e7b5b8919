"""Designs for rewards that the features don't explain: to every prompt the features mean something of its own.

The gap of a pair e of prompt x is taken as g_e'(theta + delta_x), delta_x ~ N(0, tau^2 I), and its label as that gap
with noise of variance 1 / kappa_e^2, in units of a random label's. A prompt then tells less of theta with every further
label, which spreads a design over prompts; at tau = 0 it is the plain tr(H M^-1) of a trace design.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tasks.design.arrays import BoolArray, FloatArray, IntArray, gram, product, to_numpy
from tasks.design.kernels import pair_slots
from tasks.design.limits import Limits, ranks_within
from tasks.design.measures import Trace, TraceExpansion, inverse_root, symmetric_root
from tasks.design.pool import Pool

_NUMBERS_PER_CHUNK = 2**19
_GROWTH = 0.15
_LEAST_LIST = 512
_REUSE = 0.9
_EVENING = 0.75


@dataclass(frozen=True, eq=False, kw_only=True)
class Outlook:
    """What is expected of labels before they are bought.

    Attributes:
        misfit: tau^2, variance of a prompt's own slopes, in units of a label's noise, on unit features; at 0 these are
            not evened.
        ridge: lambda in M = lambda I + information, in labels.
        signal: kappa_e^2 of every pair slot, 1 for a random label, (P, m).
        trust: in [0, 1], how far the signal decides, and not the features.
    """

    misfit: float
    ridge: float
    signal: FloatArray
    trust: float


@dataclass(eq=False, kw_only=True)
class Effects:
    """What the labels chosen so far would tell of theta, by generalised least squares over prompts' own slopes.

    With V the covariance of the responses' residuals phi'delta given those labels, and Z~ the features without what the
    residuals take, a label with contrast c = e_a - e_b has h = Z~'c and v = 1 / kappa^2 + c'V c. It adds h h' / v to
    the information of theta, and leaves Z~ - V c h' / v and V - V c c'V / v. Summed up, a prompt with Laplacian L of
    its labels gives Z'(I + tau^2 L Z Z')^-1 L Z [derived].

    Attributes:
        features: Z~, (P, K, dim).
        residuals: V, (P, K, K).
        information: M - lambda I, (dim, dim).
        ridge: lambda.
        fisher_root: H^(1/2), (dim, rank).
    """

    features: FloatArray
    residuals: FloatArray
    information: FloatArray
    ridge: float
    fisher_root: FloatArray

    @classmethod
    def of(cls, pool: Pool, outlook: Outlook) -> "Effects":
        """Before the first label of this pool; labels already held count as those of no prompt's own."""
        features, scale = unit_features(pool, even=outlook.misfit > 0)
        held = np.zeros((pool.dim, pool.dim))
        if pool.labels is not None:
            held = held + 4 / scale**2 * pool.labels.information(beta=1.0)
        return cls(
            features=features,
            residuals=outlook.misfit * (features @ features.transpose(0, 2, 1)).astype(np.float64),
            information=held,
            ridge=outlook.ridge,
            fisher_root=to_numpy(symmetric_root(pool.policy_fisher)),
        )

    def expand(self) -> TraceExpansion:
        """tr(H M^-1) around the present M."""
        return Trace(self.fisher_root).expand(to_numpy(inverse_root(self.information, self.ridge)))

    def noise(self, prompts: IntArray, signal: FloatArray) -> FloatArray:
        """v of every pair slot of some prompts, (n, m)."""
        return 1 / signal[prompts] + _pair_squares(self.residuals[prompts])

    def drop(self, prompts: IntArray, expansion: TraceExpansion, noise: FloatArray) -> FloatArray:
        """What one label of every pair slot of some prompts takes off tr(H M^-1), (n, m)."""
        gains, leverages = (
            self._lengths(prompts, root) / noise for root in (expansion.gradient_root, expansion.inverse_root)
        )
        return expansion.worth(gains, leverages)

    def _lengths(self, prompts: IntArray, root: FloatArray) -> FloatArray:
        rows = self.features[prompts]
        flat = product(rows.reshape(-1, rows.shape[2]), root.astype(rows.dtype, copy=False))
        mapped = np.ascontiguousarray(flat).reshape(*rows.shape[:2], -1)
        return _pair_squares(mapped @ mapped.transpose(0, 2, 1))

    def add(self, prompts: IntArray, slots: IntArray, noise: FloatArray) -> None:
        """Count the label of one pair of each of some prompts, (n,) each."""
        first, second = (end[slots] for end in pair_slots(self.features.shape[1]))
        rows = self.features[prompts, first] - self.features[prompts, second]
        column = self.residuals[prompts, :, first] - self.residuals[prompts, :, second]
        self.information = self.information + gram((rows / np.sqrt(noise)[:, None]).astype(np.float64))
        scaled = column / noise[:, None]
        self.features[prompts] -= (scaled[:, :, None] * rows[:, None, :]).astype(self.features.dtype)
        self.residuals[prompts] -= scaled[:, :, None] * column[:, None, :]

    def include(self, pairs: IntArray, signal: FloatArray) -> None:
        """Count the labels of flat pair indices (n,), any number of a prompt."""
        prompts, slots = np.divmod(pairs, signal.shape[1])
        turns = ranks_within(prompts)
        for turn in range(int(turns.max(initial=-1)) + 1):
            now, at = prompts[turns == turn], slots[turns == turn]
            self.add(now, at, self.noise(now, signal)[np.arange(len(now)), at])


def unit_features(pool: Pool, *, even: bool) -> tuple[FloatArray, float]:
    """Features about their prompt's mean, (P, K, dim), of mean squared norm 1; and the pool's root of it before.

    Args:
        pool: whose features.
        even: divide each prompt's features by their own root mean square to the power 0.75 first. On real preferences
            the slope of the reward falls as a prompt's responses differ more; the power is measured.
    """
    features = np.empty(pool.features.shape, dtype=pool.space.precision)
    squares, counts = np.zeros(pool.num_prompts), pool.valid.sum(axis=1)
    for part, chunk in pool.space.chunks(pool.space.precision):
        features[part] = to_numpy(chunk)
        squares[part] = np.square(features[part], dtype=np.float64).sum(axis=(1, 2))
    pooled = float(np.sqrt(squares.sum() / max(int(counts.sum()), 1))) or 1.0
    spreads = np.sqrt(squares / np.maximum(counts, 1)) / pooled
    scales = np.where(spreads > 0, spreads, 1.0) ** (_EVENING if even else 0.0)
    unit = np.sqrt((squares / scales**2).sum() / max(int(counts.sum()), 1)) or 1.0
    features /= (scales * unit).astype(features.dtype)[:, None, None]
    return features, pooled


def robust_pairs(pool: Pool, limits: Limits, outlook: Outlook) -> tuple[IntArray, Effects]:
    """Flat pair indices in order of choice, as many as the budget buys, and what their labels would tell.

    Greedy, a block of prompts at a time, each with its best pair; blocks grow with what stands. The worth of a pair is

        (drop of tr(H M^-1))^(1 - a) (signal 0.9^uses)^a,    a = trust max(0, 1 - 2 n / K),

    with n the pairs that its prompt of K responses has given, and uses those that either response was in. Under trust
    every prompt gives a pair before any gives another. Deterministic: ties go by index. That worth is a product of
    powers, and how a falls, are measured and not derived: what a proxy tells comes first, then what features tell.

    Args:
        pool: where the pairs come from.
        limits: budget, cap, costs.
        outlook: what is expected of the labels.
    """
    course = _Course.of(pool, limits, outlook)
    chosen = np.zeros(0, dtype=np.intp)
    due = 0
    while len(eligible := course.eligible()):
        block = max(1, min(int(_GROWTH * (len(chosen) + 5)), pool.num_prompts // 8))
        if len(chosen) < due:
            eligible = eligible[_first(course.worth[eligible], max(_LEAST_LIST, 4 * block))]
        else:
            due = 2 * len(chosen) + 1
        chosen = np.concatenate([chosen, course.step(eligible, block)])
    return chosen, course.effects


@dataclass(eq=False, kw_only=True)
class _Course:
    """Where the choice stands.

    Attributes:
        open: pairs that may still be chosen, (P, m).
        uses: pairs chosen so far with each response, (P, K).
        counts: pairs chosen so far of each prompt, (P,).
        worth: of each prompt's best pair when last seen, (P,).
        left: what is left of the budget.
    """

    outlook: Outlook
    limits: Limits
    effects: Effects
    open: BoolArray
    uses: IntArray
    counts: IntArray
    worth: FloatArray
    left: float

    @classmethod
    def of(cls, pool: Pool, limits: Limits, outlook: Outlook) -> "_Course":
        return cls(
            outlook=outlook,
            limits=limits,
            effects=Effects.of(pool, outlook),
            open=limits.mask.copy(),
            uses=np.zeros(pool.valid.shape, dtype=np.intp),
            counts=np.zeros(pool.num_prompts, dtype=np.intp),
            worth=np.full(pool.num_prompts, np.inf),
            left=float(limits.budget),
        )

    def eligible(self) -> IntArray:
        """Prompts that may give the next pair, (n,)."""
        if self.left < 1 and self.limits.costs is None:
            return np.zeros(0, dtype=np.intp)
        if self.limits.costs is not None:
            self.open &= self.limits.costs <= self.left
        able = self.open.any(axis=1)
        if self.limits.cap is not None:
            able &= self.counts < self.limits.cap
        if self.outlook.trust > 0 and able.any():
            able &= self.counts == self.counts[able].min()
        places: IntArray = np.flatnonzero(able)
        return places

    def step(self, prompts: IntArray, block: int) -> IntArray:
        """Choose the best pair of the best of these prompts, at most `block`; flat pair indices."""
        expansion, slots = self.effects.expand(), np.zeros(len(prompts), dtype=np.intp)
        for part in _parts(len(prompts), self.effects.features[0].size):
            worth = self._worth(prompts[part], expansion)
            slots[part] = worth.argmax(axis=1)
            self.worth[prompts[part]] = worth.max(axis=1)
        best = _first(self.worth[prompts], block)
        prompts, slots = prompts[best], slots[best]
        affordable = self._affordable(prompts, slots)
        prompts, slots = prompts[:affordable], slots[:affordable]
        self._take(prompts, slots)
        pairs: IntArray = prompts * self.open.shape[1] + slots
        return pairs

    def _worth(self, prompts: IntArray, expansion: TraceExpansion) -> FloatArray:
        """Of every pair slot of some prompts, -inf where it is not open, (n, m)."""
        outlook, num_responses = self.outlook, self.uses.shape[1]
        first, second = pair_slots(num_responses)
        uses = self.uses[prompts][:, first] + self.uses[prompts][:, second]
        power = outlook.trust * np.maximum(0.0, 1 - 2 * self.counts[prompts] / num_responses)[:, None]
        worth = (outlook.signal[prompts] * _REUSE**uses) ** power
        if power.min() < 1:
            noise = self.effects.noise(prompts, outlook.signal)
            worth = worth * self.effects.drop(prompts, expansion, noise) ** (1 - power)
        if self.limits.costs is not None:
            worth = worth / self.limits.costs[prompts]
        return np.where(self.open[prompts], worth, -np.inf)

    def _affordable(self, prompts: IntArray, slots: IntArray) -> int:
        """How many of the first pairs the budget still buys."""
        if self.limits.costs is None:
            return int(min(len(prompts), self.left))
        return int(np.searchsorted(np.cumsum(self.limits.costs[prompts, slots]), self.left, side="right"))

    def _take(self, prompts: IntArray, slots: IntArray) -> None:
        first, second = (end[slots] for end in pair_slots(self.uses.shape[1]))
        self.effects.add(prompts, slots, self.effects.noise(prompts, self.outlook.signal)[np.arange(len(slots)), slots])
        self.open[prompts, slots] = False
        self.uses[prompts, first] += 1
        self.uses[prompts, second] += 1
        self.counts[prompts] += 1
        spent = np.ones(len(slots)) if self.limits.costs is None else self.limits.costs[prompts, slots]
        self.left -= float(spent.sum())


def _first(worth: FloatArray, count: int) -> IntArray:
    """Places of the largest, in falling order, ties by place."""
    places: IntArray = np.argsort(-worth, kind="stable")[:count]
    return places


def _pair_squares(grams: FloatArray) -> FloatArray:
    """c'G c of the contrast of every pair slot, at least 0, (n, m) of (n, K, K)."""
    first, second = pair_slots(grams.shape[1])
    norms = np.diagonal(grams, axis1=1, axis2=2)
    squares: FloatArray = np.maximum(norms[:, first] + norms[:, second] - 2 * grams[:, first, second], 0.0)
    return squares


def _parts(length: int, numbers_each: int) -> Iterator[slice]:
    step = max(1, _NUMBERS_PER_CHUNK // numbers_each)
    return (slice(start, min(start + step, length)) for start in range(0, length, step))
