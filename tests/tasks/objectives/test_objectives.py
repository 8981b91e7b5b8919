"""Objectives against their formulas by hand, against each other, and against what they are meant to do."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.objectives import OBJECTIVES, AnyObjective, BestOfN, Cdpo, Dpo, Hinge, Ipo, Robust, Rwr, SftChosen, SoftDpo
from tasks.objectives.exploration import Selm, Xpo
from tasks.objectives.pairs import Pairs, flip_rate, required

BETA = 0.3
RATES = st.floats(0, 0.49)


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def drawn(number: int, seed: int = 0) -> Pairs:
    generator = torch.Generator().manual_seed(seed)

    def some(scale: float) -> torch.Tensor:
        return scale * torch.randn(number, generator=generator, dtype=torch.float64)

    return Pairs(
        chosen=(some(4) - 20).requires_grad_(),
        rejected=(some(4) - 20).requires_grad_(),
        reference_chosen=some(4) - 20,
        reference_rejected=some(4) - 20,
        num_chosen_tokens=torch.randint(2, 9, (number,), generator=generator),
        num_rejected_tokens=torch.randint(2, 9, (number,), generator=generator),
        probabilities=torch.rand(number, generator=generator, dtype=torch.float64),
        chosen_rewards=some(1),
        rejected_rewards=some(1),
    )


def turned(pairs: Pairs) -> Pairs:
    """The same pairs with the other label."""
    return replace(
        pairs,
        chosen=pairs.rejected,
        rejected=pairs.chosen,
        reference_chosen=pairs.reference_rejected,
        reference_rejected=pairs.reference_chosen,
        num_chosen_tokens=pairs.num_rejected_tokens,
        num_rejected_tokens=pairs.num_chosen_tokens,
    )


def ratios_of(pairs: Pairs) -> tuple[list[float], list[float]]:
    return pairs.chosen_ratios.tolist(), pairs.rejected_ratios.tolist()


def margins_of(pairs: Pairs) -> list[float]:
    return [BETA * (chosen - rejected) for chosen, rejected in zip(*ratios_of(pairs), strict=True)]


def test_losses_are_their_formulas() -> None:
    pairs = drawn(5)
    lengths = (pairs.num_chosen_tokens.tolist(), pairs.num_rejected_tokens.tolist())
    given_probabilities = required(pairs.probabilities, "probabilities").tolist()
    sigmoids = [1 / (1 + math.exp(-z)) for z in margins_of(pairs)]
    losses = {
        Dpo(): [-math.log(s) for s in sigmoids],
        SoftDpo(): [
            -p * math.log(s) - (1 - p) * math.log(1 - s) for p, s in zip(given_probabilities, sigmoids, strict=True)
        ],
        Cdpo(flip_rate=0.2): [-0.8 * math.log(s) - 0.2 * math.log(1 - s) for s in sigmoids],
        Robust(flip_rate=0.2): [(-0.8 * math.log(s) + 0.2 * math.log(1 - s)) / 0.6 for s in sigmoids],
        Hinge(): [max(0, 1 - z) for z in margins_of(pairs)],
        Ipo(): [
            (ours / one - theirs / other - 1 / (2 * BETA)) ** 2
            for ours, theirs, one, other in zip(*ratios_of(pairs), *lengths, strict=True)
        ],
    }
    for objective, expected in losses.items():
        assert objective(pairs, BETA).tolist() == pytest.approx([float(value) for value in expected], rel=1e-12)


def test_every_objective_gives_a_finite_loss_and_gradient_of_every_pair() -> None:
    for objective in OBJECTIVES.values():
        pairs = drawn(6)
        losses = objective()(pairs, BETA)
        assert losses.shape == (6,)
        gradient = torch.autograd.grad(losses.sum(), pairs.chosen)[0]
        assert torch.isfinite(gradient).all()
        assert gradient.abs().max() > 0


@given(RATES)
def test_the_robust_loss_is_on_average_the_loss_of_the_true_labels(rate: float) -> None:
    pairs, robust = drawn(8), Robust(flip_rate=rate)
    average = (1 - rate) * robust(pairs, BETA) + rate * robust(turned(pairs), BETA)
    torch.testing.assert_close(average, Dpo()(pairs, BETA))


@given(RATES.filter(lambda rate: rate > 0.01))
def test_cdpo_rests_where_the_policy_is_as_sure_as_labels_are(rate: float) -> None:
    margin = torch.tensor([math.log((1 - rate) / rate) / BETA], dtype=torch.float64, requires_grad=True)
    nothing = torch.zeros(1, dtype=torch.float64)
    loss = Cdpo(flip_rate=rate)(Pairs(margin, nothing, nothing, nothing, nothing, nothing), BETA)
    assert torch.autograd.grad(loss.sum(), margin)[0].abs().max() < 1e-12


@pytest.mark.parametrize("objective", [Cdpo(flip_rate=0.0), Robust(flip_rate=0.0)])
def test_without_flips_it_is_dpo(objective: AnyObjective) -> None:
    pairs = drawn(7)
    torch.testing.assert_close(objective(pairs, BETA), Dpo()(pairs, BETA))


def test_soft_labels_of_1_are_dpo_and_those_of_0_are_dpo_turned() -> None:
    pairs = drawn(7)
    ones, soft = torch.ones(7, dtype=torch.float64), SoftDpo()
    torch.testing.assert_close(soft(replace(pairs, probabilities=ones), BETA), Dpo()(pairs, BETA))
    torch.testing.assert_close(soft(replace(pairs, probabilities=0 * ones), BETA), Dpo()(turned(pairs), BETA))


def test_the_mean_of_likelihood_losses_is_the_mean_over_tokens() -> None:
    pairs = drawn(6)
    expected = -float(pairs.chosen.detach().sum() / pairs.num_chosen_tokens.sum())
    assert float(SftChosen()(pairs, BETA).detach().mean()) == pytest.approx(expected)
    assert float(BestOfN()(pairs, BETA).detach().mean()) == pytest.approx(expected)


@pytest.mark.parametrize("kind", [SftChosen, BestOfN, Rwr])
def test_the_negative_gradient_pushes_the_rejected_response_down_and_leaves_the_chosen_alone(kind: Any) -> None:
    pairs = drawn(6)
    plain, pushed = (
        torch.autograd.grad(kind(negative=share)(pairs, BETA).mean(), (pairs.chosen, pairs.rejected), allow_unused=True)
        for share in (0.0, 0.5)
    )
    torch.testing.assert_close(plain[0], pushed[0])
    before = torch.zeros_like(pushed[1]) if plain[1] is None else plain[1]
    expected = torch.full((6,), 0.5 / float(pairs.num_rejected_tokens.sum()), dtype=torch.float64)
    torch.testing.assert_close(pushed[1] - before, expected)


def test_reward_weighted_regression_forgets_a_prompts_offset_and_learns_of_the_better_one() -> None:
    pairs = drawn(6)
    shifted = replace(pairs, chosen_rewards=column(*range(6)), rejected_rewards=column(*range(6)))
    even = Rwr()(shifted, BETA)
    chosen, rejected = (
        one / count.double().mean()
        for one, count in ((pairs.chosen, pairs.num_chosen_tokens), (pairs.rejected, pairs.num_rejected_tokens))
    )
    torch.testing.assert_close(even, -(chosen + rejected) / 2)
    sure = replace(pairs, chosen_rewards=column(*[50.0] * 6), rejected_rewards=column(*[0.0] * 6))
    torch.testing.assert_close(Rwr()(sure, BETA), SftChosen()(pairs, BETA))
    torch.testing.assert_close(Rwr(temperature=1e9)(sure, BETA), even)


def test_exploration_terms_push_down_what_the_reference_says() -> None:
    logps, reference = column(-20.0, -3.0), column(-25.0, -4.0)
    assert Xpo(alpha=0.5)(logps, reference, BETA).tolist() == [-10.0, -1.5]
    assert Selm(alpha=0.5)(logps, reference, BETA).tolist() == pytest.approx([0.5 * BETA * 5, 0.5 * BETA * 1])


def test_what_an_objective_needs_has_to_be_there() -> None:
    bare = replace(drawn(3), probabilities=None, chosen_rewards=None, rejected_rewards=None)
    for objective in (SoftDpo(), Rwr()):
        with pytest.raises(ValueError, match=r"the objective needs (probabilities|rewards) of the pairs"):
            objective(bare, BETA)
    with pytest.raises(ValueError, match=r"flip_rate has not been estimated"):
        Robust(flip_rate="estimated")(bare, BETA)


@pytest.mark.parametrize("rate", [-0.1, 0.5, 0.7, math.nan])
@pytest.mark.parametrize("kind", [Cdpo, Robust])
def test_a_flip_rate_outside_0_and_one_half_is_refused(kind: Any, rate: float) -> None:
    with pytest.raises(ValueError, match=r"flip_rate is .*: expected a number in \[0, 0\.5\)"):
        kind(flip_rate=rate)


@pytest.mark.parametrize("make", [lambda: SftChosen(negative=-1), lambda: Rwr(temperature=0), lambda: Xpo(alpha=0)])
def test_other_numbers_that_can_not_be_are_refused(make: Any) -> None:
    with pytest.raises(ValueError, match="expected a finite number"):
        make()


def test_the_flip_rate_is_told_by_labels_that_disagree() -> None:
    assert flip_rate([(2, 0), (0, 2), (3, 0)]) == 0.0
    assert flip_rate([(1, 1)] * 4) == 0.5
    assert flip_rate([(1, 0), (2, 0), (1, 1)]) == 0.5, "one agreement in two is what coins give"
    generator = torch.Generator().manual_seed(0)
    flips = torch.rand(20_000, 3, generator=generator) < 0.15
    votes = [(3 - count, count) for count in flips.sum(1).tolist()]
    assert flip_rate(votes) == pytest.approx(0.15, abs=0.01)
    with pytest.raises(ValueError, match=r"no pair was labelled twice"):
        flip_rate([(1, 0), (0, 1)])
