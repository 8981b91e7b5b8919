"""Scores of the torch model against one sequence at a time, and merged weights against their adapter."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from cluster.models import Policy, merged_checkpoint
from cluster.rendering import Message, prompt_tokens
from cluster.settings import TorchSettings
from tasks.features import HiddenFeatures
from tasks.gradients.passes import MOST_ON_CPU
from tasks.scorers import NOT_FINITE, TOO_LONG, Scores, Scoring, TorchScorer

PROMPTS: list[list[Message]] = [
    [{"role": "user", "content": "good or bad"}],
    [{"role": None, "content": "warm and"}],
    [{"role": "user", "content": "happy, sad, love, hate: which of these is it, and why is it not another of them?"}],
    [{"role": "user", "content": "dull"}],
    [{"role": "user", "content": "dull"}],
]
Alone = dict[str, list[tuple[float, torch.Tensor]]]
RESPONSES = [[70, 71, 72], [99, 2], [300], [80] * 40, [301, 55, 2]]


@pytest.fixture(scope="module")
def adapters(make_adapter: Callable[[int], Path]) -> dict[str, Path | None]:
    return {"none": None, "one": make_adapter(1), "other": make_adapter(2)}


@pytest.fixture(scope="module")
def scorer(tiny_model: Path) -> TorchScorer:
    return scorer_of(tiny_model)


def scorer_of(model: Path) -> TorchScorer:
    """A scorer on one thread: such small matrices gain nothing from more, and lose much where cores are busy."""
    made = TorchScorer(model, TorchSettings())
    torch.set_num_threads(1)
    return made


def scoring(
    policy: Path | None = None, reference: Path | None = None, pooling: Any = "last", batch_size: int | None = 2
) -> Scoring:
    return Scoring(policy, reference, HiddenFeatures(pooling=pooling), policy == reference, batch_size)


@pytest.fixture(scope="module")
def alone(tiny_model: Path, adapters: dict[str, Path | None]) -> Alone:
    return {name: one_by_one(tiny_model, adapter) for name, adapter in adapters.items()}


def one_by_one(model_folder: Path, adapter: Path | None) -> list[tuple[float, torch.Tensor]]:
    """Summed log-probability and final-layer states of the response tokens, without batches or padding."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    model = (model if adapter is None else PeftModel.from_pretrained(model, adapter)).eval()
    found = []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        opening = prompt_tokens(tokenizer, prompt)
        ids = opening + response
        with torch.inference_mode():
            output = model(torch.tensor([ids]), output_hidden_states=True)
        logp = output.logits[0].log_softmax(-1)
        total = sum(float(logp[place - 1, ids[place]]) for place in range(len(opening), len(ids)))
        found.append((total, output.hidden_states[-1][0, len(opening) :]))
    return found


def logps(scores: Scores) -> list[tuple[float, float]]:
    return list(zip(scores.logp_policy.tolist(), scores.logp_reference.tolist(), strict=True))


@pytest.mark.parametrize("batch_size", [1, 2, 5, 16])
@pytest.mark.parametrize(
    ("policy", "reference"), [("none", "none"), ("one", "none"), ("none", "one"), ("one", "other")]
)
def test_log_probabilities_are_those_of_one_sequence_at_a_time(
    scorer: TorchScorer, adapters: dict[str, Path | None], alone: Alone, policy: str, reference: str, batch_size: int
) -> None:
    asked = scoring(adapters[policy], adapters[reference], batch_size=batch_size)
    scores = scorer.score(PROMPTS, RESPONSES, asked)
    expected = [(one[0], other[0]) for one, other in zip(alone[policy], alone[reference], strict=True)]
    for found, wanted in zip(logps(scores), expected, strict=True):
        assert found == pytest.approx(wanted, abs=1e-4)
    assert scores.seconds > 0


