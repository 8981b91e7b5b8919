"""DPO against likelihoods computed without TRL, training that was interrupted, and a real Ray Train worker."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from cluster.adapters import fresh_adapter
from cluster.errors import InputError, TrainingError
from cluster.models import LoraShape, Policy
from cluster.rendering import prompt_tokens
from cluster.session import ray_session
from cluster.settings import Settings, TrainSettings
from tasks.lessons import Lessons
from tasks.stages import ADAPTER, RoundContext, manifest_of
from tasks.tables import LESSONS, PREFERENCES, Table
from tasks.trainer.checkpoints import COMPLETE, newest_checkpoint
from tasks.trainer.worker import Plan, train
from tasks.training import OptimizerConfig, TrainingConfig, train_policy, trained_policy

BETA = 0.2
LORA = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0}
GOOD, BAD = ("good", "happy", "love", "great"), ("bad", "sad", "hate", "awful")
Logged = dict[int, dict[str, float]]
MakePlan = Callable[..., Plan]
Rows = Callable[..., list[dict[str, Any]]]

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")


def labelled(number: int, role: str | None) -> list[dict[str, Any]]:
    return [
        {
            "pair_id": f"pair-{i}",
            "prompt_id": f"prompt-{i}",
            "messages": [{"role": role, "content": f"warm or cold {i}:"}],
            "chosen": f"{i}-a",
            "rejected": f"{i}-b",
            "chosen_text": f"{GOOD[i % 4]} {GOOD[i // 4 % 4]}",
            "rejected_text": f"{BAD[i % 4]} dull {BAD[i // 4 % 4]}",
            "outcome": "preferred",
            "swapped": False,
            "probability": None,
            "votes_chosen": 1,
            "votes_rejected": 0,
            "num_answers": 1,
            "labeller": "by hand",
            "weight": None,
        }
        for i in range(number)
    ]


@pytest.fixture(scope="module")
def rows_of(tiny_model: Path) -> Rows:
    """Rows of PREFERENCES whose responses end as the model ends them."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)

    def make(number: int, role: str | None = "user") -> list[dict[str, Any]]:
        rows = labelled(number, role)
        for row in rows:
            for side in ("chosen", "rejected"):
                ids = tokenizer(row[f"{side}_text"])["input_ids"]
                row[f"{side}_token_ids"] = [*ids, tokenizer.eos_token_id]
        return rows

    return make


def lesson(row: dict[str, Any], **columns: Any) -> dict[str, Any]:
    """The row of LESSONS of a label that nothing more is known of."""
    return {name: row.get(name) for name in LESSONS.names} | {"weight": 1.0} | columns


@pytest.fixture(scope="module")
def adapters(make_adapter: Callable[[int], Path]) -> dict[str, Path | None]:
    return {"none": None, "one": make_adapter(1), "other": make_adapter(2)}


@pytest.fixture
def make_plan(tiny_model: Path, tmp_path: Path, write_table: Callable[..., Table]) -> MakePlan:
    """A plan whose every step sees all of the preferences, in a folder of its own."""

    def make(
        name: str,
        rows: Sequence[dict[str, Any]],
        *,
        start: Path | None = None,
        reference: Path | None = None,
        **arguments: Any,
    ) -> Plan:
        defaults = {
            "beta": BETA,
            "max_length": 96,
            "save_steps": 50,
            "learning_rate": 1e-2,
            "num_train_epochs": 2,
            "per_device_train_batch_size": len(rows),
            "warmup_steps": 0,
            "weight_decay": 0.0,
            "seed": 0,
        }
        arguments, base = defaults | arguments, Policy(digest="base", model=tiny_model)
        return Plan(
            model=tiny_model,
            start=start or fresh_adapter(base, LoraShape(**LORA), 0, tmp_path / "cache"),
            reference=reference,
            lessons=write_table([lesson(row) for row in rows], LESSONS).path,
            target=tmp_path / name / ADAPTER,
            checkpoints=tmp_path / name / ".checkpoints",
            arguments=arguments,
            lora=LORA,
            batch_size=arguments["per_device_train_batch_size"],
            use_gpu=False,
        )

    return make


def tuned(plan: Plan) -> tuple[dict[str, float], Logged]:
    """Train, and give the measures and what was logged at each step."""
    logged: Logged = {}
    return train(plan, 0, lambda metrics, step: logged.update({step: metrics})), logged


