"""The nouns of the design: the pool of candidate pairs, the selection made from it and its certificate."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tasks.design.kernels import BoolArray, FloatArray, IntArray, pair_slots, within_prompt_covariance


@dataclass(frozen=True, eq=False, kw_only=True)
class Pool:
    """Candidate pairs of one round, stored per response: P prompts, K response slots, features of `dim` numbers.

    A flat pair index counts all P K (K - 1) / 2 slots, valid or not: slots of one prompt lie together, in the
    order of `numpy.triu_indices(K, 1)`.

    Attributes:
        features: phi(x, y), (P, K, dim), zeros in padding.
        valid: (P, K); False marks padding, empty and duplicate responses, which form no pair.
        rewards: implicit rewards beta (log pi - log pi_ref) in nats, (P, K); zeros in round 0, where pi = pi_ref.
        beta: inverse temperature of the preference loss.
        prior_information: information of labels already held, without ridge, (dim, dim).
        fisher: policy Fisher information H, (dim, dim); None: estimated from the pool, see `policy_fisher`.
        scores: scores of a proxy for the labeller, (P, K).

    Raises:
        ValueError: a shape disagrees with `features`.
        ValueError: an entry is NaN or infinite; the message names its place.
        ValueError: a matrix is not symmetric, or beta is not positive and finite.
    """

    features: FloatArray
    valid: BoolArray
    rewards: FloatArray
    beta: float
    prior_information: FloatArray | None = None
    fisher: FloatArray | None = None
    scores: FloatArray | None = None

    def __post_init__(self) -> None:
        if self.features.ndim != 3 or not np.issubdtype(self.features.dtype, np.floating):
            found = f"{self.features.dtype} of shape {self.features.shape}"
            raise ValueError(f"features is {found}: pass floats of shape (prompts, responses, dim)")
        if self.valid.dtype != np.bool_:
            raise ValueError(f"valid holds {self.valid.dtype}: pass booleans, True for a response that can be compared")
        if not (np.isfinite(self.beta) and self.beta > 0):
            raise ValueError(f"beta is {self.beta}: pass the positive, finite beta of the preference loss")
        self._check_responses()
        self._check_matrices()

    def _check_responses(self) -> None:
        responses = self.features.shape[:2]
        _require_shape("valid", self.valid, responses)
        _require_finite("features", self.features)
        for name, array in (("rewards", self.rewards), ("scores", self.scores)):
            if array is not None:
                _require_shape(name, array, responses)
                _require_finite(name, array)

    def _check_matrices(self) -> None:
        dim = self.features.shape[2]
        for name, matrix in (("prior_information", self.prior_information), ("fisher", self.fisher)):
            if matrix is not None:
                _require_shape(name, matrix, (dim, dim))
                _require_symmetric(name, matrix)

    @property
    def num_prompts(self) -> int:
        """Prompts, with or without valid pairs."""
        return len(self.features)

    @property
    def dim(self) -> int:
        """Length of a feature vector."""
        return int(self.features.shape[2])

    @cached_property
    def pair_mask(self) -> BoolArray:
        """Which pair slots join two valid responses, (P, K (K - 1) / 2)."""
        first, second = pair_slots(self.valid.shape[1])
        return self.valid[:, first] & self.valid[:, second]

    @cached_property
    def num_pairs(self) -> int:
        """Pairs that may be labelled."""
        return int(self.pair_mask.sum())

    def pairs(self, index: IntArray) -> tuple[IntArray, IntArray, IntArray]:
        """Prompt, first and second response of flat pair indices, each of the shape of `index`; first < second."""
        first, second = pair_slots(self.valid.shape[1])
        prompt, slot = np.divmod(index, len(first))
        return prompt, first[slot], second[slot]

    @cached_property
    def policy_fisher(self) -> FloatArray:
        """Policy Fisher information H = E_x Cov_{y ~ pi} phi(x, y), (dim, dim).

        The given `fisher`, or else the unbiased covariance of each prompt's valid responses, averaged over
        prompts that have two or more: an estimate that trusts the pool to be drawn from the policy itself.
        """
        return within_prompt_covariance(self.features, self.valid) if self.fisher is None else self.fisher


@dataclass(frozen=True, eq=False, kw_only=True)
class Certificate:
    """What the bounded design proves about a selection, in float64.

    Attributes:
        objective: tr(H M^-1) of the selection, M = ridge I + prior + information of the chosen pairs.
        relaxed_objective: tr(H M(w)^-1) of the relaxed design the selection was rounded from.
        lower_bound: no selection of the same budget and cap has a smaller objective.
        efficiency: lower_bound / objective, in [0, 1].
        effective_rank: (tr M)^2 / tr(M^2) of prior and chosen pairs without the ridge; 0 without information.
        support_size: pairs with weight above 1e-6 in the relaxed design.
        iterations: Frank-Wolfe steps taken.
        seconds: wall time of design and rounding.
        converged: the Frank-Wolfe gap reached the tolerance.
    """

    objective: float
    relaxed_objective: float
    lower_bound: float
    efficiency: float
    effective_rank: float
    support_size: int
    iterations: int
    seconds: float
    converged: bool


@dataclass(frozen=True, eq=False, kw_only=True)
class Selection:
    """Pairs to label, in order of choice; every array has one entry per pair.

    Attributes:
        prompt: index of the prompt.
        first: index of one response to it; below `second`.
        second: index of the other.
        weights: weight in the relaxed design, in [0, 1]; None where the selector has no design.
        inclusion_probabilities: chance of the pair to be chosen; None where it is undefined or unknown.
        scores: the selector's own score of the pair.
        certificate: what is proven about the selection.
    """

    prompt: IntArray
    first: IntArray
    second: IntArray
    weights: FloatArray | None = None
    inclusion_probabilities: FloatArray | None = None
    scores: FloatArray | None = None
    certificate: Certificate | None = None

    def __len__(self) -> int:
        """Pairs chosen."""
        return len(self.prompt)


def _require_shape(name: str, array: FloatArray | BoolArray, expected: tuple[int, ...]) -> None:
    if array.shape != expected:
        raise ValueError(f"{name} has shape {array.shape}, the features ask for {expected}: build both from one pool")


def _require_finite(name: str, array: FloatArray) -> None:
    finite = np.isfinite(array)
    if not finite.all():
        place = tuple(np.argwhere(~finite)[0])
        where = f"prompt {place[0]}, response {place[1]}"
        raise ValueError(f"{name} holds {array[place]} at {where}: recompute it, or store zeros and mark it not valid")


def _require_symmetric(name: str, matrix: FloatArray) -> None:
    if not np.isfinite(matrix).all():
        row, column = np.argwhere(~np.isfinite(matrix))[0]
        raise ValueError(f"{name} holds {matrix[row, column]} at row {row}, column {column}: recompute it")
    asymmetry = float(np.abs(matrix - matrix.T).max(initial=0.0))
    if asymmetry > 1e-6 * float(np.abs(matrix).max(initial=0.0)):
        raise ValueError(f"{name} differs from its transpose by {asymmetry:.3g}: pass a sum of outer products")
