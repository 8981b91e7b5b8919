"""Models, pairs and trainers for the benchmarks of training."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from features.models import demo_folder, demo_model
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer

from tasks.labellers.rewards import Sentiment
from tasks.trainer.batches import NUMBERS, ROW
from tasks.trainer.pair_trainer import PairTrainer, Parts, Recipe

LORA = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=8, lora_alpha=16)
MAX_LENGTH, VOCABULARY = 512, 4096

NOUNS = ("film", "meal", "trip", "book", "hotel", "lesson", "garden", "concert")
GOOD = ["good", "great", "happy", "lovely", "superb", "excellent", "wonderful", "pleasant", "brilliant", "charming"]
BAD = ["bad", "awful", "sad", "horrible", "terrible", "poor", "dreadful", "nasty", "boring", "ugly", "disgusting"]
PLAIN = ["long", "short", "old", "new", "large", "small", "usual", "quiet", "early", "late", "red", "round"]
ADJECTIVES = [*GOOD, *BAD, *PLAIN]
IDS = {word: 3 + place for place, word in enumerate((*NOUNS, *ADJECTIVES))}


@dataclass(frozen=True)
class Case:
    """A model and how it is trained.

    Attributes:
        name: what the table calls it.
        hidden: width of a random Llama of 4 layers; None: SmolLM2-135M with its weights.
        steps: that are timed.
        batch: pairs of a step.
        micro: pairs in memory at a time.
    """

    name: str
    hidden: int | None
    steps: int
    batch: int = 8
    micro: int = 4

    def model(self) -> Any:
        """The model in float32."""
        torch.manual_seed(0)
        return demo_model() if self.hidden is None else AutoModelForCausalLM.from_config(_tiny(self.hidden))

    def arguments(self, folder: Path, **more: Any) -> DPOConfig:
        """TRL's arguments; `more` of them win."""
        plain = {
            "output_dir": str(folder),
            "per_device_train_batch_size": self.micro,
            "per_device_eval_batch_size": self.micro,
            "gradient_accumulation_steps": self.batch // self.micro,
            "max_steps": self.steps,
            "learning_rate": 1e-4,
            "beta": 0.1,
            "max_length": MAX_LENGTH,
            "logging_steps": 1,
            "save_strategy": "no",
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "report_to": "none",
            "disable_tqdm": True,
        }
        return DPOConfig(**(plain | more))


class Tokenised(DPOTrainer):  # type: ignore[misc]
    """TRL's trainer as it is, given tokens, so that both sides read the same."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset


def tokenizer() -> PreTrainedTokenizerBase:
    """The demo's."""
    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(demo_folder())
    return found


def random_pairs(count: int, prompt: int = 32) -> Dataset:
    """Pairs of responses of 16 to 63 random tokens, whose reference is not known."""
    draw = random.Random(1)
    lengths = [_lengths(prompt, draw) for _ in range(count)]
    return _pairs([[[draw.randrange(3, VOCABULARY) for _ in range(length)] for length in row] for row in lengths])


def sentiment_pairs(count: int, seed: int) -> Dataset:
    """Two sentences of four adjectives each, a token a word, of which VADER likes one better."""
    like, draw = Sentiment(), random.Random(seed)
    rows: list[list[list[int]]] = []
    while len(rows) < count:
        noun = draw.choice(NOUNS)
        said = [" ".join([noun, *draw.choices(ADJECTIVES, k=4)]) for _ in range(2)]
        rewards = like(said)
        if rewards[0] != rewards[1]:
            better, worse = (said[place] for place in (rewards.index(max(rewards)), rewards.index(min(rewards))))
            rows.append([_spelt(noun), _spelt(better), _spelt(worse)])
    return _pairs(rows)


def flipped(pairs: Dataset, share: float, seed: int) -> Dataset:
    """The pairs, of which a share has its sides turned."""
    turned = set(random.Random(seed).sample(range(len(pairs)), round(share * len(pairs))))
    names = ("chosen_ids", "rejected_ids", "ref_chosen_logps", "ref_rejected_logps")
    others = dict(zip(names, (names[1], names[0], names[3], names[2]), strict=True))
    rows = [row | ({name: row[others[name]] for name in names} if row[ROW] in turned else {}) for row in pairs]
    return Dataset.from_list(rows)


def trainer_of(case: Case, pairs: Dataset, recipe: Recipe, folder: Path, **arguments: Any) -> PairTrainer:
    """Ours, whose reference is known."""
    trainer = PairTrainer(case.model(), Parts(tokenizer(), LORA), case.arguments(folder, **arguments), pairs, recipe)
    trainer.complete_references(trainer.model.disable_adapter())
    return trainer


def trls(case: Case, pairs: Dataset, folder: Path, **arguments: Any) -> DPOTrainer:
    """TRL's own, on the same pairs."""
    return Tokenised(
        case.model(),
        args=case.arguments(folder, **arguments),
        train_dataset=pairs.remove_columns(["ref_chosen_logps", "ref_rejected_logps"]),
        processing_class=tokenizer(),
        peft_config=LORA,
    )


def num_tokens(pairs: Dataset) -> int:
    """Tokens of both responses with their prompts, of all pairs."""
    return sum(2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in pairs)


def _pairs(rows: Sequence[Sequence[list[int]]]) -> Dataset:
    numbers = dict.fromkeys(NUMBERS, float("nan")) | {"weight": 1.0}
    return Dataset.from_list(
        [
            {
                "pair_id": f"pair-{row}",
                ROW: row,
                "prompt_ids": prompt,
                "chosen_ids": chosen,
                "rejected_ids": rejected,
                "length": len(prompt) + max(len(chosen), len(rejected)),
                **numbers,
            }
            for row, (prompt, chosen, rejected) in enumerate(rows)
        ]
    )


def _spelt(text: str) -> list[int]:
    return [IDS[word] for word in text.split()]


def _lengths(prompt: int, draw: random.Random) -> tuple[int, int, int]:
    return prompt, draw.randrange(16, 64), draw.randrange(16, 64)


def _tiny(hidden: int) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=int(hidden * 2.6875) // 8 * 8,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=8,
        vocab_size=VOCABULARY,
        max_position_embeddings=MAX_LENGTH,
        pad_token_id=0,
    )
