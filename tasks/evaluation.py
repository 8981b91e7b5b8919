"""Evaluation: held-out prompts answered by the new policy, the base and the round's own, compared by a reward."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from cluster.storage import StageKey, digest_of
from tasks.feature_tables import read_features
from tasks.labellers.rewards import AnyReward, Sentiment
from tasks.stages import Publish, RoundContext, run_stage, stage_task
from tasks.tables import RESPONSES, SCORES, Table, part_path, read, write_part

Values = NDArray[np.float64]


class EvaluationConfig(BaseModel):
    """What a good response is, and how many of them each held-out prompt gets."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reward: Annotated[AnyReward, Field(discriminator="kind")] = Sentiment()
    num_responses: Annotated[PositiveInt, Field(ge=2)] = Field(2, description="responses of each policy to a prompt")


@stage_task("evaluate policy")
def evaluate_policy(
    answers: Mapping[str, Table], features: Table, config: EvaluationConfig, here: RoundContext
) -> Table:
    """Compare the answers of "policy" with those of "base" and "previous", prompt by prompt.

    Args:
        answers: responses of the three policies to the same prompts.
        features: log-probabilities of the new policy's answers under it and under its reference; their mean
            difference is the Monte Carlo estimate of KL(pi || pi_ref), nats per response.
        config: the reward.
        here: the round.
    """

    def work(folder: Path) -> dict[str, Any]:
        rewards = {name: rewards_by_prompt(table, config.reward) for name, table in answers.items()}
        rows = scores(rewards, _by_prompt(features, "kl"), _by_prompt(features, "num_tokens"))
        write_part(part_path(folder, 0), rows, SCORES)
        return summary(rows)

    digests = [answers[name].digest for name in ("policy", "base", "previous")]
    key = StageKey("scores", {"reward": digest_of(repr(config.reward))}, [*digests, features.digest])
    return run_stage(key, work, here, publish=Publish("evaluation", parquet=True))


def rewards_by_prompt(answers: Table, reward: AnyReward) -> dict[str, list[float]]:
    """Rewards of all responses to each prompt, in order of their index."""
    rows = read(answers.path, RESPONSES).select(["prompt_id", "index", "text"]).to_pylist()
    rows.sort(key=lambda row: row["index"])
    found: dict[str, list[float]] = {}
    for row, value in zip(rows, reward([row["text"] for row in rows]), strict=True):
        found.setdefault(row["prompt_id"], []).append(value)
    return found


def win_rate(rewards: Values, against: Values) -> float:
    """Share of all pairings of one policy's responses with another's that it wins; ties count half."""
    difference = rewards[:, None] - against[None, :]
    return float(np.mean((difference > 0) + 0.5 * (difference == 0)))


def scores(
    rewards: Mapping[str, Mapping[str, list[float]]], kl: Mapping[str, float], num_tokens: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Rows of SCORES."""
    rows = []
    for prompt_id in sorted(rewards["policy"]):
        own, base, previous = (np.array(rewards[name][prompt_id]) for name in ("policy", "base", "previous"))
        row = {"prompt_id": prompt_id, "reward": own.mean(), "reward_base": base.mean()}
        row |= {"reward_previous": previous.mean(), "win_base": win_rate(own, base)}
        row |= {"win_previous": win_rate(own, previous), "kl": kl[prompt_id], "num_tokens": num_tokens[prompt_id]}
        rows.append(row)
    return rows


def summary(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Means over prompts with their standard errors (prompts are the independent units)."""
    found = {}
    for name in SCORES.names[1:]:
        values = np.array([row[name] for row in rows], dtype=np.float64)
        found[name] = float(values.mean())
        found[f"{name}_se"] = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
    return found


def _by_prompt(features: Table, quantity: str) -> dict[str, float]:
    """Mean over the responses to each prompt."""
    table = read_features(features.path)
    values = {
        "kl": table.column("logp_policy").to_numpy() - table.column("logp_reference").to_numpy(),
        "num_tokens": table.column("num_tokens").to_numpy(),
    }[quantity]
    found: dict[str, list[float]] = {}
    for prompt_id, value in zip(table.column("prompt_id").to_pylist(), values, strict=True):
        found.setdefault(prompt_id, []).append(float(value))
    return {prompt_id: float(np.mean(own)) for prompt_id, own in found.items()}
