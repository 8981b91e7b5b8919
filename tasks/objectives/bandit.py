"""A bandit in which preference objectives train softmax policies, as in Tajwar et al. (arXiv:2404.14367).

Every state has the same actions with the same rewards, so a policy is one vector of logits; an action is a response of
one token, a state a prompt. Many policies train side by side, one a row, and learn nothing of each other. Expected
rewards, divergences and likelihoods are sums over all actions: nothing that is measured is sampled.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from tasks.objectives.pairs import Objective, Pairs

Loss = Callable[[Tensor], Tensor]
"""Losses (R,) of policies by their logits (R, A)."""


@dataclass(frozen=True, eq=False)
class Bandit:
    """What R policies over A actions learn from.

    Attributes:
        reference: probabilities of the reference policy, (A,), all above 0.
        rewards: (R, A).
        uniforms: numbers in [0, 1) that decide which actions are drawn, (R, E, S, N): N actions in each of the S states
            of each of E batches. Rows with the same numbers are paired: equal policies draw equal actions.
        on_policy: whether batches are drawn from the policy as it then is, or from the reference.
    """

    reference: Tensor
    rewards: Tensor
    uniforms: Tensor
    on_policy: bool


@dataclass(frozen=True, kw_only=True)
class Course:
    """How policies train; E batches of equal size, T gradient steps on each.

    On-policy a batch is drawn when its T steps in a row begin. From the reference the E batches are one data set, drawn
    before training and gone through T times. So both see as many states and rewards in as many steps.

    Attributes:
        inner_steps: T.
        learning_rate: of Adam.
        beta: of the objective.
        threshold: pairs whose reward gap is not above it teach nothing.
    """

    inner_steps: int
    learning_rate: float
    beta: float
    threshold: float


@dataclass(frozen=True, eq=False)
class Records:
    """What policies are, exactly: one entry a policy, or with C records (C, R). Nats where nothing is said.

    Attributes:
        reward: expected reward.
        entropy: H(pi).
        best_mass: probability of the actions with the highest reward.
        forward_kl: KL(reference || pi).
        reverse_kl: KL(pi || reference).
        chosen_logp: expected log pi of the chosen action of a pair that the reference draws, above the threshold.
        rejected_logp: the same of the rejected action.
    """

    reward: Tensor
    entropy: Tensor
    best_mass: Tensor
    forward_kl: Tensor
    reverse_kl: Tensor
    chosen_logp: Tensor
    rejected_logp: Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """Pairs of actions drawn for R policies.

    Attributes:
        actions: the chosen, then the rejected, (R, 2 n).
        weights: shares of the pairs in a policy's loss, (R, n): equal for those that teach, and of sum 1 or 0.
    """

    actions: Tensor
    weights: Tensor

    @property
    def chosen(self) -> Tensor:
        """Chosen actions, (R, n)."""
        return self.actions.chunk(2, dim=1)[0]

    @property
    def rejected(self) -> Tensor:
        """Rejected actions, (R, n)."""
        return self.actions.chunk(2, dim=1)[1]


def squashed_cauchy(num_actions: int, loc: float, scale: float) -> Tensor:
    """Probabilities of tanh X, X ~ Cauchy(loc, scale), in `num_actions` equal bins of [-1, 1], (A,) float64.

    The authors' reference for discrete actions, which they bin from 10,000 draws; here the bins are exact. With
    loc -0.7 its median is tanh(-0.7) = -0.60, at action 19 of 100; action 70 is in its tail.
    """
    edges = torch.linspace(-1, 1, num_actions + 1, dtype=torch.float64).atanh()
    return (((edges - loc) / scale).atan() / math.pi).diff()


def peaked(num_actions: int, peak: float, width: float) -> Tensor:
    """exp(-((a - peak) / width)^2) of actions a = 0, 1, ..., (A,) float64: the authors' rewards in one dimension."""
    actions = torch.arange(num_actions, dtype=torch.float64)
    return (-(((actions - peak) / width) ** 2)).exp()


def fitted(reference: Tensor, num_steps: int, learning_rate: float) -> Tensor:
    """Logits (A,) that Adam brings from 0 towards the reference, down KL(pi || reference) as the authors do."""
    logits = torch.zeros_like(reference, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=learning_rate)
    for _ in range(num_steps):
        optimizer.zero_grad()
        log_probs = logits.log_softmax(dim=-1)
        (log_probs.exp() * (log_probs - reference.log())).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return logits.detach()


def train(bandit: Bandit, start: Tensor, objective: Objective, course: Course) -> tuple[Tensor, Records]:
    """Train R policies from the logits `start` (A,); gives their logits (R, A) and records (1 + E, R).

    There is a record before the first step and after every T steps.
    """
    logits = start.expand(len(bandit.rewards), -1).clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=course.learning_rate)
    records = [measured(logits, bandit, course.threshold)]
    for number, loss in enumerate(_losses(bandit, logits, objective, course), start=1):
        optimizer.zero_grad()
        loss(logits).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if number % course.inner_steps == 0:
            records.append(measured(logits, bandit, course.threshold))
    names = [field.name for field in fields(Records)]
    stacked = {name: torch.stack([vars(record)[name] for record in records]) for name in names}
    return logits.detach(), Records(**stacked)