def likelihood(model: Any, tokenizer: Any, row: dict[str, Any], side: str) -> float:
    """Log-probability of a response, by a single forward pass of one sequence; nats."""
    prompt = prompt_tokens(tokenizer, row["messages"])
    ids = prompt + row[f"{side}_token_ids"]
    with torch.inference_mode():
        logp = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return float(sum(logp[place - 1, ids[place]] for place in range(len(prompt), len(ids))))


def mean_likelihoods(model_folder: Path, adapter: Path | None, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Means over the rows for each side, with plain transformers and PEFT."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    model = (model if adapter is None else PeftModel.from_pretrained(model, adapter)).eval()
    return {
        side: sum(likelihood(model, tokenizer, row, side) for row in rows) / len(rows)
        for side in ("chosen", "rejected")
    }


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def assert_same_weights(first: Path, second: Path, tolerance: float) -> None:
    one, other = weights_of(first), weights_of(second)
    assert one.keys() == other.keys()
    for name, weights in one.items():
        torch.testing.assert_close(weights, other[name], rtol=0, atol=tolerance, msg=name)


@pytest.mark.parametrize("role", ["user", None])
@pytest.mark.parametrize(
    ("start", "reference"), [("none", "none"), ("one", "none"), ("none", "one"), ("one", "one"), ("one", "other")]
)
def test_start_and_reference_are_the_policies_that_the_plan_names(
    rows_of: Rows, make_plan: MakePlan, adapters: dict[str, Path | None], start: str, reference: str, role: str | None
) -> None:
    rows = rows_of(4, role)
    plan = make_plan("run", rows, start=adapters[start], reference=adapters[reference])
    expected = {name: mean_likelihoods(plan.model, adapters[name], rows) for name in (start, reference)}

    measures, logged = tuned(plan)

    margin = 0.0
    for side, sign in (("chosen", 1), ("rejected", -1)):
        policy, fixed = expected[start][side], expected[reference][side]
        margin += sign * BETA * (policy - fixed)
        assert measures[f"logps/{side}_before"] == pytest.approx(policy, abs=1e-3)
        assert logged[1][f"train/logps/{side}"] == pytest.approx(policy, abs=1e-3)
        assert logged[1][f"train/rewards/{side}"] == pytest.approx(BETA * (policy - fixed), abs=1e-3)
        trained = logged[2][f"train/logps/{side}"]
        assert abs(trained - policy) > 1e-2
        assert trained - logged[2][f"train/rewards/{side}"] / BETA == pytest.approx(fixed, abs=1e-3)
    assert measures["rewards/margins_before"] == pytest.approx(margin, abs=1e-3)


@pytest.mark.parametrize("policy", ["none", "one"])
def test_a_policy_that_is_its_own_reference_has_no_margins_before_training(
    rows_of: Rows, make_plan: MakePlan, adapters: dict[str, Path | None], policy: str
) -> None:
    plan = make_plan("run", rows_of(4), start=adapters[policy], reference=adapters[policy], num_train_epochs=1)
    assert tuned(plan)[0]["rewards/margins_before"] == pytest.approx(0.0, abs=1e-5)


def test_only_the_trained_adapter_is_saved_and_plain_peft_loads_it(
    rows_of: Rows, make_plan: MakePlan, adapters: dict[str, Path | None]
) -> None:
    rows = rows_of(4)
    plan = make_plan("run", rows, start=adapters["one"], reference=adapters["other"])
    before = weights_of(plan.reference or Path())
    measures, _ = tuned(plan)

    assert [path.name for path in plan.target.rglob("*.safetensors")] == ["adapter_model.safetensors"]
    assert {path.name for path in plan.target.iterdir() if path.is_dir()} == set()
    assert json.loads((plan.target / "adapter_config.json").read_text())["r"] == LORA["r"]
    after = mean_likelihoods(plan.model, plan.target, rows)
    for side, value in after.items():
        assert measures[f"logps/{side}_after"] == pytest.approx(value, abs=1e-3)
    for name, weights in weights_of(plan.reference or Path()).items():
        assert torch.equal(weights, before[name]), name


def test_the_loss_falls_on_separable_preferences(rows_of: Rows, make_plan: MakePlan) -> None:
    plan = make_plan("run", rows_of(16), num_train_epochs=8, per_device_train_batch_size=4)
    measures, logged = tuned(plan)
    assert logged[1]["train/loss"] == pytest.approx(0.6931, abs=1e-3)
    assert measures["loss"] < 0.2
    assert measures["steps"] == 32
    assert measures["rewards/accuracies_after"] == 1.0
    assert measures["rewards/margins_after"] > 1


class StoppedError(Exception):
    """What stops a training in the tests."""


@pytest.mark.parametrize("reference", ["none", "other"])
def test_an_interrupted_training_ends_with_the_weights_of_a_whole_one(
    rows_of: Rows, make_plan: MakePlan, adapters: dict[str, Path | None], reference: str
) -> None:
    def plan_of(name: str) -> Plan:
        return make_plan(
            name,
            rows_of(8),
            start=adapters["one"],
            reference=adapters[reference],
            per_device_train_batch_size=2,
            save_steps=2,
        )

    whole, cut = plan_of("whole"), plan_of("cut")
    whole_measures, expected = tuned(whole)
    assert sorted(expected) == list(range(1, 9))
    first: Logged = {}

    def until_step_6(metrics: dict[str, float], step: int) -> None:
        if step == 6:
            raise StoppedError
        first[step] = metrics

    with pytest.raises(StoppedError):
        train(cut, 0, until_step_6)
    assert not cut.target.exists()
    assert Path(newest_checkpoint(cut.checkpoints) or "").name == "checkpoint-4"
    measures, second = tuned(cut)

    assert sorted(first) == [1, 2, 3, 4, 5]
    assert sorted(second) == [5, 6, 7, 8], "only what the checkpoint lacks is repeated"
    for step, metrics in expected.items():
        again = second.get(step, first.get(step, {}))
        assert again["train/loss"] == pytest.approx(metrics["train/loss"], abs=1e-6), step
    assert_same_weights(whole.target, cut.target, 0.0)
    assert measures == whole_measures


def test_a_checkpoint_that_was_not_written_whole_is_ignored(rows_of: Rows, make_plan: MakePlan) -> None:
    plan = make_plan("run", rows_of(4), save_steps=1, per_device_train_batch_size=2)
    tuned(plan)
    assert Path(newest_checkpoint(plan.checkpoints) or "").name == "checkpoint-4"
    (plan.checkpoints / "checkpoint-4" / COMPLETE).unlink()
    (plan.checkpoints / "checkpoint-4" / "adapter_model.safetensors").write_bytes(b"half")
    assert Path(newest_checkpoint(plan.checkpoints) or "").name == "checkpoint-3"
    expected = weights_of(plan.target)
    measures, logged = tuned(plan)
    assert sorted(logged) == [4]
    assert measures["steps"] == 4
    for name, weights in weights_of(plan.target).items():
        torch.testing.assert_close(weights, expected[name], rtol=0, atol=1e-6)


def test_the_last_checkpoint_is_the_one_of_most_steps(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    for step in (9, 100, 20):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / COMPLETE).touch()
    assert Path(newest_checkpoint(tmp_path) or "").name == "checkpoint-100"


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    with ray_session(Settings()):
        yield


def lessons_of(tiny_model: Path, table: Table, adapter: Path | None) -> Lessons:
    base = Policy(digest="base", model=tiny_model)
    start = Policy(digest="start", model=tiny_model, adapter=adapter)
    return Lessons(base=base, start=start, reference=base, preferences=[table])


def test_a_ray_train_worker_makes_the_adapter_that_this_process_makes(
    rows_of: Rows,
    tiny_model: Path,
    adapters: dict[str, Path | None],
    write_table: Callable[..., Table],
    join_round: Callable[..., RoundContext],
    make_home: Callable[[], Path],
    local_ray: None,
) -> None:
    config = TrainingConfig(
        beta=BETA,
        lora=LoraShape(**LORA),
        optimizer=OptimizerConfig(learning_rate=1e-3, num_epochs=2, batch_size=4, micro_batch_size=2),
    )
    lessons = lessons_of(tiny_model, write_table(rows_of(8), PREFERENCES), adapters["one"])
    made = {}
    for num_workers in (0, 1):
        here = join_round(make_home())
        here = replace(
            here, settings=here.settings.model_copy(update={"train": TrainSettings(num_workers=num_workers)})
        )
        made[num_workers] = train_policy.fn(lessons, config, here)
        steps = [metric.step for metric in here.tracker.client.get_metric_history(here.run, "train/loss")]
        assert steps == [1, 2, 3, 4], "the worker reports to MLflow itself"
        assert {path.name for path in made[num_workers].path.iterdir()} == {
            ADAPTER,
            "manifest.json",
            "part-00000.parquet",
        }

    alone, worker = (trained_policy(lessons.base, made[n]).adapter or Path() for n in (0, 1))
    assert_same_weights(alone, worker, 1e-5)
    assert made[0].digest == made[1].digest, "where it ran does not make it another stage"
    for name in ("loss", "steps", "rewards/margins_after", "num_labels"):
        first, second = (manifest_of(made[n]).measures[name] for n in (0, 1))
        assert second == pytest.approx(first, abs=1e-4), name


def test_two_workers_make_the_adapter_of_one_with_twice_the_batch(
    tiny_model: Path,
    rows_of: Rows,
    write_table: Callable[..., Table],
    join_round: Callable[..., RoundContext],
    make_home: Callable[[], Path],
    local_ray: None,
) -> None:
    lessons = lessons_of(tiny_model, write_table(rows_of(16), PREFERENCES), None)
    made = {}
    for num_workers, micro in ((0, 4), (2, 2)):
        here = join_round(make_home())
        train_settings = TrainSettings(num_workers=num_workers)
        here = replace(here, settings=here.settings.model_copy(update={"train": train_settings}))
        optimizer = OptimizerConfig(learning_rate=1e-3, num_epochs=2, batch_size=4, micro_batch_size=micro)
        table = train_policy.fn(lessons, TrainingConfig(beta=BETA, lora=LoraShape(**LORA), optimizer=optimizer), here)
        made[num_workers] = table
    alone, both = (trained_policy(lessons.base, made[n]).adapter or Path() for n in (0, 2))
    assert manifest_of(made[2]).measures["steps"] == manifest_of(made[0]).measures["steps"] == 8
    assert_same_weights(alone, both, 1e-5)


def test_a_training_that_diverges_leaves_its_stage_unfinished(
    tiny_model: Path, rows_of: Rows, write_table: Callable[..., Table], here: RoundContext, local_ray: None
) -> None:
    lessons = lessons_of(tiny_model, write_table(rows_of(8), PREFERENCES), None)
    optimizer = OptimizerConfig(learning_rate=1e19, batch_size=4, micro_batch_size=4)
    config = TrainingConfig(lora=LoraShape(**LORA), save_steps=1, optimizer=optimizer)
    with pytest.raises(TrainingError, match=r"the loss of step 2 is .*checkpoint-1\)"):
        train_policy.fn(lessons, config, here)
    folder = here.store.root / "stages" / "adapter"
    assert list(folder.glob("*/.checkpoints/checkpoint-1")), "the finite one is kept"
    assert not [*folder.glob("*/manifest.json"), *folder.glob(f"*/{ADAPTER}")]


@pytest.mark.parametrize("start", ["none", "one"])
def test_a_round_in_which_nothing_was_preferred_hands_on_the_policy(
    tiny_model: Path,
    rows_of: Rows,
    write_table: Callable[..., Table],
    here: RoundContext,
    adapters: dict[str, Path | None],
    start: str,
) -> None:
    rows = [row | {"outcome": "tie"} for row in rows_of(4)]
    lessons = lessons_of(tiny_model, write_table(rows, PREFERENCES), adapters[start])
    table = train_policy.fn(lessons, TrainingConfig(lora=LoraShape(**LORA)), here)
    measures = manifest_of(table).measures
    assert (measures["num_pairs"], measures["steps"], table.rows) == (0, 0, 0)
    handed_on = load_file(table.path / ADAPTER / "adapter_model.safetensors")
    given = adapters[start]
    if given is None:
        assert not any(weights.any() for name, weights in handed_on.items() if "lora_B" in name)
    else:
        assert_same_weights(table.path / ADAPTER, given, 0.0)


@pytest.mark.parametrize("role", ["start", "reference"])
def test_a_policy_whose_adapter_is_gone_is_refused(
    tiny_model: Path,
    rows_of: Rows,
    write_table: Callable[..., Table],
    here: RoundContext,
    tmp_path: Path,
    role: str,
) -> None:
    lessons = lessons_of(tiny_model, write_table(rows_of(2), PREFERENCES), None)
    gone = Policy(digest="gone", model=tiny_model, adapter=tmp_path / "gone")
    with pytest.raises(
        InputError, match=rf"the {role} policy policy-gone is missing: its adapter .*gone does not exist"
    ):
        train_policy.fn(replace(lessons, **{role: gone}), TrainingConfig(), here)
