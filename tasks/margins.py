"""Margins: what training made of the pairs that were paid for, and the selection as a table that a person can read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.rendering import plain_text
from cluster.storage import StageKey
from tasks.feature_tables import read_features
from tasks.stages import Publish, RoundContext, run_stage, stage_task
from tasks.tables import (
    PAIRS,
    PREFERENCES,
    PREFERRED,
    RESPONSES,
    Table,
    part_path,
    read,
    required,
    write_arrow,
    write_part,
)

SHARD_SIZE = 64
"""Responses of one file: what a killed scoring of them repeats at most."""

TEXT_LIMIT = 280
"""Characters of a text that the table for people shows."""

MARGINS = pa.schema(
    [
        required("pair_id", pa.string()),
        required("order", pa.int32()),
        required("prompt_id", pa.string()),
        required("chosen", pa.string()),
        required("rejected", pa.string()),
        required("outcome", pa.string()),
        required("staleness", pa.int32()),
        pa.field("score", pa.float64()),
        pa.field("weight", pa.float64()),
        pa.field("inclusion_probability", pa.float64()),
        pa.field("loss_weight", pa.float64()),
        pa.field("margin_before", pa.float64()),
        pa.field("margin_after", pa.float64()),
    ]
)
"""One row a pair of the round, in order of choice. `outcome`: of its label; unless it is "preferred", chosen and
rejected are responses a and b. `margin_*`: beta [(log pi - log pi_ref)(chosen) - (log pi - log pi_ref)(rejected)], the
log-odds, nats, with which the policy as its own implicit reward prefers what was chosen (published: Rafailov et al.
2023, eq. 5), before and after the round's training; null where a response could not be scored. The other numbers are
those of PAIRS."""

OF_PAIRS = (
    "pair_id",
    "order",
    "prompt_id",
    "staleness",
    "score",
    "weight",
    "inclusion_probability",
    "loss_weight",
)
"""Columns that are those of the selection."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Taught:
    """The pairs of a round and all that became of them.

    Attributes:
        pairs: the selection.
        preferences: its labels; those of earlier rounds' pairs that came late are left out here.
        before: log-probabilities of its responses under the policy that the round began with, and the reference.
        after: the same under the policy that the round trained.
    """

    pairs: Table
    preferences: Table
    before: Sequence[Table]
    after: Table

    @property
    def digests(self) -> list[str]:
        """The digests of all."""
        return [table.digest for table in (self.pairs, self.preferences, *self.before, self.after)]


@stage_task("selected")
def gather_selected(pairs: Table, responses: Sequence[Table], here: RoundContext) -> Table:
    """Gather the responses of the selected pairs, each once, in order of choice."""

    def work(folder: Path) -> dict[str, Any]:
        found = selected(read(pairs.path, PAIRS), pa.concat_tables([read(own.path, RESPONSES) for own in responses]))
        for shard, start in enumerate(range(0, found.num_rows, SHARD_SIZE)):
            write_arrow(part_path(folder, shard), found.slice(start, SHARD_SIZE), RESPONSES)
        return {}

    inputs = [pairs.digest, *(table.digest for table in responses)]
    return run_stage(StageKey("selected", {"shard_size": SHARD_SIZE}, inputs), work, here, publish=Publish("selected"))


def selected(pairs: pa.Table, responses: pa.Table) -> pa.Table:
    """The rows of RESPONSES that a row of PAIRS names."""
    ends = zip(*(pairs.column(name).to_pylist() for name in ("response_a", "response_b")), strict=True)
    places = {name: place for place, name in enumerate(responses.column("response_id").to_pylist())}
    return responses.take([places[name] for name in dict.fromkeys(name for pair in ends for name in pair)])


