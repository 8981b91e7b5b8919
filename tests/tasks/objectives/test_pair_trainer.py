"""The trainer of pairs on the tiny model: weights, stored references, schedulers, and trainings that have to agree."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cluster.errors import InputError, TrainingError
from tasks.objectives import Ipo, SoftDpo
from tasks.objectives.exploration import AnyExploration, Selm, Xpo
from tasks.schedulers import All, AnyScheduler, LargestMargin, RandomPairs, SamS, SmallestMargin
from tasks.trainer.batches import cut
from tasks.trainer.checkpoints import newest_checkpoint
from tasks.trainer.pair_trainer import PairTrainer, Recipe
from tasks.trainer.worker import Plan, train, trainer_of

UNLIKE = [2.0, 0.5, 0.0, 1.5]
Logged = list[dict[str, float]]
LessonRows = Callable[..., list[dict[str, Any]]]
MakePlan = Callable[..., Plan]


def quiet(plan: Plan) -> PairTrainer:
    return trainer_of(plan, 0, lambda *_: None)


def tuned(plan: Plan) -> tuple[dict[str, torch.Tensor], Logged]:
    """The weights of the trained adapter, and what was logged at each step."""
    logged: Logged = []
    train(plan, 0, lambda metrics, _: logged.append(metrics))
    return load_file(plan.target / "adapter_model.safetensors"), logged


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name, weights in one.items():
        torch.testing.assert_close(weights, other[name], rtol=0, atol=tolerance, msg=name)


def loss_of(trainer: PairTrainer, rows: Sequence[int]) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss of a batch of these rows of a trainer's data, and its gradient."""
    model = trainer.model
    model.train()
    model.zero_grad()
    loss = trainer.compute_loss(model, trainer.data_collator([trainer.train_dataset[i] for i in rows]))
    loss.backward()
    parts = model.named_parameters()
    return float(loss.detach()), {name: part.grad.clone() for name, part in parts if part.grad is not None}


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_loss_and_gradient_of_a_batch_are_the_weighted_means_of_those_of_its_pairs(
    lesson_rows: LessonRows, make_plan: MakePlan, scale: float
) -> None:
    alone = quiet(make_plan("alone", lesson_rows(4), Recipe()))
    weighted = quiet(make_plan("weighted", lesson_rows(4, weight=[scale * weight for weight in UNLIKE]), Recipe()))
    pairs = [loss_of(alone, [i]) for i in range(4)]
    assert all(any(part.abs().max() > 1e-3 for part in gradient.values()) for _, gradient in pairs)
    for batch in ([0, 1, 2, 3], [3, 1], [2]):
        loss, gradient = loss_of(weighted, batch)
        shares = [scale * UNLIKE[i] / len(batch) for i in batch]
        assert loss == pytest.approx(sum(share * pairs[i][0] for share, i in zip(shares, batch, strict=True)), abs=1e-5)
        for name, found in gradient.items():
            expected = sum(share * pairs[i][1][name] for share, i in zip(shares, batch, strict=True))
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6, msg=name)
    assert all(not found.any() for found in loss_of(weighted, [2])[1].values()), "a weight of 0 leaves no gradient"


def test_a_pair_of_weight_0_teaches_nothing_and_is_still_logged(lesson_rows: LessonRows, make_plan: MakePlan) -> None:
    rows = lesson_rows(4, weight=UNLIKE)
    other = [dict(row) for row in rows]
    other[2] |= {name: rows[3][name] for name in ("chosen_token_ids", "rejected_token_ids")}
    other[2]["chosen_token_ids"] = other[2]["chosen_token_ids"] * 2
    plain = {"num_train_epochs": 3, "optim": "sgd", "learning_rate": 1.0}  # Adam makes much of a rounded zero
    first, logged = tuned(make_plan("first", rows, Recipe(), **plain))
    second, also = tuned(make_plan("second", other, Recipe(), **plain))
    assert max(weights.abs().max() for name, weights in first.items() if "lora_B" in name) > 1e-3
    assert_same(first, second, 1e-6)
    assert also[0]["train/loss"] == pytest.approx(logged[0]["train/loss"], abs=1e-6)
    assert also[0]["train/logps/chosen"] != pytest.approx(logged[0]["train/logps/chosen"], abs=1e-2)


