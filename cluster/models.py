"""Checkpoints: where a model's weights come from, and the folder they end up in."""

import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal, Protocol

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

from cluster.errors import InputError
from cluster.random_models import byte_tokenizer, random_llama
from cluster.storage import digest_of, digest_of_file, digest_of_folder

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


class Checkpoint(Protocol):
    """A source of weights; `resolve` gives a Hugging Face checkpoint folder on this machine."""

    def resolve(self, cache: Path) -> Path:
        """Find, fetch or convert the checkpoint."""
        ...


class FolderCheckpoint(BaseModel):
    """A Hugging Face checkpoint in a local folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["folder"] = "folder"
    path: Path

    def resolve(self, cache: Path) -> Path:  # noqa: ARG002 - the protocol's signature
        """Check the folder.

        Raises:
            InputError: no such folder, or one without a config or weights.
        """
        return checked_folder(self.path.expanduser().resolve())


class HubCheckpoint(BaseModel):
    """A model of the Hugging Face hub; the only source that reaches for the network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["hub"] = "hub"
    name: str
    revision: str = "main"

    def resolve(self, cache: Path) -> Path:  # noqa: ARG002 - the hub keeps its own cache
        """Download the snapshot, or find it in the hub's own cache.

        Raises:
            InputError: the hub doesn't answer, or knows no such model.
        """
        return hub_folder(self.name, self.revision, instead="model: {kind: folder, path: ...}")


class PackagedCheckpoint(BaseModel):
    """A GGUF file shipped inside an installed Python package, converted once to a normal checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["packaged"] = "packaged"
    package: str
    file: str

    def resolve(self, cache: Path) -> Path:
        """Convert into the cache folder on first use (about a minute), under a lock.

        Raises:
            InputError: the package or the file in it is missing.
        """
        source = self._source()
        name = f"{self.package}-{digest_of([digest_of_file(source), 1])[:12]}"
        return checked_folder(_made_once(cache / name, lambda target: _convert_gguf(source, target)))

    def _source(self) -> Path:
        try:
            spec = find_spec(self.package)
        except ModuleNotFoundError:  # the parent of a dotted name
            spec = None
        folders = list(spec.submodule_search_locations or []) if spec else []
        if not folders:
            raise InputError(
                f"model package {self.package!r} is not installed: pip install 'pairwright[cpu]' brings it"
            )
        source = Path(folders[0]) / self.file
        if not source.is_file():
            found = sorted(file.name for file in source.parent.glob("*.gguf"))
            raise InputError(f"package {self.package!r} has no file {self.file!r}: it ships {found or 'no GGUF file'}")
        return source


class RandomCheckpoint(BaseModel):
    """A random model for trying out and for tests: it writes noise. It has 0.7 million parameters as it stands."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["random"] = "random"
    seed: NonNegativeInt = 0
    hidden_size: PositiveInt = Field(128, multiple_of=64)
    num_hidden_layers: PositiveInt = 4

    def resolve(self, cache: Path) -> Path:
        """Make it in the cache folder on first use (a second), under a lock."""
        name = f"random-{digest_of([self.model_dump(), 1])[:12]}"
        return checked_folder(_made_once(cache / name, self._make))

    def _make(self, target: Path) -> None:
        tokenizer = byte_tokenizer()
        sizes = {"hidden_size": self.hidden_size, "num_hidden_layers": self.num_hidden_layers}
        _save(random_llama(len(tokenizer), self.seed, **sizes), tokenizer, target)


AnyCheckpoint = Annotated[
    FolderCheckpoint | HubCheckpoint | PackagedCheckpoint | RandomCheckpoint, Field(discriminator="kind")
]


class Policy(BaseModel):
    """A language model that writes responses: a base checkpoint and, after training, a LoRA adapter on it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: str
    model: Path
    adapter: Path | None = None

    @property
    def name(self) -> str:
        """A short name that changes whenever the weights do (vLLM's prefix cache is keyed by name and path)."""
        return f"policy-{self.digest[:12]}"


class LoraShape(BaseModel):
    """Shape of an adapter, over all linear layers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    r: PositiveInt = Field(8, description="rank")
    lora_alpha: PositiveInt = 16
    lora_dropout: float = Field(0.0, ge=0, lt=1)


class Contrast(BaseModel):
    """A policy and the reference it is measured against; implicit rewards are beta (log pi - log pi_ref).

    `lora` is the shape of the adapter that is trained next.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: Policy
    reference: Policy
    lora: LoraShape = LoraShape()


def base_policy(checkpoint: AnyCheckpoint, cache: Path) -> Policy:
    """The policy of round 0; its digest is that of the checkpoint's bytes, wherever the folder lies."""
    folder = checkpoint.resolve(cache)
    return Policy(digest=digest_of_folder(folder), model=folder)


def checked_folder(folder: Path, *, setting: str = "model.path") -> Path:
    """The folder itself; `setting` is where its path was given.

    Raises:
        InputError: it is missing, or lacks a config or weights.
    """
    if not folder.is_dir():
        raise InputError(f"model folder {folder} does not exist: check {setting}")
    if not (folder / "config.json").is_file():
        raise InputError(f"model folder {folder} has no config.json: is it a Hugging Face checkpoint?")
    if not any(file for pattern in WEIGHTS for file in folder.glob(pattern)):
        raise InputError(
            f"model folder {folder} has no weights ({' or '.join(WEIGHTS)}): copy them there or save again"
        )
    return folder


def hub_folder(name: str, revision: str, *, instead: str) -> Path:
    """A hub model's snapshot, downloaded or found in the hub's own cache; `instead` is how a folder is given.

    Raises:
        InputError: the hub doesn't answer and its cache lacks the model, or it knows no such model.
    """
    from huggingface_hub import snapshot_download

    try:
        return checked_folder(Path(snapshot_download(name, revision=revision)))
    except (OSError, ValueError) as error:
        raise InputError(
            f"model {name!r} (revision {revision!r}) can't be had from the hub: {error}. "
            f"Check the name and the network, or give a local folder: {instead}"
        ) from error


def merged_checkpoint(policy: Policy, cache: Path) -> Path:
    """A checkpoint folder with the adapter's weights added to the base's; made once in the cache folder."""
    if policy.adapter is None:
        return policy.model
    return _made_once(cache / f"merged-{policy.digest[:12]}", lambda target: _merge(policy, target))


def _made_once(target: Path, make: Callable[[Path], None]) -> Path:
    """The folder, made under a lock where it is not there yet."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_suffix(".lock")):
        if not target.exists():
            make(target)
    return target


def _merge(policy: Policy, target: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(policy.model, local_files_only=True)
    merged = PeftModel.from_pretrained(base, policy.adapter).merge_and_unload()
    _save(merged, AutoTokenizer.from_pretrained(policy.model, local_files_only=True), target)


def _convert_gguf(source: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    origin = {"gguf_file": source.name, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(source.parent, **origin)
    model = AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, **origin)
    del model.config.quantization_config, model.hf_quantizer
    _save(model, tokenizer, target)


def _save(model: object, tokenizer: object, target: Path) -> None:
    """Save beside the target and rename, so that the target is whole or absent."""
    partial = target.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)  # type: ignore[attr-defined]
    tokenizer.save_pretrained(partial)  # type: ignore[attr-defined]
    partial.rename(target)
