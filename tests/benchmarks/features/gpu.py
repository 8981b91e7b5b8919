"""P15: tokens per second on a GPU, as a share of what four operations a weight and token would take."""

import time
from collections.abc import Iterator
from typing import Any

import torch
from features.models import LINEAR, drawn, one_by_one, random_model
from measuring import Finding
from peft import LoraConfig, get_peft_model

from tasks.gradients.passes import Room, measure, size_that_fits
from tasks.gradients.projections import CountSketch
from tasks.gradients.taps import lora_layers
from tasks.gradients.vectors import LoraGradients

SHARED = {"vocab_size": 151_936, "max_position_embeddings": 4096}
SIZES = {
    "0.5B": SHARED
    | {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
    },
    "1.5B": SHARED
    | {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
    },
    "tiny": {
        "vocab_size": 4096,
        "max_position_embeddings": 4096,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}
DIM = 4096


def gpu_throughput(
    _repeats: int, *, size: str, count: int = 256, prompt: int = 256, response: int = 256, device: str = "cuda"
) -> Iterator[Finding]:
    """Random weights in bfloat16, B = 0, all linear layers, the whole gradient."""
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=LINEAR, task_type="CAUSAL_LM")
    model: Any = get_peft_model(random_model(SIZES[size], device).eval(), lora).requires_grad_(requires_grad=False)
    generator = torch.Generator().manual_seed(0)
    texts = [(drawn(prompt, generator), drawn(response, generator)) for _ in range(count)]
    vectors = LoraGradients(lora_layers(model, "default"), CountSketch(dim=DIM))
    free = torch.cuda.mem_get_info()[0] if device == "cuda" else 2**30
    room = Room(min(256, size_that_fits(model.config, prompt + response, free)))
    measure(model, texts[: room.size], vectors, room)
    seconds, _ = _timed(lambda: measure(model, texts, vectors, room), device)
    speed = count * (prompt + response) / seconds
    weights = sum(of.numel() for name, of in model.named_parameters() if "lora_" not in name and "embed" not in name)
    rate, limit = 4 * weights * speed, _matmul_rate(device)
    words = f"{speed:,.0f} tokens/s, {rate / 1e12:.3g} TFLOP/s, batches of {room.size}"
    peer_words = f"bfloat16 product: {limit / 1e12:.3g} TFLOP/s"
    workload = f"{size}, {count} responses of {response} after {prompt} tokens, dim {DIM}: share of the roofline"
    yield Finding(
        workload=workload, ours=words, peer=peer_words, number=rate / limit, low=0.4 if size == "1.5B" else None
    )
    looped, _ = _timed(lambda: one_by_one(model, texts[:16]), device)
    ratio = looped / 16 * count / seconds
    yield Finding(workload=f"{size}: against a loop", peer=f"{looped / 16 * count:.3g} s", number=ratio, low=1.4)


def _timed(work: Any, device: str) -> tuple[float, Any]:
    begun = time.perf_counter()
    value = work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun, value


def _matmul_rate(device: str) -> float:
    """Operations per second of a large bfloat16 product."""
    side = 8192 if device == "cuda" else 512
    one, other = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    one @ other
    seconds, _ = _timed(lambda: [one @ other for _ in range(20)], device)
    return 20 * 2 * side**3 / seconds
