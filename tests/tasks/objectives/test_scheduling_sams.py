"""SamS as a whole: when it learns, from what, and that it goes on where it stopped."""

import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from cluster.errors import InputError
from tasks.encoders import PretrainedEncoder, RandomEncoder
from tasks.objectives.scheduling import Scheduler, Seen
from tasks.objectives.scheduling.rewards import RewardMix, batch_reward
from tasks.objectives.scheduling.sams import Bandit
from tasks.schedulers import (
    SCHEDULERS,
    All,
    AnyScheduler,
    Learning,
    Networks,
    RandomPairs,
    SamS,
    StatesShape,
    identity_of,
)

LAYERS, HIDDEN, PAIRS = 3, 8, 6
SHAPE = StatesShape(num_layers=LAYERS, hidden=HIDDEN)
SMALL = Networks(depth=2, width=8, block_size=4, dropout=0.0)


def stream(seed: int = 0, num_pairs: int = PAIRS) -> Iterator[Seen]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        margins, logps, losses = torch.randn(3, num_pairs, generator=generator)
        yield Seen(margins, logps, losses.abs(), torch.randn(num_pairs, LAYERS, HIDDEN, generator=generator))


def bandit(seed: int = 0, **options: Any) -> Bandit:
    started = SamS(**{"num_kept": 3, "networks": SMALL, **options}).start(SHAPE, seed)
    assert isinstance(started, Bandit)
    return started


def weights(scheduler: Scheduler) -> list[torch.Tensor]:
    learner = scheduler.state_dict()["learner"]
    return [of.clone() for part in ("exploit", "explore") for of in learner[part]["network"].values()]


def test_a_round_is_paid_with_the_loss_of_the_next_batch_and_its_own_pairs() -> None:
    scheduler, (first, second) = bandit(reward_mix=0.25), (one for one, _ in zip(stream(), range(2), strict=False))
    kept = scheduler(first)
    assert "reward" not in scheduler.metrics
    scheduler(second)
    mix = RewardMix(gamma=0.25, delta=0.5)
    fallen = batch_reward(float(first.losses.mean()), float(second.losses.mean()))
    expected = mix.of_round(fallen, mix.of_pairs(first)[kept])
    assert scheduler.metrics["reward_batch"] == fallen
    torch.testing.assert_close(scheduler.state_dict()["learner"]["pool"]["rewards"], expected)
    assert scheduler.metrics["reward"] == pytest.approx(float(expected.mean()))


def test_the_first_round_teaches_nothing_and_its_choice_knows_no_later_loss() -> None:
    scheduler, seen = bandit(), next(stream())
    before = weights(scheduler)
    kept = scheduler(seen)
    assert all(map(torch.equal, before, weights(scheduler)))
    dearer = Seen(seen.margins, seen.chosen_logps, seen.losses + 5, seen.states)
    assert torch.equal(bandit()(dearer), kept)


def test_networks_learn_from_the_pairs_that_were_kept_alone() -> None:
    first, second, third = (one for one, _ in zip(stream(), range(3), strict=False))
    scheduler, other = bandit(margin_mix=0.0), bandit(margin_mix=0.0)
    kept = scheduler(first)
    left = torch.tensor([place for place in range(PAIRS) if place not in kept])
    changed = first.margins.clone()
    changed[left] += 10
    assert torch.equal(other(Seen(changed, first.chosen_logps, first.losses, first.states)), kept)
    for seen in (second, third):
        assert torch.equal(scheduler(seen), other(seen))
    assert all(map(torch.equal, weights(scheduler), weights(other)))
    assert len(scheduler.state_dict()["learner"]["pool"]["rewards"]) == 2 * 3


def test_the_errors_are_means_over_the_pairs_of_the_round() -> None:
    scheduler, (first, second) = bandit(), (one for one, _ in zip(stream(), range(2), strict=False))
    scheduler(first)
    opened = scheduler.state_dict()["open"]
    network = scheduler._learner.exploit.network
    with torch.no_grad():
        predictions = network(opened["contexts"] * opened["contexts"].shape[1] ** 0.5)
    scheduler(second)
    rewards = scheduler.state_dict()["learner"]["pool"]["rewards"]
    by_hand = sum((float(p) - float(r)) ** 2 for p, r in zip(predictions, rewards, strict=True)) / len(rewards)
    assert scheduler.metrics["exploit_error"] == pytest.approx(by_hand, rel=1e-4)


def test_the_kept_pairs_are_those_of_the_highest_scores_whoever_asks_how_often() -> None:
    scheduler, seen = bandit(), next(stream())
    scores = scheduler._learner.scores(scheduler._contexts(seen))
    expected = scores.topk(3).indices.sort().values
    assert torch.equal(scheduler(seen), expected)
    assert torch.equal(bandit()(seen), expected)


