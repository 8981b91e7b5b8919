"""Where prompts and pools come from: what a config may ask for, and two rounds of uncommon ones."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.errors import InputError
from cluster.settings import Settings
from flows.config import RoundConfig, load_config
from flows.history import STAGES, recorded
from flows.opening import check_round
from flows.report import round_of
from tasks.feature_tables import read_features
from tasks.prompts import drawable
from tasks.tables import PAIRS, PREFERENCES, PROMPTS, RESPONSES, Table, read

Write = Callable[[dict[str, Any]], Path]
LOWEST = {"kind": "lowest_reward", "rho": 0.5}


@pytest.mark.parametrize(
    ("section", "values", "fault"),
    [
        ("prompts", {"regenerate": {"kind": "worst"}}, "round.prompts.regenerate: Input tag 'worst'"),
        (
            "prompts",
            {"regenerate": {"kind": "lowest_reward", "rho": 0.0}},
            "round.prompts.regenerate.lowest_reward: rho is 0.0: expected a share above 0, at most 1",
        ),
        (
            "prompts",
            {"regenerate": {"kind": "random_share", "rho": 1.5}},
            "round.prompts.regenerate.random_share: rho is 1.5",
        ),
        (
            "prompts",
            {"regenerate": {"kind": "random_share", "centred": True}},
            "round.prompts.regenerate.random_share.centred: no such key",
        ),
        (
            "prompts",
            {"regenerate": {"kind": "lowest_reward", "statistic": "median"}},
            "round.prompts.regenerate.lowest_reward.statistic: Input should be 'mean', 'max' or 'chosen'",
        ),
        (
            "features",
            {"proxy": None},
            "round: prompts.regenerate lowest_reward ranks prompts by stored scores: set features.proxy",
        ),
        ("pool", {"source": {"kind": "logged"}}, "round.pool.source.logged.path: Field required"),
        (
            "pool",
            {"source": {"kind": "logged", "path": "log.jsonl"}},
            "round: prompts.regenerate lowest_reward has nothing to regenerate where pool.source is logged: choose",
        ),
        (
            "pool",
            {"source": {"kind": "mixed", "path": "log.jsonl", "ratio": 1.0}},
            "round.pool.source.mixed: ratio is 1.0: expected a share between 0 and 1; kind on_policy has no logged",
        ),
        (
            "selection",
            {"budget": 25, "selector": {"kind": "uniform", "max_pairs_per_prompt": 2}},
            "round: budget 25 exceeds the 24 pairs that selection.selector.max_pairs_per_prompt 2 allows",
        ),
        ("selection", {"budget": 37}, "round: budget 37 exceeds the 36 pairs of the pool"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(
    write_config: Write, tiny_config: dict[str, Any], section: str, values: dict[str, Any], fault: str
) -> None:
    tiny_config["round"]["prompts"]["regenerate"] = LOWEST
    tiny_config["round"]["features"] = {"proxy": {"kind": "length"}}
    tiny_config["round"].setdefault(section, {}).update(values)
    with pytest.raises(InputError) as refusal:
        load_config(write_config(tiny_config))
    assert fault in str(refusal.value)


def test_a_minimum_for_each_prompt_holds_in_later_rounds_too(write_config: Write, tiny_config: dict[str, Any]) -> None:
    tiny_config["round"]["prompts"] |= {"num_prompts": 5, "regenerate": {"kind": "random_share", "rho": 0.5}}
    tiny_config["round"]["selection"] = {"budget": 10, "selector": {"kind": "trace_design", "min_pairs_per_prompt": 2}}
    with pytest.raises(InputError, match="budget 5 of the rounds after the first is below the 6 pairs that selection"):
        load_config(write_config(tiny_config))
    tiny_config["round"]["selection"]["budget"] = 11
    assert load_config(write_config(tiny_config)).round.selection_in(1).budget == 6


def test_budgets_of_later_rounds_are_the_share_of_the_prompts_that_is_regenerated(tiny_config: dict[str, Any]) -> None:
    budgets = []
    for way in ({"kind": "fresh"}, LOWEST, {"kind": "random_share", "rho": 0.3}):
        tiny_config["round"]["prompts"]["regenerate"] = way
        config = RoundConfig.model_validate(tiny_config["round"])
        assert config.selection_in(0) == config.selection
        budgets.append([config.selection_in(number).budget for number in range(3)])
    assert budgets == [[16, 16, 16], [16, 8, 8], [16, 5, 5]]


def test_a_log_is_looked_at_before_a_round_and_its_path_is_relative_to_the_config(
    write_config: Write, tiny_config: dict[str, Any], make_home: Callable[[], Path]
) -> None:
    tiny_config["round"]["pool"] = {"source": {"kind": "mixed", "path": "log.jsonl"}}
    path = write_config(tiny_config)
    settings = Settings(home=make_home())
    with pytest.raises(InputError, match=rf"responses file {path.parent}/log\.jsonl does not exist: check pool\.sou"):
        check_round(load_config(path).round, settings)
    config = load_config(path).round
    write_log(path.parent / "log.jsonl", drawable(config.prompts)[1:])
    with pytest.raises(InputError, match=r"fewer than the 2 responses wanted of each prompt for 1 of \d+ prompts"):
        check_round(config, settings)
    assert not settings.store.exists() or not list(settings.store.iterdir())


def write_log(path: Path, prompts: list[dict[str, Any]]) -> Path:
    """Two responses to each prompt."""
    rows = [
        {"prompt": row["messages"], "responses": [f"{row['messages'][0]['content']}: {word}" for word in ("yes", "no")]}
        for row in prompts
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def regenerated(make_desk: Callable[[str], Any], tiny_values: dict[str, Any]) -> Any:
    """A desk whose lineage has run a round on a mixed pool, and one that regenerates half of its prompts."""
    desk = make_desk("regenerated")
    values = yaml.safe_load(desk.config.read_text())
    log = write_log(desk.home / "log.jsonl", drawable(RoundConfig.model_validate(values["round"]).prompts))
    values["round"]["prompts"]["regenerate"] = LOWEST
    values["round"]["generation"]["num_responses"] = 4
    values["round"]["pool"] = {"source": {"kind": "mixed", "path": str(log), "ratio": 0.5}}
    desk.config.write_text(yaml.safe_dump(values), encoding="utf-8")
    desk.run("run")
    return desk


def rounds_of(desk: Any) -> list[dict[str, Table]]:
    return [recorded(desk.store, "regenerated", number) for number in (0, 1)]


def test_a_mixed_round_finishes_with_what_the_policy_drew_as_a_stage_of_its_own(regenerated: Any) -> None:
    for tables in rounds_of(regenerated):
        assert [stage for stage in tables if stage != "drawn"] == list(STAGES)
        drawn, pool = (read(tables[stage].path, RESPONSES).to_pylist() for stage in ("drawn", "pool"))
        assert len(pool) == 2 * len(drawn) == 4 * tables["prompts"].rows
        ids = {row["response_id"] for row in drawn}
        assert {row["response_id"] for row in pool if not math.isnan(row["logprob"])} == ids
        logged = [row for row in pool if row["policy"] == "logged"]
        assert [row["text"].rpartition(": ")[2] for row in logged] == ["yes", "no"] * tables["prompts"].rows
    report = round_of(regenerated.store, "regenerated", 0)
    assert report.finished
    assert report.speed["tokens_per_second"] > 0
    assert 0 < report.speed["share_outside_models"] < 1


def test_logged_responses_are_scored_offered_and_labelled_beside_drawn_ones(regenerated: Any) -> None:
    tables = rounds_of(regenerated)[0]
    logged = {row["response_id"] for row in read(tables["pool"].path, RESPONSES).to_pylist() if row["index"] > 1}
    scored = [row for row in read_features(tables["features"].path).to_pylist() if row["response_id"] in logged]
    assert len(scored) == 24
    assert all(row["valid"] and row["logp_policy"] < 0 for row in scored)
    labels = read(tables["preferences"].path, PREFERENCES)
    assert logged & {*labels["chosen"].to_pylist(), *labels["rejected"].to_pylist()}


def test_the_second_round_regenerates_the_prompts_of_lowest_reward_for_its_share_of_labels(regenerated: Any) -> None:
    first, second = rounds_of(regenerated)
    scores: dict[str, list[float]] = {}
    for row in read_features(first["features"].path).to_pylist():
        scores.setdefault(row["prompt_id"], []).extend([row["proxy_score"]] if row["valid"] else [])
    means = {prompt: sum(own) / len(own) for prompt, own in scores.items()}
    again = read(second["prompts"].path, PROMPTS)["prompt_id"].to_pylist()
    kept = set(means) - set(again)
    assert (len(again), len(kept)) == (6, 6)
    assert [means[prompt] for prompt in again] == sorted(means[prompt] for prompt in again)
    assert max(means[prompt] for prompt in again) <= min(means[prompt] for prompt in kept)
    assert [tables["preferences"].rows for tables in (first, second)] == [16, 8]


def test_no_pair_of_logged_responses_is_labelled_twice_and_kept_prompts_are_offered_still(regenerated: Any) -> None:
    first, second = rounds_of(regenerated)
    pairs = [read(tables["selection"].path, PAIRS).to_pylist() for tables in (first, second)]
    assert not {pair["pair_id"] for pair in pairs[0]} & {pair["pair_id"] for pair in pairs[1]}
    pools = [set(read(tables["pool"].path, RESPONSES)["response_id"].to_pylist()) for tables in (first, second)]
    assert len(pools[0] & pools[1]) == 12
    for pair in pairs[1]:
        assert {pair["response_a"], pair["response_b"]} <= pools[1 - pair["staleness"]]
