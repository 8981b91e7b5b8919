"""Evaluation: held-out prompts answered by the new policy, the base and the round's own, compared by a reward.

Beside the win rate stand guards, which tell what else the policy has become: see `tasks.guards`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from cluster.storage import StageKey, digest_of
from tasks.feature_tables import read_features
from tasks.guard_files import CapabilityFile, Given, TextFile
from tasks.guard_tables import GuardTables, guard_measures
from tasks.guards import distinct_bigrams, is_reward_hacked, length_controlled_win_rate, mean, told
from tasks.labellers.rewards import AnyReward, Sentiment
from tasks.proxies import RewardModel
from tasks.stages import Publish, RoundContext, run_stage, stage_task
from tasks.tables import PROXY_SCORE, RESPONSES, SCORES, Table, part_path, read, write_part

Values = NDArray[np.float64]
NO_GUARDS = GuardTables()
_ANSWER_COLUMNS = ["prompt_id", "index", "text", "token_ids"]


class EvaluationConfig(BaseModel):
    """What a good response is, how many of them each held-out prompt gets, and what guards stand beside it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reward: Annotated[AnyReward, Field(discriminator="kind")] = Sentiment()
    num_responses: Annotated[PositiveInt, Field(ge=2)] = Field(2, description="responses of each policy to a prompt")
    judge: Annotated[AnyReward | RewardModel, Field(discriminator="kind")] | None = Field(
        None, description="a second opinion that training never sees; flags reward hacking"
    )
    text: TextFile | None = Field(None, description="held-out text, whose perplexity is told")
    capability: CapabilityFile | None = Field(None, description="multiple choice, whose accuracy is told")

    @model_validator(mode="after")
    def _judge_is_another(self) -> "EvaluationConfig":
        if self.judge == self.reward:
            raise ValueError(
                f"judge is the reward itself ({asdict(self.reward)}), which tells nothing new: name another, or none"
            )
        return self

    def read_given(self) -> list[Given]:
        """What the files of guards hold; nothing where none is named.

        Raises:
            InputError: a file is not there, or doesn't fit.
        """
        return [one for file in (self.text, self.capability) if file is not None for one in file.read()]


@stage_task("evaluate policy")
def evaluate_policy(
    answers: Mapping[str, Table],
    features: Table,
    config: EvaluationConfig,
    here: RoundContext,
    *,
    guards: GuardTables = NO_GUARDS,
) -> Table:
    """Compare the answers of "policy" with those of "base" and "previous", prompt by prompt.

    Args:
        answers: responses of the three policies to the same prompts.
        features: log-probabilities of the new policy's answers under it and under its reference; their mean
            difference is the Monte Carlo estimate of KL(pi || pi_ref), nats per response. Scores are the judge's.
        config: the reward, and the judge if there is one.
        here: the round.
        guards: the tables of the guards that the config asks for.
    """

    def work(folder: Path) -> dict[str, Any]:
        rewards = {name: rewards_by_prompt(table, config.reward) for name, table in answers.items()}
        tokens = {name: tokens_by_prompt(answers[name]) for name in ("policy", "base")}
        means = {name: _by_prompt(features, name) for name in ("kl", "num_tokens")}
        means["num_tokens_base"] = _means({prompt: list(map(len, own)) for prompt, own in tokens["base"].items()})
        if guards.base_answers is not None:
            means |= {"judge": _by_prompt(features, "judge"), "judge_base": _by_prompt(guards.base_answers, "judge")}
        rows = scores(rewards, means)
        write_part(part_path(folder, 0), rows, SCORES)
        found = summary(rows) | gains(rows) | style(rewards, tokens)
        return found | guard_measures(guards)

    digests = [answers[name].digest for name in ("policy", "base", "previous")]
    facts = {"reward": digest_of(repr(config.reward))}
    key = StageKey("scores", facts, [*digests, features.digest, *guards.digests], version=2)
    return run_stage(key, work, here, publish=Publish("evaluation", parquet=True))


def rewards_by_prompt(answers: Table, reward: AnyReward) -> dict[str, list[float]]:
    """Rewards of all responses to each prompt, in order of their index."""
    rows = _answers(answers)
    found: dict[str, list[float]] = {}
    for row, value in zip(rows, reward([row["text"] for row in rows]), strict=True):
        found.setdefault(row["prompt_id"], []).append(value)
    return found


