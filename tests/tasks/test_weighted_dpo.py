"""Weighted DPO on the tiny model: against TRL's own loss of single pairs, and trainings that have to agree."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cluster.errors import InputError
from tasks import dpo
from tasks.dpo import Plan, train, trainer_of
from tasks.stages import ADAPTER
from tasks.tables import PREFERENCES, Table
from tasks.weighted_dpo import WeightedDPOTrainer

GOOD, BAD = ("good", "happy nice", "love", "great fine good"), ("bad", "sad", "hate awful dull", "awful")
UNLIKE = [2.0, 0.5, 0.0, 1.5]
Logged = list[dict[str, float]]
MakePlan = Callable[..., Plan]


def rows_of(weights: Sequence[float | None]) -> list[dict[str, Any]]:
    return [
        {
            "pair_id": f"pair-{i}",
            "prompt_id": f"prompt-{i}",
            "messages": [{"role": "user", "content": f"warm or cold {i}:"}],
            "chosen": f"{i}-a",
            "rejected": f"{i}-b",
            "chosen_text": GOOD[i % 4],
            "rejected_text": BAD[i % 4],
            "swapped": False,
            "probability": None,
            "labeller": "by hand",
            "weight": weight,
        }
        for i, weight in enumerate(weights)
    ]


@pytest.fixture(scope="module")
def adapters(make_adapter: Callable[[int], Path]) -> tuple[Path, Path]:
    return make_adapter(1), make_adapter(2)


@pytest.fixture
def make_plan(
    tiny_model: Path, adapters: tuple[Path, Path], tmp_path: Path, write_table: Callable[..., Table]
) -> MakePlan:
    """A plan in a folder of its own, whose start and reference are two unlike adapters."""

    def make(
        name: str, rows: Sequence[dict[str, Any]], *, micro: int = 4, batch: int = 4, max_length: int = 96
    ) -> Plan:
        arguments = {
            "beta": 0.2,
            "max_length": max_length,
            "save_steps": 50,
            "learning_rate": 1e-3,
            "num_train_epochs": 3,
            "per_device_train_batch_size": micro,
            "warmup_steps": 0,
            "weight_decay": 0.0,
            "seed": 0,
        }
        return Plan(
            model=tiny_model,
            start=adapters[0],
            reference=adapters[1],
            preferences=(write_table(rows, PREFERENCES).path,),
            target=tmp_path / name / ADAPTER,
            checkpoints=tmp_path / name / ".checkpoints",
            arguments=arguments,
            lora={"r": 4, "lora_alpha": 8, "lora_dropout": 0.0},
            batch_size=batch,
            use_gpu=False,
        )

    return make


def tuned(plan: Plan) -> tuple[dict[str, torch.Tensor], Logged]:
    """The weights of the trained adapter, and what was logged at each step."""
    logged: Logged = []
    train(plan, 0, lambda metrics, _: logged.append(metrics))
    return load_file(plan.target / "adapter_model.safetensors"), logged


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name, weights in one.items():
        torch.testing.assert_close(weights, other[name], rtol=0, atol=tolerance, msg=name)


def timeless(logged: Logged) -> Logged:
    clocks = ("runtime", "per_second", "time")
    return [
        {name: value for name, value in one.items() if not any(clock in name for clock in clocks)} for one in logged
    ]


def loss_of(trainer: Any, rows: Sequence[int]) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss of a batch of these rows of a trainer's data, and its gradient."""
    model = trainer.model
    model.train()
    model.zero_grad()
    batch = trainer.data_collator([trainer.train_dataset[i] for i in rows])
    loss = trainer.compute_loss(model, batch)
    loss.backward()
    named = {name: part.grad.clone() for name, part in model.named_parameters() if part.grad is not None}
    return float(loss.detach()), named


def test_loss_and_gradient_of_a_batch_are_the_weighted_sums_of_those_of_its_pairs(make_plan: MakePlan) -> None:
    """TRL's own trainer gives those of each pair by itself; here the weights have mean 1 already."""
    alone = trainer_of(make_plan("alone", rows_of([None] * 4)), 0, lambda *_: None)
    weighted = trainer_of(make_plan("weighted", rows_of(UNLIKE)), 0, lambda *_: None)
    assert not isinstance(alone, WeightedDPOTrainer)
    assert isinstance(weighted, WeightedDPOTrainer)
    pairs = [loss_of(alone, [i]) for i in range(4)]
    assert len({round(loss, 3) for loss, _ in pairs}) == 4
    for batch in ([0, 1, 2, 3], [3, 1], [2]):
        loss, gradient = loss_of(weighted, batch)
        shares = [UNLIKE[i] / len(batch) for i in batch]
        assert loss == pytest.approx(sum(share * pairs[i][0] for share, i in zip(shares, batch, strict=True)), abs=1e-5)
        for name, found in gradient.items():
            expected = sum(share * pairs[i][1][name] for share, i in zip(shares, batch, strict=True))
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6, msg=name)
    assert all(not found.any() for found in loss_of(weighted, [2])[1].values()), "a weight of 0 leaves no gradient"


