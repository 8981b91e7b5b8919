"""Prompts: keep some out for evaluation, and draw each round's: new ones, or some of the known ones again."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from cluster.errors import InputError
from cluster.storage import StageKey
from tasks.prompt_files import read_prompts
from tasks.regeneration import AnyRegeneration, Fresh
from tasks.stages import Publish, RoundContext, run_stage, stage_task
from tasks.tables import PROMPTS, PastRound, Table, part_path, write_part


class PromptsConfig(BaseModel):
    """Where prompts come from and how many a round uses."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path = Field(description="JSONL or Parquet with a column `prompt`: a string or a list of chat messages")
    num_prompts: PositiveInt = Field(description="prompts that get a pool in each round")
    num_held_out: PositiveInt = Field(description="prompts that only evaluation sees, the same in every round")
    held_out_share: float = Field(0.2, gt=0, lt=1, description="share of all prompts from which those are taken")
    regenerate: Annotated[AnyRegeneration, Field(discriminator="kind")] = Field(
        Fresh(),
        description="fresh: new prompts in each round; lowest_reward (by features.proxy) or random_share: from round 1 "
        "on the share rho of the prompts known gets a new pool, for ceil(rho * selection.budget) labels",
    )


def split(rows: Sequence[dict[str, Any]], held_out_share: float) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows for rounds and rows held out; decided for each row by its id alone, so that new rows move no old one."""
    limit = int(held_out_share * 16**8)
    held_out = [row for row in rows if int(row["prompt_id"][:8], 16) < limit]
    return [row for row in rows if int(row["prompt_id"][:8], 16) >= limit], held_out


def draw(num_rows: int, num_prompts: int, round_number: int, seed: int) -> list[int]:
    """Indices of the prompts of a round; none comes again before all others came.

    Each pass over the prompts has an order of its own. Where a round spans two passes, those it already has wait for a
    later place in the second.
    """
    rng = np.random.default_rng(seed)
    waiting: list[int] = []
    drawn: list[int] = []
    for _ in range(round_number + 1):
        drawn, waiting = waiting[:num_prompts], waiting[num_prompts:]
        if len(drawn) < num_prompts:
            fresh = [int(i) for i in rng.permutation(num_rows)]
            held = set(drawn)
            fresh = [i for i in fresh if i not in held] + [i for i in fresh if i in held]
            lacking = num_prompts - len(drawn)
            drawn, waiting = drawn + fresh[:lacking], fresh[lacking:]
    return drawn


def drawable(config: PromptsConfig) -> list[dict[str, Any]]:
    """Rows of PROMPTS from which rounds are drawn, in the order of their ids.

    Raises:
        InputError: the file is unreadable.
    """
    return split(read_prompts(config.path), config.held_out_share)[0]


def check_prompts(config: PromptsConfig) -> None:
    """See that the file serves the config.

    Raises:
        InputError: the file is unreadable, or has fewer prompts than a round or the evaluation needs.
    """
    drawn, held_out = split(read_prompts(config.path), config.held_out_share)
    for found, needed, name, remedy in (
        (len(drawn), config.num_prompts, "num_prompts", "lower it, or lower prompts.held_out_share"),
        (len(held_out), config.num_held_out, "num_held_out", "lower it, or raise prompts.held_out_share"),
    ):
        if found < needed:
            raise InputError(f"prompts.{name} is {needed}, but {config.path} leaves {found}: {remedy}, or add prompts")


@stage_task("draw prompts")
def draw_prompts(config: PromptsConfig, past: Sequence[PastRound], here: RoundContext) -> Table:
    """Write the prompts that get a pool in this round, given the rounds before it.

    Raises:
        InputError: a prompt that shall get a new pool is in the file no more.
    """
    rows = drawable(config)
    again = config.regenerate(past, np.random.default_rng(here.seed_of("prompts")))
    if again is None:
        chosen = [rows[i] for i in draw(len(rows), config.num_prompts, here.round, here.seed)]
    else:
        chosen = _named(again, rows, config.path)
    return _keep("prompts", chosen, here)


def _named(prompt_ids: Sequence[str], rows: Sequence[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    by_id = {row["prompt_id"]: row for row in rows}
    if lost := [name for name in prompt_ids if name not in by_id]:
        raise InputError(
            f"{len(lost)} of the {len(prompt_ids)} prompts that shall get a new pool are in {path} no more, the first "
            f"of them {lost[0]}: put them back, or begin a lineage of another name"
        )
    return [by_id[name] for name in prompt_ids]


@stage_task("hold out prompts")
def hold_out_prompts(config: PromptsConfig, here: RoundContext) -> Table:
    """Write the prompts on which every round of every lineage is evaluated."""
    _, rows = split(read_prompts(config.path), config.held_out_share)
    return _keep("held_out", rows[: config.num_held_out], here)


def _keep(stage: str, rows: list[dict[str, Any]], here: RoundContext) -> Table:
    def work(folder: Path) -> dict[str, Any]:
        write_part(part_path(folder, 0), rows, PROMPTS)
        return {}

    key = StageKey("prompts", {}, [row["prompt_id"] for row in rows])
    return run_stage(key, work, here, publish=Publish(stage))