def test_a_pair_of_weight_2_teaches_what_it_does_twice_in_the_batch(
    lesson_rows: LessonRows, make_plan: MakePlan
) -> None:
    rows = lesson_rows(3)
    heavy = [row | {"weight": weight} for row, weight in zip(rows, (0.75, 1.5, 0.75), strict=True)]
    first, logged = tuned(make_plan("twice", [*rows, dict(rows[1])], Recipe(), num_train_epochs=3))
    second, also = tuned(make_plan("heavy", heavy, Recipe(), batch=3, num_train_epochs=3))
    assert [one["train/loss"] for one in also] == pytest.approx([one["train/loss"] for one in logged], abs=1e-4)
    assert_same(first, second, 1e-4)


def test_weights_normalised_by_batch_have_no_scale(lesson_rows: LessonRows, make_plan: MakePlan) -> None:
    recipe = Recipe(normalise="batch")
    found = {}
    for scale in (1.0, 7.0):
        rows = lesson_rows(8, weight=[scale * weight for weight in UNLIKE * 2])
        plan = make_plan(f"by-{scale}", rows, recipe, per_device_train_batch_size=2, num_train_epochs=2)
        found[scale] = tuned(plan)
    assert_same(found[1.0][0], found[7.0][0], 1e-6)
    losses = [[one["train/loss"] for one in logged] for _, logged in found.values()]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert losses[0][0] == pytest.approx(0.6931, abs=1e-3), "the mean weight of a step is 1"


def test_accumulated_micro_batches_make_the_step_of_their_whole_batch(
    lesson_rows: LessonRows, make_plan: MakePlan
) -> None:
    rows = lesson_rows(8, weight=UNLIKE * 2)
    first, logged = tuned(make_plan("whole", rows, Recipe(), num_train_epochs=2))
    for groups in (True, False):
        recipe = Recipe(group_by_length=groups)
        plan = make_plan(f"parts-{groups}", rows, recipe, per_device_train_batch_size=2, num_train_epochs=2)
        second, also = tuned(plan)
        assert len(also) == len(logged) == 4
        for name in ("train/loss", "train/logps/chosen", "train/rewards/margins"):
            assert [one[name] for one in also] == pytest.approx([one[name] for one in logged], abs=1e-4)
        assert_same(first, second, 1e-4)


def test_a_steps_pairs_are_cut_by_length() -> None:
    assert cut([7, 3, 5, 9], [10, 40, 20, 30], 2) == [[3, 9], [5, 7]]
    assert cut([1, 2, 3], [5, 5, 5], 2) == [[1, 2], [3]]


def test_the_reference_is_taken_from_the_lessons(lesson_rows: LessonRows, make_plan: MakePlan) -> None:
    """One that was made up shows in the margins; the true one gives what asking the reference gives."""
    asked = quiet(make_plan("asked", lesson_rows(4), Recipe()))
    true = {side: asked.train_dataset[f"ref_{side}_logps"][:] for side in ("chosen", "rejected")}
    known = {f"{side}_reference_logp": values for side, values in true.items()}
    first, _ = tuned(make_plan("asked", lesson_rows(4), Recipe()))
    second, _ = tuned(make_plan("known", lesson_rows(4, **known), Recipe()))
    assert_same(first, second, 0.0)

    made_up = known | {"rejected_reference_logp": [value + 5 for value in true["rejected"]]}
    _, logged = tuned(make_plan("made-up", lesson_rows(4, **made_up), Recipe()))
    assert logged[0]["train/rewards/margins"] == pytest.approx(0.2 * 5, abs=1e-5)