def test_without_exploration_the_first_network_decides_alone() -> None:
    scheduler, seens = bandit(exploration=0.0, learning=Learning(learning_rate=0.01)), stream()
    for _ in range(5):
        scheduler(next(seens))
    contexts = scheduler._contexts(next(seens))
    inputs = contexts * contexts.shape[1] ** 0.5
    with torch.no_grad():
        assert torch.equal(scheduler._learner.scores(contexts), scheduler._learner.exploit.network(inputs))


def test_exploration_adds_its_share_of_what_the_first_network_lacks() -> None:
    contexts = torch.nn.functional.normalize(torch.randn(4, 128, generator=torch.Generator().manual_seed(1)), dim=1)
    scores = [bandit(exploration=share)._learner.scores(contexts) for share in (0.0, 0.5, 1.0)]
    torch.testing.assert_close(scores[1] - scores[0], (scores[2] - scores[0]) / 2)
    assert (scores[2] - scores[0]).abs().min() > 0


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_no_scheduler_touches_the_global_generator_or_leaves_gradients(kind: str) -> None:
    state = torch.get_rng_state()
    config = All() if kind == "all" else SCHEDULERS[kind](num_kept=3)
    scheduler, seens = config.start(SHAPE, 0), stream()
    for _ in range(4):
        assert not scheduler(next(seens)).requires_grad
    assert torch.equal(torch.get_rng_state(), state)


def test_it_learns_inside_and_outside_of_no_grad_alike() -> None:
    inside, outside = bandit(), bandit()
    for seen, _ in zip(stream(), range(4), strict=False):
        with torch.no_grad():
            kept = inside(seen)
        assert torch.equal(kept, outside(seen))
    assert all(map(torch.equal, weights(inside), weights(outside)))


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_a_stopped_scheduler_goes_on_bit_by_bit(kind: str) -> None:
    options = {"networks": Networks(depth=2, width=8), "learning": Learning(pool_size=4, num_replayed=2)}
    more = options if kind == "sams" else {}
    config = All() if kind == "all" else SCHEDULERS[kind](num_kept=3, **more)
    whole, seens = config.start(SHAPE, 5), list(zip(stream(), range(14), strict=False))
    for seen, _ in seens[:7]:
        whole(seen)
    file = io.BytesIO()
    torch.save(whole.state_dict(), file)
    file.seek(0)
    resumed = config.start(SHAPE, 5)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for seen, _ in seens[7:]:
        assert torch.equal(whole(seen), resumed(seen))
        assert whole.metrics == resumed.metrics
    before, after = io.BytesIO(), io.BytesIO()
    torch.save(whole.state_dict(), before)
    torch.save(resumed.state_dict(), after)
    assert before.getvalue() == after.getvalue()


def share_of_good(config: AnyScheduler, seed: int, num_steps: int = 200) -> float:
    """By how much the share of pairs that lower the next loss is larger among the kept, over the last 80 steps."""
    generator = torch.Generator().manual_seed(seed)
    direction, common = torch.randn(2, LAYERS, HIDDEN, generator=generator)
    scheduler, loss, gains = config.start(SHAPE, seed), 0.7, []
    for _ in range(num_steps):
        good = torch.rand(16, generator=generator) < 0.5
        noise = torch.randn(16, LAYERS, HIDDEN, generator=generator) / 2
        margins, logps = torch.randn(2, 16, generator=generator)
        states = common + good[:, None, None] * direction + noise
        kept = scheduler(Seen(margins, logps, torch.full((16,), loss), states))
        share = float(good[kept].float().mean())
        loss -= 0.5 * (share - 0.5)
        gains.append(share - float(good.float().mean()))
    return sum(gains[-80:]) / 80


def test_it_comes_to_keep_the_pairs_that_lower_the_next_loss() -> None:
    learning = Learning(learning_rate=1e-3)
    learnt = [share_of_good(SamS(num_kept=8, reward_mix=1.0, learning=learning), seed) for seed in range(3)]
    drawn = [share_of_good(RandomPairs(num_kept=8), seed) for seed in range(3)]
    assert min(learnt) > 0.2
    assert max(map(abs, drawn)) < 0.1


def test_the_random_encoder_is_fixed_by_its_seed_and_gives_vectors_of_length_1() -> None:
    states = torch.randn(5, LAYERS, HIDDEN, generator=torch.Generator().manual_seed(0)) * 100
    encode, again, other = (RandomEncoder(dim=16).start(SHAPE, seed) for seed in (1, 1, 2))
    assert encode.dim == 16
    torch.testing.assert_close(encode(states).norm(dim=1), torch.ones(5))
    assert torch.equal(encode(states), again(states))
    assert not torch.allclose(encode(states), other(states))
    torch.testing.assert_close(encode(states[2:3])[0], encode(states)[2])


