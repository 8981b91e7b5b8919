"""Rewards, networks and baselines of batch scheduling, against closed forms."""

import copy
import math

import pytest
import torch

from cluster.errors import InputError
from tasks.encoders import PretrainedEncoder, RandomEncoder
from tasks.objectives.scheduling import Seen
from tasks.objectives.scheduling.learner import block_means
from tasks.objectives.scheduling.networks import NetworkShape, ResidualNetwork, dropped, squared_error
from tasks.objectives.scheduling.replay import ReplayPool
from tasks.objectives.scheduling.rewards import RewardMix, batch_reward, scaled
from tasks.objectives.scheduling.seen import top_places
from tasks.schedulers import SCHEDULERS, All, AnyScheduler, Learning, Networks, SamS, StatesShape

SHAPE = StatesShape(num_layers=3, hidden=8)


def seen_of(margins: list[float], logps: list[float] | None = None) -> Seen:
    found, likelihoods = torch.tensor(margins), torch.tensor(logps or margins)
    states = torch.randn(len(margins), 3, 8, generator=torch.Generator().manual_seed(7))
    return Seen(margins=found, chosen_logps=likelihoods, losses=torch.nn.functional.softplus(-found), states=states)


def of_kind(kind: str, num_kept: int) -> AnyScheduler:
    return All() if kind == "all" else SCHEDULERS[kind](num_kept=num_kept)


@pytest.mark.parametrize(("before", "after"), [(0.7, 0.6), (0.6, 0.7), (1e-4, 1e-9), (1e-9, 1e-4), (3.0, 0.1)])
def test_the_batch_reward_is_the_published_ratio_and_above_0_iff_the_loss_fell(before: float, after: float) -> None:
    low, high = math.exp(before), math.exp(after)
    assert batch_reward(before, after) == pytest.approx((low - high) / max(low, high), rel=1e-6)
    assert (batch_reward(before, after) > 0) == (after < before)


def test_the_batch_reward_of_huge_losses_does_not_overflow() -> None:
    assert batch_reward(5000.0, 1000.0) == 1
    assert batch_reward(1000.0, 5000.0) == -1
    assert batch_reward(2.0, 2.0) == 0


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_rewards_stay_between_the_sigmoids_of_minus_1_and_1(gamma: float) -> None:
    mix = RewardMix(gamma=gamma, delta=0.5)
    for batch in (-1.0, 0.0, 1.0):
        rewards = mix.of_round(batch, torch.linspace(0, 1, 5))
        assert rewards.min() >= torch.sigmoid(torch.tensor(-1.0)) - 1e-6
        assert rewards.max() <= torch.sigmoid(torch.tensor(1.0)) + 1e-6


def test_each_part_of_a_reward_passes_through_the_sigmoid_once() -> None:
    rewards = RewardMix(gamma=0.25, delta=0.5).of_round(0.4, torch.tensor([0.0, 0.6]))
    part = 0.25 / (1 + math.exp(-0.4))
    assert rewards.tolist() == pytest.approx([part + 0.75 * 0.5, part + 0.75 / (1 + math.exp(-0.6))])


def test_pairs_are_paid_for_large_margins_and_unlikely_chosen_responses() -> None:
    found = RewardMix(gamma=0.5, delta=0.25).of_pairs(seen_of([-1.0, 0.0, 3.0], [-10.0, -30.0, -20.0]))
    assert found.tolist() == pytest.approx([0.0, 0.25 * 0.25 + 0.75, 0.25 + 0.75 * 0.5])


def test_swapping_the_two_responses_of_a_pair_of_positive_margin_lowers_its_reward() -> None:
    margins = [0.5, 2.0, -0.2, 1.0]
    for place in (0, 1, 3):
        swapped = [-margin if i == place else margin for i, margin in enumerate(margins)]
        before, after = (RewardMix(gamma=0.5, delta=1.0).of_pairs(seen_of(of)) for of in (margins, swapped))
        assert after[place] < before[place]
        assert after.argsort().tolist().index(place) < before.argsort().tolist().index(place)


