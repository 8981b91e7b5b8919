"""Schedulers of batches: which pairs of every training step are trained on.

They spare compute, not labels: every pair has its label already, and what schedulers rank by depends on it.
Importing this does not import torch.
"""

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

import numpy as np
from pydantic import Field

from tasks.encoders import AnyEncoder, RandomEncoder, StatesShape, require

if TYPE_CHECKING:
    from torch import Generator

    from tasks.objectives.scheduling import Scheduler
    from tasks.objectives.scheduling.learner import Learner
    from tasks.objectives.scheduling.networks import Regressor

Need = Literal["likelihoods", "states"]
"""What a forward pass over all pairs of a step is for; a scheduler that needs nothing spares it."""


@dataclass(frozen=True, kw_only=True)
class All:
    """Keeps every pair: training as it is without a scheduler."""

    kind: Literal["all"] = "all"
    needs: ClassVar[frozenset[Need]] = frozenset()

    def start(self, shape: StatesShape, seed: int) -> "Scheduler":  # noqa: ARG002 - it draws nothing
        """Get ready for a training."""
        from tasks.objectives.scheduling.baselines import Everything

        return Everything()


@dataclass(frozen=True, kw_only=True)
class _Share:
    """A share of every batch.

    Attributes:
        num_kept: pairs of every step that are trained on; all where there are fewer.
    """

    num_kept: int

    def __post_init__(self) -> None:
        require(self.num_kept >= 1, f"num_kept is {self.num_kept}", "1 or more pairs of every step")


@dataclass(frozen=True, kw_only=True)
class RandomPairs(_Share):
    """Keeps a uniform draw of `num_kept` pairs: what every other scheduler has to beat."""

    kind: Literal["random"] = "random"
    needs: ClassVar[frozenset[Need]] = frozenset()

    def start(self, shape: StatesShape, seed: int) -> "Scheduler":  # noqa: ARG002 - it sees no states
        """Get ready for a training."""
        from tasks.objectives.scheduling.baselines import Draw

        return Draw(self.num_kept, seed)


@dataclass(frozen=True, kw_only=True)
class LargestMargin(_Share):
    """Keeps the `num_kept` pairs of the largest implicit margin: the easiest under the policy."""

    kind: Literal["largest_margin"] = "largest_margin"
    needs: ClassVar[frozenset[Need]] = frozenset({"likelihoods"})

    def start(self, shape: StatesShape, seed: int) -> "Scheduler":  # noqa: ARG002 - it draws nothing
        """Get ready for a training."""
        from tasks.objectives.scheduling.baselines import Ranked, largest_margin

        return Ranked(largest_margin, self.num_kept)


@dataclass(frozen=True, kw_only=True)
class SmallestMargin(_Share):
    """Keeps the `num_kept` pairs of the smallest signed margin, wrongly ranked ones first: DPO's largest losses."""

    kind: Literal["smallest_margin"] = "smallest_margin"
    needs: ClassVar[frozenset[Need]] = frozenset({"likelihoods"})

    def start(self, shape: StatesShape, seed: int) -> "Scheduler":  # noqa: ARG002 - it draws nothing
        """Get ready for a training."""
        from tasks.objectives.scheduling.baselines import Ranked, smallest_margin

        return Ranked(smallest_margin, self.num_kept)


@dataclass(frozen=True, kw_only=True)
class LowestChosenLikelihood(_Share):
    """Keeps the `num_kept` pairs whose chosen response has the lowest log-probability, which favours long ones."""

    kind: Literal["lowest_chosen_likelihood"] = "lowest_chosen_likelihood"
    needs: ClassVar[frozenset[Need]] = frozenset({"likelihoods"})

    def start(self, shape: StatesShape, seed: int) -> "Scheduler":  # noqa: ARG002 - it draws nothing
        """Get ready for a training."""
        from tasks.objectives.scheduling.baselines import Ranked, lowest_chosen_likelihood

        return Ranked(lowest_chosen_likelihood, self.num_kept)


