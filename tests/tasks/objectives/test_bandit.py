"""The bandit: its reference and rewards, one step by hand, what enters a batch, and what sources do to objectives."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tasks.objectives.bandit import (
    Bandit,
    Batch,
    Course,
    all_pairs,
    best_pairs,
    draw,
    fitted,
    loss_of,
    measured,
    peaked,
    squashed_cauchy,
    train,
)
from tasks.objectives.contrastive import Dpo, Ipo
from tasks.objectives.likelihood import BestOfN, SftChosen
from tasks.objectives.pairs import Objective

REFERENCE = squashed_cauchy(100, -0.7, 0.4)
COURSE = Course(inner_steps=15, learning_rate=0.01, beta=0.05, threshold=0.0)
DIGITS = {"rtol": 1e-10, "atol": 1e-12}


def bandit(*, on_policy: bool, peak: float = 70, seeds: int = 2, num_batches: int = 25) -> Bandit:
    uniforms = np.stack([np.random.default_rng(seed).random((num_batches, 10, 10)) for seed in range(seeds)])
    rewards = peaked(100, peak, 10).repeat(seeds, 1)
    return Bandit(reference=REFERENCE, rewards=rewards, uniforms=torch.from_numpy(uniforms), on_policy=on_policy)


def gradient(objective: Objective, batch: Batch, logits: Tensor, beta: float) -> Tensor:
    rewards = torch.linspace(0, 1, 5, dtype=torch.float64).repeat(len(logits), 1)
    world = Bandit(torch.full((5,), 0.2, dtype=torch.float64), rewards, torch.zeros(1), on_policy=True)
    at = logits.clone().requires_grad_()
    loss_of(world, batch, objective, beta)(at).sum().backward()
    assert at.grad is not None
    return at.grad


def test_the_reference_is_a_distribution_with_its_median_near_action_20() -> None:
    torch.testing.assert_close(REFERENCE.sum(), torch.tensor(1.0, dtype=torch.float64), **DIGITS)
    assert (REFERENCE > 0).all()
    assert REFERENCE[:19].sum() < 0.5 < REFERENCE[:21].sum()


def test_the_reference_has_much_mass_near_20_and_little_near_70() -> None:
    assert REFERENCE[10:31].sum() > 0.4
    assert REFERENCE[60:81].sum() < 0.05


def test_a_bin_holds_what_the_cauchy_distribution_gives_it() -> None:
    ends = [0.5 + math.atan((math.atanh(edge) + 0.7) / 0.4) / math.pi for edge in (0.4, 0.42)]
    assert REFERENCE[70].item() == pytest.approx(ends[1] - ends[0], rel=1e-9)
    assert REFERENCE[0].item() == pytest.approx(0.5 + math.atan((math.atanh(-0.98) + 0.7) / 0.4) / math.pi, rel=1e-9)


def test_the_first_policy_is_the_reference_after_its_fit() -> None:
    torch.testing.assert_close(fitted(REFERENCE, 300, 0.1).softmax(dim=0), REFERENCE, rtol=1e-3, atol=1e-5)


def test_a_gradient_of_dpo_is_beta_sigma_of_minus_z() -> None:
    batch = Batch(torch.tensor([[4, 1]]), torch.ones(1, 1, dtype=torch.float64))
    logits = torch.tensor([[0.3, -0.2, 0.1, 0.0, 0.9]], dtype=torch.float64)
    push = 0.5 / (1 + math.exp(0.5 * (0.9 + 0.2)))
    expected = torch.tensor([[0, push, 0, 0, -push]], dtype=torch.float64)
    torch.testing.assert_close(gradient(Dpo(), batch, logits, 0.5), expected, **DIGITS)


def test_a_gradient_of_ipo_pulls_the_log_ratio_to_its_target() -> None:
    batch = Batch(torch.tensor([[4, 1]]), torch.ones(1, 1, dtype=torch.float64))
    logits = torch.tensor([[0.3, -0.2, 0.1, 0.0, 0.9]], dtype=torch.float64)
    push = 2 * (1.1 - 10)
    expected = torch.tensor([[0, -push, 0, 0, push]], dtype=torch.float64)
    torch.testing.assert_close(gradient(Ipo(), batch, logits, 0.05), expected, **DIGITS)


@pytest.mark.parametrize("negative", [0.0, 0.2])
def test_a_gradient_of_best_of_n_is_policy_less_best_action_and_more_worst(negative: float) -> None:
    actions = torch.tensor([[[2, 4, 0], [1, 1, 3]]])
    batch = best_pairs(actions, actions.double())
    logits = torch.tensor([[0.3, -0.2, 0.1, 0.0, 0.9]], dtype=torch.float64)
    best, worst = (torch.tensor([share], dtype=torch.float64) / 2 for share in ([0, 0, 0, 1, 1], [1, 1, 0, 0, 0]))
    expected = (1 - negative) * logits.softmax(dim=1) - best + negative * worst
    torch.testing.assert_close(gradient(BestOfN(negative=negative), batch, logits, 1.0), expected, **DIGITS)


def test_policies_side_by_side_train_as_each_alone() -> None:
    whole = bandit(on_policy=True, num_batches=3)
    logits, _ = train(whole, REFERENCE.log(), Dpo(), COURSE)
    for row in range(2):
        alone = Bandit(REFERENCE, whole.rewards[[row]], whole.uniforms[[row]], on_policy=True)
        torch.testing.assert_close(train(alone, REFERENCE.log(), Dpo(), COURSE)[0], logits[[row]], **DIGITS)


@pytest.mark.parametrize("threshold", [0.0, 0.25])
def test_no_pair_whose_gap_is_not_above_the_threshold_teaches(threshold: float) -> None:
    rewards = torch.randint(0, 5, (3, 4, 10), generator=torch.Generator().manual_seed(0)) / 4.0
    actions = (rewards * 4).long()
    batch = all_pairs(actions, rewards, threshold)
    gaps = (batch.chosen - batch.rejected) / 4.0
    teaching = batch.weights > 0
    assert (gaps[teaching] > threshold).all()
    assert (gaps[~teaching] <= threshold).all()
    assert 0 < (~teaching).sum() < teaching.numel()
    torch.testing.assert_close(batch.weights.sum(dim=1), torch.ones(3))


def test_a_batch_of_ties_alone_teaches_nothing() -> None:
    batch = all_pairs(torch.ones(1, 2, 3, dtype=torch.long), torch.ones(1, 2, 3), 0.0)
    assert batch.weights.sum() == 0
    logits = torch.zeros(1, 5, dtype=torch.float64)
    torch.testing.assert_close(gradient(Ipo(), batch, logits, 0.05), torch.zeros_like(logits))


def test_every_two_actions_of_a_state_form_one_pair() -> None:
    actions = torch.arange(10).expand(1, 3, 10)
    batch = all_pairs(actions, actions.double(), 0.0)
    found = sorted(zip(batch.chosen[0].tolist(), batch.rejected[0].tolist(), strict=True))
    assert found == sorted([(one, other) for one in range(10) for other in range(one)] * 3)


def test_actions_are_drawn_as_often_as_the_policy_says() -> None:
    grid = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    world = Bandit(REFERENCE, peaked(100, 70, 10)[None], grid.reshape(1, 1, 10_000, 2), on_policy=False)
    batch = draw(world, REFERENCE.log()[None], 0, SftChosen(), -1.0)
    shares = torch.bincount(batch.actions[0], minlength=100) / 20_000
    torch.testing.assert_close(shares.double(), REFERENCE, rtol=0, atol=1e-4)


def test_both_sources_draw_the_same_first_batch_from_the_same_policy() -> None:
    first, second = (draw(bandit(on_policy=on), REFERENCE.log().repeat(2, 1), 0, Dpo(), 0.0) for on in (True, False))
    assert torch.equal(first.actions, second.actions)


def test_records_are_exact_expectations() -> None:
    logits = torch.tensor([[0.5, 0.0, -0.5]], dtype=torch.float64)
    reference = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    world = Bandit(reference, torch.tensor([[0.0, 1.0, 1.0]], dtype=torch.float64), torch.zeros(1), on_policy=True)
    found, policy = measured(logits, world, 0.0), logits[0].softmax(dim=0)
    assert found.reward.item() == pytest.approx((policy[1] + policy[2]).item())
    assert found.best_mass.item() == pytest.approx((policy[1] + policy[2]).item())
    assert found.entropy.item() == pytest.approx(torch.distributions.Categorical(policy).entropy().item())
    assert found.forward_kl.item() == pytest.approx((reference * (reference / policy).log()).sum().item())
    assert found.reverse_kl.item() == pytest.approx((policy * (policy / reference).log()).sum().item())
    assert found.rejected_logp.item() == pytest.approx(policy[0].log().item())
    chosen = 0.375 * policy[1].log() + 0.625 * policy[2].log()
    assert found.chosen_logp.item() == pytest.approx(chosen.item())


def test_there_is_a_record_before_training_and_after_each_batch() -> None:
    _, records = train(bandit(on_policy=False, num_batches=4), REFERENCE.log(), BestOfN(), COURSE)
    assert records.reward.shape == (5, 2)
    torch.testing.assert_close(records.forward_kl[0], torch.zeros(2, dtype=torch.float64), atol=1e-12, rtol=0)


def test_the_same_numbers_come_out_twice() -> None:
    one, other = (train(bandit(on_policy=True, num_batches=3), REFERENCE.log(), Ipo(), COURSE)[0] for _ in range(2))
    assert torch.equal(one, other)


@pytest.mark.parametrize(("peak", "least", "most"), [(70, 0.5, 1.0), (20, -0.05, 0.2)])
def test_on_policy_ipo_beats_offline_best_of_n_far_from_the_reference_and_hardly_near_it(
    peak: float, least: float, most: float
) -> None:
    online, offline = (bandit(on_policy=on, peak=peak, num_batches=50) for on in (True, False))
    assert online.uniforms.shape == offline.uniforms.shape, "equal queries"
    contrastive = train(online, REFERENCE.log(), Ipo(), COURSE)[1].reward[-1]
    likelihood = train(offline, REFERENCE.log(), BestOfN(), COURSE)[1].reward[-1]
    assert (contrastive - likelihood).min() > least
    assert (contrastive - likelihood).max() < most


def test_a_negative_term_pushes_rejected_actions_further_down() -> None:
    plain, pushed = (
        train(bandit(on_policy=False), REFERENCE.log(), SftChosen(negative=negative), COURSE)[1]
        for negative in (0.0, 0.5)
    )
    assert (pushed.rejected_logp[-1] < plain.rejected_logp[-1]).all()
