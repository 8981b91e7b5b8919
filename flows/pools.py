"""Pools: the responses that a round chooses from, written by the policy, taken from a file, or some of both."""

from flows.config import RoundConfig
from flows.history import History
from tasks.generation import generate_responses
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