@dataclass(frozen=True, kw_only=True)
class Networks:
    """Size of both of SamS's networks; the paper's, for policies of 7B, are 16 deep and 4096 wide.

    Attributes:
        depth: residual layers.
        width: numbers of a layer's state.
        block_size: neighbouring activations of the first network whose mean the second one sees.
        dropout: share of a layer that is dropped while it learns.
    """

    depth: int = 4
    width: int = 128
    block_size: int = 4
    dropout: float = 0.3

    def __post_init__(self) -> None:
        for name, size in (("depth", self.depth), ("width", self.width), ("block_size", self.block_size)):
            require(size >= 1, f"{name} of the networks is {size}", "1 or more")
        blocks = f"block_size {self.block_size} does not divide the width {self.width} of the networks"
        require(self.width % self.block_size == 0, blocks, "whole blocks")
        require(0 <= self.dropout < 1, f"dropout of the networks is {self.dropout}", "a number in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class Learning:
    """How SamS's networks learn; the paper's pool holds 40,000 rounds, which is gigabytes, and each update repeats 32.

    Attributes:
        learning_rate, weight_decay: of the Adam of each network.
        pool_size: past rounds that are kept, 0: none.
        num_replayed: of these, how many each update repeats.
    """

    learning_rate: float = 1e-4
    weight_decay: float = 1e-5
    pool_size: int = 512
    num_replayed: int = 8

    def __post_init__(self) -> None:
        require(0 < self.learning_rate < np.inf, f"learning_rate is {self.learning_rate}", "a number above 0")
        require(0 <= self.weight_decay < np.inf, f"weight_decay is {self.weight_decay}", "a number of at least 0")
        require(self.pool_size >= 0, f"pool_size is {self.pool_size}", "0 or more rounds")
        require(self.num_replayed >= 0, f"num_replayed is {self.num_replayed}", "0 or more rounds")


@dataclass(frozen=True, kw_only=True)
class SamS(_Share):
    """Keeps the `num_kept` pairs that a bandit expects to lower the next batch's loss most.

    "Adaptive Batch-Wise Sample Scheduling for Direct Preference Optimization", Algorithm 1 and eq. 8; defaults are the
    published ones but for sizes and encoder. The paper keeps half of every batch.

    Attributes:
        reward_mix: gamma, share of the fall in loss against the pairs' own reward.
        margin_mix: delta, share of a large margin against an unlikely chosen response in the latter.
        exploration: lambda, weight of the network that estimates how far off the first one is.
        encoder: what makes one vector of a pair's states.
        networks: their size.
        learning: how they learn.
    """

    kind: Literal["sams"] = "sams"
    needs: ClassVar[frozenset[Need]] = frozenset({"likelihoods", "states"})
    reward_mix: float = 0.5
    margin_mix: float = 0.5
    exploration: float = 0.01
    encoder: Annotated[AnyEncoder, Field(discriminator="kind")] = field(default=RandomEncoder())
    networks: Networks = field(default=Networks())
    learning: Learning = field(default=Learning())

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, share in (("reward_mix", self.reward_mix), ("margin_mix", self.margin_mix)):
            require(0 <= share <= 1, f"{name} is {share}", "a share in [0, 1]")
        require(0 <= self.exploration < np.inf, f"exploration is {self.exploration}", "a number of at least 0")

    def start(self, shape: StatesShape, seed: int) -> "Scheduler":
        """Get ready for a training.

        Raises:
            InputError: the encoder can't serve.
        """
        import torch

        from tasks.objectives.scheduling.rewards import RewardMix
        from tasks.objectives.scheduling.sams import Bandit

        encoder_seed, learner_seed = (int(word) for word in np.random.SeedSequence(seed).generate_state(2))
        encode = self.encoder.start(shape, encoder_seed)
        learner = self._learner(encode.dim, torch.Generator(shape.device).manual_seed(learner_seed))
        mix = RewardMix(gamma=self.reward_mix, delta=self.margin_mix)
        return Bandit(self.num_kept, encode=encode, learner=learner, mix=mix)

    def _learner(self, dim: int, generator: "Generator") -> "Learner":
        from tasks.objectives.scheduling.learner import Learner
        from tasks.objectives.scheduling.replay import ReplayPool

        return Learner(
            exploit=self._regressor(dim, generator, start=0.5),
            explore=self._regressor(self.networks.depth * self.networks.width // self.networks.block_size, generator),
            pool=ReplayPool(self.learning.pool_size, self.learning.num_replayed, generator),
            block_size=self.networks.block_size,
            exploration=self.exploration,
        )

    def _regressor(self, num_inputs: int, generator: "Generator", *, start: float = 0.0) -> "Regressor":
        from tasks.objectives.scheduling.networks import NetworkShape, Regressor, ResidualNetwork

        networks, learning = self.networks, self.learning
        shape = NetworkShape(depth=networks.depth, width=networks.width, dropout=networks.dropout)
        network = ResidualNetwork(num_inputs, shape, generator, start=start)
        return Regressor(network, learning_rate=learning.learning_rate, weight_decay=learning.weight_decay)


AnyScheduler = All | RandomPairs | LargestMargin | SmallestMargin | LowestChosenLikelihood | SamS
"""The one place to add a scheduler."""

SCHEDULERS = {scheduler.kind: scheduler for scheduler in get_args(AnyScheduler)}


def identity_of(scheduler: AnyScheduler) -> dict[str, Any]:
    """What decides its choices, beside seed and pairs; of a text encoder its bytes, wherever they lie.

    Raises:
        InputError: no text encoder is there.
    """
    facts = asdict(scheduler)
    return facts | {"encoder": scheduler.encoder.identity} if isinstance(scheduler, SamS) else facts


__all__ = [
    "SCHEDULERS",
    "All",
    "AnyScheduler",
    "LargestMargin",
    "Learning",
    "LowestChosenLikelihood",
    "Networks",
    "RandomPairs",
    "SamS",
    "SmallestMargin",
    "StatesShape",
    "identity_of",
]