def test_scaling_alike_values_gives_the_middle() -> None:
    assert scaled(torch.tensor([2.0, 2.0])).tolist() == [0.5, 0.5]
    assert scaled(torch.tensor([4.0, 2.0, 3.0])).tolist() == [1.0, 0.0, 0.5]


def test_the_best_places_are_certain_and_ties_go_to_the_first() -> None:
    scores = torch.tensor([1.0, 3.0, 1.0, 3.0, 1.0])
    assert all(top_places(scores, 3).tolist() == [0, 1, 3] for _ in range(20))
    assert top_places(scores, 9).tolist() == [0, 1, 2, 3, 4]


def test_scores_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="2 of 3 scores of the pairs are not finite"):
        top_places(torch.tensor([1.0, math.nan, math.inf]), 1)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("largest_margin", [2, 3]),
        ("smallest_margin", [0, 1]),
        ("lowest_chosen_likelihood", [1, 3]),
        ("all", [0, 1, 2, 3]),
    ],
)
def test_baselines_keep_what_their_names_say(kind: str, expected: list[int]) -> None:
    scheduler = of_kind(kind, 2).start(SHAPE, 0)
    kept = scheduler(seen_of([-2.0, 0.1, 1.5, 1.0], [-5.0, -40.0, -6.0, -30.0]))
    assert kept.tolist() == expected
    assert kept.dtype == torch.int64
    assert scheduler.metrics["num_kept"] == len(expected)


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize("num_pairs", [1, 3, 4])
def test_every_scheduler_keeps_all_pairs_where_there_are_too_few(kind: str, num_pairs: int) -> None:
    scheduler = of_kind(kind, 4).start(SHAPE, 0)
    for _ in range(3):
        assert scheduler(seen_of([0.5, 0.1, -1.5, 1.0][:num_pairs])).tolist() == list(range(num_pairs))


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_a_scheduler_that_needs_nothing_takes_pairs_that_nobody_looked_at_and_the_others_refuse(kind: str) -> None:
    config = of_kind(kind, 2)
    scheduler = config.start(SHAPE, 0)
    if config.needs:
        with pytest.raises(ValueError, match=r"not finite|no states"):
            scheduler(Seen.unread(4))
    else:
        assert len(scheduler(Seen.unread(4))) == (4 if kind == "all" else 2)
        assert set(scheduler.metrics) == {"num_kept"}


def test_random_pairs_are_kept_equally_often() -> None:
    scheduler = of_kind("random", 2).start(SHAPE, 3)
    counts = torch.zeros(5)
    for _ in range(2000):
        kept = scheduler(Seen.unread(5))
        assert kept[0] < kept[1]
        counts[kept] += 1
    assert ((counts / 2000 - 0.4).abs() < 0.05).all()


def test_an_error_is_the_mean_over_pairs_and_never_broadcast() -> None:
    predictions, targets = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 0.0, 3.0])
    assert squared_error(predictions, targets).item() == pytest.approx(5 / 3)
    with pytest.raises(ValueError, match=r"expected both of shape \(m,\)"):
        squared_error(predictions, targets[:, None])


def test_a_network_is_the_sum_of_its_layers_additions() -> None:
    network = ResidualNetwork(
        2, NetworkShape(depth=3, width=4, dropout=0.5), torch.Generator().manual_seed(0), start=0.5
    )
    inputs = torch.tensor([[1.0, -1.0], [0.5, 2.0]])
    state = inputs @ network.enter.weight.T
    for layer in network.layers:
        state = state + (state @ layer.weight.T).clamp_min(0)
    torch.testing.assert_close(network(inputs), (state @ network.leave.weight.T)[:, 0] + 0.5)


