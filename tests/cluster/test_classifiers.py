"""Sequence classifiers against transformers' own forward pass of one text at a time, and what is no classifier."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from cluster.classifiers import Classifier, TorchClassifier, classifier
from cluster.errors import InputError
from cluster.rendering import Message
from cluster.settings import TorchSettings

SETTING = "features.proxy.path"
PROMPTS: list[list[Message]] = [
    [{"role": "user", "content": "good or bad"}],
    [{"role": None, "content": "warm and"}],
    [{"role": "user", "content": "happy, sad, love, hate: which is it?"}, {"role": "assistant", "content": "love"}],
    [{"role": "user", "content": "dull"}],
    [{"role": "user", "content": "dull"}],
    [{"role": "user", "content": "dull"}],
]
ANSWERS = ["good", " nice", "hate, and for a longer reason than any other", "", "awful", "awful<pad>"]
PLACES = 96

Save = Callable[..., Path]


@pytest.fixture(scope="module")
def save(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Save:
    """Save a random tiny classifier with the tiny tokenizer."""

    def make(kind: str = "llama", *, num_labels: int = 1, chat: bool = True, pad: int | None = 0) -> Path:
        folder = tmp_path_factory.mktemp("classifiers") / f"{kind}-{num_labels}"
        tokenizer = AutoTokenizer.from_pretrained(tiny_model)
        if not chat:
            tokenizer.chat_template = None
        torch.manual_seed(num_labels)
        shared: dict[str, Any] = {
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": PLACES,
            "num_labels": num_labels,
            "pad_token_id": pad,
            "initializer_range": 0.5,
        }
        model = {
            "llama": lambda: LlamaForSequenceClassification(LlamaConfig(**shared)),
            "bert": lambda: BertForSequenceClassification(BertConfig(**shared)),
        }[kind]()
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


def scorer_of(folder: Path, max_length: int | None = None) -> TorchClassifier:
    made = TorchClassifier(classifier(folder, max_length, setting=SETTING), TorchSettings())
    torch.set_num_threads(1)
    return made


def texts_of(tokenizer: Any) -> list[str]:
    """The conversations as they are read, written out anew."""
    texts = []
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        said = [*prompt, {"role": "assistant", "content": answer}]
        if prompt[0]["role"] is None:
            texts.append(f"{prompt[0]['content']}{answer}")
        elif tokenizer.chat_template:
            texts.append(tokenizer.apply_chat_template(said, tokenize=False))
        else:
            texts.append("\n\n".join(f"{message['role']}: {message['content']}" for message in said))
    return texts


def one_by_one(folder: Path) -> list[float]:
    """The scores of one text at a time, without padding."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    found = []
    for text in texts_of(tokenizer):
        with torch.inference_mode():
            logits = model(torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])).logits[0]
        found.append(float(logits[0] if len(logits) == 1 else logits[1] - logits[0]))
    return found


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"num_labels": 2},
        {"chat": False},
        {"pad": None},
        {"kind": "bert"},
        {"kind": "bert", "num_labels": 2, "chat": False},
    ],
    ids=str,
)
def test_scores_are_those_of_one_text_at_a_time_whatever_the_batch(save: Save, shape: dict[str, Any]) -> None:
    folder = save(**shape)
    expected, scorer = one_by_one(folder), scorer_of(folder)
    assert max(expected) - min(expected) > 0.1
    for batch_size in (1, 2, 16):
        scores, seconds = scorer.score(PROMPTS, ANSWERS, batch_size)
        assert scores == pytest.approx(expected, abs=1e-5)
        assert seconds > 0
    turned, _ = scorer.score(PROMPTS[::-1], ANSWERS[::-1], 4)
    assert turned[::-1] == pytest.approx(expected, abs=1e-5)
    assert scorer.score([], [], 4)[0] == []


def test_what_is_too_long_loses_its_beginning(save: Save) -> None:
    """The model has 96 places: the end of a long text is what it reads, and less of it where less is asked for."""
    folder = save()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    prompt = [{"role": None, "content": "sad love hate dull warm " * 30}]
    ids = tokenizer(f"{prompt[0]['content']}good")["input_ids"]
    assert len(ids) > PLACES
    for limit, kept in ((None, PLACES), (1000, PLACES), (7, 7), (1, 1)):
        with torch.inference_mode():
            expected = float(model(torch.tensor([ids[-kept:]])).logits)
        assert scorer_of(folder, limit).score([prompt], ["good"], 1)[0] == pytest.approx([expected], abs=1e-5)


def test_the_mark_that_begins_every_text_stays(save: Save) -> None:
    folder = save("bert")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = "<s>{% for m in messages %}{{ m['content'] }}{% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(settings["chat_template"])
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    ids = AutoTokenizer.from_pretrained(folder)("<s>good badwarm", add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        expected = float(model(torch.tensor([ids[:1] + ids[-2:]])).logits)
    prompt: list[Message] = [{"role": "user", "content": "good bad"}]
    assert scorer_of(folder, 3).score([prompt], ["warm"], 1)[0] == pytest.approx([expected], abs=1e-5)


def test_a_checkpoint_without_its_head_is_not_scored_with_a_random_one(save: Save, tiny_model: Path) -> None:
    folder = save()
    weights = (tiny_model / "model.safetensors").read_bytes()
    config = json.loads((tiny_model / "config.json").read_text())
    config |= {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "score"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(weights)
    with pytest.raises(InputError, match=r"lacks the weights score\.weight: save all of it"):
        scorer_of(folder)


def test_the_digest_is_that_of_the_bytes_wherever_they_lie(save: Save, tmp_path: Path) -> None:
    first = save()
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for file in first.iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    one, other = (classifier(folder, None, setting=SETTING) for folder in (first, moved))
    assert one.digest == other.digest
    assert one != other
    weights = bytearray((moved / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (moved / "model.safetensors").write_bytes(weights)
    assert classifier(moved, None, setting=SETTING).digest != one.digest
    assert isinstance(one, Classifier)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, r"is no sequence classifier: found LlamaForCausalLM in its config"),
        ({}, r"is no sequence classifier: found no architecture in its config\.json, expected a name that ends in"),
        (
            {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "a", "1": "b", "2": "c"}},
            r"has 3 labels: expected 1, whose logit is the score, or 2, .*Name another model in features\.proxy\.path",
        ),
        ("no JSON", r"config\.json is not JSON: .*check features\.proxy\.path"),
    ],
    ids=["causal", "nothing", "three labels", "no JSON"],
)
def test_what_gives_no_single_score_is_refused(tmp_path: Path, config: Any, message: str) -> None:
    (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "tokenizer.json").touch()
    with pytest.raises(InputError, match=message):
        classifier(tmp_path, None, setting=SETTING)


def test_a_folder_without_a_tokenizer_or_no_folder_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere does not exist: check features\.proxy\.path"):
        classifier(tmp_path / "nowhere", None, setting=SETTING)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["BertForSequenceClassification"]}))
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(InputError, match=r"has no tokenizer: save the model's own there too"):
        classifier(tmp_path, None, setting=SETTING)
