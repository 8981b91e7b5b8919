"""What a selector returns: the pairs in order of choice, and what is proven about them."""

from dataclasses import dataclass

from tasks.design.arrays import FloatArray, IntArray
from tasks.design.pool import Pool


@dataclass(frozen=True, eq=False, kw_only=True)
class Certificate:
    """What a relaxed design proves about a selection, in float64.

    Attributes:
        objective: the criterion, which is minimised, of the selection with its ridge and the labels already held.
        relaxed_objective: the criterion of the relaxed design that the selection was rounded from.
        lower_bound: no selection within the same limits has a smaller objective.
        efficiency: how close the selection comes to that bound, in [0, 1]: lower_bound / objective for a trace,
            exp((lower_bound - objective) / dim) for -log det.
        gap: duality gap of the relaxed design, relative: per objective for a trace, per dimension for -log det.
        effective_rank: (tr M)^2 / tr(M^2) of prior and chosen pairs without the ridge; 0 without information.
        support_size: pairs with weight above 1e-6 in the relaxed design.
        passes: times that all pairs of the pool were scored for the relaxed design.
        seconds: wall time of design, rounding and exchange.
        converged: the gap reached the tolerance before passes or seconds ran out.
    """

    objective: float
    relaxed_objective: float
    lower_bound: float
    efficiency: float
    gap: float
    effective_rank: float
    support_size: int
    passes: int
    seconds: float
    converged: bool


@dataclass(frozen=True, eq=False, kw_only=True)
class SampledCertificate:
    """What is known of a selection that owes something to chance, and to beliefs about labels.

    Attributes:
        objective: tr(H M^-1) expected of the labels, with the ridge and the labels already held.
        effective_sample_size: (sum u)^2 / sum u^2 of u = 1 / inclusion probability; labels, if these weigh the loss.
        uniform_share: part of the pairs that was drawn uniformly.
        misfit: variance of a prompt's own slopes, in units of a label's noise, as believed in the end.
        proxy_correlation: of the proxy with the labeller, as believed in the end; None without a proxy.
        length_correlation: of the proxy with the responses' lengths within prompts; None where either is unknown.
        seconds: wall time.
    """

    objective: float
    effective_sample_size: float
    uniform_share: float
    misfit: float
    proxy_correlation: float | None
    length_correlation: float | None
    seconds: float


@dataclass(frozen=True, eq=False, kw_only=True)
class Selection:
    """Pairs to label, in order of choice; every array has one entry per pair.

    Attributes:
        prompt: index of the prompt.
        first: index of one response to it; below `second`.
        second: index of the other.
        weights: weight in the relaxed design; None where the selector has no design.
        inclusion_probabilities: chance of the pair to be chosen; None where it is undefined or unknown.
        loss_weights: weight of the pair's label in the loss of training; None: 1 each.
        scores: the selector's own score of the pair.
        certificate: what is proven about the selection.
        notes: what a reader of the result has to know, such as a fallback or a limit that was hit.
    """

    prompt: IntArray
    first: IntArray
    second: IntArray
    weights: FloatArray | None = None
    inclusion_probabilities: FloatArray | None = None
    loss_weights: FloatArray | None = None
    scores: FloatArray | None = None
    certificate: Certificate | SampledCertificate | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Pairs chosen."""
        return len(self.prompt)


def selection_of(
    pool: Pool,
    chosen: IntArray,
    *,
    scores: FloatArray | None = None,
    probabilities: FloatArray | None = None,
    notes: tuple[str, ...] = (),
) -> Selection:
    """The selection of flat pair indices, in their order.

    Args:
        pool: where the pairs come from.
        chosen: flat pair indices, (n,).
        scores: score of every pair slot, (P, m).
        probabilities: inclusion probability of every pair slot, (P, m).
        notes: what a reader has to know.
    """
    prompt, first, second = pool.pairs(chosen)
    return Selection(
        prompt=prompt,
        first=first,
        second=second,
        scores=None if scores is None else scores.ravel()[chosen],
        inclusion_probabilities=None if probabilities is None else probabilities.ravel()[chosen],
        notes=notes,
    )
