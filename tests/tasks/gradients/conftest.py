"""Tiny models of several architectures with LoRA on all linear layers, and texts for them."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

VOCABULARY = 97
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ARCHITECTURES = ("llama", "qwen2", "gemma", "gemma2", "gpt2")

MakeModel = Callable[..., Any]
Text = tuple[list[int], list[int]]


def _config(architecture: str, **changes: Any) -> Any:
    from transformers import Gemma2Config, GemmaConfig, GPT2Config, LlamaConfig, Qwen2Config

    if architecture == "gpt2":
        dropouts = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.1)
        sizes = {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": VOCABULARY, "n_positions": 128}
        return GPT2Config(**{**sizes, **dropouts, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **changes})
    kinds = {"llama": LlamaConfig, "qwen2": Qwen2Config, "gemma": GemmaConfig, "gemma2": Gemma2Config}
    head = {"head_dim": 8} if architecture.startswith("gemma") else {}
    tied = {"tie_word_embeddings": architecture.startswith("gemma")}
    return kinds[architecture](**{**SIZES, **head, **tied, **changes})


@pytest.fixture(scope="session")
def make_model() -> MakeModel:
    """Build a model with a LoRA adapter `own`: of zeros in B, as training begins, or of random numbers."""

    def make(
        architecture: str = "llama",
        *,
        dtype: torch.dtype = torch.float64,
        attention: str = "sdpa",
        silent: bool = False,
        **changes: Any,
    ) -> Any:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_config(_config(architecture, **changes), attn_implementation=attention)
        lora = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1, target_modules="all-linear", task_type="CAUSAL_LM")
        lora.fan_in_fan_out = architecture == "gpt2"  # its linear layers are transposed
        model: Any = get_peft_model(base, lora, adapter_name="own")
        for name, weights in model.named_parameters():
            if "lora_B" in name and not silent:
                torch.nn.init.normal_(weights, std=0.1)
        return model.to(dtype).eval().requires_grad_(requires_grad=False)

    return make


@pytest.fixture(scope="session")
def texts() -> list[Text]:
    """Four prompts of unlike length, one of a single token, each with responses of 1, 4 and 11 tokens."""
    generator = torch.Generator().manual_seed(1)

    def drawn(count: int) -> list[int]:
        return torch.randint(3, VOCABULARY, (count,), generator=generator).tolist()

    prompts = [drawn(count) for count in (5, 9, 1, 14)]
    return [(prompt, drawn(count)) for prompt in prompts for count in (1, 4, 11)]


@pytest.fixture(scope="session")
def likelihood() -> Callable[[Any, Text], torch.Tensor]:
    """log pi(y|x) of a single text, by plain indexing of its logits; differentiable."""

    def of(model: Any, text: Text) -> torch.Tensor:
        prompt, response = text
        logp = model(torch.tensor([[*prompt, *response]])).logits[0].log_softmax(-1)
        places = torch.arange(len(response)) + len(prompt) - 1
        return logp[places, torch.tensor(response)].sum()

    return of


@pytest.fixture(scope="session")
def matrices() -> Callable[[Any], dict[str, torch.nn.Parameter]]:
    """All LoRA matrices of a model in the order of their names."""

    def of(model: Any) -> dict[str, torch.nn.Parameter]:
        named = {name: weights for name, weights in model.named_parameters() if ".own." in name}
        plain = {name.removeprefix("base_model.model.").removesuffix(".own.weight"): name for name in named}
        return {name: named[plain[name]] for name in sorted(plain)}

    return of


@pytest.fixture(scope="session")
def autograd(
    likelihood: Callable[[Any, Text], torch.Tensor], matrices: Callable[[Any], dict[str, torch.nn.Parameter]]
) -> Callable[[Any, Sequence[Text]], torch.Tensor]:
    """Gradients of log pi(y|x) in all LoRA matrices by autograd, a text at a time, in the order of names, (n, size)."""

    def gradients(model: Any, texts: Sequence[Text]) -> torch.Tensor:
        own = list(matrices(model).values())
        for weights in own:
            weights.requires_grad_()
        rows = [torch.autograd.grad(likelihood(model, text), own) for text in texts]
        model.requires_grad_(requires_grad=False)
        return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])

    return gradients
