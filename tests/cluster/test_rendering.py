"""Prompts as tokens and as text."""

from pathlib import Path
from typing import Any

import pytest

from cluster.rendering import is_chat, plain_text, prompt_tokens

CHAT = [{"role": "user", "content": "good or bad"}, {"role": "assistant", "content": "bad"}]
PLAIN = [{"role": None, "content": "good or bad"}]


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model, local_files_only=True)


def test_a_message_without_a_role_is_plain_text() -> None:
    assert is_chat(CHAT)
    assert not is_chat(PLAIN)


def test_a_chat_prompt_follows_the_template_up_to_where_the_response_begins(tokenizer: Any) -> None:
    text = tokenizer.decode(prompt_tokens(tokenizer, CHAT), clean_up_tokenization_spaces=False)
    assert text == "<|user|>good or bad</s><|assistant|>bad</s><|assistant|>"


def test_a_plain_prompt_is_tokenised_as_it_stands(tokenizer: Any) -> None:
    tokens = prompt_tokens(tokenizer, PLAIN)
    assert tokenizer.decode(tokens, clean_up_tokenization_spaces=False) == "good or bad"
    assert not set(tokens) & set(tokenizer.all_special_ids)
    assert all(type(token) is int for token in tokens)


def test_a_person_reads_each_turn_with_its_role_and_plain_text_without() -> None:
    assert plain_text(CHAT) == "user: good or bad\n\nassistant: bad"
    assert plain_text(PLAIN) == "good or bad"