def test_of_a_response_that_is_cut_the_reference_is_asked_again(lesson_rows: LessonRows, make_plan: MakePlan) -> None:
    rows = lesson_rows(4, chosen_reference_logp=[-1e3] * 4, rejected_reference_logp=[-1e3] * 4)
    longest = [row | {"chosen_token_ids": row["chosen_token_ids"] * 9} for row in rows]
    trainer = quiet(make_plan("run", longest, Recipe(), max_length=24))
    assert all(value > -1e3 for value in trainer.train_dataset["ref_chosen_logps"][:])
    assert max(trainer.train_dataset["length"][:]) <= 24


def test_pairs_without_room_are_left_out(lesson_rows: LessonRows, make_plan: MakePlan) -> None:
    rows = lesson_rows(3)
    rows[2]["messages"] = [{"role": "user", "content": "warm " * 200}]
    assert quiet(make_plan("run", rows, Recipe())).train_dataset["pair_id"][:] == ["pair-0", "pair-1"]
    rows[0]["weight"] = rows[1]["weight"] = 0.0
    with pytest.raises(InputError, match=r"2 of 3 pairs have a prompt of fewer than training\.max_length 96"):
        quiet(make_plan("again", rows, Recipe()))


def test_soft_labels_of_one_half_pull_margins_to_0(lesson_rows: LessonRows, make_plan: MakePlan) -> None:
    rows = lesson_rows(4, probability=[0.5] * 4)
    _, soft = tuned(make_plan("soft", rows, Recipe(objective=SoftDpo()), num_train_epochs=4))
    _, hard = tuned(make_plan("hard", rows, Recipe(), num_train_epochs=4))
    assert abs(soft[-1]["train/rewards/margins"]) < 1e-4
    assert hard[-1]["train/rewards/margins"] > 1e-2


@pytest.mark.parametrize("exploration", [Xpo(alpha=0.3), Selm(alpha=0.3)], ids=lambda one: one.kind)
def test_exploration_adds_its_term_for_the_pairs_that_have_a_response_of_the_reference(
    lesson_rows: LessonRows, make_plan: MakePlan, exploration: AnyExploration
) -> None:
    said = [row["rejected_token_ids"] for row in lesson_rows(4)]
    given = {"explored_token_ids": [said[0], None, said[2], None], "explored_reference_logp": [-7.0, None, -9.0, None]}
    plain = quiet(make_plan("plain", lesson_rows(4), Recipe()))
    exploring = quiet(make_plan("exploring", lesson_rows(4, **given), Recipe(exploration=exploration)))
    loss, _ = loss_of(plain, range(4))
    added, gradient = loss_of(exploring, range(4))
    logps = torch.tensor([plain.train_dataset[i]["ref_rejected_logps"] for i in (0, 2)])  # B is zero at the start
    term = float(exploration(logps, torch.tensor([-7.0, -9.0]), 0.2).sum() / 4)
    assert added - loss == pytest.approx(term, abs=1e-4)
    assert any(part.abs().max() > 0 for part in gradient.values())


@pytest.mark.parametrize("micro", [2, 8])
def test_a_scheduler_that_keeps_the_whole_batch_changes_nothing(
    lesson_rows: LessonRows, make_plan: MakePlan, micro: int
) -> None:
    rows, found = lesson_rows(16), {}
    for scheduler in (All(), RandomPairs(num_kept=8), SamS(num_kept=8)):
        recipe = Recipe(scheduler=scheduler)
        plan = make_plan(scheduler.kind, rows, recipe, batch=8, per_device_train_batch_size=micro)
        found[scheduler.kind] = tuned(plan)
    for kind in ("random", "sams"):
        assert_same(found[kind][0], found["all"][0], 1e-5)
        for one, other in zip(found[kind][1], found["all"][1], strict=True):
            assert one["train/loss"] == pytest.approx(other["train/loss"], abs=1e-5)


