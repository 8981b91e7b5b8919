"""Lessons: labels as training takes them, with the reference's log-probabilities, rewards and weights beside each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from cluster.errors import InputError
from cluster.models import Policy
from tasks.feature_tables import read_features
from tasks.objectives import AnyObjective
from tasks.objectives.contrastive import FlippedLabels
from tasks.objectives.pairs import flip_rate, label_flip_rate
from tasks.objectives.weights import AnyUtility, product
from tasks.tables import LESSONS, PREFERENCES, PREFERRED, PROXY_SCORE, RESPONSES, TIE, Table, read

Values = NDArray[np.float64]
Row = dict[str, Any]
Data = Literal["round", "lineage", "newest"]


class WeightsConfig(BaseModel):
    """What a pair weighs in the loss: the product of the factors that are asked for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    selection: Literal["given", "required", "none"] = Field(
        "given", description="weights of the selector: 1 where it gave none, refused where it gave none, or ignored"
    )
    utility: Annotated[AnyUtility, Field(discriminator="kind")] | None = Field(
        None, description="weight by the gap of the proxy's scores (OPTune)"
    )
    confidence: bool = Field(False, description="weight by the labeller's confidence |2 p - 1|")
    clip: float | None = Field(None, ge=1, description="largest weight, as a multiple of the mean weight")
    normalise: Literal["none", "batch"] = Field(
        "none",
        description="batch: weights of every step are divided by their mean, so that their scale is no step size",
    )


@dataclass(frozen=True)
class Explored:
    """The reference's own responses to a round's prompts, and their scores under it."""

    responses: Table
    features: Table


@dataclass(frozen=True)
class Lessons:
    """What one training starts from and learns from.

    Attributes:
        base: the policy without adapter.
        start: the policy that training starts from.
        reference: the policy that it is pulled to.
        preferences: labels, oldest round first.
        features: scores of the responses in them, and of others.
        reference_features: those of them whose `logp_reference` is under this reference.
        explored: the reference's own responses to this round's prompts, where exploration looks at them.
    """

    base: Policy
    start: Policy
    reference: Policy
    preferences: Sequence[Table]
    features: Sequence[Table] = ()
    reference_features: Sequence[Table] = ()
    explored: Explored | None = None

    @property
    def digests(self) -> list[str]:
        """What decides them."""
        policies = [policy.digest for policy in (self.base, self.start, self.reference)]
        explored = [] if self.explored is None else [self.explored.responses, self.explored.features]
        tables = (self.preferences, self.features, self.reference_features, explored)
        return policies + [digest for group in tables for digest in [str(len(group)), *(one.digest for one in group)]]


@dataclass(frozen=True, kw_only=True)
class Syllabus:
    """Which pairs teach, and how much each weighs.

    Attributes:
        objective: the loss, which may want rewards, probabilities, or each prompt's best pair alone.
        weights: the factors.
        min_reward_gap: pairs whose rewards differ by no more are left out; None: none is.
        newest: whether a prompt's older labels give way to those of the last round that has any.
    """

    objective: AnyObjective
    weights: WeightsConfig
    min_reward_gap: float | None = None
    newest: bool = False


@dataclass(frozen=True, eq=False)
class Taught:
    """Rows of LESSONS, the objective with its flip rate known, and measures of how they came about."""

    rows: pa.Table
    objective: AnyObjective
    measures: dict[str, float]


