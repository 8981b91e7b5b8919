"""One real round: tiny model, real vLLM, Ray, TRL, MLflow and Prefect."""

import json
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName

from cluster.tracking import Tracker
from flows.history import STAGES, recorded
from tasks.feature_tables import read_features
from tasks.selection import NOTES_TAG
from tasks.stages import manifest_of
from tasks.tables import PAIRS, PREFERENCES, PROMPTS, RESPONSES, SCORES, Table, read

BELIEFS = ("objective", "effective_sample_size", "misfit", "proxy_correlation", "length_correlation")


@pytest.fixture(scope="module")
def tables(undisturbed: Any) -> dict[str, Table]:
    return recorded(undisturbed.store, "undisturbed", 0)


def stage_states(prefect: str, flow_run: str) -> dict[str, list[str]]:
    """Names of the states that the tasks of all flow runs of this name ended in, by stage."""
    with SyncPrefectClient(api=prefect) as client:
        runs = client.read_flow_runs(flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=[flow_run])))
        tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id={"any_": [run.id for run in runs]}))
    found: dict[str, list[str]] = {}
    for task in sorted(tasks, key=lambda task: task.created):
        found.setdefault(task.name.removeprefix(f"{flow_run} "), []).append(task.state.name)
    return found


def test_a_round_finishes_every_stage_in_order(tables: dict[str, Table]) -> None:
    assert tuple(tables) == STAGES


def test_the_pool_holds_every_prompt_k_times_with_what_was_sampled(tables: dict[str, Table]) -> None:
    prompts = read(tables["prompts"].path, PROMPTS).column("prompt_id").to_pylist()
    responses = read(tables["pool"].path, RESPONSES).to_pylist()
    assert sorted(row["prompt_id"] for row in responses) == sorted(prompts * 3)
    assert all(row["logprob"] < 0 and 0 < len(row["token_ids"]) <= 16 for row in responses)
    assert {row["finish_reason"] for row in responses} <= {"stop", "length"}
    assert all(json.loads(row["sampling"])["max_tokens"] == 16 for row in responses)
    assert all(row["engine"].startswith("vllm") for row in responses)


def test_the_engine_and_the_scorer_agree_on_log_probabilities(tables: dict[str, Table]) -> None:
    sampled = {row["response_id"]: row for row in read(tables["pool"].path, RESPONSES).to_pylist()}
    for row in read_features(tables["features"].path).to_pylist():
        response = sampled[row["response_id"]]
        assert row["logp_policy"] == pytest.approx(response["logprob"], abs=1e-3)
        assert row["logp_reference"] == row["logp_policy"]


def test_the_proxy_scores_every_response_and_a_first_round_recalls_none(tables: dict[str, Table]) -> None:
    texts = {row["response_id"]: row["text"] for row in read(tables["pool"].path, RESPONSES).to_pylist()}
    for row in read_features(tables["features"].path).to_pylist():
        assert row["proxy_score"] == len(texts[row["response_id"]]) / 100
    assert (tables["recalled"].rows, tables["recalled_features"].rows) == (0, 0)
    assert {pair["staleness"] for pair in read(tables["selection"].path, PAIRS).to_pylist()} == {0}


def test_held_out_prompts_never_get_a_pool(tables: dict[str, Table]) -> None:
    drawn, held_out = (
        set(read(tables[s].path, PROMPTS).column("prompt_id").to_pylist()) for s in ("prompts", "held_out")
    )
    assert (len(drawn), len(held_out), len(drawn & held_out)) == (12, 4, 0)


def test_pairs_join_two_valid_responses_to_one_prompt_within_budget_and_cap(tables: dict[str, Table]) -> None:
    responses = {row["response_id"]: row for row in read(tables["pool"].path, RESPONSES).to_pylist()}
    pairs = read(tables["selection"].path, PAIRS).to_pylist()
    assert [pair["order"] for pair in pairs] == list(range(16))
    assert len({pair["pair_id"] for pair in pairs}) == 16
    for pair in pairs:
        a, b = responses[pair["response_a"]], responses[pair["response_b"]]
        assert (a["prompt_id"], b["prompt_id"]) == (pair["prompt_id"],) * 2
        assert a["text"] != b["text"]
        assert {a["fault"], b["fault"]} == {None}
    prompts = [pair["prompt_id"] for pair in pairs]
    assert max(prompts.count(prompt) for prompt in prompts) <= 2


