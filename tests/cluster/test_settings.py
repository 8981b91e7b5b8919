"""Settings: the environment decides where a round runs."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from cluster.settings import Settings
from cluster.tracking import Tracker

ADDRESSES = ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "PREFECT_HOME")


@pytest.fixture(autouse=True)
def environment(tmp_path: Path) -> Iterator[None]:
    """An environment of the test's own, without addresses, and with its home in `tmp_path`."""
    before = dict(os.environ)
    for name in list(os.environ):
        if name.startswith("PAIRWRIGHT_") or name in ADDRESSES:
            del os.environ[name]
    os.environ["PAIRWRIGHT_HOME"] = str(tmp_path)
    yield
    os.environ.clear()
    os.environ.update(before)


def test_without_addresses_everything_lies_below_home(tmp_path: Path) -> None:
    settings = Settings()
    assert settings.store == tmp_path / "store"
    assert settings.tracking == f"sqlite:///{tmp_path}/mlflow.db"
    assert settings.prefect is None


def test_a_relative_home_is_below_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.environ["PAIRWRIGHT_HOME"] = "here"
    assert Settings().root == tmp_path / "here"


def test_nested_settings_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAIRWRIGHT_ENGINE__NUM_GPUS", "2")
    monkeypatch.setenv("PAIRWRIGHT_TRAIN__NUM_WORKERS", "3")
    settings = Settings()
    assert (settings.engine.num_gpus, settings.train.num_workers) == (2, 3)


def test_a_misspelt_nested_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAIRWRIGHT_ENGINE__NUM_GPU", "2")
    with pytest.raises(ValidationError, match="num_gpu"):
        Settings()


def test_our_own_address_comes_before_the_librarys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://theirs")
    monkeypatch.setenv("PREFECT_API_URL", "http://theirs/api")
    assert (Settings().tracking, Settings().prefect) == ("http://theirs", "http://theirs/api")
    monkeypatch.setenv("PAIRWRIGHT_TRACKING_URI", "http://ours")
    monkeypatch.setenv("PAIRWRIGHT_PREFECT_API_URL", "http://ours/api")
    assert (Settings().tracking, Settings().prefect) == ("http://ours", "http://ours/api")


def test_a_server_decides_where_artifacts_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://theirs")
    assert Settings().artifact_root is None


def test_artifacts_of_the_embedded_store_lie_below_home(
    tmp_path: Path, tracking_template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlflow.db").write_bytes(tracking_template.read_bytes())
    settings = Settings()
    tracker = Tracker(tracking_uri=settings.tracking, experiment="any", artifact_root=settings.artifact_root)
    run = tracker.open_lineage("any", {})
    tracker.log_text(run, "text", artifact_file="note.txt")
    assert [file.relative_to(tmp_path).parts[0] for file in tmp_path.rglob("note.txt")] == ["artifacts"]


def test_exporting_makes_home_absolute_and_silences_telemetry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.environ["PAIRWRIGHT_HOME"] = "here"
    os.environ["DO_NOT_TRACK"] = "mine"
    os.environ.pop("VLLM_NO_USAGE_STATS", None)
    Settings(prefect_api_url="http://ours/api").export()
    assert os.environ["PAIRWRIGHT_HOME"] == str(tmp_path / "here")
    assert os.environ["PREFECT_HOME"] == str(tmp_path / "here" / "prefect")
    assert os.environ["PREFECT_API_URL"] == "http://ours/api"
    assert os.environ["VLLM_NO_USAGE_STATS"] == "1"
    assert os.environ["DO_NOT_TRACK"] == "mine"


def test_exporting_without_a_prefect_address_names_none() -> None:
    Settings().export()
    assert "PREFECT_API_URL" not in os.environ