@pytest.mark.parametrize(("micro", "kept"), [(8, 3), (2, 5)])
def test_only_the_pairs_that_a_scheduler_keeps_are_trained_on(
    lesson_rows: LessonRows, make_plan: MakePlan, micro: int, kept: int
) -> None:
    """Margins of the policy as it starts are those that the made-up reference of the rejected responses gives them."""
    plain = quiet(make_plan("plain", lesson_rows(8), Recipe(), batch=8))
    true = plain.train_dataset["ref_chosen_logps"][:]
    known = lesson_rows(8, chosen_reference_logp=true, rejected_reference_logp=[-float(i) for i in range(8)])
    for scheduler in (LargestMargin(num_kept=kept), SmallestMargin(num_kept=kept)):
        plan = make_plan(scheduler.kind, known, Recipe(scheduler=scheduler), batch=8, per_device_train_batch_size=micro)
        trainer = quiet(plan)
        batches, _ = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 8 // micro, "cpu")
        assert len(batches) == 8 // micro
        taught = torch.cat([batch["row"] for batch in batches])
        assert len(set(taught.tolist())) == len(taught) == kept
        assert float(sum(batch["share"] for batch in batches)) == pytest.approx(len(batches))
        with torch.no_grad():
            margins = trainer._seen([trainer.data_collator([trainer.train_dataset[i] for i in range(8)])]).margins
        order = margins.argsort(descending=scheduler.kind == "largest_margin")
        assert set(taught.tolist()) == set(order[:kept].tolist())


@pytest.mark.parametrize("scheduler", [RandomPairs(num_kept=4), SamS(num_kept=4)], ids=lambda one: one.kind)
def test_a_scheduled_training_that_was_stopped_ends_as_one_that_was_not(
    lesson_rows: LessonRows, make_plan: MakePlan, scheduler: AnyScheduler
) -> None:
    rows, recipe = lesson_rows(32), Recipe(scheduler=scheduler)

    def plan_of(name: str) -> Plan:
        return make_plan(name, rows, recipe, batch=8, per_device_train_batch_size=4, save_steps=2, num_train_epochs=2)

    whole, logged = tuned(plan_of("whole"))
    assert len(logged) == 8
    assert logged[0]["train/scheduler/num_kept"] == 4

    def until_step_6(_metrics: dict[str, float], step: int) -> None:
        if step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(plan_of("cut"), 0, until_step_6)
    resumed, again = tuned(plan_of("cut"))
    assert len(again) == 4
    assert_same(resumed, whole, 0.0)


def test_a_loss_that_is_not_finite_stops_with_step_pairs_and_checkpoint(
    lesson_rows: LessonRows, make_plan: MakePlan
) -> None:
    rows = lesson_rows(8)
    plan = make_plan("run", rows, Recipe(objective=Ipo()), save_steps=1, num_train_epochs=2)
    rows[5]["chosen_reference_logp"], rows[5]["rejected_reference_logp"] = float("inf"), 0.0
    broken = make_plan("broken", rows, Recipe(objective=Ipo()), save_steps=1)
    with pytest.raises(TrainingError, match=r"the loss of step 1 is inf for 1 of 4 pairs \(pair-5\).*none was written"):
        train(broken, 0, lambda *_: None)
    assert not broken.target.exists()

    wild = replace(plan, arguments=plan.arguments | {"learning_rate": 1e19})
    with pytest.raises(TrainingError, match=r"step 2 is .* \(pair-.*checkpoint-1\)"):
        train(wild, 0, lambda *_: None)
    assert not wild.target.exists()
    assert Path(newest_checkpoint(wild.checkpoints) or "").name == "checkpoint-1"


def test_an_adapter_of_another_base_is_refused(lesson_rows: LessonRows, make_plan: MakePlan, tmp_path: Path) -> None:
    plan = make_plan("run", lesson_rows(4), Recipe())
    weights = load_file(plan.start / "adapter_model.safetensors")
    other = tmp_path / "other"
    other.mkdir()
    (other / "adapter_config.json").write_bytes((plan.start / "adapter_config.json").read_bytes())
    save_file(
        {name: torch.cat([one, one], dim=1) for name, one in weights.items()}, other / "adapter_model.safetensors"
    )
    with pytest.raises(InputError, match=r"was trained on another base model or with another training\.lora: 56 of"):
        quiet(replace(plan, start=other))
