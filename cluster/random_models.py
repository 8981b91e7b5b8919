"""Random models: a fake that ships, for trying a lineage out and for tests. What they write is noise."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = ("good", "bad", "happy", "sad", "love", "hate", "great", "awful", "nice", "poor", "fine", "dull", "warm")
"""What the tokenizer has merges for; all else is cut into bytes."""

SPECIAL = ("<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
HEAD_SIZE = 32
"""Coordinates of an attention head; the smallest that vLLM takes on a CPU."""


def byte_tokenizer() -> "PreTrainedTokenizerFast":
    """A byte-level tokenizer of some hundred tokens, with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bare.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    pad, begin, end = SPECIAL[:3]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bare, pad_token=pad, bos_token=begin, eos_token=end, padding_side="left"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def random_llama(vocab_size: int, seed: int, *, hidden_size: int, num_hidden_layers: int) -> "LlamaForCausalLM":
    """A Llama as its initialisation leaves it; for texts of `byte_tokenizer`, up to 512 tokens long."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    num_heads = hidden_size // HEAD_SIZE
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads // 2,
        max_position_embeddings=512,
        bos_token_id=SPECIAL.index("<s>"),
        eos_token_id=SPECIAL.index("</s>"),
        pad_token_id=SPECIAL.index("<pad>"),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)
