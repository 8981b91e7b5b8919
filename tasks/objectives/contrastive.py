"""Objectives of the margin between chosen and rejected response.

z is the implicit margin beta (log pi/pi_ref of chosen - of rejected), sigma the logistic function.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from tasks.objectives.pairs import Need, Pairs, in_range, required

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Dpo:
    """-log sigma(z) (Rafailov et al. 2023, eq. 7)."""

    needs: ClassVar[frozenset[Need]] = frozenset()
    best_alone: ClassVar[bool] = False

    kind: Literal["dpo"] = "dpo"

    def __call__(self, pairs: Pairs, beta: float) -> "torch.Tensor":
        """Losses of the pairs, (n,)."""
        from torch.nn.functional import logsigmoid

        return -logsigmoid(pairs.margins(beta))


@dataclass(frozen=True, kw_only=True)
class SoftDpo:
    """-p log sigma(z) - (1 - p) log sigma(-z), with p the labeller's own probability of its label.

    The cross-entropy of a Bradley-Terry model with soft labels; with p = 1 it is DPO.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"probabilities"})
    best_alone: ClassVar[bool] = False

    kind: Literal["soft_dpo"] = "soft_dpo"

    def __call__(self, pairs: Pairs, beta: float) -> "torch.Tensor":
        """Losses of the pairs, (n,)."""
        return _cross_entropy(pairs.margins(beta), required(pairs.probabilities, "probabilities"))


@dataclass(frozen=True, kw_only=True)
class FlippedLabels:
    """Attributes: flip_rate: eps, in [0, 0.5); "estimated": what labels of the same pair tell of it."""

    flip_rate: float | Literal["estimated"] = 0.1

    def __post_init__(self) -> None:
        if self.flip_rate != "estimated":
            in_range("flip_rate", self.flip_rate, 0, 0.5)

    @property
    def known_rate(self) -> float:
        """The rate, which is a number by now.

        Raises:
            ValueError: it has not been estimated.
        """
        if self.flip_rate == "estimated":
            raise ValueError(
                "flip_rate has not been estimated: put the number of `flip_rate` of the labels in its place"
            )
        return self.flip_rate


@dataclass(frozen=True, kw_only=True)
class Cdpo(FlippedLabels):
    """-(1 - eps) log sigma(z) - eps log sigma(-z) (conservative DPO, Mitchell 2023): soft labels all alike.

    Its gradient vanishes at sigma(z) = 1 - eps. TRL ignores `label_smoothing` for this loss.
    """

    needs: ClassVar[frozenset[Need]] = frozenset()
    best_alone: ClassVar[bool] = False

    kind: Literal["cdpo"] = "cdpo"

    def __call__(self, pairs: Pairs, beta: float) -> "torch.Tensor":
        """Losses of the pairs, (n,)."""
        return _cross_entropy(pairs.margins(beta), 1 - self.known_rate)


@dataclass(frozen=True, kw_only=True)
class Robust(FlippedLabels):
    """(-(1 - eps) log sigma(z) + eps log sigma(-z)) / (1 - 2 eps) (Chowdhury et al. 2024, eq. 12).

    Under labels flipped with probability eps its mean is the DPO loss of the true labels.
    """

    needs: ClassVar[frozenset[Need]] = frozenset()
    best_alone: ClassVar[bool] = False

    kind: Literal["robust"] = "robust"

    def __call__(self, pairs: Pairs, beta: float) -> "torch.Tensor":
        """Losses of the pairs, (n,)."""
        from torch.nn.functional import logsigmoid

        margins, rate = pairs.margins(beta), self.known_rate
        return (-(1 - rate) * logsigmoid(margins) + rate * logsigmoid(-margins)) / (1 - 2 * rate)


@dataclass(frozen=True, kw_only=True)
class Ipo:
    """(h - 1 / (2 beta))^2 with h the difference of log-ratios per token (Azar et al. 2023, eq. 17).

    Log-ratios are averaged over a response's tokens, as TRL does on the word of IPO's authors; the paper says nothing
    of it.
    """

    needs: ClassVar[frozenset[Need]] = frozenset()
    best_alone: ClassVar[bool] = False

    kind: Literal["ipo"] = "ipo"

    def __call__(self, pairs: Pairs, beta: float) -> "torch.Tensor":
        """Losses of the pairs, (n,)."""
        chosen = pairs.chosen_ratios / pairs.num_chosen_tokens.clamp(min=1)
        rejected = pairs.rejected_ratios / pairs.num_rejected_tokens.clamp(min=1)
        return (chosen - rejected - 1 / (2 * beta)) ** 2


@dataclass(frozen=True, kw_only=True)
class Hinge:
    """max(0, 1 - z) (SLiC, Zhao et al. 2023, with log-ratios as in Liu et al. 2024)."""

    needs: ClassVar[frozenset[Need]] = frozenset()
    best_alone: ClassVar[bool] = False

    kind: Literal["hinge"] = "hinge"

    def __call__(self, pairs: Pairs, beta: float) -> "torch.Tensor":
        """Losses of the pairs, (n,)."""
        return (1 - pairs.margins(beta)).clamp(min=0)


def _cross_entropy(margins: "torch.Tensor", probabilities: "torch.Tensor | float") -> "torch.Tensor":
    from torch.nn.functional import logsigmoid

    return -probabilities * logsigmoid(margins) - (1 - probabilities) * logsigmoid(-margins)
