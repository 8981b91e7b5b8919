"""Configs: what fits, where what doesn't is, and what the Prefect form learns of them."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from cluster.errors import InputError
from flows.config import LineageConfig, RoundConfig, load, load_config
from flows.referee import RefereeConfig
from tasks.design.selectors import SELECTORS
from tasks.prompts import check_prompts

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
LINEAGES = [path for path in CONFIGS if not path.name.startswith(("compare-", "referee-", "study-"))]

VALUES: dict[str, Any] = {
    "lineage": "tiny",
    "round": {
        "model": {"kind": "folder", "path": "/models/tiny"},
        "prompts": {"path": "/prompts.jsonl", "num_prompts": 12, "num_held_out": 4},
        "generation": {"num_responses": 3},
        "selection": {"budget": 16},
    },
}

Write = Callable[[dict[str, Any]], Path]


def changed(place: str, value: object) -> dict[str, Any]:
    """The values with another one at a dotted place."""
    values = copy.deepcopy(VALUES)
    *folders, name = place.split(".")
    inner = values
    for folder in folders:
        inner = inner.setdefault(folder, {})
    inner[name] = value
    return values


def test_a_config_fills_in_what_it_leaves_out(write_config: Write) -> None:
    config = load_config(write_config(VALUES))
    assert (config.rounds, config.schedule, config.round.seed) == (1, None, 0)
    assert config.round.selection.selector.kind == "robust_design"
    assert config.round.model.kind == "folder"


@pytest.mark.parametrize(
    ("place", "value", "fault"),
    [
        ("colour", 1, "colour: no such key; check its spelling (found 1)"),
        ("round.selecton", {}, "round.selecton: no such key; check its spelling"),
        (
            "round.generation.num_response",
            3,
            "round.generation.num_response: no such key; check its spelling (found 3)",
        ),
        ("round.training.optimizer.lr", 0.1, "round.training.optimizer.lr: no such key"),
        ("round.selection.selector", {"kind": "best"}, "round.selection.selector: Input tag 'best'"),
        (
            "round.selection.selector",
            {"kind": "uniform", "ridge": 1},
            "round.selection.selector.uniform.ridge: no such",
        ),
        ("round.generation.num_responses", 1, "round.generation.num_responses: Input should be greater than or equal"),
        ("round.generation.num_responses", 1, "(found 1)"),
        ("round.evaluation.num_responses", 1, "round.evaluation.num_responses: Input should be greater than or equal"),
        ("round.selection.budget", 0, "round.selection.budget: Input should be greater than 0 (found 0)"),
        ("round.prompts.held_out_share", 1.0, "round.prompts.held_out_share: Input should be less than 1"),
        ("round.training.reference", "mine", "round.training.reference: Input should be 'base' or 'previous'"),
        ("lineage", "../elsewhere", "lineage: String should match pattern"),
        ("rounds", 0, "rounds: Input should be greater than 0 (found 0)"),
        ("schedule", {"cron": "whenever"}, 'schedule: Invalid cron string: "whenever"'),
        ("schedule", {"cron": "0 2 * * *", "timezone": "Mars"}, 'schedule: Invalid timezone: "Mars"'),
        (
            "round.labelling.labeller",
            {"kind": "simulated", "temperature": -1},
            "temperature is -1.0: expected a finite number above 0",
        ),
        (
            "round.labelling",
            {"budget": 0},
            "round: labelling.budget 0 does not pay for the 16 that the labels of one round cost (16 pairs, 1 answers",
        ),
        (
            "round.labelling",
            {"budget": 47, "repeats": 3},
            "round: labelling.budget 47 does not pay for the 48 that the labels of one round cost (16 pairs, 3 answers",
        ),
        (
            "round.labelling",
            {"repeats": 2, "labeller": {"kind": "judge", "model": "m"}},
            "round.labelling: repeats is 2, and labeller judge would only repeat its answer and be paid for it again",
        ),
        (
            "round.selection.budget",
            37,
            "round: budget 37 exceeds the 36 pairs of the pool: lower selection.budget or raise generation.num_",
        ),
        (
            "round.selection.selector",
            {"kind": "uniform", "max_pairs_per_prompt": 1},
            "round: budget 16 exceeds the 12 pairs that selection.selector.max_pairs_per_prompt 1 allows: lower",
        ),
        (
            "round.selection.selector",
            {"kind": "best_worst"},
            "round: selection.selector best_worst needs scores: set features.proxy",
        ),
        (
            "round.selection.selector",
            {"kind": "trace_design", "min_pairs_per_prompt": 2},
            "round: budget 16 is below the 24 pairs that selection.selector.min_pairs_per_prompt asks for",
        ),
        (
            "round.selection.selector",
            {"kind": "mixture", "selector": {"kind": "d_design", "rigde": 1.0}},
            "round.selection.selector.mixture.selector.DDesign.rigde: no such key; check its spelling",
        ),
        (
            "round.selection.selector",
            {"kind": "mixture", "selector": {"kind": "d_design", "ridge": -1.0}},
            "round.selection.selector.mixture.selector.DDesign: ridge is -1.0",
        ),
        (
            "round.selection.selector",
            {"kind": "mixture", "selector": {"kind": "dee_design"}},
            "round.selection.selector.mixture.selector.kind: no such kind; the README lists them (found 'dee_design')",
        ),
        (
            "round.selection.labels",
            "old",
            "round.selection.labels: Input should be 'current' or 'stored' (found 'old')",
        ),
        (
            "round.selection.offer_rounds",
            -1,
            "round.selection.offer_rounds: Input should be greater than or equal to 0",
        ),
        (
            "round.features",
            {"kind": "lora_gradient", "projection": {"kind": "count_sketch", "dim": 0}},
            "round.features.lora_gradient.projection.count_sketch: dim is 0: pass 1 to 65,536",
        ),
        (
            "round.features",
            {"kind": "lora_gradient", "projection": {"kind": "pca"}},
            "round.features.lora_gradient.projection: Input tag 'pca' found using 'kind' does not match",
        ),
        ("round.features", {"kind": "wit"}, "round.features: Input tag 'wit' found using 'kind' does not match"),
        (
            "round.features.proxy",
            {"kind": "wit"},
            "round.features.lora_gradient.proxy: Input tag 'wit' found using 'kind'",
        ),
        ("round.generation.max_tokens", 512, "round.generation: max_tokens 512 leaves no room for a prompt in"),
        (
            "round.training.optimizer",
            {"batch_size": 6, "micro_batch_size": 4},
            "round.training.optimizer: batch_size 6 is not a multiple of micro_batch_size 4",
        ),
        (
            "round.training.lora.r",
            32,
            "round: training.lora.r 32 exceeds generation.max_lora_rank 16, the largest the engine serves",
        ),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_its_place(
    write_config: Write, place: str, value: object, fault: str
) -> None:
    with pytest.raises(InputError) as refusal:
        load_config(write_config(changed(place, value)))
    assert fault in str(refusal.value)
    assert "lineage.yaml does not fit:" in str(refusal.value)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("round.selection.budget", 36),
        ("round.training.lora.r", 16),
        ("round.generation.num_responses", 2 + 2),
        ("round.selection.selector", {"kind": "uniform", "max_pairs_per_prompt": 2}),
    ],
)
def test_a_value_at_its_limit_fits(write_config: Write, place: str, value: object) -> None:
    assert load_config(write_config(changed(place, value))).lineage == changed(place, value)["lineage"]


@pytest.mark.parametrize("kind", SELECTORS)
def test_only_selectors_that_need_scores_ask_for_a_proxy(write_config: Write, kind: str) -> None:
    values = changed("round.selection.selector", {"kind": kind})
    if "scores" in SELECTORS[kind](kind=kind).needs:
        with pytest.raises(InputError, match=f"selection.selector {kind} needs scores: set features.proxy"):
            load_config(write_config(values))
        values["round"]["features"] = {"proxy": {"kind": "sentiment"}}
    assert load_config(write_config(values)).round.selection.selector.kind == kind


def test_a_proxy_that_the_selector_ignores_fits_so_that_lineages_share_features(write_config: Write) -> None:
    values = changed("round.selection.selector", {"kind": "uniform"})
    values["round"]["features"] = {"proxy": {"kind": "implicit_reward"}}
    assert load_config(write_config(values)).round.features.proxy is not None


def test_a_config_of_another_type_is_refused_in_one_line(write_config: Write) -> None:
    for path in CONFIGS:
        if not path.name.startswith("referee-"):
            continue
        with pytest.raises(
            InputError, match=r"referee-.*\.yaml has 'environments', so pairwright referee takes it: name"
        ):
            load_config(path)
    path = write_config(VALUES)
    with pytest.raises(
        InputError, match=r"\.yaml has 'round', so pairwright run, round, deploy or serve takes it: name"
    ):
        load(path, RefereeConfig)
    with pytest.raises(InputError, match="environments: no such key; check its spelling"):
        load_config(write_config(VALUES | {"environments": {}}))


@pytest.mark.parametrize("training", [{"objective": {"kind": "soft_dpo"}}, {"weights": {"confidence": True}}])
def test_an_objective_of_probabilities_needs_answers_that_have_them(
    write_config: Write, training: dict[str, Any]
) -> None:
    people = changed("round.labelling", {"labeller": {"kind": "people"}})
    people["round"]["training"] = training
    with pytest.raises(InputError, match=r"and one answer of labeller people has none: raise labelling\.repeats"):
        load_config(write_config(people))
    people["round"]["labelling"]["repeats"] = 2
    assert load_config(write_config(people)).round.labelling.repeats == 2


def test_all_faults_of_a_config_are_listed_at_once(write_config: Write) -> None:
    values = changed("round.generation.num_responses", 1) | {"colour": 1}
    del values["round"]["prompts"]["num_prompts"]
    with pytest.raises(InputError) as refusal:
        load_config(write_config(values))
    for place in ("round.generation.num_responses:", "colour:", "round.prompts.num_prompts: Field required"):
        assert f"\n  {place}" in str(refusal.value)


def test_relative_paths_are_relative_to_the_file(
    write_config: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    values = changed("round.model.path", "models/tiny")
    values["round"]["prompts"]["path"] = "../prompts.jsonl"
    config = load_config(write_config(values)).round
    assert config.model.kind == "folder"
    assert config.model.path == tmp_path / "models" / "tiny"
    assert config.prompts.path.resolve() == tmp_path.parent / "prompts.jsonl"


def test_absolute_paths_and_those_of_the_user_stay(write_config: Write) -> None:
    values = changed("round.model.path", "~/models/tiny")
    config = load_config(write_config(values)).round
    assert config.model.kind == "folder"
    assert config.model.path == Path.home() / "models" / "tiny"
    assert config.prompts.path == Path("/prompts.jsonl")


def test_a_missing_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config .*/gone\.yaml does not exist"):
        load_config(tmp_path / "gone.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"lineage: [", "is not YAML: "),
        (b"lineage: \xff\xfe", "is not YAML: "),
        (b"", "does not fit:\n  config: "),
        (b"- lineage", "does not fit:\n  config: "),
    ],
)
def test_a_file_that_holds_no_config_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "odd.yaml").write_bytes(content)
    with pytest.raises(InputError) as refusal:
        load_config(tmp_path / "odd.yaml")
    assert f"odd.yaml {message}" in str(refusal.value)


@pytest.mark.parametrize("path", LINEAGES, ids=lambda path: path.name)
def test_every_shipped_lineage_loads_and_its_prompts_are_there(path: Path) -> None:
    config = load_config(path)
    assert config.round.prompts.path.parent == path.parent
    check_prompts(config.round.prompts)


def test_shipped_configs_are_lineages_of_their_own() -> None:
    names = [load_config(path).lineage for path in LINEAGES]
    assert names
    assert len(set(names)) == len(names)


def test_a_config_survives_json(write_config: Write) -> None:
    config = load_config(write_config(VALUES))
    assert LineageConfig.model_validate_json(config.model_dump_json()) == config
    assert RoundConfig.model_validate(config.round.model_dump(mode="json")) == config.round


def test_a_config_does_not_change(write_config: Write) -> None:
    config = load_config(write_config(VALUES))
    with pytest.raises(ValidationError, match="frozen"):
        config.rounds = 3  # type: ignore[misc]


def test_the_json_schema_tells_selectors_apart_by_kind() -> None:
    definitions = LineageConfig.model_json_schema()["$defs"]
    selector = definitions["SelectionConfig"]["properties"]["selector"]
    assert selector["discriminator"]["propertyName"] == "kind"
    assert set(selector["discriminator"]["mapping"]) == set(SELECTORS)
    assert {one["$ref"] for one in selector["oneOf"]} == set(selector["discriminator"]["mapping"].values())
    for reference in selector["discriminator"]["mapping"].values():
        assert definitions[reference.rpartition("/")[2]]["additionalProperties"] is False


def test_what_is_written_down_by_hand_is_what_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "lineage.yaml"
    path.write_text(yaml.safe_dump(VALUES | {"rounds": 3, "schedule": {"cron": "0 2 * * *", "rounds_per_start": 2}}))
    config = load_config(path)
    assert config.schedule is not None
    assert (config.rounds, config.schedule.rounds_per_start, config.schedule.timezone) == (3, 2, "UTC")