def _losses(bandit: Bandit, logits: Tensor, objective: Objective, course: Course) -> Iterator[Loss]:
    """The loss of every step; on-policy their batches follow the logits, which change under way."""

    def drawn(policy: Tensor, number: int) -> Loss:
        return loss_of(bandit, draw(bandit, policy, number, objective, course.threshold), objective, course.beta)

    numbers = range(bandit.uniforms.shape[1])
    if bandit.on_policy:
        for number in numbers:
            yield from [drawn(logits, number)] * course.inner_steps
    else:
        reference = bandit.reference.log().expand_as(logits)
        data = [drawn(reference, number) for number in numbers]
        for _ in range(course.inner_steps):
            yield from data


@torch.no_grad()
def draw(bandit: Bandit, logits: Tensor, number: int, objective: Objective, threshold: float) -> Batch:
    """Batch `number` of policies (R, A): actions by the inverse of the distribution function, and their pairs."""
    cumulated = logits.softmax(dim=-1).cumsum(dim=-1)
    uniforms = bandit.uniforms[:, number]
    actions = torch.searchsorted(cumulated, uniforms.flatten(1) * cumulated[:, -1:], right=True)
    rewards = bandit.rewards.gather(1, actions).reshape(uniforms.shape)
    actions = actions.reshape(uniforms.shape)
    return best_pairs(actions, rewards) if objective.best_alone else all_pairs(actions, rewards, threshold)


def all_pairs(actions: Tensor, rewards: Tensor, threshold: float) -> Batch:
    """All N (N - 1) / 2 pairs of each state's actions (R, S, N) whose reward gap is above the threshold."""
    first, second = torch.triu_indices(actions.shape[-1], actions.shape[-1], offset=1)
    gaps = (rewards[..., first] - rewards[..., second]).flatten(1)
    one, other = actions[..., first].flatten(1), actions[..., second].flatten(1)
    teaching = (gaps.abs() > threshold).to(rewards.dtype)
    weights = teaching / teaching.sum(dim=1, keepdim=True).clamp(min=1)
    return Batch(torch.cat([torch.where(gaps > 0, one, other), torch.where(gaps > 0, other, one)], dim=1), weights)


def best_pairs(actions: Tensor, rewards: Tensor) -> Batch:
    """The best of each state's actions (R, S, N) against its worst, whatever the gap; the first of equals."""
    ends = (rewards.argmax(dim=-1, keepdim=True), rewards.argmin(dim=-1, keepdim=True))
    found = torch.cat([actions.gather(-1, end).squeeze(-1) for end in ends], dim=1)
    return Batch(found, torch.full_like(rewards[..., 0], 1 / rewards.shape[1]))


def loss_of(bandit: Bandit, batch: Batch, objective: Objective, beta: float) -> Loss:
    """A function of logits (R, A) that gives each policy's loss on its own batch, (R,).

    The objective is of pairs, as language models train on.
    """
    reference = bandit.reference.log()
    tokens = torch.ones(batch.weights.numel(), dtype=torch.long)
    empty = reference.new_zeros(0)
    known = Pairs(
        chosen=empty,
        rejected=empty,
        reference_chosen=reference[batch.chosen].flatten(),
        reference_rejected=reference[batch.rejected].flatten(),
        num_chosen_tokens=tokens,
        num_rejected_tokens=tokens,
        chosen_rewards=bandit.rewards.gather(1, batch.chosen).flatten(),
        rejected_rewards=bandit.rewards.gather(1, batch.rejected).flatten(),
    )

    def loss(logits: Tensor) -> Tensor:
        chosen, rejected = logits.log_softmax(dim=-1).gather(1, batch.actions).chunk(2, dim=1)
        losses = objective(replace(known, chosen=chosen.flatten(), rejected=rejected.flatten()), beta)
        return (batch.weights * losses.reshape(batch.weights.shape)).sum(dim=1)

    return loss


@torch.no_grad()
def measured(logits: Tensor, bandit: Bandit, threshold: float) -> Records:
    """What the policies (R, A) are."""
    log_probs, reference = logits.log_softmax(dim=-1), bandit.reference
    probs, rewards = log_probs.exp(), bandit.rewards
    above = (rewards[:, :, None] - rewards[:, None, :] > threshold).to(probs.dtype)
    chosen, rejected = reference * (above @ reference), reference * (above.transpose(1, 2) @ reference)
    share = chosen.sum(dim=1).clamp(min=torch.finfo(probs.dtype).tiny)
    return Records(
        reward=(probs * rewards).sum(dim=1),
        entropy=-(probs * log_probs).sum(dim=1),
        best_mass=(probs * (rewards == rewards.amax(dim=1, keepdim=True))).sum(dim=1),
        forward_kl=(reference * (reference.log() - log_probs)).sum(dim=1),
        reverse_kl=(probs * (log_probs - reference.log())).sum(dim=1),
        chosen_logp=(chosen * log_probs).sum(dim=1) / share,
        rejected_logp=(rejected * log_probs).sum(dim=1) / share,
    )
