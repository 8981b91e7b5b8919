"""What a comparison may compare: its config, its lineages, and what they must not differ in."""

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.errors import InputError
from cluster.settings import Settings
from cluster.storage import Store
from flows.cli import main
from flows.comparison.check import Party, check_comparison, party_of
from flows.comparison.config import ComparisonConfig, load_comparison, members
from flows.comparison.seeds import jaccard
from flows.config import LineageConfig, load_config
from flows.history import keep_config

Load = Callable[..., ComparisonConfig]


@pytest.fixture
def load(tmp_path: Path, tiny_config: dict[str, Any]) -> Load:
    """Write a comparison beside its base, changed at its top, and read it."""

    def from_files(**changes: object) -> ComparisonConfig:
        base = {**tiny_config, "round": {**tiny_config["round"]}}
        base["round"].update(changes.pop("round", {}))  # type: ignore[call-overload]
        (tmp_path / "base.yaml").write_text(yaml.safe_dump(base), encoding="utf-8")
        values = {
            "comparison": "duel",
            "base": "base.yaml",
            "selectors": {"greedy": {"kind": "d_design"}},
            "seeds": [3, 5],
            **changes,
        }
        path = tmp_path / "duel.yaml"
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        return load_comparison(path)

    return from_files


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def put_on_record(store: Store, config: LineageConfig, lineage: str, **changes: Any) -> None:
    """As if a lineage had run, with its round changed at dotted places."""
    values = copy.deepcopy(config.round.model_dump(mode="json"))
    for place, value in changes.items():
        *folders, last = place.split("__")
        inner = values
        for folder in folders:
            inner = inner[folder]
        inner[last] = value
    keep_config(store, lineage, type(config.round).model_validate(values))


def test_uniform_is_always_there_and_first(load: Load) -> None:
    assert list(load().selectors) == ["uniform", "greedy"]
    named_last = load(selectors={"greedy": {"kind": "d_design"}, "uniform": {"kind": "uniform"}})
    assert list(named_last.selectors) == ["uniform", "greedy"]


def test_lineages_of_a_seed_come_before_those_of_the_next(load: Load) -> None:
    found = members(load(budgets=[4, 8], rounds=3))
    assert [member.lineage for member in found] == [
        f"duel-{selector}-b{budget}-s{seed}"
        for seed in (3, 5)
        for budget in (4, 8)
        for selector in ("uniform", "greedy")
    ]
    for member in found:
        assert member.config.rounds == 3
        assert (member.config.experiment, member.config.comparison) == ("duel", "duel")
        assert (member.config.round.seed, member.config.round.selection.budget) == (member.seed, member.budget)


def test_lineages_differ_in_nothing_but_selector_seed_and_budget(load: Load) -> None:
    config = load(budgets=[4, 8])
    rounds = [member.config.round.model_dump(mode="json") for member in members(config)]
    for values in rounds:
        del values["seed"], values["selection"]["selector"], values["selection"]["budget"]
    assert all(values == rounds[0] for values in rounds)


