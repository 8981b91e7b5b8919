"""Tracking: every round is one MLflow run inside its lineage, and a retried round continues that run.

Runs, datasets and model versions are found again by their tags, so nothing here is written twice. One process
logs at a time.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar
from urllib.parse import urlsplit

from cluster.errors import InputError
from cluster.preflight import local_path

if TYPE_CHECKING:
    from mlflow import MlflowClient

KIND_TAG = "pairwright.kind"
LINEAGE_TAG = "pairwright.lineage"
ROUND_TAG = "pairwright.round"
STUDY_TAG = "pairwright.study"
DIGEST_TAG = "pairwright.digest"
ARTIFACT_TAG = "pairwright.artifact"
PARENT_TAG = "mlflow.parentRunId"
TABLES_TAG = "mlflow.loggedArtifacts"
CONTEXT_TAG = "mlflow.data.context"

PARAM_LIMIT = 6000
TAG_LIMIT = 8000
DIGEST_LIMIT = 36
PARAMS_PER_REQUEST = 100
METRICS_PER_REQUEST = 1000

Status = Literal["FINISHED", "FAILED", "SCHEDULED"]
Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Tracker:
    """One MLflow experiment, on a server or in a SQLite file."""

    tracking_uri: str
    experiment: str
    artifact_root: str | None = None
    """Folder of the artifacts of an embedded SQLite store; None where a server decides."""

    @property
    def client(self) -> "MlflowClient":
        """The MLflow client of this store, shared within the process."""
        return _client(self.tracking_uri)

    def open_lineage(self, lineage: str, tags: Mapping[str, str]) -> str:
        """Find or create the parent run of a lineage, and return its run id."""
        return self.open_run({KIND_TAG: "lineage", LINEAGE_TAG: lineage}, tags, name=lineage)

    def open_round(self, lineage_run: str, lineage: str, *, round_number: int, tags: Mapping[str, str]) -> str:
        """Find or create the run of a round inside its lineage's run, set it running, and return its run id."""
        padded = f"{round_number:03d}"
        identity = {KIND_TAG: "round", LINEAGE_TAG: lineage, ROUND_TAG: padded, PARENT_TAG: lineage_run}
        return self.open_run(identity, tags, name=f"round-{padded}")

    def tags_of_round(self, lineage: str, round_number: int) -> dict[str, str]:
        """The tags of a round's run; none where it has no run."""
        identity = {KIND_TAG: "round", LINEAGE_TAG: lineage, ROUND_TAG: f"{round_number:03d}"}
        found = self.client.search_runs([self._experiment_id()], tag_filter(identity), max_results=1)
        return dict(found[0].data.tags) if found else {}

    def open_study(self, study: str, digest: str) -> str:
        """Find or create the run of a study with a config of this digest, set it running, and return its run id."""
        identity = {KIND_TAG: "study", STUDY_TAG: study, DIGEST_TAG: digest}
        return self.open_run(identity, {}, name=f"{study}-{digest[:8]}")

    def close(self, run: str, status: Status) -> None:
        """End a run; opening it again sets it running."""
        self.client.set_terminated(run, status)

    def set_tags(self, run: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run; one that is there already takes the new value."""
        for key, value in tags.items():
            self.client.set_tag(run, key, value)

    def add_to_tag(self, run: str, key: str, value: str) -> None:
        """Add a value to the comma-separated ones of a tag, unless it is among them; the newest that find room stay."""
        held = self.client.get_run(run).data.tags.get(key, "")
        values = held.split(",") if held else []
        if value in values:
            return
        values.append(value)
        while len(text := ",".join(values)) > TAG_LIMIT:
            del values[0]
        self.client.set_tag(run, key, text)

    def log_params(self, run: str, params: Mapping[str, str]) -> None:
        """Record flat parameters; one that is already there with the same value stays as it is.

        Raises:
            InputError: the run already holds another value, which MLflow can't change.
        """
        from mlflow.entities import Param

        fitted = {key: _fit_param(value) for key, value in params.items()}
        known = self.client.get_run(run).data.params
        _refuse_changes(run, known, fitted)
        new = [Param(key, value) for key, value in fitted.items() if key not in known]
        for batch in _batches(new, PARAMS_PER_REQUEST):
            self.client.log_batch(run, params=batch)

    def log_metrics(self, run: str, metrics: Mapping[str, float], *, step: int) -> None:
        """Record metrics at a step; a metric that already has this step keeps its first value, NaN included."""
        from mlflow.entities import Metric

        known = self.client.get_run(run).data.metrics
        now = int(time.time() * 1000)
        new = [
            Metric(key, value, now, step)
            for key, value in metrics.items()
            if key not in known or not self._has_step(run, key, step=step)
        ]
        for batch in _batches(new, METRICS_PER_REQUEST):
            self.client.log_batch(run, metrics=batch)

    def log_dataset(self, run: str, name: str, *, digest: str, source: str, context: str) -> None:
        """Record a dataset as an input of the run, under our own content digest (its first 36 characters)."""
        from mlflow.entities import Dataset, DatasetInput, InputTag
        from mlflow.exceptions import MlflowException

        scheme = urlsplit(source).scheme
        dataset = Dataset(
            name=name,
            digest=digest[:DIGEST_LIMIT],
            source_type="local" if scheme in {"", "file"} else scheme,
            source=json.dumps({"uri": source}),
        )
        inputs = [DatasetInput(dataset, tags=[InputTag(CONTEXT_TAG, context)])]
        try:
            self.client.log_inputs(run, inputs)
        except MlflowException:  # another lineage may have recorded the same dataset in this very moment
            self.client.log_inputs(run, inputs)

    def log_file(self, run: str, path: Path, *, artifact_path: str | None = None) -> None:
        """Copy a file into the run's artifact folder `artifact_path`, over one of the same name."""
        self.client.log_artifact(run, str(path), artifact_path)

    def log_folder(self, run: str, path: Path, *, artifact_path: str | None = None) -> None:
        """Copy the content of a folder into the run's artifact folder `artifact_path`, over files of the same name."""
        self.client.log_artifacts(run, str(path), artifact_path)

    def log_text(self, run: str, text: str, *, artifact_file: str) -> None:
        """Write a text as an artifact, over an earlier one."""
        self.client.log_text(run, text, artifact_file)

    def log_table(self, run: str, columns: Mapping[str, Sequence[str]], *, artifact_file: str) -> None:
        """Write a table that MLflow's pages show as one, over an earlier one (MLflow's own call appends to it).

        Raises:
            InputError: the name doesn't end in .json, or the columns differ in length.
        """
        lengths = {name: len(column) for name, column in columns.items()}
        if not artifact_file.endswith(".json"):
            raise InputError(f"table {artifact_file!r} would not be shown as a table: name it *.json")
        if len(set(lengths.values())) > 1:
            raise InputError(f"columns of table {artifact_file!r} differ in length: {lengths}; expected equal lengths")
        table = {"columns": list(columns), "data": list(zip(*columns.values(), strict=True))}
        self.log_text(run, json.dumps(table, ensure_ascii=False), artifact_file=artifact_file)
        self._announce_table(run, artifact_file)

    def register_model(self, run: str, artifact_path: str, *, name: str, tags: Mapping[str, str]) -> str:
        """Register an artifact folder of the run as a version of the model `name`, once, and return the version.

        Raises:
            InputError: the run has no artifacts under that path.
        """
        client = self.client
        for version in client.search_model_versions(f"run_id = '{run}'"):
            if version.name == name and version.tags.get(ARTIFACT_TAG) == artifact_path:
                return str(version.version)
        if not client.list_artifacts(run, artifact_path):
            raise InputError(f"run {run} has no artifacts under {artifact_path!r}: log the folder, then register it")
        self._create_model(name)
        source = f"{client.get_run(run).info.artifact_uri.rstrip('/')}/{artifact_path}"
        created = client.create_model_version(
            name, source, run, tags={**tags, ARTIFACT_TAG: artifact_path}, await_creation_for=0
        )
        return str(created.version)

    def set_alias(self, name: str, alias: str, *, version: str) -> None:
        """Point an alias of the model at a version, moving it if it exists."""
        self.client.set_registered_model_alias(name, alias, version)

    def get_alias(self, name: str, alias: str) -> str | None:
        """Return the version an alias points at, or None where the model or the alias doesn't exist."""
        found = self._find_model(name)
        return str(found[alias]) if found is not None and alias in found else None

    def open_run(self, identity: Mapping[str, str], tags: Mapping[str, str], *, name: str) -> str:
        """Find or create the run that has the tags `identity`, set it running, and return its run id."""
        from mlflow.entities import RunTag

        client, experiment = self.client, self._experiment_id()
        oldest_first = ["attributes.start_time ASC"]
        found = client.search_runs([experiment], tag_filter(identity), max_results=1, order_by=oldest_first)
        if not found:
            return str(client.create_run(experiment, run_name=name, tags={**tags, **identity}).info.run_id)
        run = found[0]
        changed = [RunTag(key, value) for key, value in tags.items() if run.data.tags.get(key) != value]
        client.log_batch(run.info.run_id, tags=changed)
        if run.info.status != "RUNNING":
            client.update_run(run.info.run_id, status="RUNNING")
        return str(run.info.run_id)

    def _experiment_id(self) -> str:
        found = self.client.get_experiment_by_name(self.experiment)
        if found is None:
            return self._create_experiment()
        if found.lifecycle_stage == "deleted":
            raise InputError(f"experiment {self.experiment!r} is deleted in MLflow: restore it or name another")
        return str(found.experiment_id)

    def _create_experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        root = None if self.artifact_root is None else str(Path(self.artifact_root).absolute())
        try:
            return str(self.client.create_experiment(self.experiment, artifact_location=root))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return self._experiment_id()  # another lineage made it meanwhile

    def _has_step(self, run: str, key: str, *, step: int) -> bool:
        return any(metric.step == step for metric in self.client.get_metric_history(run, key))

    def _announce_table(self, run: str, artifact_file: str) -> None:
        tables = json.loads(self.client.get_run(run).data.tags.get(TABLES_TAG, "[]"))
        entry = {"path": artifact_file, "type": "table"}
        if entry not in tables:
            self.client.set_tag(run, TABLES_TAG, json.dumps([*tables, entry]))

    def _find_model(self, name: str) -> dict[str, str] | None:
        from mlflow.exceptions import MlflowException

        try:
            return dict(self.client.get_registered_model(name).aliases)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None

    def _create_model(self, name: str) -> None:
        if self._find_model(name) is None:
            self.client.create_registered_model(name)


@lru_cache
def _client(tracking_uri: str) -> "MlflowClient":
    from mlflow import MlflowClient

    if (path := local_path(tracking_uri)) is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    return MlflowClient(tracking_uri, registry_uri=tracking_uri)


def tag_filter(tags: Mapping[str, str]) -> str:
    """MLflow's search string for runs with all of these tags.

    Raises:
        InputError: a value holds a quote.
    """
    if quoted := [value for value in tags.values() if "'" in value]:
        raise InputError(f"name {quoted[0]!r} holds a quote, which MLflow can't search for: leave it out")
    return " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())


def _fit_param(value: str) -> str:
    """Cut to MLflow's limit; the digest keeps two long values with the same beginning apart."""
    if len(value) <= PARAM_LIMIT:
        return value
    suffix = f" ... [cut: {len(value)} characters, sha256 {sha256(value.encode()).hexdigest()[:12]}]"
    return value[: PARAM_LIMIT - len(suffix)] + suffix


def _refuse_changes(run: str, known: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    changes = [
        f"{key} is {known[key]!r}, not {value!r}" for key, value in wanted.items() if known.get(key, value) != value
    ]
    if changes:
        raise InputError(
            f"run {run} was recorded with other parameters ({'; '.join(changes)}): "
            "restore them, or start a lineage of another name"
        )


def _batches(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    return (items[start : start + size] for start in range(0, len(items), size))
