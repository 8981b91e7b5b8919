"""The candidate pairs of a round, and the labels already held."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tasks.design.arrays import Array, BoolArray, FloatArray, IntArray, namespace, to_numpy
from tasks.design.kernels import PairSpace, logistic_curvature, pair_slots


@dataclass(frozen=True, eq=False, kw_only=True)
class Labels:
    """Labels already held, over the same features as the pool's.

    Attributes:
        differences: g = phi_chosen - phi_rejected, (n, dim).
        margins: implicit reward of the chosen response minus that of the rejected one under the present policy,
            nats, (n,).
        score_gaps: proxy score of the chosen response minus that of the rejected one, (n,); None: no proxy.
        prompts: a number for the prompt of each label, (n,); None: unknown.

    Raises:
        ValueError: the shapes disagree, or an entry is NaN or infinite.
    """

    differences: FloatArray
    margins: FloatArray
    score_gaps: FloatArray | None = None
    prompts: IntArray | None = None

    def __post_init__(self) -> None:
        if self.differences.ndim != 2 or self.margins.shape != self.differences.shape[:1]:
            found = f"{self.differences.shape} and {self.margins.shape}"
            raise ValueError(f"labels have differences and margins of shapes {found}: pass (n, dim) and (n,)")
        for name, array in (("score_gaps", self.score_gaps), ("prompts", self.prompts)):
            if array is not None and array.shape != self.margins.shape:
                found = f"{array.shape} and {self.margins.shape}"
                raise ValueError(f"labels have {name} and margins of shapes {found}: pass (n,) twice")
        named = {"differences": self.differences, "margins": self.margins, "score_gaps": self.score_gaps}
        for name, array in named.items():
            if array is None:
                continue
            finite = np.isfinite(array)
            if not finite.all():
                place = tuple(int(i) for i in np.argwhere(~finite)[0])
                raise ValueError(f"{name} of the labels hold {array[place]} at label {place[0]}: recompute it")

    def information(self, *, beta: float, logistic: bool = True) -> FloatArray:
        """sum_e beta^2 sigma'(z_e) g_e g_e', (dim, dim); without sigma' where `logistic` is False."""
        curvature = logistic_curvature(self.margins) if logistic else np.ones(len(self.margins))
        rows = self.differences.astype(np.float64) * (beta * np.sqrt(curvature))[:, None]
        held: FloatArray = rows.T @ rows
        return held


