"""Features: kinds of vectors in a config, what is refused before any work, and the stage on a real Ray."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from cluster.adapters import WEIGHTS, fresh_adapter
from cluster.errors import InputError
from cluster.models import Contrast, LoraShape, Policy
from cluster.rendering import prompt_tokens
from cluster.session import ray_session
from cluster.settings import Settings, TorchSettings
from tasks.feature_tables import facts_of, read_features
from tasks.features import (
    DEFAULT_KIND,
    FEATURES,
    Features,
    FeaturesConfig,
    HiddenFeatures,
    LogitsHeadFeatures,
    LoraGradientFeatures,
    compute_features,
    likelihoods_alone,
)
from tasks.gradients.projections import CountSketch, Rademacher, Whole
from tasks.scorers import Scoring, TorchScorer
from tasks.stages import RoundContext, manifest_of
from tasks.tables import RESPONSES, Table, part_path, read, write_part

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")

LORA = LoraShape(r=4, lora_alpha=8)
SKETCH = CountSketch(dim=64)
Write = Callable[[dict[str, list[str]]], Table]


def config_of(values: dict[str, Any]) -> FeaturesConfig:
    found: FeaturesConfig = TypeAdapter(Features).validate_python(values)
    return found


def test_a_config_without_a_kind_is_the_defaults() -> None:
    assert config_of({}) == FEATURES[DEFAULT_KIND]()
    assert config_of({"proxy": {"kind": "sentiment"}}).proxy is not None
    assert set(FEATURES) == {"hidden", "logits_head", "lora_gradient"}


@pytest.mark.parametrize("kind", FEATURES)
def test_every_kind_survives_json_and_its_schema_knows_it(kind: str) -> None:
    config = FEATURES[kind]()
    assert config_of(json.loads(config.model_dump_json())) == config
    schema = TypeAdapter(Features).json_schema()
    assert kind in schema["discriminator"]["mapping"]


def test_what_decides_a_vector_is_its_space_and_nothing_else_is() -> None:
    plain = LoraGradientFeatures(projection=SKETCH)
    same = LoraGradientFeatures(projection=SKETCH, num_components=7, batch_size=3, proxy={"kind": "sentiment"})
    assert plain.space == same.space
    others = [
        LoraGradientFeatures(projection=CountSketch(dim=64, seed=1)),
        LoraGradientFeatures(projection=CountSketch(dim=128)),
        LoraGradientFeatures(projection=Rademacher(dim=64)),
        LoraGradientFeatures(projection=SKETCH, target_modules=("q_proj",)),
        LoraGradientFeatures(projection=SKETCH, prompt_gradient=False),
        LoraGradientFeatures(projection=SKETCH, warm_start=0.1),
        LoraGradientFeatures(projection=SKETCH, normalise="response"),
        LogitsHeadFeatures(projection=SKETCH),
        HiddenFeatures(),
    ]
    assert len({json.dumps(one.space, sort_keys=True) for one in (plain, *others)}) == 1 + len(others)


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"kind": "wit"}, "does not match any of the expected tags"),
        ({"kind": "hidden", "projection": {"kind": "none"}}, "Extra inputs are not permitted"),
        ({"kind": "lora_gradient", "projection": {"kind": "pca"}}, "does not match any of the expected tags"),
        ({"kind": "lora_gradient", "projection": {"kind": "count_sketch", "dim": 0}}, "dim is 0: pass 1 to 65,536"),
        ({"kind": "lora_gradient", "projection": {"kind": "count_sketch", "nonzeros": 5}}, "nonzeros is 5"),
        ({"kind": "lora_gradient", "warm_start": -1}, "greater than or equal to 0"),
        ({"kind": "logits_head", "num_components": 0}, "greater than 0"),
    ],
)
def test_faulty_configs_are_refused(values: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        config_of(values)


@pytest.fixture
def base(tiny_model: Path) -> Policy:
    return Policy(digest="base", model=tiny_model)


@pytest.mark.parametrize(
    ("config", "fault"),
    [
        (
            LoraGradientFeatures(target_modules=("c_attn",)),
            r"features: target_modules \('c_attn',\) names no module of the adapter: expected some of down_proj, gate",
        ),
        (LoraGradientFeatures(target_modules="attn"), "features: target_modules 'attn' names no module"),
        (
            LoraGradientFeatures(target_modules=("v_proj",), projection=CountSketch(dim=8192)),
            "features.projection: dim 8,192 exceeds the 4,096 numbers of the gradient: lower it to 4,096 at most",
        ),
        (
            LoraGradientFeatures(projection=Whole()),
            "features.projection: projection is none for gradients of .* numbers, expected 65,536 at most: choose",
        ),
    ],
)
def test_what_the_model_can_not_give_is_refused_before_it_is_loaded(
    base: Policy, tmp_path: Path, config: FeaturesConfig, fault: str
) -> None:
    with pytest.raises(InputError, match=fault):
        config.require_fit(Contrast(policy=base, reference=base, lora=LoraShape(r=16)), 0, Settings(cache=tmp_path))


def test_a_head_that_is_smaller_than_its_projection_is_refused(tmp_path: Path) -> None:
    from transformers import LlamaConfig

    LlamaConfig(vocab_size=12, hidden_size=8, num_attention_heads=2).save_pretrained(tmp_path)
    small = Policy(digest="small", model=tmp_path)
    with pytest.raises(InputError, match=r"features.projection: dim 1,024 exceeds the 96 numbers of the gradient"):
        LogitsHeadFeatures().require_fit(Contrast(policy=small, reference=small), 0, Settings(cache=tmp_path))


def test_a_has_numbers_where_b_has_been_trained_or_a_warm_start_stands_in(
    base: Policy, make_adapter: Callable[[int], Path], tmp_path: Path
) -> None:
    settings = Settings(cache=tmp_path)
    config = LoraGradientFeatures(target_modules=("v_proj",), projection=CountSketch(dim=2048))
    fresh = Contrast(policy=base, reference=base, lora=LORA)
    tuned = Contrast(policy=base.model_copy(update={"adapter": make_adapter(1)}), reference=base, lora=LORA)
    config.require_fit(tuned, 0, settings)
    config.model_copy(update={"warm_start": 0.01}).require_fit(fresh, 0, settings)
    with pytest.raises(InputError, match="dim 2,048 exceeds the 1,024 numbers"):
        config.require_fit(fresh, 0, settings)


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    with ray_session(Settings()):
        yield


@pytest.fixture
def near(here: RoundContext, tmp_path: Path, local_ray: None) -> RoundContext:
    """A round with a running Ray and a cache of its own."""
    return replace(here, settings=here.settings.model_copy(update={"cache": tmp_path / "cache"}))


@pytest.fixture
def responses(write_responses: Write, tmp_path: Path) -> Table:
    """Three files of two responses; one is longer than the model's 512 tokens, one has a fault from generation."""
    texts = {"warm": ["good", "bad"], "cold": ["grim " * 300, "fine"], "dull": ["x", "x"]}
    rows = read(write_responses(texts).path, RESPONSES).to_pylist()
    rows[5]["fault"] = "duplicate"
    for shard in range(3):
        write_part(part_path(tmp_path / "responses", shard), rows[2 * shard : 2 * shard + 2], RESPONSES)
    return Table(path=tmp_path / "responses", rows=6, digest="responses")


