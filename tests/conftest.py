"""What tests share: a tiny model, its config, homes of their own, and a real Prefect server."""

import copy
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.models import RandomCheckpoint

QUIET = {
    "DO_NOT_TRACK": "true",
    "HF_HUB_OFFLINE": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "OMP_WAIT_POLICY": "PASSIVE",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
}
os.environ.update(QUIET)

WORDS = ("good", "bad", "happy", "sad", "love", "hate", "great", "awful", "nice", "poor", "fine", "dull", "warm")
BIN = Path(sys.executable).parent


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of about a million parameters, with a byte-level tokenizer and a chat template."""
    return RandomCheckpoint().resolve(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def tiny_classifier(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama that gives every text one score, with the tiny model's tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    folder, tokenizer = tmp_path_factory.mktemp("models") / "rewards", AutoTokenizer.from_pretrained(tiny_model)
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        num_labels=1,
        pad_token_id=0,
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Save a random adapter of rank 4 and alpha 8 that does change the tiny model's output."""

    def make(seed: int) -> Path:
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        lora = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=4, lora_alpha=8)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), lora)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weights in model.named_parameters():
                if "lora_" in name:
                    weights.copy_(0.1 * torch.randn(weights.shape, generator=generator))
        folder = tmp_path_factory.mktemp("adapter.with.dots")
        model.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def prompts_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty short chat prompts."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    contents = [f"{first} or {second}" for first in WORDS[:8] for second in WORDS[8:13]]
    lines = [json.dumps({"prompt": [{"role": "user", "content": content}]}) for content in contents]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def tiny_config(tiny_values: dict[str, Any]) -> dict[str, Any]:
    """A lineage on the tiny model that touches everything and takes little time; a copy to change."""
    return copy.deepcopy(tiny_values)


@pytest.fixture(scope="session")
def tiny_values(tiny_model: Path, prompts_file: Path) -> dict[str, Any]:
    """The values of `tiny_config`, for fixtures that live longer."""
    return {
        "lineage": "tiny",
        "rounds": 2,
        "round": {
            "model": {"kind": "folder", "path": str(tiny_model)},
            "prompts": {"path": str(prompts_file), "num_prompts": 12, "num_held_out": 4},
            "generation": {
                "num_responses": 3,
                "max_tokens": 16,
                "max_model_len": 96,
                "shard_size": 3,
                "max_lora_rank": 8,
            },
            "features": {
                "kind": "lora_gradient",
                "projection": {"kind": "count_sketch", "dim": 64},
                "proxy": {"kind": "length", "per": "character"},
            },
            "selection": {
                "budget": 16,
                "selector": {"kind": "robust_design", "max_pairs_per_prompt": 2},
                "offer_rounds": 1,
            },
            "labelling": {"labeller": {"kind": "simulated", "reward": {"kind": "length", "per": "character"}}},
            "training": {
                "save_steps": 1,
                "optimizer": {"learning_rate": 0.01, "num_epochs": 2, "batch_size": 4, "micro_batch_size": 2},
            },
            "evaluation": {"reward": {"kind": "length", "per": "character"}},
        },
    }


@pytest.fixture
def write_config(tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    """Write a lineage's values as a YAML file."""

    def write(values: dict[str, Any], name: str = "lineage.yaml") -> Path:
        path = tmp_path / name
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def tracking_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database, whose migrations take seconds, to be copied."""
    from cluster.tracking import Tracker

    path = tmp_path_factory.mktemp("tracking") / "mlflow.db"
    Tracker(tracking_uri=f"sqlite:///{path}", experiment="template").client.search_experiments()
    return path


@pytest.fixture(scope="session")
def make_home(tmp_path_factory: pytest.TempPathFactory, tracking_template: Path) -> Callable[[], Path]:
    """Make a home folder with an empty MLflow database."""

    def make() -> Path:
        home = tmp_path_factory.mktemp("home")
        shutil.copy(tracking_template, home / "mlflow.db")
        return home

    return make


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API address of a real Prefect server on loopback."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    folder = tmp_path_factory.mktemp("prefect")
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, "PREFECT_HOME": str(folder), "PREFECT_API_URL": url}
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            await_answer(f"{url}/health", seconds=90)
            yield url
        finally:
            server.terminate()
            server.wait(timeout=30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def await_answer(url: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
