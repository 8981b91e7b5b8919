"""Where a lineage's runs are filed: on record, the same for all of its rounds, default for older records."""

from pathlib import Path

import pytest

from cluster.errors import InputError
from cluster.settings import Settings
from cluster.storage import Store
from flows.config import LineageConfig
from flows.filing import EXPERIMENT, Filing, filing_of, keep_filing
from flows.opening import claim, tracker_of_lineage

MINE = Filing(experiment="mine", comparison="fair", called="greedy")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def begin(store: Store) -> None:
    (store.lineage("demo") / "round-000").mkdir(parents=True)


def test_a_record_of_an_earlier_release_means_the_default_experiment(store: Store) -> None:
    begin(store)
    assert filing_of(store, "demo") == Filing(experiment=EXPERIMENT, comparison=None, called=None)


def test_what_is_kept_is_found_again_and_serves_whoever_looks_for_the_runs(store: Store, tmp_path: Path) -> None:
    keep_filing(store, "demo", MINE)
    begin(store)
    keep_filing(store, "demo", MINE)
    assert filing_of(store, "demo") == MINE
    assert tracker_of_lineage(Settings(home=tmp_path), "demo").experiment == "mine"
    assert tracker_of_lineage(Settings(home=tmp_path), "other").experiment == EXPERIMENT


def test_an_experiment_can_change_until_there_are_runs_in_it(store: Store) -> None:
    keep_filing(store, "demo", Filing(experiment="first"))
    keep_filing(store, "demo", MINE)
    begin(store)
    with pytest.raises(InputError, match="has its runs in MLflow experiment 'mine', not 'other'"):
        keep_filing(store, "demo", Filing(experiment="other"))
    assert filing_of(store, "demo") == MINE


def test_a_lineage_of_an_earlier_release_stays_where_it_is(store: Store) -> None:
    begin(store)
    with pytest.raises(InputError, match="in MLflow experiment 'pairwright', not 'mine'"):
        keep_filing(store, "demo", MINE)


def test_a_lineage_run_alone_stays_in_its_comparison_and_one_that_ran_alone_can_join(store: Store) -> None:
    keep_filing(store, "demo", Filing(experiment="mine"))
    begin(store)
    keep_filing(store, "demo", MINE)
    keep_filing(store, "demo", Filing(experiment="mine"))
    assert filing_of(store, "demo") == MINE


@pytest.mark.parametrize("text", ["", "[]", '{"experiment": ""}', '{"experiment": "a", "more": 1}'])
def test_a_damaged_record_is_named_with_what_to_do(store: Store, text: str) -> None:
    begin(store)
    (store.lineage("demo") / "filing.json").write_text(text)
    with pytest.raises(InputError, match=r"filing\.json.*doesn't fit .*name of the experiment that holds its runs"):
        filing_of(store, "demo")


def test_a_lineage_names_its_experiment_and_who_claims_it_puts_that_on_record(store: Store, tmp_path: Path) -> None:
    values = {
        "model": {"kind": "folder", "path": "/models/tiny"},
        "prompts": {"path": "/prompts.jsonl", "num_prompts": 12, "num_held_out": 4},
        "selection": {"budget": 16},
    }
    config = LineageConfig.model_validate({"lineage": "demo", "round": values})
    assert config.filing == Filing()
    named = config.model_copy(update=MINE.model_dump())
    for filing in (named.filing, None):
        with claim(config.round, "demo", Settings(home=tmp_path), filing):
            assert filing_of(store, "demo") == MINE