@stage_task("margins")
def compute_margins(taught: Taught, beta: float, here: RoundContext) -> Table:
    """Join every selected pair with its label and its implicit margins, and show the selection in MLflow."""

    def work(folder: Path) -> Mapping[str, Any]:
        rows = margins(taught, beta)
        write_part(part_path(folder, 0), rows, MARGINS)
        return summary(rows)

    key = StageKey("margins", {"beta": beta}, taught.digests)
    table = run_stage(key, work, here, publish=Publish("margins", parquet=True))
    show_selection(taught, here.store.stage(key).path, here)
    return table


def margins(taught: Taught, beta: float) -> list[Row]:
    """Rows of MARGINS."""
    labels = _labels(taught)
    before, after = _log_ratios(taught.before), _log_ratios([taught.after])
    return [
        {name: pair[name] for name in OF_PAIRS}
        | {name: label[name] for name in ("chosen", "rejected", "outcome")}
        | {"margin_before": _margin(label, before, beta), "margin_after": _margin(label, after, beta)}
        for pair in read(taught.pairs.path, PAIRS).to_pylist()
        for label in [labels[pair["pair_id"]]]
    ]


def summary(rows: Sequence[Row]) -> dict[str, float]:
    """Mean staleness of all pairs; mean margins of those with a preference, and the share above 0, where 0 counts half.

    The share is how often the policy agrees with the labels that it was taught by.
    """
    found = {"staleness": float(np.mean([row["staleness"] for row in rows]))} if rows else {}
    for when in ("before", "after"):
        known = [row[f"margin_{when}"] for row in rows if row["outcome"] == PREFERRED]
        values = np.array([value for value in known if value is not None], dtype=np.float64)
        if len(values):
            found[f"margin_{when}"] = float(values.mean())
            found[f"accuracy_{when}"] = float(np.mean((values > 0) + 0.5 * (values == 0)))
    return found


def show_selection(taught: Taught, folder: Path, here: RoundContext) -> None:
    """Log the selection as a table of texts, which MLflow's pages show; long texts are cut."""
    rows, labels = read(folder, MARGINS).to_pylist(), _labels(taught)
    own = [labels[row["pair_id"]] for row in rows]
    columns = {
        "order": [str(row["order"]) for row in rows],
        "prompt": [_cut(plain_text(label["messages"])) for label in own],
        "chosen / response a": [_cut(label["chosen_text"]) for label in own],
        "rejected / response b": [_cut(label["rejected_text"]) for label in own],
        "label": [row["outcome"] for row in rows],
        "score": [_told(row["score"]) for row in rows],
        "weight": [_told(row["weight"]) for row in rows],
        "inclusion probability": [_told(row["inclusion_probability"]) for row in rows],
        "loss weight": [_told(row["loss_weight"]) for row in rows],
        "margin before": [_told(row["margin_before"]) for row in rows],
        "margin after": [_told(row["margin_after"]) for row in rows],
        "staleness": [str(row["staleness"]) for row in rows],
        "pair": [row["pair_id"] for row in rows],
    }
    here.tracker.log_table(here.run, columns, artifact_file="selection.json")


def _labels(taught: Taught) -> dict[str, Row]:
    """Rows of PREFERENCES by pair; the round's own come before late ones, which may be of the same pair."""
    rows = read(taught.preferences.path, PREFERENCES).to_pylist()
    return {row["pair_id"]: row for row in reversed(rows)}


def _log_ratios(features: Sequence[Table]) -> dict[str, float | None]:
    """log pi - log pi_ref of every response, nats."""
    columns = ["response_id", "logp_policy", "logp_reference"]
    rows = [row for table in features for row in read_features(table.path).select(columns).to_pylist()]
    return {row["response_id"]: _difference(row["logp_policy"], row["logp_reference"]) for row in rows}


def _margin(label: Row, ratios: Mapping[str, float | None], beta: float) -> float | None:
    difference = _difference(ratios[label["chosen"]], ratios[label["rejected"]])
    return None if difference is None else beta * difference


def _difference(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _cut(text: str) -> str:
    return text if len(text) <= TEXT_LIMIT else f"{text[:TEXT_LIMIT]} ... [{len(text)} characters]"


def _told(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
