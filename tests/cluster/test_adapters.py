"""Fresh adapters: one for a model, a shape and a seed, that leaves the policy as it is."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from cluster.adapters import WEIGHTS, fresh_adapter, lora_modules
from cluster.models import LoraShape, Policy

SHAPE = LoraShape(r=4, lora_alpha=8)


@pytest.fixture
def base(tiny_model: Path) -> Policy:
    return Policy(digest="base", model=tiny_model)


def test_a_fresh_adapter_changes_nothing_and_covers_every_linear_layer(base: Policy, tmp_path: Path) -> None:
    folder = fresh_adapter(base, SHAPE, 0, tmp_path)
    ids = torch.arange(5, 15)[None]
    with torch.inference_mode():
        plain = AutoModelForCausalLM.from_pretrained(base.model)(ids).logits
        adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base.model), folder)(ids).logits
    assert torch.equal(plain, adapted)
    modules = lora_modules(folder)
    assert len(modules) == 4 * 7
    assert modules["model.layers.3.mlp.down_proj"] == (256, 128)
    assert modules["model.layers.0.self_attn.k_proj"] == (128, 64)


def test_b_is_zero_and_a_uniform_as_training_draws_it(base: Policy, tmp_path: Path) -> None:
    for name, weights in load_file(fresh_adapter(base, SHAPE, 0, tmp_path) / WEIGHTS).items():
        if ".lora_B." in name:
            assert not weights.any(), name
        else:
            bound = weights.shape[1] ** -0.5
            assert 0.9 * bound < weights.abs().max() <= bound, name
            assert float(weights.var()) == pytest.approx(bound**2 / 3, rel=0.3), name


def test_model_shape_and_seed_decide_it(base: Policy, tmp_path: Path) -> None:
    first = fresh_adapter(base, SHAPE, 0, tmp_path / "one")
    again = fresh_adapter(base, SHAPE, 0, tmp_path / "other")
    assert first.name == again.name
    assert (first / WEIGHTS).read_bytes() == (again / WEIGHTS).read_bytes()
    others = [
        fresh_adapter(base, SHAPE, 1, tmp_path / "one"),
        fresh_adapter(base, LoraShape(r=8, lora_alpha=8), 0, tmp_path / "one"),
        fresh_adapter(base.model_copy(update={"digest": "another"}), SHAPE, 0, tmp_path / "one"),
    ]
    assert len({first.name, *(other.name for other in others)}) == 4
    assert (others[0] / WEIGHTS).read_bytes() != (first / WEIGHTS).read_bytes()


def test_it_is_made_once_and_what_a_kill_left_is_made_anew(base: Policy, tmp_path: Path) -> None:
    folder = fresh_adapter(base, SHAPE, 0, tmp_path)
    written = (folder / WEIGHTS).stat().st_mtime_ns
    assert fresh_adapter(base, SHAPE, 0, tmp_path) == folder
    assert (folder / WEIGHTS).stat().st_mtime_ns == written
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:100])
    folder.rename(folder.with_suffix(".partial"))
    assert (fresh_adapter(base, SHAPE, 0, tmp_path) / WEIGHTS).read_bytes() == content