def test_what_a_deployment_passes_on_is_the_same_comparison(load: Load) -> None:
    config = load(budgets=[4, 8])
    assert ComparisonConfig.model_validate_json(json.dumps(config.model_dump(mode="json"))) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"selectors": {"uniform": {"kind": "d_design"}}}, "selectors.uniform is d_design: give that another name"),
        ({"seeds": [1, 1]}, "seeds has 1 more than once"),
        ({"seeds": []}, "seeds: Tuple should have at least 1 item"),
        ({"budgets": [600]}, "selectors.greedy does not fit the base at budget 600: budget 600 exceeds the 36 pairs"),
        (
            {"selectors": {"sparse": {"kind": "d_design", "max_pairs_per_prompt": 1}}},
            "selectors.sparse does not fit the base at budget 16: budget 16 exceeds the 12 pairs",
        ),
        (
            {"selectors": {"scored": {"kind": "best_worst"}}, "round": {"features": {"kind": "hidden"}}},
            "selectors.scored does not fit the base at budget 16: selection.selector best_worst needs scores",
        ),
        ({"selectors": {"x": {"kind": "y"}}}, "selectors.x"),
        ({"colour": "blue"}, "colour: no such key"),
        ({"thresholds": {"max_kl": -1}}, "thresholds.max_kl"),
        ({"metric": "luck"}, "metric: Input should be 'win_base'"),
        ({"base": "elsewhere.yaml"}, "elsewhere.yaml does not exist"),
        ({"base": "duel.yaml"}, "duel.yaml has 'base', so pairwright compare"),
    ],
)
def test_a_comparison_that_does_not_fit_is_refused(load: Load, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as refused:
        load(**changes)
    assert message in str(refused.value)


def test_a_file_of_another_command_is_named(load: Load, tmp_path: Path) -> None:
    load()
    with pytest.raises(InputError, match="has 'base', so pairwright compare, deploy or serve takes it"):
        load_config(tmp_path / "duel.yaml")
    with pytest.raises(InputError, match="has 'round', so pairwright run, round, deploy or serve takes it"):
        load_comparison(tmp_path / "base.yaml")


def test_a_fair_comparison_has_no_confounds(load: Load, store: Store) -> None:
    config = load()
    for member in members(config):
        put_on_record(store, member.config, member.lineage)
    assert party_of(config, store) == Party(members(config), (), ())


def test_differences_name_place_values_and_lineages_the_gravest_first(load: Load, store: Store) -> None:
    config = load(lineages=["old"])
    put_on_record(
        store,
        config.base,
        "old",
        seed=9,
        training__beta=0.5,
        labelling__labeller={"kind": "simulated", "temperature": 0.3},
    )
    found = party_of(config, store).confounds
    assert [difference.split(":")[0] for difference in found] == [
        "labelling.labeller.reward",
        "labelling.labeller.temperature",
        "training.beta",
    ]
    assert found[-1] == "training.beta: 0.1 in the comparison's config; 0.5 in old"


def test_a_confounded_comparison_is_refused_or_allowed(load: Load, store: Store, tmp_path: Path) -> None:
    config, settings = load(lineages=["old"]), Settings(home=tmp_path)
    put_on_record(store, config.base, "old", seed=9, training__reference="previous")
    with pytest.raises(
        InputError, match=r"training.reference: \"base\" in the comparison's config; \"previous\" in old"
    ):
        check_comparison(config, settings, allow_confounded=False)
    assert len(check_comparison(config, settings, allow_confounded=True).confounds) == 1


def test_a_member_that_differs_keeps_what_is_on_record_but_for_its_terms(load: Load, store: Store) -> None:
    config = load(round={"labelling": {"budget": 90, "labeller": {"kind": "simulated"}}})
    first, *others = members(config)
    put_on_record(store, first.config, first.lineage, training__beta=0.5, labelling__budget=50)
    kept, *rest = party_of(config, store).members
    assert kept.config.round.training.beta == 0.5
    assert kept.config.round.labelling.budget == 90
    assert rest == others


def test_a_selector_that_was_given_other_values_is_refused(load: Load, store: Store) -> None:
    for member in members(load()):
        put_on_record(store, member.config, member.lineage)
    with pytest.raises(InputError, match=r"has run with selector d_design .*give the selector another name"):
        party_of(load(selectors={"greedy": {"kind": "v_design"}}), store)


def test_a_lineage_joins_under_the_name_of_an_equal_selector_or_its_kind(load: Load, store: Store) -> None:
    config = load(
        lineages=["same", "other", "namesake"], selectors={"greedy": {"kind": "d_design"}, "apl": {"kind": "apl"}}
    )
    put_on_record(store, config.base, "same", seed=9, selection__selector={"kind": "d_design"})
    put_on_record(store, config.base, "other", seed=9, selection__selector={"kind": "v_design"})
    put_on_record(
        store, config.base, "namesake", seed=9, selection__selector={"kind": "apl", "max_pairs_per_prompt": 2}
    )
    joined = party_of(config, store).joined
    assert [(member.lineage, member.selector, member.seed) for member in joined] == [
        ("same", "greedy", 9),
        ("other", "v_design", 9),
        ("namesake", "namesake", 9),
    ]


def test_a_lineage_that_does_not_exist_can_not_join(load: Load, store: Store) -> None:
    config = load(lineages=["ghost"])
    put_on_record(store, config.base, "old")
    with pytest.raises(InputError, match=r"lineages has 'ghost', which is not in .*: found old; run it first"):
        party_of(config, store)


def test_two_lineages_can_not_stand_for_the_same(load: Load, store: Store) -> None:
    config = load(lineages=["old"])
    put_on_record(store, config.base, "old", seed=3, selection__selector={"kind": "d_design"})
    with pytest.raises(InputError, match="lineages duel-greedy-b16-s3 and old are both selector greedy with seed 3"):
        party_of(config, store)


def test_only_lineages_of_the_comparison_can_be_run(load: Load, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not run lineage duel-greedy: it runs duel-uniform-b16-s3, "):
        check_comparison(load(), Settings(home=tmp_path), allow_confounded=False, only=["duel-greedy"])


def test_the_command_refuses_with_code_2_before_any_work(
    load: Load, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load()
    monkeypatch.setenv("PAIRWRIGHT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "argv", ["pairwright", "compare", str(tmp_path / "base.yaml")])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert "'round', so pairwright run" in capsys.readouterr().err
    assert not list((tmp_path / "home").rglob("lineages"))


@pytest.mark.parametrize(
    ("ours", "theirs", "similarity"),
    [("abc", "abc", 1.0), ("abc", "xyz", 0.0), ("abc", "bcd", 0.5), ("abcd", "a", 0.25), ("", "", 1.0)],
)
def test_the_overlap_is_jaccards(ours: str, theirs: str, similarity: float) -> None:
    assert jaccard(tuple(ours), tuple(theirs)) == similarity
