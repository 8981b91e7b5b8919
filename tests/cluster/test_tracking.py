import contextlib
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.errors import InputError
from cluster.preflight import reachable
from cluster.tracking import Status, Tracker

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")

TABLE = {"prompt": ["p", "q"], "response": ["naïve", "two\nlines"]}


@pytest.fixture(scope="module", autouse=True)
def no_telemetry() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.delenv("MLFLOW_REGISTRY_URI", raising=False)
        yield


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with MLflow's tables, which take seconds to make."""
    path = tmp_path_factory.mktemp("migrated") / "deeper" / "runs.db"
    Tracker(tracking_uri=f"sqlite:///{path}", experiment="any").open_lineage("any", {})
    return path


@pytest.fixture(scope="module")
def embedded(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    folder = tmp_path_factory.mktemp("embedded")
    path = shutil.copy(migrated, folder)
    return Tracker(tracking_uri=f"sqlite:///{path}", experiment="pairwright", artifact_root=str(folder / "artifacts"))


@pytest.fixture(scope="module")
def served(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tracker]:
    """A server with proxied artifacts."""
    folder = tmp_path_factory.mktemp("served")
    path = shutil.copy(migrated, folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", port, "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{path}", "--artifacts-destination", f"{folder}/artifacts"]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log) as server,
    ):
        try:
            tracker = Tracker(tracking_uri=f"http://127.0.0.1:{port}", experiment="served")
            wait_for(tracker)
            yield tracker
        finally:
            server.terminate()


def wait_for(tracker: Tracker) -> None:
    for _ in range(400):
        with contextlib.suppress(InputError):
            return reachable(tracker.tracking_uri, attempts=1)
        time.sleep(0.25)
    raise TimeoutError(f"no server at {tracker.tracking_uri}")


@pytest.fixture(scope="module", params=["embedded", "served"])
def tracker(request: pytest.FixtureRequest) -> Tracker:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Tracker)
    return found


@pytest.fixture
def run(embedded: Tracker, request: pytest.FixtureRequest) -> str:
    return embedded.open_lineage(request.node.name, {})


def test_importing_the_module_does_not_import_mlflow() -> None:
    code = "import sys, cluster.tracking, cluster.preflight; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_reopened_lineage_is_the_same_run_with_the_newest_tags(embedded: Tracker) -> None:
    first = embedded.open_lineage("again", {"selector": "uniform", "git.commit": "old"})
    second = embedded.open_lineage("again", {"selector": "uniform", "git.commit": "new"})
    assert first == second != embedded.open_lineage("other", {})
    tags = embedded.client.get_run(first).data.tags
    assert tags["git.commit"] == "new"
    assert (tags["pairwright.kind"], tags["pairwright.lineage"]) == ("lineage", "again")


def test_a_round_is_a_child_found_again_by_its_padded_number(embedded: Tracker) -> None:
    parent = embedded.open_lineage("rounds", {})
    first = embedded.open_round(parent, "rounds", round_number=7, tags={})
    assert embedded.open_round(parent, "rounds", round_number=7, tags={}) == first
    assert embedded.open_round(parent, "rounds", round_number=70, tags={}) != first
    tags = embedded.client.get_run(first).data.tags
    assert (tags["mlflow.parentRunId"], tags["pairwright.round"]) == (parent, "007")


def test_the_tags_of_a_round_are_found_by_its_number(embedded: Tracker) -> None:
    assert embedded.tags_of_round("tagged", 7) == {}
    run = embedded.open_round(embedded.open_lineage("tagged", {}), "tagged", round_number=7, tags={"place": "here"})
    assert embedded.tags_of_round("tagged", 7) == dict(embedded.client.get_run(run).data.tags)
    assert embedded.tags_of_round("tagged", 7)["place"] == "here"
    assert embedded.tags_of_round("tagged", 8) == embedded.tags_of_round("other", 7) == {}


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "SCHEDULED"])
def test_a_closed_round_runs_again_when_reopened(embedded: Tracker, status: Status) -> None:
    parent = embedded.open_lineage(f"closed {status}", {})
    run = embedded.open_round(parent, f"closed {status}", round_number=0, tags={})
    embedded.close(run, status)
    assert embedded.client.get_run(run).info.status == status
    assert embedded.open_round(parent, f"closed {status}", round_number=0, tags={}) == run
    assert embedded.client.get_run(run).info.status == "RUNNING"


