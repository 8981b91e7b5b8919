"""The selection of a real round, as MLflow holds it and its pages show it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest

from cluster.tracking import Tracker
from flows.history import recorded
from tasks.feature_tables import read_features
from tasks.margins import MARGINS
from tasks.tables import PREFERENCES, Table, check, read

if TYPE_CHECKING:
    from mlflow import MlflowClient

BETA = 0.1


@pytest.fixture(scope="module")
def tables(undisturbed: Any) -> dict[str, Table]:
    return recorded(undisturbed.store, "undisturbed", 0)


@pytest.fixture(scope="module")
def client(undisturbed: Any) -> "MlflowClient":
    return Tracker(tracking_uri=f"sqlite:///{undisturbed.home / 'mlflow.db'}", experiment="pairwright").client


@pytest.fixture(scope="module")
def run(client: "MlflowClient") -> Any:
    """The round's run in MLflow."""
    experiment = client.get_experiment_by_name("pairwright")
    own = "tags.`pairwright.kind` = 'round' and tags.`pairwright.round` = '000'"
    (found,) = client.search_runs([experiment.experiment_id], own)
    return found


@pytest.fixture(scope="module")
def rows(client: "MlflowClient", run: Any) -> list[dict[str, Any]]:
    """The margins that MLflow got."""
    path = Path(client.download_artifacts(run.info.run_id, "margins"))
    return [
        row for file in sorted(path.iterdir()) for row in check(pq.read_table(file), MARGINS, str(file)).to_pylist()
    ]


def test_every_selected_pair_has_its_margins_and_those_after_are_of_the_trained_policy(
    rows: list[dict[str, Any]], tables: dict[str, Table]
) -> None:
    features = {row["response_id"]: row for row in read_features(tables["selected_features"].path).to_pylist()}
    assert {name for row in rows for name in (row["chosen"], row["rejected"])} == set(features)
    assert [row["order"] for row in rows] == list(range(16))
    assert {row["margin_before"] for row in rows} == {0.0}, "the first round begins at the reference"
    for row in rows:
        chosen, rejected = (features[row[side]] for side in ("chosen", "rejected"))
        gaps = [own["logp_policy"] - own["logp_reference"] for own in (chosen, rejected)]
        assert row["margin_after"] == pytest.approx(BETA * (gaps[0] - gaps[1]))
        assert row["margin_after"] != 0.0


def test_training_turned_margins_towards_the_labels_and_the_run_says_how_far(
    rows: list[dict[str, Any]], run: Any
) -> None:
    metrics, after = run.data.metrics, [row["margin_after"] for row in rows]
    assert metrics["margins/margin_after"] == pytest.approx(sum(after) / 16)
    assert metrics["margins/accuracy_after"] == sum(margin > 0 for margin in after) / 16
    assert metrics["margins/accuracy_after"] > metrics["margins/accuracy_before"] == 0.5
    assert metrics["margins/staleness"] == 0.0
    assert (metrics["labels/spent"], metrics["labels/cost"]) == (16.0, 16.0)


def test_the_table_that_people_see_holds_the_texts_that_were_labelled(
    client: "MlflowClient", run: Any, rows: list[dict[str, Any]], tables: dict[str, Table]
) -> None:
    path = Path(client.download_artifacts(run.info.run_id, "selection.json"))
    table = json.loads(path.read_text(encoding="utf-8"))
    seen = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    labels = {row["pair_id"]: row for row in read(tables["preferences"].path, PREFERENCES).to_pylist()}
    assert [row["pair"] for row in seen] == [row["pair_id"] for row in rows]
    for row in seen:
        own = labels[row["pair"]]
        assert (row["chosen / response a"], row["rejected / response b"]) == (own["chosen_text"], own["rejected_text"])
        assert row["label"] == "preferred"
    assert [row["margin after"] for row in seen] == [f"{row['margin_after']:.4g}" for row in rows]
    shown = json.loads(run.data.tags["mlflow.loggedArtifacts"])
    assert {"path": "selection.json", "type": "table"} in shown
