"""Fresh adapters: LoRA weights as training starts from them, the same for all who need them."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from cluster.models import LoraShape, Policy
from cluster.storage import digest_of
from cluster.threads import TORCH

if TYPE_CHECKING:
    import torch

WEIGHTS = "adapter_model.safetensors"


def fresh_adapter(base: Policy, shape: LoraShape, seed: int, cache: Path) -> Path:
    """Folder of an adapter with which the policy says what its base says: B is zero, A uniform as PEFT draws it.

    It is decided by model, shape and seed, so that features are gradients in the very matrices that training starts
    from; and made once in the cache folder, without loading the model.
    """
    target = cache / f"adapter-{digest_of([base.digest, shape.model_dump(), seed])[:12]}"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_suffix(".lock")):
        if not target.exists():
            with TORCH:
                _make(base, shape, seed, target)
    return target


def lora_modules(adapter: Path) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of every module of an adapter, by its path in the base model, without reading weights."""
    from safetensors import safe_open

    with safe_open(adapter / WEIGHTS, framework="np") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - it is no mapping
    modules = {name.removesuffix(".lora_A.weight"): shape[1] for name, shape in shapes.items() if ".lora_A." in name}
    return {
        path.removeprefix("base_model.model."): (inputs, shapes[f"{path}.lora_B.weight"][0])
        for path, inputs in modules.items()
    }


def _make(base: Policy, shape: LoraShape, seed: int, target: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base.model, local_files_only=True))
        lora = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", **shape.model_dump())
        adapted: Any = get_peft_model(model, lora)
    generator = torch.Generator().manual_seed(seed)
    empty = sorted(get_peft_model_state_dict(adapted).items())
    partial = target.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    adapted.peft_config["default"].save_pretrained(partial)
    save_file({name: _initial(name, tuple(weights.shape), generator) for name, weights in empty}, partial / WEIGHTS)
    partial.rename(target)


def _initial(name: str, shape: tuple[int, int], generator: "torch.Generator") -> Any:
    """Zeros for B; for A uniform numbers up to 1 / sqrt(inputs)."""
    import torch

    if ".lora_B." in name:
        return torch.zeros(shape)
    drawn: torch.Tensor = torch.rand(shape, generator=generator)
    return (2 * drawn - 1) / shape[1] ** 0.5
