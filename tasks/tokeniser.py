"""Given texts as the tokens that a sampler would have stored with them."""

import json
from collections.abc import Sequence
from pathlib import Path


class Tokeniser:
    """Texts as the tokens that a sampler would have stored with them."""

    def __init__(self, model: Path) -> None:
        """Load the tokenizer of a checkpoint folder."""
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
        self._ends = {chat: self._end(model, chat=chat) for chat in (False, True)}

    def __call__(self, texts: Sequence[str], *, chat: bool) -> list[list[int]]:
        """Each text's own tokens and the one that ends it.

        A text is split as it stands, without tokens that a tokenizer puts around; where it spells a special token it
        gets the tokens of its letters. A sampled text can have other tokens, for a policy may spell a text in many
        ways; those are its canonical ones. Afterwards comes the token at which sampling stops and which it stores: in a
        conversation the one that the chat template puts behind an answer, if sampling stops there, else the
        tokenizer's end of text, if it has one.
        """
        split = self._tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return [[*tokens, *self._ends[chat]] for tokens in split]

    def _end(self, model: Path, *, chat: bool) -> list[int]:
        stops, usual = _stops(model), self._tokenizer.eos_token_id
        if chat and self._tokenizer.chat_template is not None:
            said = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
            shown = str(self._tokenizer.apply_chat_template(said, tokenize=False))
            behind = self._tokenizer(shown.rpartition("answer")[2], add_special_tokens=False)["input_ids"]
            if behind and behind[0] in stops:
                return [behind[0]]
        return [] if usual is None else [usual]


def _stops(model: Path) -> set[int]:
    """Tokens at which sampling stops beside the tokenizer's end of text, as the checkpoint's config names them."""
    file = model / "generation_config.json"
    named = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id") if file.exists() else None
    return {named} if isinstance(named, int) else set(named or [])
