"""Gradients in LoRA matrices against autograd one response at a time, finite differences and the loss of DPO."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch.nn import functional

from tasks.gradients.passes import Room, measure
from tasks.gradients.projections import AnyProjection, CountSketch, Whole
from tasks.gradients.taps import lora_layers, stand_in
from tasks.gradients.vectors import LoraGradients, Measured

ARCHITECTURES = ("llama", "qwen2", "gemma", "gemma2", "gpt2")
Text = tuple[list[int], list[int]]
Matrices = Callable[[Any], dict[str, torch.nn.Parameter]]
Autograd = Callable[[Any, Sequence[Text]], torch.Tensor]


def gradients(
    model: Any,
    texts: Sequence[Text],
    *,
    size: int = 5,
    targets: Any = "all-linear",
    projection: AnyProjection | None = None,
    **options: Any,
) -> Measured:
    """What the batched pass makes of these texts."""
    vectors = LoraGradients(lora_layers(model, "own", targets), projection or Whole(), **options)
    return measure(model, texts, vectors, Room(size))[0]


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest error of a row over that row's length."""
    lengths = expected.norm(dim=1)
    assert (lengths > 0).all()
    return float(((found.double() - expected.double()).norm(dim=1) / lengths).max())


@pytest.mark.parametrize("silent", [True, False])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_batched_gradients_are_those_of_autograd_one_response_at_a_time(
    make_model: Any, texts: list[Text], autograd: Autograd, architecture: str, attention: str, silent: bool
) -> None:
    model = make_model(architecture, attention=attention, silent=silent, dtype=torch.float32)
    assert relative_error(gradients(model, texts).vectors, autograd(model, texts)) <= 1e-5