@dataclass(frozen=True, eq=False, kw_only=True)
class Pool:
    """Candidate pairs of one round, stored per response: P prompts, K response slots, features of `dim` numbers.

    A flat pair index counts all P m slots, m = K (K - 1) / 2, valid or not: slots of one prompt lie together, in the
    order of `numpy.triu_indices(K, 1)`. Prompts with fewer than K responses are padded.

    Attributes:
        features: phi(x, y), (P, K, dim), zeros in padding; an array of any library of the array API standard.
        valid: (P, K); False marks padding, empty and duplicate responses, which form no pair.
        rewards: implicit rewards beta (log pi - log pi_ref) in nats, (P, K); zeros in round 0, where pi = pi_ref.
        beta: inverse temperature of the preference loss.
        labels: labels already held; None: none.
        fisher: policy Fisher information H, (dim, dim); None: estimated from the pool, see `policy_fisher`. One
            estimated from other prompts aims the design at those.
        scores: scores of a proxy for the labeller, (P, K).
        log_probs: log pi(y|x) under the present policy, nats, (P, K).
        lengths: tokens of the responses, (P, K): what a proxy may turn out to measure.
        offered: pairs that may be chosen, (P, m); None: all of valid responses. Labelled pairs are taken out here.
        costs: price of each pair's label in units of the budget, (P, m); None: 1 each.

    Raises:
        ValueError: a shape disagrees with `features`.
        ValueError: an entry is NaN or infinite; the message names its place.
        ValueError: a matrix is not symmetric, or beta or a cost is not positive and finite.
    """

    features: Array
    valid: BoolArray
    rewards: FloatArray
    beta: float
    labels: Labels | None = None
    fisher: FloatArray | None = None
    scores: FloatArray | None = None
    log_probs: FloatArray | None = None
    lengths: FloatArray | None = None
    offered: BoolArray | None = None
    costs: FloatArray | None = None

    def __post_init__(self) -> None:
        if self.features.ndim != 3 or not _is_real(self.features):
            found = f"{self.features.dtype} of shape {tuple(self.features.shape)}"
            raise ValueError(f"features is {found}: pass floats of shape (prompts, responses, dim)")
        if self.valid.dtype != np.bool_:
            raise ValueError(f"valid holds {self.valid.dtype}: pass booleans, True for a response that can be compared")
        if not (np.isfinite(self.beta) and self.beta > 0):
            raise ValueError(f"beta is {self.beta}: pass the positive, finite beta of the preference loss")
        self._check_responses()
        self._check_pairs()
        self._check_matrices()

    def _check_responses(self) -> None:
        responses = tuple(self.features.shape[:2])
        _require_shape("valid", self.valid, responses)
        _require_finite("features", self.features)
        named = {
            "rewards": self.rewards,
            "scores": self.scores,
            "log_probs": self.log_probs,
            "lengths": self.lengths,
        }
        for name, array in named.items():
            if array is not None:
                _require_shape(name, array, responses)
                _require_finite(name, array)

    def _check_pairs(self) -> None:
        slots = (self.num_prompts, len(pair_slots(self.valid.shape[1])[0]))
        if self.offered is not None:
            _require_shape("offered", self.offered, slots)
        if self.costs is not None:
            _require_shape("costs", self.costs, slots)
            if not (np.isfinite(self.costs) & (self.costs > 0)).all():
                raise ValueError("costs holds an entry that is not positive and finite: price every pair above 0")

    def _check_matrices(self) -> None:
        if self.fisher is not None:
            _require_shape("fisher", self.fisher, (self.dim, self.dim))
            _require_symmetric("fisher", self.fisher)
        if self.labels is not None and self.labels.differences.shape[1] != self.dim:
            found = f"{self.labels.differences.shape[1]} numbers, those of the pool {self.dim}"
            raise ValueError(f"features of the labels have {found}: map both with one projection")

    @property
    def num_prompts(self) -> int:
        """Prompts, with or without valid pairs."""
        return int(self.features.shape[0])

    @property
    def dim(self) -> int:
        """Length of a feature vector."""
        return int(self.features.shape[2])

    @cached_property
    def pair_mask(self) -> BoolArray:
        """Which pair slots may be chosen, (P, m): both responses valid, and offered."""
        first, second = pair_slots(self.valid.shape[1])
        joined = self.valid[:, first] & self.valid[:, second]
        return joined if self.offered is None else joined & self.offered

    @cached_property
    def num_pairs(self) -> int:
        """Pairs that may be chosen."""
        return int(self.pair_mask.sum())

    @cached_property
    def margins(self) -> FloatArray:
        """Implicit reward of the first response of every pair slot minus that of the second, nats, (P, m) float64."""
        return self.differences_of(self.rewards)

    def differences_of(self, values: FloatArray) -> FloatArray:
        """Value of the first response of every pair slot minus that of the second, (P, m) float64."""
        first, second = pair_slots(self.valid.shape[1])
        wide = values.astype(np.float64)
        return wide[:, first] - wide[:, second]

    def pairs(self, index: IntArray) -> tuple[IntArray, IntArray, IntArray]:
        """Prompt, first and second response of flat pair indices, each of the shape of `index`; first < second."""
        first, second = pair_slots(self.valid.shape[1])
        prompt, slot = np.divmod(index, len(first))
        return prompt, first[slot], second[slot]

    def index_of(self, prompt: IntArray, first: IntArray, second: IntArray) -> IntArray:
        """Flat pair indices of pairs of responses, `first` < `second`; the inverse of `pairs`."""
        num_responses = self.valid.shape[1]
        before = first * (2 * num_responses - first - 1) // 2
        index: IntArray = prompt * len(pair_slots(num_responses)[0]) + before + second - first - 1
        return index

    @cached_property
    def space(self) -> PairSpace:
        """The features as differences within prompts."""
        return PairSpace.of(self.features, self.valid)

    @cached_property
    def prior_information(self) -> FloatArray:
        """Information of the labels already held, without ridge, (dim, dim)."""
        return np.zeros((self.dim, self.dim)) if self.labels is None else self.labels.information(beta=self.beta)

    @cached_property
    def policy_fisher(self) -> FloatArray:
        """Policy Fisher information H = E_x Cov_{y ~ pi} phi(x, y), (dim, dim).

        The given `fisher`, or else the unbiased covariance of each prompt's valid responses, averaged over
        prompts that have two or more: an estimate that trusts the pool to be drawn from the policy itself.
        """
        return to_numpy(self.space.covariance()) if self.fisher is None else self.fisher


def _is_real(array: Array) -> bool:
    return bool(namespace(array).isdtype(array.dtype, "real floating"))


def _require_shape(name: str, array: FloatArray | BoolArray, expected: tuple[int, ...]) -> None:
    if array.shape != expected:
        raise ValueError(f"{name} has shape {array.shape}, the features ask for {expected}: build both from one pool")


def _require_finite(name: str, array: Array) -> None:
    """Look prompt by prompt, so that no mask as large as the features is needed."""
    xp = namespace(array)
    for prompt in range(0, array.shape[0], 512):
        finite = xp.isfinite(array[prompt : min(prompt + 512, array.shape[0]), ...])
        if not bool(xp.all(finite)):
            place = tuple(int(i) for i in np.argwhere(~to_numpy(finite))[0])
            found = float(array[(prompt + place[0], *place[1:])])
            where = f"prompt {prompt + place[0]}, response {place[1]}"
            raise ValueError(f"{name} holds {found} at {where}: recompute it, or store zeros and mark it not valid")


def _require_symmetric(name: str, matrix: FloatArray) -> None:
    if not np.isfinite(matrix).all():
        row, column = np.argwhere(~np.isfinite(matrix))[0]
        raise ValueError(f"{name} holds {matrix[row, column]} at row {row}, column {column}: recompute it")
    asymmetry = float(np.abs(matrix - matrix.T).max(initial=0.0))
    if asymmetry > 1e-6 * float(np.abs(matrix).max(initial=0.0)):
        raise ValueError(f"{name} differs from its transpose by {asymmetry:.3g}: pass a sum of outer products")
