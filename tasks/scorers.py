"""Torch models that score given responses: log-probabilities under two policies, and a vector for each."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cluster.rendering import Message, prompt_tokens
from cluster.settings import TorchSettings

if TYPE_CHECKING:
    from tasks.gradients.batches import Tokens
    from tasks.gradients.passes import Room
    from tasks.gradients.vectors import Vectors

TOO_LONG = "too_long"
"""Fault of a response that, with its prompt, exceeds what the model can read; it is not scored."""

NOT_FINITE = "not_finite"
"""Fault of a response whose log-probability or vector holds NaN or infinity."""


class MakesVectors(Protocol):
    """A config of features: what it says of the vector, turned into what measures it."""

    @property
    def space(self) -> dict[str, Any]:
        """What decides a vector, beside response and policy; JSON-able."""
        ...

    def vectors(self, model: Any, adapter: str) -> "Vectors":
        """Get ready for a model of transformers or PEFT, whose active adapter, if there is one, has this name."""
        ...


@dataclass(frozen=True)
class Scoring:
    """How responses are scored.

    Attributes:
        policy: adapter to score under; None: the base model.
        reference: adapter to compare with; None: the base model.
        features: the vector.
        same: whether policy and reference say the same, and one pass tells of both.
        batch_size: responses that go through the model together at most; None: as many as memory takes.
    """

    policy: Path | None
    reference: Path | None
    features: MakesVectors
    same: bool
    batch_size: int | None = None


@dataclass(frozen=True, eq=False)
class Scores:
    """What a call of `TorchScorer.score` found; log-probabilities are sums over tokens, nats.

    Attributes:
        logp_policy: (n,), NaN where there is a fault.
        logp_reference: (n,), NaN where there is a fault.
        vectors: float32, (n, dim); zeros where there is a fault.
        faults: why a response has no score, or None.
        tokens: of prompts and responses that were scored.
        seconds: of the model.
        facts: how it was done.
    """

    logp_policy: NDArray[np.float64]
    logp_reference: NDArray[np.float64]
    vectors: NDArray[np.float32]
    faults: list[str | None]
    tokens: int
    seconds: float
    facts: dict[str, Any]


class TorchScorer:
    """One model in this process; lives in an actor, because importing torch and loading weights is slow."""

    def __init__(self, model: Path, settings: TorchSettings) -> None:
        """Load the base model, in float32 on a CPU and in the checkpoint's type on a GPU."""
        os.environ["HF_HUB_OFFLINE"] = "1"
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        if not settings.num_gpus:
            torch.set_num_threads(os.cpu_count() or 1)
        self._settings = settings
        self._device = "cuda" if settings.num_gpus else "cpu"
        dtype = "auto" if settings.num_gpus else torch.float32
        self._model: Any = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).to(self._device).eval()
        self._model.requires_grad_(False)
        self._config = self._model.config.get_text_config()
        self._tokenizer = AutoTokenizer.from_pretrained(model)

    def score(
        self, prompts: Sequence[Sequence[Message]], responses: Sequence[Sequence[int]], scoring: Scoring
    ) -> Scores:
        """Score response i, given as token ids, after prompt i.

        Raises:
            ValueError: adapter or projection don't fit the features asked for.
        """
        started = time.perf_counter()
        texts = [
            (prompt_tokens(self._tokenizer, prompt), list(tokens))
            for prompt, tokens in zip(prompts, responses, strict=True)
        ]
        kept = [place for place, text in enumerate(texts) if _length(text) <= self._limit]
        short = [texts[place] for place in kept]
        logp, reference, vectors, facts = self._passes(short, scoring)
        finite = np.isfinite(vectors).all(1) & np.isfinite(logp) & np.isfinite(reference)
        faults: list[str | None] = [TOO_LONG] * len(texts)
        for place, is_finite in zip(kept, finite, strict=True):
            faults[place] = None if is_finite else NOT_FINITE
        good = np.array(kept, dtype=np.intp)[finite]
        return Scores(
            logp_policy=_spread(logp[finite], good, len(texts), np.nan),
            logp_reference=_spread(reference[finite], good, len(texts), np.nan),
            vectors=_spread(vectors[finite], good, len(texts), 0),
            faults=faults,
            tokens=sum(map(_length, short)),
            seconds=time.perf_counter() - started,
            facts=facts,
        )

    def close(self) -> None:
        """Nothing outlives this process."""

    @property
    def _limit(self) -> int:
        """Tokens that the model can read."""
        return getattr(self._config, "max_position_embeddings", None) or 2**31

    def _passes(
        self, texts: "Sequence[Tokens]", scoring: Scoring
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float32], dict[str, Any]]:
        """Log-probabilities under policy and reference, vectors, and how they were had."""
        from tasks.gradients.passes import measure
        from tasks.gradients.vectors import Likelihoods

        with self._speaking(scoring.policy) as model:
            vectors = scoring.features.vectors(model, _name_of(scoring.policy))
            found, size = measure(model, texts, vectors, self._room(texts, scoring))
        reference = found
        if not scoring.same:
            with self._speaking(scoring.reference) as model:
                reference, _ = measure(model, texts, Likelihoods(), self._room(texts, scoring))
        facts = {**vectors.facts, "attention": self._config._attn_implementation, "batch_size": size}
        return found.logp.numpy(), reference.logp.numpy(), found.vectors.numpy(), facts

    def _room(self, texts: "Sequence[Tokens]", scoring: Scoring) -> "Room":
        """Batches of the size that was asked for, or that the free memory suggests."""
        from accelerate.utils.memory import should_reduce_batch_size

        from tasks.gradients.passes import MOST_ON_CPU, MOST_ON_GPU, Room, size_that_fits

        most = MOST_ON_GPU if self._settings.num_gpus else MOST_ON_CPU
        longest = max(map(_length, texts), default=1)
        fitting = min(most, size_that_fits(self._config, longest, self._free_bytes()))
        return Room(scoring.batch_size or fitting, should_reduce_batch_size)

    def _free_bytes(self) -> int:
        """Memory that this actor may still take: of its share of a GPU, or of the machine."""
        import psutil
        import torch

        if not self._settings.num_gpus:
            return int(psutil.virtual_memory().available)
        free, total = torch.cuda.mem_get_info()
        taken = torch.cuda.memory_allocated()
        cached = torch.cuda.memory_reserved() - taken
        return min(free + cached, int(min(1.0, self._settings.num_gpus) * total) - taken)

    @contextmanager
    def _speaking(self, adapter: Path | None) -> Iterator[Any]:
        """The model with this adapter loaded and active, or without adapters, for the block."""
        from peft import PeftModel

        if adapter is None:
            with self._model.disable_adapter() if isinstance(self._model, PeftModel) else nullcontext():
                yield self._model
            return
        name = _name_of(adapter)
        if not isinstance(self._model, PeftModel):
            self._model = PeftModel.from_pretrained(self._model, adapter, adapter_name=name)
        elif name not in self._model.peft_config:
            self._model.load_adapter(adapter, adapter_name=name)
        self._model.set_adapter(name)
        self._model.eval().requires_grad_(False)
        yield self._model


def _name_of(adapter: Path | None) -> str:
    return str(adapter).replace(".", "_")


def _length(text: "Tokens") -> int:
    return len(text[0]) + len(text[1])


def _spread(values: NDArray[Any], places: NDArray[np.intp], count: int, padding: float) -> NDArray[Any]:
    """An array of `count` rows with the values in these places and `padding` elsewhere."""
    filled = np.full((count, *values.shape[1:]), padding, dtype=values.dtype)
    filled[places] = values
    return filled
