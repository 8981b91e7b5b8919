"""PREFIX: what a gradient that stops at the prompt saves, and how far a selection on it goes astray."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from features.models import BATCH, LINEAR, demo_model, drawn
from measuring import Finding, take_turns
from peft import LoraConfig, get_peft_model

from tasks.design.pool import Pool
from tasks.design.selectors.designs import TraceDesign
from tasks.design.selectors.greedy import ActiveDpo
from tasks.gradients.batches import Tokens
from tasks.gradients.passes import Room, measure
from tasks.gradients.projections import CountSketch
from tasks.gradients.taps import lora_layers
from tasks.gradients.vectors import Likelihoods, LoraGradients, Measured

PROMPTS, RESPONSES, DIM = 12, 4, 1024
BUDGET = 18


def stopped_gradient(_repeats: int, *, prompt: int, response: int) -> Iterator[Finding]:
    """On the demo model, with its own continuations of random prompts."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=LINEAR, task_type="CAUSAL_LM")
    model: Any = get_peft_model(demo_model(), lora).eval().requires_grad_(requires_grad=False)
    texts = _continued(model, prompt, response)
    layers = lora_layers(model, "default")

    def gradients(*, whole: bool) -> Measured:
        return measure(model, texts, LoraGradients(layers, CountSketch(dim=DIM), whole=whole), Room(BATCH))[0]

    exact, stopped = take_turns(lambda: gradients(whole=True), lambda: gradients(whole=False), repeats=1)
    workload = f"SmolLM2-135M, {PROMPTS} prompts of {prompt} x {RESPONSES} responses of {response} tokens"
    words = f"whole gradient: {exact}"
    yield Finding(workload=workload, ours=str(stopped), peer=words, number=exact.seconds / stopped.seconds)
    pools = [_pool(of.value.vectors.numpy()) for of in (exact, stopped)]
    cosine = torch.nn.functional.cosine_similarity(exact.value.vectors, stopped.value.vectors).mean()
    yield Finding(workload="cosine of both gradients of a response, mean", number=float(cosine))
    for selector in (ActiveDpo(), TraceDesign(max_pairs_per_prompt=3)):
        first, second = (set(_pairs(selector, pool)) for pool in pools)
        share = len(first & second) / BUDGET
        words = f"{len(first & second)} of {BUDGET} pairs; by chance {BUDGET / pools[0].num_pairs:.2f}"
        yield Finding(workload=f"{selector.kind}: share of the same pairs", ours=words, number=share)
    room = Room(BATCH)
    alone, shared = take_turns(
        lambda: measure(model, texts, _Whole(), room), lambda: measure(model, texts, Likelihoods(), room), repeats=1
    )
    words = f"prompts read anew for every response: {alone}"
    workload = "log-probabilities alone, prompts read once (exact)"
    yield Finding(workload=workload, ours=str(shared), peer=words, number=alone.seconds / shared.seconds)
    gap = float((alone.value[0].logp - shared.value[0].logp).abs().max())
    yield Finding(workload="largest difference of a log-probability, nats", number=gap, high=1e-2)


class _Whole(Likelihoods):
    """Log-probabilities, every text read whole."""

    reads_prompts_once = False


def _continued(model: Any, prompt: int, response: int) -> list[Tokens]:
    generator = torch.Generator().manual_seed(3)
    texts: list[Tokens] = []
    for _ in range(PROMPTS):
        opening = drawn(prompt, generator)
        answers = model.generate(
            torch.tensor([opening] * RESPONSES), max_new_tokens=response, min_new_tokens=response, do_sample=True
        )
        texts += [(opening, answer[prompt:].tolist()) for answer in answers]
    return texts


def _pool(vectors: np.ndarray) -> Pool:
    features = vectors.reshape(PROMPTS, RESPONSES, DIM) / np.sqrt(np.mean(vectors**2))
    shape = features.shape[:2]
    return Pool(features=features, valid=np.ones(shape, dtype=np.bool_), rewards=np.zeros(shape), beta=0.1)


def _pairs(selector: Any, pool: Pool) -> list[tuple[int, int, int]]:
    chosen = selector(pool, BUDGET, np.random.default_rng(0))
    return list(zip(chosen.prompt.tolist(), chosen.first.tolist(), chosen.second.tolist(), strict=True))
