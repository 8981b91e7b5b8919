"""Torch models that score given responses: log-probabilities and hidden states."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cluster.rendering import Message, prompt_tokens
from cluster.settings import TorchSettings

if TYPE_CHECKING:
    import torch

Pooling = Literal["last", "mean"]


@dataclass(frozen=True)
class Scored:
    """One response: summed log-probabilities in nats, and its hidden state of the final layer under the policy."""

    logp_policy: float
    logp_reference: float
    feature: list[float]


@dataclass(frozen=True)
class Scoring:
    """Which adapters to score under (None: the base model), how states are pooled, and how many go together."""

    policy: Path | None
    reference: Path | None
    pooling: Pooling
    batch_size: int


class TorchScorer:
    """One model in this process; lives in an actor, because importing torch and loading weights is slow."""

    def __init__(self, model: Path, settings: TorchSettings) -> None:
        """Load the base model, in float32 on a CPU and in the checkpoint's type on a GPU."""
        os.environ["HF_HUB_OFFLINE"] = "1"
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        if not settings.num_gpus:
            torch.set_num_threads(os.cpu_count() or 1)
        self._device = "cuda" if settings.num_gpus else "cpu"
        dtype = "auto" if settings.num_gpus else torch.float32
        self._model: Any = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).to(self._device).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(model)

    def score(
        self, prompts: Sequence[Sequence[Message]], responses: Sequence[list[int]], scoring: Scoring
    ) -> tuple[list[Scored], float]:
        """Score response i, given as token ids, after prompt i; gives the scores and the seconds it took."""
        started = time.perf_counter()
        pairs = [
            (prompt_tokens(self._tokenizer, prompt), list(tokens))
            for prompt, tokens in zip(prompts, responses, strict=True)
        ]
        by_length = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
        scored: dict[int, Scored] = {}
        for start in range(0, len(pairs), scoring.batch_size):
            batch = by_length[start : start + scoring.batch_size]
            scored |= dict(zip(batch, self._score([pairs[i] for i in batch], scoring), strict=True))
        return [scored[i] for i in range(len(pairs))], time.perf_counter() - started

    def close(self) -> None:
        """Nothing outlives this process."""

    def _score(self, pairs: list[tuple[list[int], list[int]]], scoring: Scoring) -> list[Scored]:
        logp, states = self._forward(pairs, scoring.policy, scoring.pooling)
        same = scoring.reference == scoring.policy
        reference = logp if same else self._forward(pairs, scoring.reference, scoring.pooling)[0]
        return [Scored(*row) for row in zip(logp.tolist(), reference.tolist(), states.tolist(), strict=True)]

    def _forward(
        self, pairs: list[tuple[list[int], list[int]]], adapter: Path | None, pooling: Pooling
    ) -> "tuple[torch.Tensor, torch.Tensor]":
        """Log-probabilities (batch,) and pooled states (batch, hidden) of padded prompts with their responses."""
        import torch

        ids, attention, answers = _padded(pairs, self._device)
        with torch.inference_mode(), _under(self._with(adapter), adapter):
            output = self._model(input_ids=ids, attention_mask=attention, output_hidden_states=True, use_cache=False)
        logits = output.logits[:, :-1].float()
        taken = logits.gather(-1, ids[:, 1:, None]).squeeze(-1) - logits.logsumexp(-1)
        logp = taken.masked_fill(~answers[:, 1:], 0.0).double().sum(-1)
        return logp, _pool(output.hidden_states[-1].float(), answers, pooling)

    def _with(self, adapter: Path | None) -> Any:
        """The model with this adapter loaded and active, or with what adapters there are left inactive."""
        from peft import PeftModel

        if adapter is None:
            return self._model
        name = str(adapter).replace(".", "_")
        if not isinstance(self._model, PeftModel):
            self._model = PeftModel.from_pretrained(self._model, adapter, adapter_name=name).eval()
        elif name not in self._model.peft_config:
            self._model.load_adapter(adapter, adapter_name=name)
            self._model.eval()
        self._model.set_adapter(name)
        return self._model


def _under(model: Any, adapter: Path | None) -> Any:
    """A block in which a model speaks without adapters where `adapter` is None."""
    from contextlib import nullcontext

    from peft import PeftModel

    return model.disable_adapter() if adapter is None and isinstance(model, PeftModel) else nullcontext()


def _padded(pairs: list[tuple[list[int], list[int]]], device: str) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
    """Token ids padded on the right, attention mask and mask of response tokens, each (batch, longest)."""
    import torch

    longest = max(len(prompt) + len(answer) for prompt, answer in pairs)
    ids, attention, answers = (torch.zeros(len(pairs), longest, dtype=torch.long) for _ in range(3))
    for row, (prompt, answer) in enumerate(pairs):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor(prompt + answer)
        attention[row, :end] = 1
        answers[row, len(prompt) : end] = 1
    return ids.to(device), attention.to(device), answers.bool().to(device)


def _pool(states: "torch.Tensor", answers: "torch.Tensor", pooling: Pooling) -> "torch.Tensor":
    """The last response token's state, or the mean over response tokens; (batch, hidden)."""
    if pooling == "mean":
        return (states * answers[..., None]).sum(1) / answers.sum(1, keepdim=True).clamp(min=1)
    import torch

    places = torch.arange(answers.shape[1], device=answers.device)
    last = (answers * places).argmax(1)
    return states[torch.arange(len(states)), last]