def tokens_by_prompt(answers: Table) -> dict[str, list[list[int]]]:
    """Token ids of all responses to each prompt, in order of their index."""
    found: dict[str, list[list[int]]] = {}
    for row in _answers(answers):
        found.setdefault(row["prompt_id"], []).append(row["token_ids"])
    return found


def win_shares(rewards: Values, against: Values) -> Values:
    """Of all pairings of one policy's responses (m,) with another's (n,): 1 where it wins, 0.5 in a tie, (m, n)."""
    difference = rewards[:, None] - against[None, :]
    shares: Values = (difference > 0) + 0.5 * (difference == 0)
    return shares


def win_rate(rewards: Values, against: Values) -> float:
    """Share of all pairings of one policy's responses with another's that it wins; ties count half."""
    return float(np.mean(win_shares(rewards, against)))


def scores(
    rewards: Mapping[str, Mapping[str, list[float]]], means: Mapping[str, Mapping[str, float]]
) -> list[dict[str, Any]]:
    """Rows of SCORES; `means` are further columns, by name and by prompt."""
    rows = []
    for prompt_id in sorted(rewards["policy"]):
        own, base, previous = (np.array(rewards[name][prompt_id]) for name in ("policy", "base", "previous"))
        row = {"prompt_id": prompt_id, "reward": own.mean(), "reward_base": base.mean()}
        row |= {"reward_previous": previous.mean(), "win_base": win_rate(own, base)}
        row |= {"win_previous": win_rate(own, previous), "judge": None, "judge_base": None}
        rows.append(row | {name: values[prompt_id] for name, values in means.items()})
    return rows


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means over prompts with their standard errors (prompts are the independent units), of columns without nulls."""
    found: dict[str, float] = {}
    for name in SCORES.names[1:]:
        values = [row[name] for row in rows]
        if None not in values:
            found |= told(name, mean(np.array(values, dtype=np.float64)))
    return found


def gains(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What the policy gained over the base, prompt by prompt, by the reward and by the judge if there is one."""
    reward = mean(np.array([row["reward"] - row["reward_base"] for row in rows]))
    found = told("reward_gain", reward)
    if all(row["judge"] is not None for row in rows):
        judge = mean(np.array([row["judge"] - row["judge_base"] for row in rows]))
        found |= told("judge_gain", judge) | {"reward_hacking": float(is_reward_hacked(reward, judge))}
    return found


def style(
    rewards: Mapping[str, Mapping[str, list[float]]], tokens: Mapping[str, Mapping[str, list[list[int]]]]
) -> dict[str, float]:
    """The win rate against the base at equal length, and the diversity of both policies' responses."""
    wins, gaps = [], []
    for prompt_id in sorted(rewards["policy"]):
        wins.append(win_shares(*(np.array(rewards[name][prompt_id]) for name in ("policy", "base"))).ravel())
        own, base = (np.array([len(one) for one in tokens[name][prompt_id]]) for name in ("policy", "base"))
        gaps.append((own[:, None] - base[None, :]).ravel())
    controlled = length_controlled_win_rate(np.array(wins), np.array(gaps, dtype=np.float64))
    found = told("win_base_length_controlled", controlled)
    for ending, name in {"": "policy", "_base": "base"}.items():
        responses = [response for own in tokens[name].values() for response in own]
        found[f"distinct_2{ending}"] = distinct_bigrams(responses)
    return found


def _answers(answers: Table) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read(answers.path, RESPONSES).select(_ANSWER_COLUMNS).to_pylist()
    return sorted(rows, key=lambda row: int(row["index"]))


def _means(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {prompt_id: float(np.mean(own)) for prompt_id, own in values.items()}


def _by_prompt(features: Table, quantity: str) -> dict[str, float]:
    """Mean over the responses to each prompt."""
    table = read_features(features.path)
    values = {
        "kl": table.column("logp_policy").to_numpy() - table.column("logp_reference").to_numpy(),
        "num_tokens": table.column("num_tokens").to_numpy(),
        "judge": table.column(PROXY_SCORE).to_numpy(),
    }[quantity]
    found: dict[str, list[float]] = {}
    for prompt_id, value in zip(table.column("prompt_id").to_pylist(), values, strict=True):
        found.setdefault(prompt_id, []).append(float(value))
    return _means(found)