@pytest.mark.parametrize("silent", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_in_float64_they_are_exact_to_ten_digits(
    make_model: Any, texts: list[Text], autograd: Autograd, architecture: str, silent: bool
) -> None:
    """`measure` hands float32 on, so this one takes a batch by hand."""
    from tasks.gradients.batches import batch_of
    from tasks.gradients.forward import forward

    model = make_model(architecture, silent=silent)
    batch = batch_of(texts, "cpu")
    found = LoraGradients(lora_layers(model, "own"), Whole())(batch, lambda: forward(model, batch))
    assert relative_error(found.vectors, autograd(model, texts)) <= 1e-10


def test_the_gradient_of_a_is_zero_and_left_out_while_b_is_zero(make_model: Any, texts: list[Text]) -> None:
    model = make_model(silent=True)
    layers = lora_layers(model, "own")
    vectors = LoraGradients(layers, Whole())
    assert vectors.facts == {"num_lora_modules": 21, "num_lora_a_skipped": 21}
    assert LoraGradients(lora_layers(make_model(), "own"), Whole()).facts["num_lora_a_skipped"] == 0
    found, _ = measure(model, texts, vectors, Room(4))
    start = 0
    for name in sorted(vectors.shapes):
        rows, columns = vectors.shapes[name]
        part = found.vectors[:, start : start + rows * columns]
        assert bool(part.any()) == name.endswith("lora_B"), name
        start += rows * columns


def test_a_warm_start_gives_a_the_gradient_that_it_has_next_to_a_small_b(
    make_model: Any, texts: list[Text], autograd: Autograd
) -> None:
    model, errors = make_model(silent=True), []
    layers = lora_layers(model, "own")
    plain = gradients(model, texts)
    for std in (1e-3, 1e-4):
        warm = gradients(model, texts, warm_start=std)
        assert torch.equal(warm.logp, plain.logp), "outputs stay as they are"
        assert all(layer.is_silent for layer in layers), "B is zero again"
        for layer in layers:
            layer.lora_b.weight.copy_(stand_in(layer, std))
        beside = autograd(model, texts)
        for layer in layers:
            layer.lora_b.weight.zero_()
        of_a = (warm.vectors != plain.vectors).any(dim=0)
        errors.append(relative_error(warm.vectors[:, of_a], beside[:, of_a]))
    assert errors[1] < 0.01
    assert errors[1] < errors[0] / 5, "the error is of the order of B"


def test_a_small_step_moves_the_likelihood_by_the_inner_product(
    make_model: Any, texts: list[Text], matrices: Matrices
) -> None:
    """On an architecture that computes in float64 throughout: others round to float32 on the way."""
    model, generator, step = make_model("gpt2"), torch.Generator().manual_seed(2), 1e-5
    own = matrices(model).values()
    found = gradients(model, texts).vectors.double()
    for _ in range(3):
        directions = [torch.randn(weights.shape, generator=generator, dtype=torch.float64) for weights in own]
        logps = []
        for sign in (1, -2):
            for weights, direction in zip(own, directions, strict=True):
                weights.add_(direction, alpha=sign * step)
            logps.append(gradients(model, texts).logp)
        for weights, direction in zip(own, directions, strict=True):
            weights.add_(direction, alpha=step)
        slopes = found @ torch.cat([direction.flatten() for direction in directions])
        assert ((logps[0] - logps[1]) / (2 * step)).tolist() == pytest.approx(slopes.tolist(), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("pair", [(0, 1), (5, 4), (11, 9)])
def test_the_gradient_of_dpo_on_a_pair_is_a_multiple_of_the_difference_of_its_gradients(
    make_model: Any, texts: list[Text], likelihood: Any, matrices: Matrices, pair: tuple[int, int]
) -> None:
    """d/dtheta of -log sigma(beta ((l_a - l_b) - (r_a - r_b))) is -(1 - sigma(z)) beta (g_a - g_b)."""
    model, beta = make_model(), 0.3
    chosen, rejected = (texts[place] for place in pair)
    with model.disable_adapter(), torch.no_grad():
        reference = likelihood(model, chosen) - likelihood(model, rejected)
    found = gradients(model, [chosen, rejected]).vectors.double()
    own = list(matrices(model).values())
    for weights in own:
        weights.requires_grad_()
    margin = beta * (likelihood(model, chosen) - likelihood(model, rejected) - reference)
    parts = torch.autograd.grad(-functional.logsigmoid(margin), own)
    expected = torch.cat([part.flatten() for part in parts])
    assert abs(margin.item()) > 0.01
    made = -(1 - margin.sigmoid().item()) * beta * (found[0] - found[1])
    assert relative_error(made[None], expected[None]) <= 1e-5


def test_the_pair_of_the_longest_difference_moves_its_margin_most_in_one_step(
    make_model: Any, texts: list[Text], matrices: Matrices
) -> None:
    """One step of SGD on -log sigma(z) moves the own margin by lr beta^2 (1 - sigma(z)) ||g_a - g_b||^2; z = 0 here."""
    model, beta, rate = make_model(silent=True), 0.1, 1e-4
    pairs = [(row, other) for row in range(len(texts)) for other in range(row) if texts[row][0] == texts[other][0]]
    before = gradients(model, texts)
    moves, lengths = [], []
    for a, b in pairs:
        step = rate * beta / 2 * (before.vectors[a] - before.vectors[b]).double()
        parts = step.split([weights.numel() for weights in matrices(model).values()])
        for weights, part in zip(matrices(model).values(), parts, strict=True):
            weights.add_(part.view_as(weights))
        after = gradients(model, texts).logp
        for weights, part in zip(matrices(model).values(), parts, strict=True):
            weights.sub_(part.view_as(weights))
        moves.append(float(beta * ((after - before.logp)[a] - (after - before.logp)[b])))
        lengths.append(float((before.vectors[a] - before.vectors[b]).double().square().sum()))
    assert moves == pytest.approx([rate * beta**2 / 2 * length for length in lengths], rel=0.05)
    sketched = gradients(model, texts, projection=CountSketch(dim=1024)).vectors
    assert max(range(len(pairs)), key=lambda place: moves[place]) == max(
        range(len(pairs)), key=lambda place: float((sketched[pairs[place][0]] - sketched[pairs[place][1]]).norm())
    )


@pytest.mark.parametrize("once", [True, False])
def test_who_else_is_in_the_batch_changes_nothing(make_model: Any, texts: list[Text], once: bool) -> None:
    """Alone, with others of unlike length, in another order; with the prompt's gradient or without."""
    model = make_model(dtype=torch.float32)
    whole = gradients(model, texts, size=len(texts), whole=not once)
    backwards = gradients(model, texts[::-1], size=5, whole=not once)
    alone = [gradients(model, [text], whole=not once) for text in texts]
    assert relative_error(backwards.vectors.flip(0), whole.vectors) <= 1e-5
    if not once:
        assert relative_error(torch.cat([found.vectors for found in alone]), whole.vectors) <= 1e-5
    for found in (backwards.logp.flip(0), torch.cat([found.logp for found in alone])):
        assert found.tolist() == pytest.approx(whole.logp.tolist(), abs=1e-4)


def test_a_gradient_that_stops_at_the_prompt_is_that_of_a_prompt_held_fixed(
    make_model: Any, texts: list[Text], likelihood: Any, matrices: Matrices
) -> None:
    """By autograd: keys and values of the prompt but its last token are computed without a gradient."""
    model, own = make_model(), matrices(make_model())
    own = matrices(model)
    shared = [text for text in texts if len(text[0]) > 1]
    found = gradients(model, shared, whole=False)
    for weights in own.values():
        weights.requires_grad_()
    rows = []
    for prompt, response in shared:
        with torch.no_grad():
            cache = model(torch.tensor([prompt[:-1]]), use_cache=True).past_key_values
        ids = torch.tensor([[prompt[-1], *response]])
        logits = model(ids, past_key_values=cache, use_cache=True).logits[0]
        logp = logits.log_softmax(-1)[torch.arange(len(response)), torch.tensor(response)].sum()
        rows.append(torch.cat([part.flatten() for part in torch.autograd.grad(logp, list(own.values()))]))
    model.requires_grad_(requires_grad=False)
    assert relative_error(found.vectors, torch.stack(rows)) <= 1e-5
    exact = gradients(model, shared)
    assert found.logp.tolist() == pytest.approx(exact.logp.tolist(), abs=1e-9)
    assert relative_error(found.vectors, exact.vectors) > 0.05, "it is an approximation"


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (("q_proj", "v_proj"), ["0.self_attn.q_proj", "0.self_attn.v_proj", "1.self_attn.q_proj"]),
        (r".*layers\.2\..*", ["2.self_attn.q_proj", "2.mlp.down_proj"]),
        ("all-linear", ["0.self_attn.q_proj", "2.mlp.down_proj"]),
    ],
)
def test_chosen_modules_give_their_part_of_the_whole_gradient(
    make_model: Any, texts: list[Text], targets: Any, expected: list[str]
) -> None:
    model = make_model()
    layers = lora_layers(model, "own", targets)
    names = {layer.name for layer in layers}
    assert {f"model.layers.{name}" for name in expected} <= names
    whole = LoraGradients(lora_layers(model, "own"), Whole())
    parts, start = [], 0
    everything = measure(model, texts, whole, Room(4))[0].vectors
    for name in sorted(whole.shapes):
        rows, columns = whole.shapes[name]
        if name.rsplit(".", 1)[0] in names:
            parts.append(everything[:, start : start + rows * columns])
        start += rows * columns
    assert relative_error(gradients(model, texts, targets=targets).vectors, torch.cat(parts, dim=1)) <= 1e-6


