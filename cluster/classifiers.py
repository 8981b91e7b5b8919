"""Sequence classifiers: what such a checkpoint has to be, and the torch models that score conversations with one."""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from cluster.errors import InputError
from cluster.models import checked_folder
from cluster.rendering import Message, conversation_tokens
from cluster.settings import TorchSettings
from cluster.storage import digest_of_folder

ARCHITECTURE = "ForSequenceClassification"
"""How transformers ends the names of the models that serve."""


@dataclass(frozen=True)
class Classifier:
    """A checked checkpoint and how much it reads.

    Attributes:
        model: its folder.
        digest: that of the folder's bytes, so that a changed model is another one, wherever it lies.
        max_length: tokens of a conversation at most; None: what the model takes.
    """

    model: Path
    digest: str
    max_length: int | None


def classifier(folder: Path, max_length: int | None, *, setting: str) -> Classifier:
    """The classifier in a local folder; `setting` is where its path was given.

    Raises:
        InputError: no such folder, no checkpoint with a tokenizer in it, or a model that gives no single score.
    """
    found = checked_folder(folder.expanduser().resolve(), setting=setting)
    if not [*found.glob("tokenizer*"), *found.glob("vocab*"), *found.glob("*.model")]:
        raise InputError(f"model folder {found} has no tokenizer: save the model's own there too, or check {setting}")
    labels = _labels(found, setting)
    if labels not in {1, 2}:
        raise InputError(
            f"the model in {found} has {labels} labels: expected 1, whose logit is the score, or 2, the second's logit "
            f"minus the first's. Name another model in {setting}"
        )
    files = sorted(file for file in found.rglob("*") if file.is_file())
    stamps = tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    return Classifier(found, _digest(found, stamps), max_length)


def _labels(folder: Path, setting: str) -> int:
    """Labels of a checkpoint; transformers leaves out the default, which is 2."""
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file} is not JSON: {error}. Save the model again, or check {setting}") from error
    names = config.get("architectures") or []
    if not any(name.endswith(ARCHITECTURE) for name in names):
        raise InputError(
            f"the model in {folder} is no sequence classifier: found {', '.join(names) or 'no architecture'} in its "
            f"config.json, expected a name that ends in {ARCHITECTURE}. Name a reward model in {setting}"
        )
    return len(config["id2label"]) if config.get("id2label") else int(config.get("num_labels", 2))


@lru_cache
def _digest(folder: Path, stamps: tuple[tuple[str, int, int], ...]) -> str:  # noqa: ARG001 - what a change shows in
    return digest_of_folder(folder)


class TorchClassifier:
    """One classifier in this process; lives in an actor, because importing torch and loading weights is slow."""

    def __init__(self, classifier: Classifier, settings: TorchSettings) -> None:
        """Load the model, in float32 on a CPU and in the checkpoint's type on a GPU.

        Raises:
            InputError: the checkpoint lacks weights of the model, such as its head, which would be random numbers.
        """
        os.environ["HF_HUB_OFFLINE"] = "1"
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        if not settings.num_gpus:
            torch.set_num_threads(os.cpu_count() or 1)
        self._device = "cuda" if settings.num_gpus else "cpu"
        dtype = "auto" if settings.num_gpus else torch.float32
        model, found = AutoModelForSequenceClassification.from_pretrained(
            classifier.model, dtype=dtype, output_loading_info=True
        )
        if missing := sorted(found["missing_keys"]):
            raise InputError(f"the model in {classifier.model} lacks the weights {', '.join(missing)}: save all of it")
        self._model: Any = model.to(self._device).eval()
        self._model.config.use_cache = False
        self._tokenizer: Any = AutoTokenizer.from_pretrained(classifier.model)
        self._limit = _limit(classifier, self._model.config, self._tokenizer)

    def score(
        self, prompts: Sequence[Sequence[Message]], answers: Sequence[str], batch_size: int
    ) -> tuple[list[float], float]:
        """Score answer i after prompt i; gives the scores and the seconds it took.

        A model without a padding token takes one at a time, for it could not tell where a padded row ends.
        """
        started = time.perf_counter()
        rows = [self._tokens(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        by_length = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        step = 1 if self._padding is None else batch_size
        scores: dict[int, float] = {}
        for start in range(0, len(rows), step):
            batch = by_length[start : start + step]
            scores |= dict(zip(batch, self._forward([rows[i] for i in batch]), strict=True))
        return [scores[i] for i in range(len(rows))], time.perf_counter() - started

    def close(self) -> None:
        """Nothing outlives this process."""

    @property
    def _padding(self) -> int | None:
        padding: int | None = self._model.config.get_text_config().pad_token_id
        return padding

    def _tokens(self, prompt: Sequence[Message], answer: str) -> list[int]:
        """Token ids of both; where they are too many the first go, but for the mark that begins every text."""
        ids = conversation_tokens(self._tokenizer, prompt, answer)
        if len(ids) <= self._limit:
            return ids
        marks = {self._tokenizer.bos_token_id, self._tokenizer.cls_token_id} - {None}
        head = ids[:1] if ids[0] in marks else []
        return head + ids[len(ids) - self._limit + len(head) :]

    def _forward(self, rows: list[list[int]]) -> list[float]:
        import torch
        from torch.nn.utils.rnn import pad_sequence

        ids = [torch.tensor(row) for row in rows]
        padded = pad_sequence(ids, batch_first=True, padding_value=self._padding or 0).to(self._device)
        attention = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True).to(self._device)
        with torch.inference_mode():
            logits = self._model(input_ids=padded, attention_mask=attention).logits.float()
        scores: list[float] = (logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]).tolist()
        return scores


def _limit(classifier: Classifier, config: Any, tokenizer: Any) -> int:
    """Tokens that are read at most: what was asked for, and what model and tokenizer take."""
    places = getattr(config.get_text_config(), "max_position_embeddings", None)
    limits = [classifier.max_length, places, tokenizer.model_max_length]
    return min(int(limit) for limit in limits if limit is not None and limit > 0)
