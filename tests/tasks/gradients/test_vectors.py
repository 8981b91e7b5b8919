"""Hidden states and gradients of the head against one response at a time, and what batches may and may not change."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tasks.gradients.batches import batch_of, by_length, by_prompt
from tasks.gradients.passes import Room, measure, reading, size_that_fits
from tasks.gradients.projections import CountSketch, Whole
from tasks.gradients.vectors import HeadGradients, HiddenStates, Likelihoods, OfUnitLength

ARCHITECTURES = ("llama", "qwen2", "gemma", "gemma2", "gpt2")
HIDDEN, VOCABULARY = 32, 97
Text = tuple[list[int], list[int]]


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(found.double(), expected.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_likelihoods_are_those_of_one_response_at_a_time_though_prompts_are_read_once(
    make_model: Any, texts: list[Text], likelihood: Any, architecture: str, attention: str
) -> None:
    model = make_model(architecture, attention=attention, dtype=torch.float32)
    with torch.no_grad():
        expected = torch.stack([likelihood(model, text) for text in texts])
    for size in (1, 5, 12):
        close(measure(model, texts, Likelihoods(), Room(size))[0].logp, expected)


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_states_are_those_of_one_response_at_a_time(
    make_model: Any, texts: list[Text], architecture: str, pooling: Any
) -> None:
    model = make_model(architecture, dtype=torch.float32)
    expected = []
    for prompt, response in texts:
        with torch.no_grad():
            output = model(torch.tensor([[*prompt, *response]]), output_hidden_states=True)
        own = output.hidden_states[-1][0, len(prompt) :]
        expected.append(own[-1] if pooling == "last" else own.mean(0))
    close(measure(model, texts, HiddenStates(HIDDEN, pooling), Room(7))[0].vectors, torch.stack(expected))


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2"])
def test_gradients_of_the_head_are_those_of_autograd(make_model: Any, texts: list[Text], architecture: str) -> None:
    """With the cap that Gemma 2 puts on logits; of the tied ones only what comes through the head."""
    model = make_model(architecture)
    head, expected = model.get_output_embeddings(), []
    for prompt, response in texts:
        weight = head.weight.detach().clone().requires_grad_()
        handle = head.register_forward_hook(lambda _, inputs, __, weight=weight: inputs[0] @ weight.T)
        logp = model(torch.tensor([[*prompt, *response]])).logits[0].log_softmax(-1)
        handle.remove()
        total = logp[torch.arange(len(response)) + len(prompt) - 1, torch.tensor(response)].sum()
        expected.append(torch.autograd.grad(total, weight)[0].flatten())
    vectors = HeadGradients(VOCABULARY, HIDDEN, Whole(), "cpu")
    assert vectors.dim == VOCABULARY * HIDDEN
    close(measure(model, texts, vectors, Room(5))[0].vectors, torch.stack(expected), 1e-5)


def test_a_large_vocabulary_is_hashed_and_lengths_stay_about_right(make_model: Any, texts: list[Text]) -> None:
    model = make_model(vocab_size=3000)
    sketches = [
        measure(model, texts, HeadGradients(3000, HIDDEN, CountSketch(dim=4096, seed=seed), "cpu"), Room(5))[0].vectors
        for seed in range(8)
    ]
    grams = torch.stack([sketch @ sketch.T for sketch in sketches])
    spread = grams.std(0) / grams.mean(0).diagonal().sqrt()[:, None] / grams.mean(0).diagonal().sqrt()[None]
    assert spread.max() < 0.25
    assert grams.mean(0).diagonal().min() > 0


def test_unit_vectors_have_length_one_and_zeros_stay(make_model: Any, texts: list[Text]) -> None:
    plain, unit = HiddenStates(HIDDEN, "last"), OfUnitLength(HiddenStates(HIDDEN, "last"))
    model = make_model(dtype=torch.float32)
    asked = [*texts, ([5, 6], [])]
    (found, _), (raw, _) = (measure(model, asked, vectors, Room(4)) for vectors in (unit, plain))
    close(found.vectors[:-1], raw.vectors[:-1] / raw.vectors[:-1].norm(dim=1, keepdim=True))
    assert not found.vectors[-1].any()
    assert found.logp[-1] == 0


@pytest.mark.parametrize("vectors", [HiddenStates(HIDDEN, "mean"), HeadGradients(VOCABULARY, HIDDEN, Whole(), "cpu")])
def test_the_order_and_the_company_of_a_response_change_nothing(
    make_model: Any, texts: list[Text], vectors: Any
) -> None:
    model = make_model(dtype=torch.float32)
    whole, _ = measure(model, texts, vectors, Room(12))
    other, _ = measure(model, texts[::-1], vectors, Room(5))
    close(other.vectors.flip(0), whole.vectors)
    close(other.logp.flip(0), whole.logp)


def test_a_prompt_of_several_responses_is_read_once(make_model: Any, texts: list[Text]) -> None:
    model, read = make_model(), []
    counted = lambda _module, inputs: read.append(inputs[0].numel())  # noqa: E731
    handle = model.get_input_embeddings().register_forward_pre_hook(counted)
    shared = [text for text in texts if len(text[0]) > 1]
    batch, run = reading(model, shared, once=True)
    run()
    handle.remove()
    longest = max(len(prompt) for prompt, _ in shared) - 1
    assert read == [3 * longest, batch.ids.numel()]
    assert batch.ids.shape == (9, 12)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_prompts_are_read_once_also_where_layers_attend_within_a_window(
    make_model: Any, likelihood: Any, attention: str
) -> None:
    model = make_model("gemma2", sliding_window=4, attention=attention, dtype=torch.float32)
    texts = [(list(range(3, 3 + count)), [7, 9, 11][:length]) for count in (6, 11) for length in (1, 3)]
    with torch.no_grad():
        expected = torch.stack([likelihood(model, text) for text in texts])
    close(measure(model, texts, Likelihoods(), Room(4))[0].logp, expected)
    assert reading(model, texts, once=True)[0].ids.shape[1] == 4


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="a prompt has no token, so nothing predicts the first of its response"):
        batch_of([([1], [2]), ([], [3])], "cpu")


def test_texts_of_like_length_or_of_one_prompt_go_together() -> None:
    texts = [([1] * 9, [2]), ([3], [4]), ([1] * 9, [2] * 5), ([5] * 9, [6]), ([1] * 9, [8])]
    assert by_length(texts)[0] == 1
    assert by_length(texts)[-1] == 2
    assert by_prompt(texts) == [1, 0, 2, 4, 3]


class FullError(RuntimeError):
    """Memory that ran out."""


class Stuffed:
    """Likelihoods for which more than a number of responses is too much."""

    reads_prompts_once, dim, facts = False, 0, {}

    def __init__(self, most: int, error: type[Exception] = FullError) -> None:
        self.most, self.error, self.sizes = most, error, list[int]()

    def __call__(self, batch: Any, run: Callable[[], Any]) -> Any:
        self.sizes.append(batch.size)
        if batch.size > self.most:
            raise self.error("full")
        return Likelihoods()(batch, run)


def test_a_batch_that_is_too_much_is_halved_and_the_next_ones_keep_to_that(make_model: Any, texts: list[Text]) -> None:
    model, stuffed = make_model(), Stuffed(3)
    found, size = measure(model, texts, stuffed, Room(12, lambda error: isinstance(error, FullError)))
    assert stuffed.sizes == [12, 6, 3, 3, 3, 3]
    assert size == 3
    close(found.logp, measure(model, texts, Likelihoods(), Room(12))[0].logp)


def test_a_single_response_that_is_too_much_and_any_other_error_end_the_pass(
    make_model: Any, texts: list[Text]
) -> None:
    model = make_model()
    with pytest.raises(FullError):
        measure(model, texts, Stuffed(0), Room(4, lambda error: isinstance(error, FullError)))
    other = Stuffed(0, RuntimeError)
    with pytest.raises(RuntimeError, match="full"):
        measure(model, texts, other, Room(4, lambda error: isinstance(error, FullError)))
    assert other.sizes == [4]


def test_the_size_of_a_batch_follows_the_memory_and_the_longest_text(make_model: Any) -> None:
    config = make_model().config
    sizes = [size_that_fits(config, 100, free) for free in (0, 2**24, 2**25, 2**26)]
    assert sizes[0] == 1
    assert sizes[2] == pytest.approx(2 * sizes[1], abs=1)
    assert sizes[3] == pytest.approx(4 * sizes[1], abs=3)
    assert size_that_fits(config, 200, 2**26) == pytest.approx(sizes[3] / 2, abs=1)