def test_the_adapter_that_is_named_is_the_one_whose_gradient_is_taken(
    make_model: Any, texts: list[Text], autograd: Autograd
) -> None:
    from peft import LoraConfig

    model = make_model()
    expected = autograd(model, texts)
    model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj", "gate_proj"], task_type="CAUSAL_LM"))
    model.double().requires_grad_(requires_grad=False)
    model.set_adapter("own")
    model.requires_grad_(requires_grad=False)
    assert relative_error(gradients(model, texts).vectors, expected) <= 1e-6
    assert [layer.name.rsplit(".", 1)[-1] for layer in lora_layers(model, "other")] == ["q_proj", "gate_proj"] * 3


def test_half_precision_weights_give_float32_gradients_near_those_of_wide_ones(
    make_model: Any, texts: list[Text]
) -> None:
    wide = gradients(make_model(dtype=torch.float32), texts).vectors
    half = gradients(make_model(dtype=torch.bfloat16), texts).vectors
    assert half.dtype == torch.float32
    assert relative_error(half, wide) < 0.2


def test_gradients_leave_the_model_as_it_was(make_model: Any, texts: list[Text]) -> None:
    model = make_model()
    before = {name: weights.clone() for name, weights in model.named_parameters()}
    gradients(model, texts, warm_start=0.1)
    for name, weights in model.named_parameters():
        assert torch.equal(weights, before[name]), name
        assert weights.grad is None
        assert not weights.requires_grad
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("targets", "fault"),
    [
        (("k", "nothing"), "names no module of the adapter: expected some of down_proj, gate_proj, k_proj"),
        ("layers", "names no module of the adapter"),
    ],
)
def test_modules_that_do_not_exist_are_refused(make_model: Any, targets: Any, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        lora_layers(make_model(), "own", targets)


def test_an_adapter_without_lora_and_a_variant_of_lora_are_refused(make_model: Any) -> None:
    from peft import LoraConfig

    model = make_model()
    with pytest.raises(ValueError, match="has no LoRA matrices"):
        lora_layers(model, "missing")
    model.add_adapter("dora", LoraConfig(r=2, target_modules=["q_proj"], use_dora=True, task_type="CAUSAL_LM"))
    with pytest.raises(ValueError, match="q_proj has a variant of LoRA"):
        lora_layers(model, "dora")