def test_weights_that_are_all_alike_are_trained_by_trl_itself(make_plan: MakePlan) -> None:
    plain, logged = tuned(make_plan("plain", rows_of([None] * 4)))
    for name, weight in (("ones", 1.0), ("threes", 3.0)):
        plan = make_plan(name, rows_of([weight] * 4))
        assert not isinstance(trainer_of(plan, 0, lambda *_: None), WeightedDPOTrainer)
        found, also = tuned(plan)
        assert_same(found, plain, 0.0)
        assert timeless(also) == timeless(logged)


def test_unit_weights_give_trls_adapter_and_numbers(make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were they not left to TRL."""
    plain, logged = tuned(make_plan("plain", rows_of([1.0] * 6), micro=2))
    monkeypatch.setattr(dpo, "weights_of", lambda rows: [1.0] * len(rows))
    plan = make_plan("ones", rows_of([1.0] * 6), micro=2)
    assert isinstance(trainer_of(plan, 0, lambda *_: None), WeightedDPOTrainer)
    found, also = tuned(plan)
    assert_same(found, plain, 1e-6)
    for mine, trls in zip(timeless(also), timeless(logged), strict=True):
        assert mine == pytest.approx(trls, abs=1e-6)


def test_the_scale_of_all_weights_changes_nothing(make_plan: MakePlan) -> None:
    first, logged = tuned(make_plan("first", rows_of(UNLIKE)))
    second, also = tuned(make_plan("second", rows_of([7 * weight for weight in UNLIKE])))
    assert_same(first, second, 1e-6)
    assert also[0]["train/loss"] == pytest.approx(logged[0]["train/loss"], abs=1e-6)


def test_a_pair_of_weight_0_teaches_nothing_and_is_still_logged(make_plan: MakePlan) -> None:
    other = rows_of(UNLIKE)
    other[2] |= {"chosen_text": "dull", "rejected_text": "warm"}
    first, logged = tuned(make_plan("first", rows_of(UNLIKE)))
    second, also = tuned(make_plan("second", other))
    assert_same(first, second, 1e-6)
    assert also[0]["train/loss"] == pytest.approx(logged[0]["train/loss"], abs=1e-6)
    assert also[0]["train/logps/chosen"] != pytest.approx(logged[0]["train/logps/chosen"], abs=1e-2)


def test_a_pair_of_weight_2_teaches_what_it_does_twice_in_the_batch(make_plan: MakePlan) -> None:
    rows = rows_of([1.0, 1.0, 1.0])
    twice = [*rows, dict(rows[1])]
    heavy = [row | {"weight": weight} for row, weight in zip(rows, (1.0, 2.0, 1.0), strict=True)]
    first, logged = tuned(make_plan("twice", twice))
    second, also = tuned(make_plan("heavy", heavy, micro=3, batch=3))
    assert [one["train/loss"] for one in also] == pytest.approx([one["train/loss"] for one in logged], abs=1e-4)
    assert_same(first, second, 1e-4)


def test_accumulated_micro_batches_make_the_step_of_their_whole_batch(make_plan: MakePlan) -> None:
    first, logged = tuned(make_plan("whole", rows_of(UNLIKE), micro=4))
    second, also = tuned(make_plan("parts", rows_of(UNLIKE), micro=1))
    assert len(also) == len(logged) == 3
    assert [one["train/loss"] for one in also] == pytest.approx([one["train/loss"] for one in logged], abs=1e-4)
    assert_same(first, second, 1e-4)


def test_null_weighs_1_and_the_mean_is_over_the_pairs_that_fit(make_plan: MakePlan) -> None:
    rows = rows_of([None, 3.0, 100.0])
    rows[2]["messages"] = [{"role": "user", "content": "warm " * 200}]
    trainer = trainer_of(make_plan("run", rows), 0, lambda *_: None)
    assert trainer.train_dataset["weight"][:] == trainer.eval_dataset["weight"][:] == [0.5, 1.5]


@pytest.mark.parametrize("weights", [[0.0, 0.0], [0.0, 0.0, 1.0]])
def test_nothing_but_weights_of_0_is_refused(make_plan: MakePlan, weights: list[float]) -> None:
    rows = rows_of(weights)
    rows[2:] = [row | {"messages": [{"role": "user", "content": "warm " * 200}]} for row in rows[2:]]
    with pytest.raises(
        InputError, match=r"all 2 pairs that fit training\.max_length have weight 0, so there is nothing"
    ):
        trainer_of(make_plan("run", rows), 0, lambda *_: None)
