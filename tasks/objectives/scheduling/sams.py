"""SamS: a bandit that learns from the loss of the next batch which pairs are worth a step."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tasks.objectives.scheduling.encoders import Encoder
from tasks.objectives.scheduling.learner import Learner
from tasks.objectives.scheduling.rewards import RewardMix, batch_reward
from tasks.objectives.scheduling.seen import Seen, measures, require_finite, top_places


@dataclass(frozen=True, eq=False)
class Round:
    """A step whose reward is still open: the loss after it is that of the next batch.

    Attributes:
        contexts: of the pairs that were kept, (k, dim).
        rewards: their own, r_S, (k,).
        loss: mean over the step's whole batch, before the step.
    """

    contexts: Tensor
    rewards: Tensor
    loss: float


class Bandit:
    """Algorithm 1 of "Adaptive Batch-Wise Sample Scheduling for Direct Preference Optimization"; a `Scheduler`.

    Every step: the loss just seen completes the reward of the previous round; the networks learn from the pairs which
    that round kept, and from replayed rounds; all pairs are scored, and the `num_kept` best are kept. Nothing of this
    draws from a global generator or leaves a gradient in the policy.
    """

    def __init__(self, num_kept: int, *, encode: Encoder, learner: Learner, mix: RewardMix) -> None:
        self.metrics: dict[str, float] = {}
        self._num_kept, self._encode, self._learner, self._mix = num_kept, encode, learner, mix
        self._open: Round | None = None

    @torch.no_grad()
    def __call__(self, seen: Seen) -> Tensor:
        """See `Scheduler`."""
        contexts, loss = self._contexts(seen), float(seen.losses.mean())
        learnt = self._learn(self._open, loss) if self._open else {}
        scores = self._learner.scores(contexts)
        kept = top_places(scores, self._num_kept)
        self._open = Round(contexts[kept], self._mix.of_pairs(seen).to(contexts.device)[kept], loss)
        self.metrics = learnt | _spread(scores, kept)
        kept = kept.to(seen.margins.device)
        self.metrics |= measures(seen, kept)
        return kept

    def state_dict(self) -> dict[str, Any]:
        """Networks, optimisers, pool, generator and the open round."""
        opened = self._open and {
            "contexts": self._open.contexts,
            "rewards": self._open.rewards,
            "loss": self._open.loss,
        }
        return {"learner": self._learner.state_dict(), "open": opened}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._learner.load_state_dict(state["learner"])
        device, opened = self._learner.pool.generator.device, state["open"]
        self._open = opened and Round(opened["contexts"].to(device), opened["rewards"].to(device), opened["loss"])

    def _contexts(self, seen: Seen) -> Tensor:
        if seen.states is None:
            raise ValueError("the scheduler saw no states: it needs hidden states of every layer, (n, layers, hidden)")
        require_finite(torch.cat([seen.margins, seen.chosen_logps, seen.losses]), "margins, likelihoods and losses")
        contexts = self._encode(seen.states)
        require_finite(contexts, "numbers of the contexts")
        return contexts

    def _learn(self, previous: Round, loss: float) -> dict[str, float]:
        """Complete the previous round with the loss just seen, and learn from it."""
        fallen = batch_reward(previous.loss, loss)
        rewards = self._mix.of_round(fallen, previous.rewards)
        exploit_error, explore_error = self._learner.learn((previous.contexts, rewards))
        return {
            "reward_batch": fallen,
            "reward_pairs": float(previous.rewards.mean()),
            "reward": float(rewards.mean()),
            "exploit_error": exploit_error,
            "explore_error": explore_error,
        }


def _spread(scores: Tensor, kept: Tensor) -> dict[str, float]:
    return {"score_batch": float(scores.mean()), "score_kept": float(scores[kept].mean())}
