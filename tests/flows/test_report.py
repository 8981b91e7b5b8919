"""Reports: what a lineage has to show, as a person reads it."""

from collections.abc import Callable, Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table as RichTable

from cluster.settings import Settings
from cluster.storage import StageKey, Store, write_json
from flows.history import NEEDED_STAGES, STAGES
from flows.report import lineages_of, rounds_of, rounds_table, speed_lines, spent, stages_table
from tasks.labellers import AnyLabeller
from tasks.labellers.ledger import Account, Ledger, question_key
from tasks.labellers.people import PeopleLabeller
from tasks.labellers.protocol import Question, Workplace
from tasks.labellers.simulated import SimulatedLabeller
from tasks.stages import round_record

MEASURES: dict[str, dict[str, Any]] = {
    "pool": {"tokens": 1200, "model_seconds": 10.0},
    "training": {"model_seconds": 5.0},
    "evaluation": {
        "win_base": 0.75,
        "win_base_se": 0.0625,
        "win_previous": 0.5,
        "win_previous_se": 0.125,
        "reward": 0.25,
        "reward_se": 0.01,
        "kl": 1.5,
        "kl_se": 0.5,
    },
    "promotion": {"promoted": 1.0, "lower_bound": 0.6},
}

Finish = Callable[..., None]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def finish(store: Store) -> Finish:
    """Finish stages of a round of `demo`, each of which took four seconds (the pool: twenty) and has two rows."""

    def run(number: int, stages: tuple[str, ...] = STAGES, changes: Mapping[str, dict[str, Any]] | None = None) -> None:
        write_json(store.lineage("demo") / "config.json", {})
        for stage in stages:
            key = StageKey(stage, {"round": number}, [])
            folder = store.stage(key)
            with folder.work() as started:
                took = 20 if stage == "pool" else 4
                measures = (MEASURES | (changes or {})).get(stage, {})
                folder.finish(started - took, rows=2, schema_digest=None, measures=measures)
            entry = {"path": str(folder.path), "rows": 2, "digest": key.digest, "reused": False}
            write_json(round_record(store, "demo", number) / f"{stage}.json", entry)

    return run


def rendered(table: RichTable) -> list[list[str]]:
    """The cells of every line between the rules, without the frame."""
    file = StringIO()
    Console(file=file, width=200).print(table)
    lines = [line.replace("┃", "│").split("│")[1:-1] for line in file.getvalue().splitlines()]
    return [[cell.strip() for cell in line] for line in lines if line]


def test_an_empty_store_has_no_lineages_and_no_rounds(store: Store) -> None:
    assert lineages_of(store) == []
    assert rounds_of(store, "demo") == []
    assert len(rendered(rounds_table("demo", []))) == 1


def test_lineages_are_those_with_a_config(store: Store, finish: Finish) -> None:
    finish(0)
    write_json(store.lineage("another") / "config.json", {})
    store.lineage("halted").mkdir()
    assert lineages_of(store) == ["another", "demo"]


def test_a_finished_round_shows_its_numbers_with_their_errors(store: Store, finish: Finish) -> None:
    finish(0)
    (report,) = rounds_of(store, "demo")
    assert report.finished
    row = rendered(rounds_table("demo", [report]))[1]
    assert row == ["0", "0.750 ± 0.062", "0.500 ± 0.125", "0.250 ± 0.010", "1.500 ± 0.500", "2", "yes", "finished"]


def test_a_policy_that_stayed_below_the_gate_is_no_champion(store: Store, finish: Finish) -> None:
    finish(0, changes={"promotion": {"promoted": 0.0}})
    assert rendered(rounds_table("demo", rounds_of(store, "demo")))[1][-2:] == ["no", "finished"]


def test_an_unfinished_round_names_the_stage_it_lacks(store: Store, finish: Finish) -> None:
    finish(0)
    finish(1, STAGES[:3])
    first, second = rounds_of(store, "demo")
    assert (first.number, second.number) == (0, 1)
    assert not second.finished
    row = rendered(rounds_table("demo", [first, second]))[2]
    assert row == ["1", "", "", "", "", "0", "", "lacks features"]


def test_a_round_of_an_earlier_release_is_finished_without_the_stages_added_since(store: Store, finish: Finish) -> None:
    finish(0, NEEDED_STAGES)
    (report,) = rounds_of(store, "demo")
    assert report.finished
    assert rendered(rounds_table("demo", [report]))[1][-1] == "finished"


def test_every_stage_shows_rows_seconds_and_its_folder_in_order(store: Store, finish: Finish) -> None:
    finish(0)
    (report,) = rounds_of(store, "demo")
    lines = rendered(stages_table(report))
    assert [line[0] for line in lines[1:]] == list(STAGES)
    pool = lines[1 + STAGES.index("pool")]
    assert pool[1:4] == ["2", "20.0", "10.0"]
    folder = pool[4].removesuffix("...")
    assert [path.name[:12] for path in (store.root / "stages" / "pool").iterdir() if path.is_dir()] == [
        folder.rpartition("/")[2]
    ]
    assert lines[1][3] == ""