def test_a_name_with_a_quote_is_refused(embedded: Tracker) -> None:
    with pytest.raises(InputError, match="holds a quote"):
        embedded.open_lineage("o'clock", {})


def test_a_deleted_experiment_is_refused(embedded: Tracker) -> None:
    gone = Tracker(tracking_uri=embedded.tracking_uri, experiment="gone")
    gone.client.delete_experiment(gone.client.create_experiment("gone"))
    with pytest.raises(InputError, match="'gone' is deleted"):
        gone.open_lineage("any", {})


def test_params_are_recorded_once_in_many_batches(embedded: Tracker, run: str) -> None:
    params = {f"key.{index}": str(index) for index in range(250)}
    embedded.log_params(run, params)
    embedded.log_params(run, {**params, "empty": ""})
    assert embedded.client.get_run(run).data.params == {**params, "empty": ""}


def test_a_changed_param_is_refused_and_named(embedded: Tracker, run: str) -> None:
    embedded.log_params(run, {"selection.budget": "8", "seed": "0"})
    with pytest.raises(InputError, match=r"selection\.budget is '8', not '9'"):
        embedded.log_params(run, {"selection.budget": "9", "seed": "0", "new": "1"})
    assert "new" not in embedded.client.get_run(run).data.params


def test_a_long_param_is_cut_with_a_suffix_that_tells_it_apart(embedded: Tracker, run: str) -> None:
    embedded.log_params(run, {"template": "x" * 7000})
    embedded.log_params(run, {"template": "x" * 7000})
    stored = embedded.client.get_run(run).data.params["template"]
    assert len(stored) == 6000
    assert "[cut: 7000 characters, sha256 " in stored
    with pytest.raises(InputError):
        embedded.log_params(run, {"template": "x" * 6999 + "y"})


def test_a_metric_keeps_one_point_a_step(embedded: Tracker, run: str) -> None:
    for step in (0, 1, 0, 1):
        embedded.log_metrics(run, {"win_rate": step + 0.5, "kl": math.nan}, step=step)
    embedded.log_metrics(run, {"win_rate": 9.0, "late": 2.0}, step=0)
    history = {
        key: [(point.step, point.value) for point in embedded.client.get_metric_history(run, key)]
        for key in ("win_rate", "kl", "late")
    }
    assert sorted(history["win_rate"]) == [(0, 0.5), (1, 1.5)]
    assert sorted(step for step, _ in history["kl"]) == [0, 1]
    assert all(math.isnan(value) for _, value in history["kl"])
    assert history["late"] == [(0, 2.0)]


def test_more_metrics_than_a_request_takes_are_recorded(embedded: Tracker, run: str) -> None:
    embedded.log_metrics(run, {f"metric.{index}": float(index) for index in range(1500)}, step=0)
    assert len(embedded.client.get_run(run).data.metrics) == 1500


def test_a_dataset_is_recorded_once_under_our_digest(embedded: Tracker, run: str) -> None:
    for _ in range(2):
        embedded.log_dataset(run, "pool", digest="d" * 64, source="/store/pool", context="pool")
    (recorded,) = embedded.client.get_run(run).inputs.dataset_inputs
    assert (recorded.dataset.name, recorded.dataset.digest) == ("pool", "d" * 36)
    assert json.loads(recorded.dataset.source) == {"uri": "/store/pool"}
    assert [(tag.key, tag.value) for tag in recorded.tags] == [("mlflow.data.context", "pool")]


def test_a_value_is_added_to_a_tag_once_and_the_newest_find_room(embedded: Tracker, run: str) -> None:
    for value in ("a", "b", "a"):
        embedded.add_to_tag(run, "values", value)
    assert embedded.client.get_run(run).data.tags["values"] == "a,b"
    embedded.add_to_tag(run, "values", "c" * 7998)
    assert embedded.client.get_run(run).data.tags["values"] == f"b,{'c' * 7998}"
    embedded.add_to_tag(run, "values", "dd")
    assert embedded.client.get_run(run).data.tags["values"] == "dd"