@pytest.mark.parametrize("policy", ["none", "one"])
@pytest.mark.parametrize("batch_size", [1, 5])
def test_features_are_the_last_or_the_mean_state_of_the_response_under_the_policy(
    scorer: TorchScorer, adapters: dict[str, Path | None], alone: Alone, policy: str, batch_size: int
) -> None:
    states = [own for _, own in alone[policy]]
    for pooling, expected in (("last", [own[-1] for own in states]), ("mean", [own.mean(0) for own in states])):
        asked = scoring(adapters[policy], adapters["other"], pooling, batch_size)
        scores = scorer.score(PROMPTS, RESPONSES, asked)
        found = torch.from_numpy(scores.vectors)
        torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-4)


def test_one_instance_goes_from_adapter_to_adapter_and_back_without_a_trace(
    tiny_model: Path, adapters: dict[str, Path | None]
) -> None:
    scorer = scorer_of(tiny_model)
    tour = ["none", "one", "none", "other", "one", "none"]
    seen: dict[str, list[Scores]] = {}
    for name in tour:
        seen.setdefault(name, []).append(scorer.score(PROMPTS, RESPONSES, scoring(adapters[name], adapters[name])))
    for name, visits in seen.items():
        for visit in visits:
            assert logps(visit) == logps(visits[0]), name
            assert visit.vectors.tolist() == visits[0].vectors.tolist(), name
    distinct = [logps(visits[0]) for visits in seen.values()]
    assert distinct[0] != distinct[1] != distinct[2] != distinct[0]
    assert logps(seen["none"][0]) == logps(scorer_of(tiny_model).score(PROMPTS, RESPONSES, scoring()))


def test_a_policy_that_is_its_own_reference_scores_the_same_as_both(
    scorer: TorchScorer, adapters: dict[str, Path | None]
) -> None:
    scores = scorer.score(PROMPTS, RESPONSES, scoring(adapters["one"], adapters["one"]))
    assert scores.logp_policy.tolist() == scores.logp_reference.tolist()


