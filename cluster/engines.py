"""vLLM engines: one profile per hardware, conversations in and responses out."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cluster.errors import InputError
from cluster.rendering import Message, plain_text, prompt_tokens
from cluster.settings import EngineSettings

SEED_STRIDE = 100_003
"""Distance of two prompts' seeds: vLLM gives child i of a request the seed `seed + i`, so they must not overlap."""


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn."""

    num_responses: int
    max_tokens: int
    temperature: float
    top_p: float


@dataclass(frozen=True)
class Sampled:
    """One drawn response; `logprob` is summed over its tokens under the sampler, nats."""

    text: str
    token_ids: list[int]
    logprob: float
    finish_reason: str


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter; name and folder must change whenever the weights do, or cached prefixes are stale."""

    name: str
    path: Path


@dataclass(frozen=True)
class EngineLimits:
    """What an engine is built for: tokens of prompt and response together, and the largest LoRA rank (0: no LoRA)."""

    max_model_len: int
    max_lora_rank: int


def check_engine(settings: EngineSettings) -> None:
    """See that vLLM is there before anything starts.

    Raises:
        InputError: vLLM is not installed in this environment, or the other interpreter doesn't exist.
    """
    if settings.python is not None:
        if not settings.python.exists():
            raise InputError(
                f"PAIRWRIGHT_ENGINE__PYTHON names {settings.python}, which does not exist: "
                "name the interpreter of an environment that holds vLLM and this project"
            )
    elif find_spec("vllm") is None:
        extra = "gpu" if settings.num_gpus else "cpu"
        raise InputError(
            f"vLLM is not installed: pip install 'pairwright[{extra}]', "
            "or name another environment's interpreter in PAIRWRIGHT_ENGINE__PYTHON"
        )


class VllmEngine:
    """One engine in this process; lives in an actor, because starting it takes half a minute."""

    def __init__(self, model: Path, limits: EngineLimits, settings: EngineSettings) -> None:
        """Load the model."""
        os.environ.update(_environment(settings))
        from vllm import LLM
        from vllm import __version__ as version

        self._version = f"vllm {version}"
        self._limits = limits
        self._on_gpu = settings.num_gpus > 0
        self._llm = LLM(**_arguments(model, limits, settings))

    def version(self) -> str:
        """Name and version of the engine."""
        return self._version

    def sample(
        self, prompts: Sequence[Sequence[Message]], sampling: Sampling, *, adapter: Adapter | None, seed: int
    ) -> tuple[list[list[Sampled]], float]:
        """Draw `num_responses` responses to every prompt; gives them and the seconds it took.

        On one machine and version the result depends on the arguments alone, not on what was drawn before:
        prefixes cached earlier are dropped. On a GPU every request has its own seed; on a CPU, where seeds per
        request can crash vLLM 0.32 ("CPU Generator does not use offset"), the engine's generator is seeded.

        Raises:
            InputError: a prompt leaves no room for a response.
        """
        import torch

        requests = [{"prompt_token_ids": self._tokens(messages, sampling)} for messages in prompts]
        seeds = [(seed + i * SEED_STRIDE) % 2**31 if self._on_gpu else None for i in range(len(prompts))]
        parameters = [_parameters(sampling, own) for own in seeds]
        self._llm.reset_prefix_cache()
        torch.manual_seed(seed)
        started = time.perf_counter()
        outputs = self._llm.generate(requests, parameters, lora_request=_lora(adapter), use_tqdm=False)
        seconds = time.perf_counter() - started
        return [[_sampled(output) for output in request.outputs] for request in outputs], seconds

    def close(self) -> None:
        """Stop the engine's own processes, which a killed actor would leave behind."""
        self._llm.llm_engine.engine_core.shutdown()

    def _tokens(self, messages: Sequence[Message], sampling: Sampling) -> list[int]:
        tokens = prompt_tokens(self._llm.get_tokenizer(), messages)
        room = self._limits.max_model_len - sampling.max_tokens
        if len(tokens) > room:
            raise InputError(
                f"the prompt {plain_text(messages)[:60]!r}... has {len(tokens)} tokens, but max_model_len "
                f"({self._limits.max_model_len}) less max_tokens ({sampling.max_tokens}) leaves {room}: "
                "shorten the prompt or raise generation.max_model_len"
            )
        return tokens


def _environment(settings: EngineSettings) -> dict[str, str]:
    shared = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING", "HF_HUB_OFFLINE": "1"}
    if settings.num_gpus:
        return shared
    return shared | {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": str(settings.cpu_cache_gib),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(os.cpu_count() or 1),
    }


def _arguments(model: Path, limits: EngineLimits, settings: EngineSettings) -> dict[str, Any]:
    shared: dict[str, Any] = {
        "model": str(model),
        "max_model_len": limits.max_model_len,
        "max_num_seqs": settings.max_num_seqs,
        "seed": 0,
        "logprobs_mode": "processed_logprobs",
        "enable_prefix_caching": True,
        "disable_log_stats": True,
    }
    if limits.max_lora_rank:
        shared |= {"enable_lora": True, "max_lora_rank": _served_rank(limits.max_lora_rank), "max_loras": 1}
    if not settings.num_gpus:
        dtype = "float32" if settings.dtype == "auto" else settings.dtype
        return shared | {"dtype": dtype, "enforce_eager": True}
    return shared | {
        "dtype": settings.dtype,
        "tensor_parallel_size": settings.num_gpus,
        "gpu_memory_utilization": settings.memory_share,
        "distributed_executor_backend": "mp",
    }


def _served_rank(rank: int) -> int:
    """The smallest rank vLLM serves (a fixed list) that holds `rank`."""
    return next(served for served in (8, 16, 32, 64, 128, 256, 320, 512) if served >= rank)


def _parameters(sampling: Sampling, seed: int | None) -> Any:
    from vllm import SamplingParams

    return SamplingParams(
        n=sampling.num_responses,
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        logprobs=0,
        seed=seed,
    )


def _lora(adapter: Adapter | None) -> Any:
    if adapter is None:
        return None
    from vllm.lora.request import LoRARequest

    number = int.from_bytes(adapter.name.encode()[-6:], "big") % (2**31 - 1) + 1
    return LoRARequest(adapter.name, number, str(adapter.path))


def _sampled(output: Any) -> Sampled:
    return Sampled(output.text, list(output.token_ids), float(output.cumulative_logprob), str(output.finish_reason))
