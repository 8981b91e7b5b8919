"""Prompts as the tokens that a policy reads."""

from collections.abc import Mapping, Sequence
from typing import Any

Message = Mapping[str, str | None]


def is_chat(messages: Sequence[Message]) -> bool:
    """Whether the prompt is a conversation; one message without a role is plain text."""
    return messages[0]["role"] is not None


def prompt_tokens(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Token ids of a prompt up to where the response begins: the chat template's, or those of the plain text."""
    if not is_chat(messages):
        return list(tokenizer(messages[0]["content"])["input_ids"])
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"])


def conversation_tokens(tokenizer: Any, messages: Sequence[Message], answer: str) -> list[int]:
    """Token ids of a prompt and a whole answer to it: the chat template's, or those of the plain text.

    Plain text are prompts that are plain text themselves, which the answer continues, and all prompts where the
    tokenizer has no chat template.
    """
    said = [*messages, {"role": "assistant", "content": answer}]
    if is_chat(messages) and tokenizer.chat_template is not None:
        return list(tokenizer.apply_chat_template(said, return_dict=True)["input_ids"])
    text = plain_text(said) if is_chat(messages) else f"{messages[0]['content']}{answer}"
    return list(tokenizer(text)["input_ids"])


def plain_text(messages: Sequence[Message]) -> str:
    """The prompt as a person or a labeller reads it."""
    if not is_chat(messages):
        return str(messages[0]["content"])
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)