def test_dropping_keeps_the_mean_and_without_a_generator_everything() -> None:
    values, generator = torch.ones(100_000), torch.Generator().manual_seed(0)
    found = dropped(values, 0.3, generator)
    assert found.mean().item() == pytest.approx(1, abs=0.01)
    assert found.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert dropped(values, 0.3, None) is values


def test_block_means_are_means_of_neighbours() -> None:
    assert block_means(torch.arange(8.0).view(1, 8), 4).tolist() == [[1.5, 5.5]]


def test_the_second_network_learns_what_the_first_one_lacks_after_its_step() -> None:
    config = SamS(num_kept=3, networks=Networks(depth=2, width=8, dropout=0.0), learning=Learning(learning_rate=0.1))
    learner, generator = config._learner(5, torch.Generator().manual_seed(0)), torch.Generator().manual_seed(1)
    contexts, rewards = torch.randn(6, 5, generator=generator), torch.rand(6, generator=generator)
    second = copy.deepcopy(learner.explore.network)
    _, error = learner.learn((contexts, rewards))
    with torch.no_grad():
        layers = learner.exploit.network.activations(contexts * 5**0.5)
        lack = rewards - learner.exploit.network.read(layers[-1])
        expected = squared_error(second(block_means(torch.cat(layers, dim=1), 4)), lack)
    assert error == pytest.approx(float(expected), rel=1e-5)


def test_a_pool_replays_each_batch_at_most_once_and_never_grows_over_its_size() -> None:
    pool = ReplayPool(3, 2, torch.Generator().manual_seed(0))
    for number in range(6):
        contexts, rewards = pool.with_replayed((torch.full((2, 1), float(number)), torch.full((2,), float(number))))
        assert len(rewards) == 2 * (1 + min(number, 2))
        assert contexts[:, 0].tolist() == rewards.tolist()
        assert rewards[:2].tolist() == [number, number]
        assert len(rewards.unique()) == len(rewards) // 2
        pool.add((contexts[:2], rewards[:2]))
        assert len(pool) == min(number + 1, 3)


@pytest.mark.parametrize("kind", [kind for kind in SCHEDULERS if kind != "all"])
def test_keeping_no_pair_is_refused(kind: str) -> None:
    with pytest.raises(InputError, match="num_kept is 0: expected 1 or more"):
        of_kind(kind, 0)


@pytest.mark.parametrize(
    ("part", "options", "words"),
    [
        (SamS, {"num_kept": 1, "reward_mix": 1.5}, "reward_mix is 1.5"),
        (SamS, {"num_kept": 1, "margin_mix": -0.1}, "margin_mix is -0.1"),
        (SamS, {"num_kept": 1, "exploration": math.nan}, "exploration is nan"),
        (Networks, {"depth": 0}, "depth of the networks is 0"),
        (Networks, {"width": 10}, "block_size 4 does not divide the width 10"),
        (Networks, {"dropout": 1.0}, "dropout of the networks is 1.0"),
        (Learning, {"learning_rate": 0.0}, "learning_rate is 0.0"),
        (Learning, {"weight_decay": math.inf}, "weight_decay is inf"),
        (Learning, {"pool_size": -1}, "pool_size is -1"),
        (Learning, {"num_replayed": -1}, "num_replayed is -1"),
        (RandomEncoder, {"dim": 0}, "dim of the encoder is 0"),
        (PretrainedEncoder, {"path": ".", "inner": 0}, "inner of the encoder is 0"),
    ],
)
def test_fields_out_of_range_are_refused_by_name(part: type, options: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        part(**options)


@pytest.mark.parametrize("field", ["margins", "states"])
def test_measures_of_unlike_sizes_are_refused(field: str) -> None:
    one = torch.zeros(3)
    wrong = {"margins": torch.zeros(2), "states": torch.zeros(2, 3, 8)}[field]
    with pytest.raises(ValueError, match="expected"):
        Seen(**{"margins": one, "chosen_logps": one, "losses": one, field: wrong})