def test_the_selection_says_what_it_believed(tables: dict[str, Table]) -> None:
    measures = believed(tables)
    assert measures["objective"] > 0
    chances = [pair["inclusion_probability"] for pair in read(tables["selection"].path, PAIRS).to_pylist()]
    assert chances.count(1.0) == 14
    weights = [1 / chance for chance in chances]
    assert measures["effective_sample_size"] == pytest.approx(sum(weights) ** 2 / sum(w * w for w in weights))
    assert measures["uniform_share"] == 2 / 16
    assert (measures["misfit"], measures["proxy_correlation"]) == (0.1, 0.5)
    assert -1 <= measures["length_correlation"] <= 1


def believed(tables: dict[str, Table]) -> dict[str, Any]:
    """The measures of a round's selection."""
    return dict(manifest_of(tables["selection"]).measures)


def test_every_pair_is_labelled_once(tables: dict[str, Table]) -> None:
    pairs = {pair["pair_id"]: pair for pair in read(tables["selection"].path, PAIRS).to_pylist()}
    labels = read(tables["preferences"].path, PREFERENCES).to_pylist()
    assert sorted(label["pair_id"] for label in labels) == sorted(pairs)
    for label in labels:
        pair = pairs[label["pair_id"]]
        assert {label["chosen"], label["rejected"]} == {pair["response_a"], pair["response_b"]}
        assert 0 < pair["inclusion_probability"] <= 1
        assert label["weight"] is None


def test_training_moves_the_policy_toward_the_chosen_responses(tables: dict[str, Table]) -> None:
    measures = json.loads((tables["training"].path / "manifest.json").read_text())["measures"]
    assert abs(measures["rewards/margins_before"]) < 1e-4, "the features' reference is the trainer's own"
    assert measures["rewards/margins_after"] > 0.0
    assert measures["steps"] == 8
    assert sorted(path.name for path in tables["training"].path.iterdir()) == [
        "adapter",
        "manifest.json",
        "part-00000.parquet",
    ]


def test_the_new_policy_answers_with_its_adapter_and_kl_is_measured_on_its_own_answers(
    tables: dict[str, Table],
) -> None:
    scored = read_features(tables["answer_features"].path).to_pylist()
    answers = {row["response_id"]: row for row in read(tables["answers"].path, RESPONSES).to_pylist()}
    for row in scored:
        assert row["logp_policy"] == pytest.approx(answers[row["response_id"]]["logprob"], abs=1e-2)
        assert row["logp_reference"] != row["logp_policy"]
        assert row["proxy_score"] is None
    kl = sum(row["logp_policy"] - row["logp_reference"] for row in scored) / len(scored)
    measures = json.loads((tables["evaluation"].path / "manifest.json").read_text())["measures"]
    assert measures["kl"] == pytest.approx(kl)
    assert read(tables["evaluation"].path, SCORES).num_rows == 4


def test_prefect_shows_each_stage_with_its_lineage_and_round(undisturbed: Any) -> None:
    states = stage_states(undisturbed.prefect, "undisturbed-r000")
    assert states["pool"][0] == states["train policy"][0] == "Completed"
    assert states["answers_previous"][0] == "Reused"
    assert len(states) == len(STAGES)


def test_prefect_shows_the_progress_of_generation(undisturbed: Any) -> None:
    with SyncPrefectClient(api=undisturbed.prefect) as client:
        artifacts = [artifact for artifact in client.read_artifacts() if artifact.key == "undisturbed-r000-pool"]
    assert {artifact.type for artifact in artifacts} == {"progress"}
    assert min(artifacts, key=lambda artifact: artifact.created).data == 100.0