def taught(lessons: Lessons, syllabus: Syllabus) -> Taught:
    """Put together what a training learns from.

    Raises:
        InputError: a weight that is asked for is missing, negative or not finite, or all are 0.
        InputError: probabilities or rewards that are asked for are missing; a flip rate can't be estimated or is 0.5.
        InputError: `min_reward_gap` leaves no pair.
    """
    tables = [read(table.path, PREFERENCES).to_pylist() for table in lessons.preferences]
    asked = [row for table in tables for row in table]
    labelled = _taught_by(_newest(tables) if syllabus.newest else asked, syllabus)
    if not labelled:
        return Taught(LESSONS.empty_table(), syllabus.objective, {"num_labels": 0, "num_pairs": 0})
    rows = _with_scores(labelled, lessons)
    _require_parts(rows, syllabus)
    objective, rate = _resolved(syllabus.objective, rows, asked)
    kept = _far_apart(rows, syllabus.min_reward_gap)
    if objective.best_alone:
        kept = _best(kept)
    if not kept:
        raise InputError(
            f"none of {len(rows)} labelled pairs is left to learn from: lower training.min_reward_gap "
            f"{syllabus.min_reward_gap}, or label more pairs"
        )
    table, measures = _weighed(kept, syllabus.weights)
    return Taught(table, objective, measures | rate | {"num_labels": len(labelled), "num_pairs": len(kept)})


def _taught_by(rows: Sequence[Row], syllabus: Syllabus) -> list[Row]:
    """Preferences; and ties, as even odds, where the objective takes probabilities."""
    usable = {PREFERRED, TIE} if "probabilities" in syllabus.objective.needs else {PREFERRED}
    return [row | ({"probability": 0.5} if row["outcome"] == TIE else {}) for row in rows if row["outcome"] in usable]


def _newest(tables: Sequence[Sequence[Row]]) -> list[Row]:
    """The rows of every prompt that the last round asked for which asked about it; late answers are of their round."""
    asked: dict[str, int] = {}
    for number, table in enumerate(tables):
        for row in table:
            asked.setdefault(row["pair_id"], number)
    rows = [row for table in tables for row in table]
    last: dict[str, int] = {}
    for row in rows:
        last[row["prompt_id"]] = max(last.get(row["prompt_id"], 0), asked[row["pair_id"]])
    return [row for row in rows if asked[row["pair_id"]] == last[row["prompt_id"]]]


def _with_scores(rows: Sequence[Row], lessons: Lessons) -> list[Row]:
    rewards = _column(lessons.features, PROXY_SCORE)
    references = _column(lessons.reference_features, "logp_reference")
    explored = {} if lessons.explored is None else _explored(lessons.explored)
    return [
        row
        | explored.get(row["prompt_id"], {})
        | {f"{side}_reward": rewards.get(row[side]) for side in ("chosen", "rejected")}
        | {f"{side}_reference_logp": references.get(row[side]) for side in ("chosen", "rejected")}
        for row in rows
    ]


def _explored(explored: Explored) -> dict[str, Row]:
    """Columns of LESSONS by prompt, of the first response that says anything and could be scored."""
    references, found = _column([explored.features], "logp_reference"), dict[str, Row]()
    for row in read(explored.responses.path, RESPONSES).to_pylist():
        logp = references.get(row["response_id"])
        if row["fault"] is None and logp is not None:
            told = {"explored_token_ids": row["token_ids"], "explored_reference_logp": logp}
            found.setdefault(row["prompt_id"], told)
    return found


def _column(features: Sequence[Table], name: str) -> dict[str, float]:
    """A number of each response that has it; of the last table, where several know a response."""
    found: dict[str, float] = {}
    for table in features:
        columns = read_features(table.path).select(["response_id", name])
        pairs = zip(*(columns.column(place).to_pylist() for place in range(2)), strict=True)
        found |= {response: value for response, value in pairs if value is not None}
    return found


def _require_parts(rows: Sequence[Row], syllabus: Syllabus) -> None:
    """See that every pair has what objective and weights ask of it."""
    needs, weights = syllabus.objective.needs, syllabus.weights
    asked = {
        "chosen_reward": "rewards" in needs or weights.utility is not None or syllabus.min_reward_gap is not None,
        "probability": "probabilities" in needs or weights.confidence,
        "weight": weights.selection == "required",
    }
    remedies = {
        "chosen_reward": "has no reward: set features.proxy, whose scores are rewards",
        "probability": "has no probability of its label: take a labeller that gives one, or another objective",
        "weight": "has no weight: choose a selector that gives weights, or set training.weights.selection: given",
    }
    for column, wanted in asked.items():
        columns = [column, "rejected_reward"] if column == "chosen_reward" else [column]
        lacking = [row["pair_id"] for row in rows if any(row.get(name) is None for name in columns)]
        if wanted and lacking:
            raise InputError(
                f"training.objective {syllabus.objective.kind} with these training.weights can't use "
                f"{len(lacking)} of {len(rows)} labelled pairs: pair {lacking[0]!r} {remedies[column]}"
            )