def test_speed_is_told_with_and_without_the_engines_start(store: Store, finish: Finish) -> None:
    finish(0)
    (report,) = rounds_of(store, "demo")
    seconds = report.speed["stage_seconds"]
    assert seconds == pytest.approx(20 + 4 * (len(STAGES) - 1), abs=2)
    assert report.speed["share_outside_models"] == pytest.approx(1 - 15 / seconds)
    assert speed_lines(report) == [
        "round 0: generation 60 tokens/s with the engine's start, 120 tokens/s in the engine",
        f"round 0: {seconds:.0f} s of stages, {1 - 15 / seconds:.0%} outside model compute",
    ]


def test_a_round_without_a_pool_has_no_speed(store: Store, finish: Finish) -> None:
    finish(0, STAGES[:2])
    (report,) = rounds_of(store, "demo")
    assert speed_lines(report) == ["round 0: 8 s of stages, 100% outside model compute"]


def test_a_stage_that_serves_the_round_twice_counts_once(store: Store, finish: Finish) -> None:
    finish(0, ("answers_base",))
    record = round_record(store, "demo", 0)
    (record / "answers_previous.json").write_bytes((record / "answers_base.json").read_bytes())
    (report,) = rounds_of(store, "demo")
    assert list(report.manifests) == ["answers_base", "answers_previous"]
    assert report.speed["stage_seconds"] == pytest.approx(4, abs=0.5)


def test_a_round_without_stages_has_nothing_to_tell(store: Store) -> None:
    round_record(store, "demo", 0).mkdir(parents=True)
    (report,) = rounds_of(store, "demo")
    assert (report.manifests, report.speed, speed_lines(report)) == ({}, {}, [])


def test_a_pool_whose_shards_were_all_there_has_no_speed(store: Store, finish: Finish) -> None:
    finish(0, STAGES[:3], {"pool": {"tokens": 0, "model_seconds": 0.0}})
    (report,) = rounds_of(store, "demo")
    assert len(speed_lines(report)) == 1


@pytest.mark.labels
@pytest.mark.parametrize(
    ("measures", "decided"),
    [
        ({"num_answers": 5, "num_preferred": 1, "num_tie": 1}, "1"),
        ({"num_answers": 3, "num_tie": 2}, "0"),
        ({"num_answers": 0, "num_unanswered": 2}, "0"),
        ({}, "2"),
    ],
    ids=["one of two", "ties alone", "no answers", "of a release whose labels were all preferences"],
)
def test_pairs_that_nobody_decided_are_not_counted(
    store: Store, finish: Finish, measures: dict[str, Any], decided: str
) -> None:
    finish(0, changes={"preferences": measures})
    heading, row = (line[5] for line in rendered(rounds_table("demo", rounds_of(store, "demo"))))
    assert (heading, row) == ("pairs decided", decided)


@pytest.mark.labels
def test_a_parked_round_says_what_it_waits_for(store: Store, finish: Finish) -> None:
    finish(0)
    finish(1, STAGES[: STAGES.index("preferences")])
    said = "waits for people: 3 of 12 answered"
    assert [row[-1] for row in rendered(rounds_table("demo", rounds_of(store, "demo"), {1: said}))[1:]] == [
        "finished",
        said,
    ]


@pytest.mark.labels
def test_a_round_whose_labels_are_in_waits_no_more(store: Store, finish: Finish) -> None:
    finish(0, STAGES[: STAGES.index("training")])
    assert rendered(rounds_table("demo", rounds_of(store, "demo"), {0: "waits"}))[1][-1] == "lacks training"


@pytest.mark.labels
def test_labels_are_counted_for_every_lineage_that_uses_them_and_once_for_the_buyer(store: Store) -> None:
    questions = [
        Question(
            key=question_key("p", first=text, second="b"),
            messages=[{"role": None, "content": "p"}],
            first=text,
            second="b",
        )
        for text in "acd"
    ]
    ledger = Ledger.at(store.ledger)

    def buy(lineage: str, number: int, labeller: AnyLabeller) -> None:
        workplace = Workplace(settings=Settings(home=store.root), lineage=lineage, round=0)
        ledger.buy(questions[:number], labeller, Account(lineage=lineage, round=0), workplace)

    buy("demo", 2, SimulatedLabeller(cost=0.5))
    buy("other", 3, SimulatedLabeller(cost=0.5))
    assert spent(ledger, "demo") == "2 labels for 1, 2 of them bought by this lineage"
    assert spent(ledger, "other") == "3 labels for 1.5, 1 of them bought by this lineage"
    assert spent(ledger, "nobody") == "0 labels for 0, 0 of them bought by this lineage"
    buy("patient", 3, PeopleLabeller(cost=2.0))
    assert spent(ledger, "patient").endswith("; 3 asked for at 6")