def test_the_random_encoder_looks_at_directions_and_tells_layers_apart() -> None:
    states = torch.randn(5, LAYERS, HIDDEN, generator=torch.Generator().manual_seed(0))
    encode, sizes = RandomEncoder(dim=16).start(SHAPE, 1), torch.tensor([1.0, 50.0, 1e-3]).view(1, 3, 1)
    torch.testing.assert_close(encode(states * sizes), encode(states))
    assert not torch.allclose(encode(states.flip(1)), encode(states))
    assert encode(states.bfloat16()).dtype == torch.float32


@pytest.fixture(scope="module")
def text_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("models") / "bert"
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=50, max_position_embeddings=5, **sizes)).save_pretrained(folder)
    return folder


def test_a_text_encoder_reads_the_layers_as_a_sequence_and_stays_as_it_is(text_encoder: Path) -> None:
    from transformers import AutoModel

    config, states = PretrainedEncoder(path=text_encoder, inner=4), next(stream()).states
    encode, rng = config.start(SHAPE, 1), torch.get_rng_state()
    assert states is not None
    contexts, model = encode(states), AutoModel.from_pretrained(text_encoder).eval()
    assert encode.dim == 16
    assert not contexts.requires_grad
    torch.testing.assert_close(contexts.norm(dim=1), torch.ones(PAIRS))
    inputs = encode.scale * encode.connector(states)
    by_hand = model(inputs_embeds=inputs).last_hidden_state.mean(1)
    torch.testing.assert_close(contexts, torch.nn.functional.normalize(by_hand, dim=1))
    assert encode.scale == pytest.approx(float(model.embeddings.word_embeddings.weight.detach().square().mean().sqrt()))
    assert torch.equal(config.start(SHAPE, 1)(states), contexts)
    assert torch.equal(torch.get_rng_state(), rng)


def test_a_scheduler_learns_on_what_a_text_encoder_reads(text_encoder: Path) -> None:
    scheduler, seens = bandit(encoder=PretrainedEncoder(path=text_encoder)), stream()
    before = weights(scheduler)
    for _ in range(3):
        scheduler(next(seens))
    assert not any(map(torch.equal, before, weights(scheduler)))


def test_a_text_encoder_that_is_missing_or_too_short_is_refused(text_encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"does not exist: check training\.scheduler\.encoder\.path"):
        PretrainedEncoder(path=tmp_path / "nowhere").start(SHAPE, 0)
    with pytest.raises(InputError, match="the encoder reads 5 layers: expected the policy's 6"):
        PretrainedEncoder(path=text_encoder).start(StatesShape(num_layers=6, hidden=HIDDEN), 0)


def test_a_text_encoder_is_known_by_its_bytes_wherever_it_lies(text_encoder: Path, tmp_path: Path) -> None:
    import shutil

    moved = shutil.copytree(text_encoder, tmp_path / "moved")
    here, there = (identity_of(SamS(num_kept=2, encoder=PretrainedEncoder(path=at))) for at in (text_encoder, moved))
    assert here == there
    (moved / "config.json").write_text("{}")
    assert identity_of(SamS(num_kept=2, encoder=PretrainedEncoder(path=moved))) != here


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_an_identity_holds_every_field(kind: str) -> None:
    config = All() if kind == "all" else SCHEDULERS[kind](num_kept=3)
    facts = identity_of(config)
    assert facts["kind"] == kind
    assert set(facts) == set(config.__dataclass_fields__) - {"needs"}


class Holder(BaseModel):
    model_config = ConfigDict(extra="forbid")

    scheduler: AnyScheduler


def test_a_config_file_names_schedulers_and_their_parts_by_kind() -> None:
    values = {"kind": "sams", "num_kept": 4, "encoder": {"kind": "random", "dim": 8}, "networks": {"depth": 2}}
    held = Holder.model_validate({"scheduler": values}).scheduler
    assert held == SamS(num_kept=4, encoder=RandomEncoder(dim=8), networks=Networks(depth=2))
    with pytest.raises(ValidationError, match="block_size 4 does not divide"):
        Holder.model_validate({"scheduler": values | {"networks": {"width": 6}}})


def test_a_missing_part_of_what_it_sees_is_named() -> None:
    seen = next(stream())
    with pytest.raises(ValueError, match="saw no states"):
        bandit()(Seen(seen.margins, seen.chosen_logps, seen.losses))


def test_importing_schedulers_does_not_import_torch() -> None:
    heavy = "{'torch', 'transformers', 'trl'}"
    code = f"import sys, tasks.schedulers; print(sorted({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "[]"
