"""Pairs as an objective sees them: what policy and reference make of both responses, and what is known of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

if TYPE_CHECKING:
    import torch

Need = Literal["probabilities", "rewards"]
"""A part of the pairs that not every training has."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """A batch of labelled pairs; log-probabilities are sums over a response's tokens, nats. All tensors are (n,).

    Attributes:
        chosen, rejected: log pi(y|x) of the two responses under the policy; gradients flow through them.
        reference_chosen, reference_rejected: the same under the reference, constants.
        num_chosen_tokens, num_rejected_tokens: tokens of the responses.
        probabilities: the labeller's P(chosen over rejected).
        chosen_rewards, rejected_rewards: what a reward makes of the responses.
    """

    chosen: "torch.Tensor"
    rejected: "torch.Tensor"
    reference_chosen: "torch.Tensor"
    reference_rejected: "torch.Tensor"
    num_chosen_tokens: "torch.Tensor"
    num_rejected_tokens: "torch.Tensor"
    probabilities: "torch.Tensor | None" = None
    chosen_rewards: "torch.Tensor | None" = None
    rejected_rewards: "torch.Tensor | None" = None

    @property
    def chosen_ratios(self) -> "torch.Tensor":
        """log pi - log pi_ref of the chosen responses."""
        return self.chosen - self.reference_chosen

    @property
    def rejected_ratios(self) -> "torch.Tensor":
        """log pi - log pi_ref of the rejected responses."""
        return self.rejected - self.reference_rejected

    def margins(self, beta: float) -> "torch.Tensor":
        """Implicit margins z = beta (log-ratio of chosen - of rejected), (n,)."""
        return beta * (self.chosen_ratios - self.rejected_ratios)


class Objective(Protocol):
    """A loss of pairs.

    Attributes:
        needs: parts of the pairs that must be there.
        best_alone: whether each prompt teaches with one pair alone, that of its best chosen response.
    """

    needs: ClassVar[frozenset[Need]]
    best_alone: ClassVar[bool]

    @property
    def kind(self) -> str:
        """Its name in a config."""
        ...

    def __call__(self, pairs: Pairs, beta: float) -> "torch.Tensor":
        """Losses of the pairs, (n,); the loss of a batch is their weighted mean."""
        ...


def required(values: "torch.Tensor | None", what: str) -> "torch.Tensor":
    """The values themselves.

    Raises:
        ValueError: they are not there.
    """
    if values is None:
        raise ValueError(f"the objective needs {what} of the pairs, and they have none")
    return values


def in_range(name: str, value: float, low: float, high: float) -> None:
    """Refuse a number outside [low, high).

    Raises:
        ValueError: it is.
    """
    if not low <= value < high:
        raise ValueError(f"{name} is {value}: expected a number in [{low:g}, {high:g})")


def label_flip_rate(answer_flip_rate: float, margins: Sequence[int]) -> float:
    """The mean rate at which labels are flipped that several answers made, from the rate of one answer.

    Where either response is as likely to be the better one and answers are flipped independently with probability eps,
    d answers more for one of them leave it the worse one with probability 1 / (1 + ((1 - eps) / eps)^d) (Bayes' rule).

    Args:
        answer_flip_rate: eps, in [0, 0.5].
        margins: of each label, the answers for one response less those for the other; 0 or more.
    """
    if answer_flip_rate == 0:
        return 0.0
    odds = (1 - answer_flip_rate) / answer_flip_rate
    return sum(1 / (1 + odds**margin) for margin in margins) / len(margins)


def flip_rate(votes: Sequence[tuple[int, int]]) -> float:
    """The rate eps at which labels are flipped, from pairs that were labelled more than once.

    Two labels of one pair, each flipped independently with probability eps, agree with probability
    (1 - eps)^2 + eps^2; this is solved for eps with the observed share of agreements over all couples of labels of a
    pair. Derived here; it counts honest disagreement about near-ties as flips too, and nothing in the votes can tell
    the two apart: under Bradley-Terry with margins m, 1 - 2 eps comes out sqrt(mean of tanh(m/2)^2) times as large. One
    flip in five is estimated as 0.36 where all margins are one temperature, as 0.27 where they are two.

    Args:
        votes: for each pair, the labels that prefer one response and those that prefer the other.

    Returns:
        A rate in [0, 0.5]; 0.5 where labels agree no more often than coins.

    Raises:
        ValueError: no pair has two labels.
    """
    couples = sum((one + other) * (one + other - 1) // 2 for one, other in votes)
    if not couples:
        raise ValueError(
            "flip_rate is to be estimated, and no pair was labelled twice: give a number, or label some pairs again"
        )
    agreeing = sum((one * (one - 1) + other * (other - 1)) // 2 for one, other in votes)
    return float((1 - max(0.0, 2 * agreeing / couples - 1) ** 0.5) / 2)