def test_mlflow_holds_the_round_inside_its_lineage(undisturbed: Any, tables: dict[str, Table]) -> None:
    client = Tracker(tracking_uri=f"sqlite:///{undisturbed.home / 'mlflow.db'}", experiment="pairwright").client
    experiment = client.get_experiment_by_name("pairwright")
    runs = client.search_runs([experiment.experiment_id])
    child = next(run for run in runs if run.data.tags["pairwright.kind"] == "round")
    parent = next(run for run in runs if run.data.tags["pairwright.kind"] == "lineage")
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.info.status == "FINISHED"
    assert child.data.tags["digest.pool"] == tables["pool"].digest
    assert child.data.params["selection.budget"] == "16"
    assert {dataset.dataset.name for dataset in child.inputs.dataset_inputs} >= {"pool", "selection", "preferences"}
    artifacts = {artifact.path for artifact in client.list_artifacts(child.info.run_id)}
    assert artifacts >= {"pool", "selection", "preferences", "adapter", "examples.json", "promotion.txt"}
    for name in ("evaluation/win_base", "evaluation/kl", *(f"selection/{name}" for name in BELIEFS)):
        assert [metric.step for metric in client.get_metric_history(child.info.run_id, name)] == [0]
    assert child.data.tags.get(NOTES_TAG, "") == "; ".join(believed(tables)["notes"])
    steps = [metric.step for metric in client.get_metric_history(child.info.run_id, "train/loss")]
    assert steps == list(range(1, 9))
    assert len(client.search_model_versions("name='pairwright-undisturbed'")) == 1


def test_the_published_adapter_loads_with_plain_peft(
    undisturbed: Any, tables: dict[str, Table], tiny_model: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_model), tables["training"].path / "adapter"
    )
    assert list(model.peft_config) == ["default"]


def test_the_next_round_starts_from_the_new_policy_and_a_finished_one_is_reused(undisturbed: Any) -> None:
    files = {path: path.stat().st_mtime_ns for path in undisturbed.store.root.rglob("stages/**/part-*")}
    output = undisturbed.run("run")
    assert "rounds: 1 run, 1 found finished" in output
    second = recorded(undisturbed.store, "undisturbed", 1)
    assert tuple(second) == STAGES
    first = recorded(undisturbed.store, "undisturbed", 0)
    written_by = set(read(second["pool"].path, RESPONSES).column("policy").to_pylist())
    assert written_by == {f"policy-{first['training'].digest[:12]}"}
    assert second["answers_previous"] == first["answers"]
    check_what_the_second_round_recalls(first, second)
    drawn = [set(read(tables["prompts"].path, PROMPTS).column("prompt_id").to_pylist()) for tables in (first, second)]
    assert not drawn[0] & drawn[1]
    assert all(path.stat().st_mtime_ns == written for path, written in files.items())
    measures = json.loads((second["training"].path / "manifest.json").read_text())["measures"]
    assert measures["num_labels"] == 32
    assert measures["rewards/margins_before"] != 0.0


def check_what_the_second_round_recalls(first: dict[str, Table], second: dict[str, Table]) -> None:
    """Part of the test above, for it needs the second round."""
    pool = {row["response_id"]: row for row in read(first["pool"].path, RESPONSES).to_pylist()}
    scored = {row["response_id"]: row for row in read_features(first["features"].path).to_pylist()}
    again = {row["response_id"]: row for row in read_features(second["recalled_features"].path).to_pylist()}
    recalled = read(second["recalled"].path, RESPONSES).to_pylist()
    assert recalled == [row for row in pool.values() if row["fault"] is None]
    assert list(again) == [row["response_id"] for row in recalled]
    for name, row in again.items():
        assert row["logp_reference"] == pytest.approx(scored[name]["logp_reference"], abs=1e-4)
        assert row["logp_policy"] != pytest.approx(scored[name]["logp_policy"], abs=1e-4)
        assert row["proxy_score"] == scored[name]["proxy_score"] == len(pool[name]["text"]) / 100
    known = {pair["pair_id"] for pair in read(first["selection"].path, PAIRS).to_pylist()}
    pairs = {pair["pair_id"]: pair for pair in read(second["selection"].path, PAIRS).to_pylist()}
    assert not known & set(pairs)
    for pair in pairs.values():
        assert pair["staleness"] == (pair["response_a"] in pool)
    for name in ("misfit", "proxy_correlation"):
        assert believed(second)[name] not in {None, believed(first)[name]}, "the labels held have been heard"


def test_a_finished_round_that_is_run_again_repeats_nothing(undisturbed: Any) -> None:
    files = {path: path.stat().st_mtime_ns for path in undisturbed.store.root.rglob("stages/**/*") if path.is_file()}
    undisturbed.run("round", "--round", "0")
    states = stage_states(undisturbed.prefect, "undisturbed-r000")
    assert {states_of[-1] for states_of in states.values()} == {"Reused"}
    assert {path: path.stat().st_mtime_ns for path in files} == files