def test_only_the_tokens_of_the_response_are_counted(tiny_model: Path, scorer: TorchScorer) -> None:
    """Moving a token from the response to its plain-text prompt takes that token's log-probability off the sum."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    texts = ["good", "good bad", "good bad happy"]
    tokens = [tokenizer(text)["input_ids"] for text in texts]
    assert tokens[1][: len(tokens[0])] == tokens[0]
    assert tokens[2][: len(tokens[1])] == tokens[1]
    prompts = [[{"role": None, "content": text}] for text in (texts[0], texts[0], texts[1])]
    responses = [tokens[2][len(tokens[0]) :], tokens[1][len(tokens[0]) :], tokens[2][len(tokens[1]) :]]
    whole, head, tail = scorer.score(prompts, responses, scoring()).logp_policy.tolist()
    assert whole == pytest.approx(head + tail, abs=1e-4)
    assert min(abs(head), abs(tail)) > 1


def test_an_empty_response_has_log_probability_zero(scorer: TorchScorer) -> None:
    """A response with no tokens comes from an engine that stops at once; nothing of the prompt is counted for it."""
    scores = scorer.score(PROMPTS[:2], [[], [99, 2]], scoring())
    assert scores.logp_policy[0] == 0.0
    assert scores.logp_policy[1] < 0.0
    assert not scores.vectors[0].any()


@pytest.fixture
def tuned(tiny_model: Path, adapters: dict[str, Path | None]) -> Policy:
    return Policy(digest="f" * 64, model=tiny_model, adapter=adapters["one"])


def test_merged_weights_score_as_base_and_adapter(
    tuned: Policy, scorer: TorchScorer, adapters: dict[str, Path | None], tmp_path: Path
) -> None:
    merged = scorer_of(merged_checkpoint(tuned, tmp_path))
    as_base = merged.score(PROMPTS, RESPONSES, scoring())
    with_adapter = scorer.score(PROMPTS, RESPONSES, scoring(adapters["one"]))
    bare = scorer.score(PROMPTS, RESPONSES, scoring())
    assert as_base.logp_policy == pytest.approx(with_adapter.logp_policy, abs=1e-4)
    assert (abs(as_base.logp_policy - bare.logp_policy) > 1e-2).all()
    assert as_base.vectors == pytest.approx(with_adapter.vectors, abs=1e-4)


def test_weights_are_merged_once(tuned: Policy, tmp_path: Path) -> None:
    first = merged_checkpoint(tuned, tmp_path)
    written = {path: path.stat().st_mtime_ns for path in first.iterdir()}
    assert (first / "model.safetensors") in written
    assert merged_checkpoint(tuned, tmp_path) == first
    assert {path: path.stat().st_mtime_ns for path in first.iterdir()} == written


def test_each_policy_has_its_own_merged_weights(
    tuned: Policy, adapters: dict[str, Path | None], tmp_path: Path
) -> None:
    other = Policy(digest="e" * 64, model=tuned.model, adapter=adapters["other"])
    assert merged_checkpoint(tuned, tmp_path) != merged_checkpoint(other, tmp_path)


def test_a_base_policy_needs_no_merging(tiny_model: Path, tmp_path: Path) -> None:
    assert merged_checkpoint(Policy(digest="d" * 64, model=tiny_model), tmp_path / "cache") == tiny_model
    assert not (tmp_path / "cache").exists()


def test_a_text_that_the_model_can_not_read_is_counted_and_left_out(scorer: TorchScorer) -> None:
    """The tiny model reads 512 tokens."""
    prompts = [[{"role": None, "content": "warm"}]] * 3
    tokens = [[70] * 600, [70, 71], [70] * 500]
    found = scorer.score(prompts, tokens, scoring())
    assert found.faults == [TOO_LONG, None, None]
    assert np.isnan([found.logp_policy[0], found.logp_reference[0]]).all()
    assert not found.vectors[0].any()
    assert np.isfinite(found.logp_policy[1:]).all()
    assert 502 < found.tokens < 515, "of the two that were read"


def test_one_whose_numbers_are_not_finite_does_not_spoil_the_others(tiny_model: Path) -> None:
    broken, whole = scorer_of(tiny_model), scorer_of(tiny_model)
    with torch.no_grad():
        broken._model.model.embed_tokens.weight[301] = torch.nan
    found, expected = (one.score(PROMPTS, RESPONSES, scoring(batch_size=5)) for one in (broken, whole))
    assert found.faults == [None, None, None, None, NOT_FINITE]
    assert found.logp_policy[:4].tolist() == pytest.approx(expected.logp_policy[:4].tolist(), abs=1e-4)
    assert found.vectors[:4] == pytest.approx(expected.vectors[:4], abs=1e-4)


def test_a_batch_is_as_large_as_memory_takes_where_none_is_asked_for(scorer: TorchScorer) -> None:
    assert scorer.score(PROMPTS, RESPONSES, scoring(batch_size=None)).facts["batch_size"] == MOST_ON_CPU
    assert scorer.score(PROMPTS, RESPONSES, scoring(batch_size=3)).facts["batch_size"] == 3


def test_no_responses_at_all_are_scored_without_a_fault(scorer: TorchScorer) -> None:
    """A shard whose responses are all too long."""
    found = scorer.score([PROMPTS[0]], [[70] * 600], scoring())
    assert (found.faults, found.vectors.shape, found.tokens) == ([TOO_LONG], (1, 128), 0)


OUT_OF_MEMORY = """
import resource, sys
from pathlib import Path
import numpy as np
from cluster.settings import TorchSettings
from tasks.features import HiddenFeatures
from tasks.gradients.passes import MOST_ON_CPU
from tasks.scorers import Scoring, TorchScorer
import torch
scorer = TorchScorer(Path(sys.argv[1]), TorchSettings())
torch.set_num_threads(1)
prompts = [[{"role": None, "content": "warm"}]] * 64
tokens = [[70 + place] * 400 for place in range(64)]
def scored(size):
    return scorer.score(prompts, tokens, Scoring(None, None, HiddenFeatures(), True, size))
expected = scored(2)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 96 * 2**20, resource.RLIM_INFINITY))
found = scored(64)
assert np.allclose(found.logp_policy, expected.logp_policy, atol=1e-3)
print(found.facts["batch_size"])
"""


def test_a_batch_that_memory_does_not_take_is_halved_until_it_does(tiny_model: Path) -> None:
    """On the system's own refusal: a process of its own may take 96 MiB more than a small batch did."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", OUT_OF_MEMORY, str(tiny_model)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert 1 <= int(done.stdout) < 64
