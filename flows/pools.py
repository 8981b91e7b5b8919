"""Pools: the responses that a round chooses from, written by the policy, taken from a file, or some of both.

And those that the reference writes, for exploration.
"""

from flows.config import RoundConfig
from flows.history import History
from tasks.features import compute_features, likelihoods_alone
from tasks.generation import generate_responses
from tasks.lessons import Explored
from tasks.logged import LoggedShare, OnPolicy, add_logged
from tasks.stages import RoundContext
from tasks.tables import Table


def write_pool(prompts: Table, past: History, config: RoundConfig, here: RoundContext) -> Table:
    """The round's pool, `generation.num_responses` responses to every prompt from where `pool.source` says.

    What the policy writes of a pool that gets logged responses, too, is a stage of its own, "drawn".
    """
    source, generation = config.pool.source, config.generation
    if isinstance(source, OnPolicy):
        return generate_responses(prompts, past.policy, generation, here)
    num_drawn, drawn = generation.num_responses - source.num_logged(generation.num_responses), None
    if num_drawn:
        asked = generation.model_copy(update={"num_responses": num_drawn})
        drawn = generate_responses(prompts, past.policy, asked, here, name="drawn")
    share = LoggedShare(source, generation.num_responses, generation.shard_size)
    return add_logged(prompts, drawn, share, past.base, here)


def write_explored(prompts: Table, past: History, config: RoundConfig, here: RoundContext) -> Explored | None:
    """A response of the reference's own to every prompt, with its likelihood; None where training doesn't explore."""
    if config.training.exploration is None:
        return None
    contrast, one = past.contrast(config.training), config.generation.model_copy(update={"num_responses": 1})
    responses = generate_responses(prompts, contrast.reference, one, here, name="explored")
    alone = likelihoods_alone(config.features)
    return Explored(responses, compute_features(responses, contrast, alone, here, name="explored_features"))