def by_autograd(model: Path, adapter: Path, rows: Sequence[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities and sketched gradients, one response at a time."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    tuned: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), adapter, is_trainable=True)
    tuned.eval()
    named = {name: weights for name, weights in tuned.named_parameters() if "lora_" in name}
    plain = {name: name.removeprefix("base_model.model.").removesuffix(".default.weight") for name in named}
    projector = SKETCH.over({plain[name]: tuple(weights.shape) for name, weights in named.items()})
    logps, vectors = [], torch.zeros(len(rows), 64)
    for place, row in enumerate(rows):
        prompt = prompt_tokens(tokenizer, row["messages"])
        ids = [*prompt, *row["token_ids"]]
        table = tuned(torch.tensor([ids])).logits[0].log_softmax(-1)
        logp = sum(table[spot - 1, ids[spot]] for spot in range(len(prompt), len(ids)))
        for name, part in zip(named, torch.autograd.grad(logp, list(named.values())), strict=True):
            projector.add(vectors[place : place + 1], plain[name], part[None])
        logps.append(float(logp.detach()))
    return np.array(logps), vectors.numpy()


def test_a_first_round_has_gradients_in_the_adapter_that_training_starts_from(
    responses: Table, base: Policy, near: RoundContext
) -> None:
    contrast = Contrast(policy=base, reference=base, lora=LORA)
    config = LoraGradientFeatures(projection=SKETCH, batch_size=2)
    table = compute_features.fn(responses, contrast, config, near)
    start = fresh_adapter(base, LORA, near.seed, near.settings.cache)
    rows, found = read(responses.path, RESPONSES).to_pylist(), read_features(table.path).to_pylist()
    kept = [place for place in range(6) if place != 2]
    logps, vectors = by_autograd(base.model, start, [rows[place] for place in kept])
    assert [found[place]["logp_policy"] for place in kept] == pytest.approx(logps, abs=1e-3)
    assert [found[place]["logp_reference"] for place in kept] == [found[place]["logp_policy"] for place in kept]
    made = np.array([found[place]["feature"] for place in kept])
    assert np.abs(made - vectors).max() < 1e-4 * np.abs(vectors).max()
    check_the_faults_and_the_manifest(found, table, near)


def check_the_faults_and_the_manifest(found: list[dict[str, Any]], table: Table, here: RoundContext) -> None:
    """Part of the test above, for it needs the table."""
    assert [row["fault"] for row in found] == [None, None, "too_long", None, None, None]
    assert [row["valid"] for row in found] == [True, True, False, True, True, False]
    assert (found[2]["logp_policy"], found[2]["logp_reference"]) == (None, None)
    assert not any(found[2]["feature"])
    manifest = manifest_of(table)
    expected = {"num_too_long": 1, "num_not_finite": 0, "dim": 64, "attention": "sdpa", "batch_size": 2}
    expected |= {"num_lora_modules": 28, "num_lora_a_skipped": 28}
    assert {name: manifest.measures[name] for name in expected} == expected
    assert manifest.measures["tokens_per_second"] > 0
    assert manifest.config["space"]["projection"] == {"kind": "count_sketch", "dim": 64, "nonzeros": 1, "seed": 0}
    assert manifest.config["adapter"] == {**LORA.model_dump(), "seed": here.seed}
    assert facts_of(read_features(table.path).schema)["space"] == manifest.config["space"]
    metrics = here.tracker.client.get_run(here.run).data.metrics
    assert metrics["features/num_too_long"] == 1


def test_a_policy_that_was_trained_has_gradients_in_its_own_adapter(
    responses: Table, base: Policy, near: RoundContext, make_adapter: Callable[[int], Path]
) -> None:
    tuned = Policy(digest="tuned", model=base.model, adapter=make_adapter(1))
    config = LoraGradientFeatures(projection=SKETCH)
    table = compute_features.fn(responses, Contrast(policy=tuned, reference=base, lora=LORA), config, near)
    rows, found = read(responses.path, RESPONSES).to_pylist(), read_features(table.path).to_pylist()
    kept = [place for place in range(6) if place != 2]
    logps, vectors = by_autograd(base.model, tuned.adapter or Path(), [rows[place] for place in kept])
    references, _ = by_autograd(base.model, fresh_adapter(base, LORA, 0, near.settings.cache), [rows[0]])
    assert [found[place]["logp_policy"] for place in kept] == pytest.approx(logps, abs=1e-3)
    assert found[0]["logp_reference"] == pytest.approx(references[0], abs=1e-3)
    made = np.array([found[place]["feature"] for place in kept])
    assert np.abs(made - vectors).max() < 1e-4 * np.abs(vectors).max()
    assert manifest_of(table).measures["num_lora_a_skipped"] == 0
    assert "adapter" not in manifest_of(table).config


def test_a_response_without_a_finite_gradient_is_named_and_forms_no_pair(
    responses: Table, base: Policy, near: RoundContext, make_adapter: Callable[[int], Path], tmp_path: Path
) -> None:
    """One row of the embeddings is infinite, that of a token that one response alone has."""
    broken = tmp_path / "broken"
    model = AutoModelForCausalLM.from_pretrained(base.model)
    rows = read(responses.path, RESPONSES).to_pylist()
    tokenizer = AutoTokenizer.from_pretrained(base.model)
    others = [rows[place]["token_ids"] for place in (0, 3, 4, 5)]
    others += [prompt_tokens(tokenizer, row["messages"]) for row in rows]
    odd = min(set(rows[1]["token_ids"]).difference(*others))
    with torch.no_grad():
        model.model.embed_tokens.weight[odd] = torch.inf
    model.save_pretrained(broken)
    tokenizer.save_pretrained(broken)
    policy = Policy(digest="broken", model=broken)
    contrast = Contrast(policy=policy, reference=policy, lora=LORA)
    for config in (LoraGradientFeatures(projection=SKETCH), LogitsHeadFeatures(projection=SKETCH), HiddenFeatures()):
        table = compute_features.fn(responses, contrast, config, near)
        found = read_features(table.path).to_pylist()
        assert [row["fault"] for row in found] == [None, "not_finite", "too_long", None, None, None]
        assert not found[1]["valid"]
        assert not any(found[1]["feature"])
        assert np.isfinite([row["feature"] for row in found]).all()
        assert manifest_of(table).measures["num_not_finite"] == 1


def test_likelihoods_alone_need_no_adapter_and_no_proxy() -> None:
    config = LoraGradientFeatures(projection=SKETCH, batch_size=5, proxy={"kind": "sentiment"})
    assert likelihoods_alone(config) == HiddenFeatures(batch_size=5)


def test_vectors_can_be_scaled_to_length_one(tiny_model: Path, make_adapter: Callable[[int], Path]) -> None:
    scorer = TorchScorer(tiny_model, TorchSettings())
    prompts, tokens = [[{"role": "user", "content": "warm"}]] * 2, [[70, 71, 72], [99]]
    found = [
        scorer.score(prompts, tokens, Scoring(make_adapter(1), None, config, same=False))
        for config in (
            LoraGradientFeatures(projection=SKETCH),
            LoraGradientFeatures(projection=SKETCH, normalise="response"),
        )
    ]
    lengths = np.linalg.norm(found[0].vectors, axis=1, keepdims=True)
    assert found[1].vectors == pytest.approx(found[0].vectors / lengths, abs=1e-6)


def test_training_starts_from_the_adapter_of_the_features(
    base: Policy, near: RoundContext, write_table: Callable[..., Table]
) -> None:
    """With a learning rate of next to nothing the trained A is the fresh one."""
    from tasks.lessons import Lessons
    from tasks.tables import PREFERENCES
    from tasks.training import OptimizerConfig, TrainingConfig, train_policy, trained_policy

    rows = [
        {
            "pair_id": str(number),
            "prompt_id": "p",
            "messages": [{"role": "user", "content": "warm"}],
            "chosen": "a",
            "rejected": "b",
            "chosen_text": "good",
            "rejected_text": "bad",
            "chosen_token_ids": [5, 2],
            "rejected_token_ids": [6, 2],
            "outcome": "preferred",
            "swapped": False,
            "probability": None,
            "votes_chosen": 1,
            "votes_rejected": 0,
            "num_answers": 1,
            "labeller": "{}",
            "weight": None,
        }
        for number in range(4)
    ]
    config = TrainingConfig(lora=LORA, optimizer=OptimizerConfig(learning_rate=1e-12, batch_size=4))
    lessons = Lessons(base=base, start=base, reference=base, preferences=[write_table(rows, PREFERENCES)])
    trained = trained_policy(base, train_policy.fn(lessons, config, near)).adapter or Path()
    fresh = load_file(fresh_adapter(base, LORA, near.seed, near.settings.cache) / WEIGHTS)
    for name, weights in load_file(trained / WEIGHTS).items():
        torch.testing.assert_close(weights, fresh[name], rtol=0, atol=1e-8)
