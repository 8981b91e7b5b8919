"""Where a round runs: addresses, stores and hardware, read from the environment only."""

import os
from pathlib import Path
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from cluster.errors import InputError

_DEFAULTS = {
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that wait by spinning slow each other tenfold on shared cores
    "DO_NOT_TRACK": "true",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # its 20 are too few where cores are busy
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
}


class EngineSettings(BaseModel):
    """Hardware of one generation engine; what a response says does not depend on it in distribution."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_engines: PositiveInt = Field(1, description="vLLM actors that share the pool's shards")
    num_cpus: PositiveFloat = Field(0.5, description="logical CPUs that Ray reserves for one engine; never all of them")
    num_gpus: int = Field(0, ge=0, description="GPUs of one engine (tensor parallel size); 0 runs vLLM on the CPU")
    dtype: str = Field("auto", description="'auto' is float32 on a CPU and the checkpoint's type on a GPU")
    memory_share: float = Field(0.9, gt=0, lt=1, description="share of a GPU's memory the engine may take")
    cpu_cache_gib: PositiveInt = Field(1, description="memory of the key-value cache on a CPU, GiB")
    max_num_seqs: PositiveInt = Field(128, description="sequences decoded together")
    python: Path | None = Field(None, description="interpreter of another environment that holds vLLM")


class TorchSettings(BaseModel):
    """Hardware of one torch actor of the feature stage."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_actors: PositiveInt = Field(1, description="torch actors that share the responses")
    num_cpus: PositiveFloat = Field(0.5, description="logical CPUs that Ray reserves for one actor; never all of them")
    num_gpus: float = Field(0, ge=0, description="GPUs of one actor")


class TrainSettings(BaseModel):
    """Hardware of Ray Train."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_workers: int = Field(0, ge=0, description="Ray Train workers; 0 trains in the process of the round")
    use_gpu: bool = Field(False, description="whether a worker has a GPU")


class Settings(BaseSettings):
    """All settings; `PAIRWRIGHT_HOME=/data` or `PAIRWRIGHT_ENGINE__NUM_GPUS=1` in the environment change them."""

    model_config = SettingsConfigDict(env_prefix="PAIRWRIGHT_", env_nested_delimiter="__", frozen=True, extra="forbid")

    home: Path = Field(Path(".pairwright"), description="folder of the store and of the embedded databases")
    cache: Path = Field(Path.home() / ".cache" / "pairwright", description="folder of converted models")
    tracking_uri: str | None = Field(None, description="MLflow; without it SQLite under home")
    prefect_api_url: str | None = Field(
        None, description="Prefect; without it an ephemeral server on SQLite under home"
    )
    ray_address: str | None = Field(None, description="Ray cluster; without it a local one for the run")
    ledger_url: str | None = Field(
        None, repr=False, description="label ledger, postgresql+psycopg://...; without it SQLite in the store"
    )
    label_url: str = Field("http://127.0.0.1:7861", description="where people find the labelling page")
    poll_seconds: PositiveFloat = Field(30.0, description="seconds between two looks at rounds that wait for people")
    connect_timeout: PositiveFloat = Field(5.0, description="seconds to wait for one answer of a server")
    selection_num_cpus: PositiveFloat = Field(1.0, description="logical CPUs of the selection task")
    selection_memory_gib: NonNegativeFloat = Field(0.0, description="memory that Ray keeps for it, GiB; 0 keeps none")
    engine: EngineSettings = EngineSettings()
    torch: TorchSettings = TorchSettings()
    train: TrainSettings = TrainSettings()

    @property
    def root(self) -> Path:
        """`home` as an absolute path."""
        return self.home.expanduser().resolve()

    @property
    def store(self) -> Path:
        """Folder of stages, lineages and the label ledger."""
        return self.root / "store"

    @property
    def ledger(self) -> str:
        """Address of the label ledger in force; it may hold a password."""
        return self.ledger_url or f"sqlite:///{quote(str(self.store / 'ledger.sqlite'))}"

    @property
    def tracking(self) -> str:
        """MLflow address in force: this setting, MLflow's own variable, or the embedded SQLite file."""
        return self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.root / 'mlflow.db'}"

    @property
    def artifact_root(self) -> str | None:
        """Folder of MLflow's artifacts where no server decides it."""
        return str(self.root / "artifacts") if self.tracking.startswith("sqlite:") else None

    @property
    def prefect(self) -> str | None:
        """Prefect address in force, or None for the ephemeral server."""
        return self.prefect_api_url or os.environ.get("PREFECT_API_URL")

    def export(self) -> None:
        """Put what the libraries read from the environment there: addresses, folders, no telemetry.

        Has to run before Prefect is imported. Values that the user set stay.
        """
        os.environ["PAIRWRIGHT_HOME"] = str(self.root)
        defaults = {**_DEFAULTS, "PREFECT_HOME": str(self.root / "prefect")}
        if self.prefect is not None:
            defaults["PREFECT_API_URL"] = self.prefect
        for name, value in defaults.items():
            os.environ.setdefault(name, value)


def read_settings() -> Settings:
    """The settings of the environment.

    Raises:
        InputError: a variable doesn't fit; all faults are listed.
    """
    try:
        return Settings()
    except SettingsError as error:
        raise InputError(f"{error}: set its parts one by one, for example PAIRWRIGHT_ENGINE__NUM_GPUS=1") from error
    except ValidationError as error:
        faults = [
            f"PAIRWRIGHT_{'__'.join(map(str, fault['loc'])).upper()}: {fault['msg']} (found {fault['input']!r})"
            for fault in error.errors()
        ]
        raise InputError(f"the environment does not fit: {'; '.join(faults)}: correct or unset it") from error