def _resolved(
    objective: AnyObjective, rows: Sequence[Row], asked: Sequence[Row]
) -> tuple[AnyObjective, dict[str, float]]:
    """The objective with a number for its flip rate, and that number as a measure where answers had to tell it.

    All answers to the same pair tell how often one is flipped, whatever came of them; the labels that several answers
    made are flipped more rarely.
    """
    if not isinstance(objective, FlippedLabels) or objective.flip_rate != "estimated":
        return objective, {}
    votes: dict[tuple[str, str], list[int]] = {}
    for row in asked:
        sides = [(row["chosen"], row["votes_chosen"]), (row["rejected"], row["votes_rejected"])]
        (first, of_first), (second, of_second) = sorted(sides)
        counted = votes.setdefault((first, second), [0, 0])
        counted[0] += of_first
        counted[1] += of_second
    try:
        answers = flip_rate([(one, other) for one, other in votes.values()])
        margins = [abs(row["votes_chosen"] - row["votes_rejected"]) for row in rows]
        rate = label_flip_rate(answers, margins)
        return replace(objective, flip_rate=rate), {"flip_rate": rate, "answer_flip_rate": answers}
    except ValueError as error:
        raise InputError(f"training.objective {objective.kind}: {error}") from error


def _far_apart(rows: Sequence[Row], least: float | None) -> list[Row]:
    if least is None:
        return list(rows)
    return [row for row in rows if abs(row["chosen_reward"] - row["rejected_reward"]) > least]


def _best(rows: Sequence[Row]) -> list[Row]:
    """Of each prompt the pair whose chosen response has the highest reward, of these the one of the largest gap."""
    best: dict[str, Row] = {}
    for row in rows:
        held = best.setdefault(row["prompt_id"], row)
        if (row["chosen_reward"], -row["rejected_reward"]) > (held["chosen_reward"], -held["rejected_reward"]):
            best[row["prompt_id"]] = row
    return list(best.values())


def _weighed(rows: Sequence[Row], config: WeightsConfig) -> tuple[pa.Table, dict[str, float]]:
    factors = _factors(rows, config)
    try:
        weighting = product(factors or {"one": np.ones(len(rows))}, config.clip)
    except ValueError as error:
        raise InputError(f"training.weights: {error}. Pairs are numbered as in the preferences") from error
    columns = {name: [row.get(name) for row in rows] for name in LESSONS.names if not name.startswith("weight")}
    columns |= {
        name: factors[name.removeprefix("weight_")] if name.removeprefix("weight_") in factors else [None] * len(rows)
        for name in LESSONS.names
        if name.startswith("weight_")
    }
    table = pa.table(columns | {"weight": weighting.weights}, schema=LESSONS)
    return table, {
        "effective_sample_size": weighting.effective_sample_size,
        "num_clipped": weighting.num_clipped,
        "mean_weight": float(weighting.weights.mean()),
    }


def _factors(rows: Sequence[Row], config: WeightsConfig) -> Mapping[str, Values]:
    """Factors by name, (n,) each."""
    factors: dict[str, Values] = {}
    if config.selection != "none" and any(row["weight"] is not None for row in rows):
        factors["selection"] = _array([1.0 if row["weight"] is None else row["weight"] for row in rows])
    if config.utility is not None:
        factors["utility"] = config.utility(_array([row["chosen_reward"] - row["rejected_reward"] for row in rows]))
    if config.confidence:
        factors["confidence"] = np.abs(2 * _array([row["probability"] for row in rows]) - 1)
    return factors


def _array(values: Sequence[float]) -> Values:
    return np.array(values, dtype=np.float64)