def test_artifacts_are_written_over(tracker: Tracker, tmp_path: Path) -> None:
    run = tracker.open_lineage("artifacts", {})
    (tmp_path / "adapter").mkdir()
    for text in ("first", "second"):
        (tmp_path / "adapter" / "weights").write_text(text)
        tracker.log_folder(run, tmp_path / "adapter", artifact_path="policy")
        tracker.log_file(run, tmp_path / "adapter" / "weights", artifact_path="files")
        tracker.log_text(run, text, artifact_file="notes/summary.md")
    for path in ("policy/weights", "files/weights", "notes/summary.md"):
        copy = tracker.client.download_artifacts(run, path, str(tmp_path))
        assert Path(copy).read_text() == "second"


def test_a_table_logged_again_is_the_same_table(tracker: Tracker, tmp_path: Path) -> None:
    run = tracker.open_lineage("tables", {})
    for _ in range(2):
        tracker.log_table(run, TABLE, artifact_file="preferences.json")
    copy = Path(tracker.client.download_artifacts(run, "preferences.json", str(tmp_path)))
    assert json.loads(copy.read_text(encoding="utf-8")) == {
        "columns": ["prompt", "response"],
        "data": [["p", "naïve"], ["q", "two\nlines"]],
    }
    announced = json.loads(tracker.client.get_run(run).data.tags["mlflow.loggedArtifacts"])
    assert announced == [{"path": "preferences.json", "type": "table"}]


def test_a_table_needs_a_json_name_and_equal_columns(embedded: Tracker, run: str) -> None:
    with pytest.raises(InputError, match=r"name it \*\.json"):
        embedded.log_table(run, TABLE, artifact_file="table.csv")
    with pytest.raises(InputError, match=r"\{'a': 1, 'b': 0\}"):
        embedded.log_table(run, {"a": ["x"], "b": []}, artifact_file="table.json")


def test_a_model_is_registered_once_and_found_by_alias(tracker: Tracker, tmp_path: Path) -> None:
    name, runs = "policy", [tracker.open_lineage(f"models {number}", {}) for number in range(2)]
    (tmp_path / "weights").write_text("w")
    assert tracker.get_alias(name, "champion") is None
    versions = []
    for run in (runs[0], runs[0], runs[1]):
        tracker.log_folder(run, tmp_path, artifact_path="policy")
        versions.append(tracker.register_model(run, "policy", name=name, tags={"round": "003"}))
    assert versions == ["1", "1", "2"]
    assert tracker.client.get_model_version(name, "1").tags["round"] == "003"
    assert tracker.get_alias(name, "champion") is None
    for version in ("1", "2"):
        tracker.set_alias(name, "champion", version=version)
        assert tracker.get_alias(name, "champion") == version
    assert tracker.client.get_model_version_download_uri(name, "1").endswith(f"{runs[0]}/artifacts/policy")


def test_a_model_without_artifacts_is_not_registered(embedded: Tracker, run: str) -> None:
    with pytest.raises(InputError, match="no artifacts under 'nowhere'"):
        embedded.register_model(run, "nowhere", name="empty", tags={})
    assert embedded.get_alias("empty", "champion") is None


def test_artifacts_of_an_embedded_store_lie_under_its_root(embedded: Tracker, run: str) -> None:
    embedded.log_text(run, "x", artifact_file="note.txt")
    assert embedded.artifact_root is not None
    assert [path.name for path in Path(embedded.artifact_root).glob(f"{run}/artifacts/*")] == ["note.txt"]


def test_a_retried_round_doubles_nothing_on_a_server(served: Tracker) -> None:
    for _ in range(2):
        parent = served.open_lineage("retry", {"selector": "uniform"})
        run = served.open_round(parent, "retry", round_number=1, tags={})
        served.log_params(run, {"seed": "0"})
        served.log_metrics(run, {"win_rate": 0.5, "kl": math.nan}, step=1)
        served.log_dataset(run, "pool", digest="d" * 64, source="/store/pool", context="pool")
        served.close(run, "FINISHED")
    experiment = served.client.get_run(run).info.experiment_id
    assert len(served.client.search_runs([experiment], "tags.`pairwright.lineage` = 'retry'")) == 2
    assert len(served.client.get_metric_history(run, "win_rate")) == 1
    assert len(served.client.get_metric_history(run, "kl")) == 1
    assert len(served.client.get_run(run).inputs.dataset_inputs) == 1
