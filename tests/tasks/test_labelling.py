"""Labelling: labels follow the ledger, are bought once, and belong to their pair."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.storage import digest_of
from tasks.labellers.ledger import Ledger
from tasks.labellers.rewards import Length
from tasks.labellers.simulated import SimulatedLabeller
from tasks.labelling import NUM_EXAMPLES, LabellingConfig, label_pairs
from tasks.stages import RoundContext, manifest_of
from tasks.tables import PAIRS, PREFERENCES, Table, read

TEXTS = {f"p{number}": ["a", "longer " * 3, "the longest of all " * 4] for number in range(6)}
LONGEST = SimulatedLabeller(reward=Length(per="character", unit=1.0), temperature=1e-3, cost=0.5)
CONFIG = LabellingConfig(labeller=LONGEST, batch_size=4)


@pytest.fixture
def responses(write_responses: Callable[[dict[str, list[str]]], Table]) -> Table:
    return write_responses(TEXTS)


@pytest.fixture
def write_pairs(write_table: Callable[..., Table]) -> Callable[[list[tuple[str, int, int]]], Table]:
    """Write pairs, each given as the prompt and the numbers of two responses."""

    def write(pairs: list[tuple[str, int, int]]) -> Table:
        rows = [
            {
                "pair_id": digest_of(sorted((f"{prompt}-{a}", f"{prompt}-{b}")))[:32],
                "order": order,
                "prompt_id": prompt,
                "response_a": f"{prompt}-{a}",
                "response_b": f"{prompt}-{b}",
                "staleness": 0,
                "weight": None,
                "inclusion_probability": None,
                "loss_weight": order / 4 if order else None,
                "score": None,
            }
            for order, (prompt, a, b) in enumerate(pairs)
        ]
        return write_table(rows, PAIRS)

    return write


ALL = [(prompt, a, b) for prompt in TEXTS for a, b in ((0, 1), (2, 0), (1, 2))]


def label(pairs: Table, responses: Table, here: RoundContext, config: LabellingConfig = CONFIG) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read(label_pairs.fn(pairs, [responses], config, here).path, PREFERENCES).to_pylist()
    return rows


def test_every_pair_gets_one_label_of_its_own_responses_in_order(
    responses: Table, write_pairs: Callable[..., Table], here: RoundContext
) -> None:
    pairs = write_pairs(ALL)
    rows = label(pairs, responses, here)
    asked = read(pairs.path, PAIRS).to_pylist()
    assert [row["pair_id"] for row in rows] == [pair["pair_id"] for pair in asked]
    for row, pair in zip(rows, asked, strict=True):
        assert {row["chosen"], row["rejected"]} == {pair["response_a"], pair["response_b"]}
        assert row["prompt_id"] == pair["prompt_id"]
        assert row["weight"] == pair["loss_weight"]
        for side in ("chosen", "rejected"):
            prompt, index = row[side].split("-")
            assert row[f"{side}_text"] == TEXTS[prompt][int(index)]
        assert row["messages"] == [{"role": "user", "content": f"say {row['prompt_id']}"}]
        assert row["labeller"] == LONGEST.identity


def test_a_pair_is_found_in_whichever_table_holds_its_responses(
    write_responses: Callable[[dict[str, list[str]]], Table], write_pairs: Callable[..., Table], here: RoundContext
) -> None:
    tables = [write_responses(dict(part)) for part in (list(TEXTS.items())[:2], list(TEXTS.items())[2:], [])]
    pairs = write_pairs(ALL)
    rows = read(label_pairs.fn(pairs, tables, CONFIG, here).path, PREFERENCES).to_pylist()
    assert rows == label(pairs, write_responses(TEXTS), here)


def test_the_labellers_preference_decides_whichever_response_is_a(
    responses: Table, write_pairs: Callable[..., Table], here: RoundContext
) -> None:
    for row in label(write_pairs(ALL), responses, here):
        assert len(row["chosen_text"]) > len(row["rejected_text"])
        assert row["probability"] == pytest.approx(1.0)


def test_the_probability_is_that_of_the_chosen_response_even_against_the_odds(
    responses: Table, write_pairs: Callable[..., Table], here: RoundContext
) -> None:
    contrary = SimulatedLabeller(reward=Length(per="character", unit=1.0), temperature=1.0, flip_probability=0.75)
    rows = label(write_pairs(ALL), responses, here, LabellingConfig(labeller=contrary))
    found = {len(row["chosen_text"]) > len(row["rejected_text"]): row["probability"] for row in rows}
    assert found == {True: pytest.approx(0.25), False: pytest.approx(0.75)}


def test_the_order_in_which_a_pair_was_shown_is_recorded(
    responses: Table, write_pairs: Callable[..., Table], here: RoundContext
) -> None:
    one = label(write_pairs(ALL), responses, here)
    turned = label(write_pairs([(prompt, b, a) for prompt, a, b in ALL]), responses, here)
    assert {row["swapped"] for row in one} == {True, False}
    assert [row["swapped"] for row in turned] == [not row["swapped"] for row in one]
    assert [row["chosen"] for row in turned] == [row["chosen"] for row in one]
    assert [row["probability"] for row in turned] == [row["probability"] for row in one]


def test_two_lineages_buy_a_label_once_and_agree_on_it(
    responses: Table,
    write_pairs: Callable[..., Table],
    here: RoundContext,
    join_round: Callable[..., RoundContext],
) -> None:
    other = join_round(here.settings.root, "other")
    undecided = LabellingConfig(labeller=SimulatedLabeller(reward=Length(), temperature=100.0, cost=0.5), batch_size=4)
    first = label(write_pairs(ALL[:10]), responses, here, undecided)
    second = label(write_pairs([(prompt, b, a) for prompt, a, b in ALL[6:]]), responses, other, undecided)
    ledger = Ledger(path=here.store.ledger)
    assert (ledger.spend("demo").num_labels, ledger.spend("demo").cost) == (10, 5.0)
    assert (ledger.spend("other").num_labels, ledger.spend().num_labels) == (8, 18)
    chosen = {row["pair_id"]: row["chosen"] for row in first}
    shared = [row for row in second if row["pair_id"] in chosen]
    assert len(shared) == 4
    assert all(row["chosen"] == chosen[row["pair_id"]] for row in shared)


def test_labelling_again_buys_nothing_and_gives_the_same_table(
    responses: Table, write_pairs: Callable[..., Table], here: RoundContext
) -> None:
    pairs = write_pairs(ALL)
    tables = [label_pairs.fn(pairs, [responses], CONFIG, here) for _ in range(2)]
    assert tables[0] == tables[1]
    assert Ledger(path=here.store.ledger).spend().num_labels == len(ALL)
    assert manifest_of(tables[0]).measures["cost"] == 0.5 * len(ALL)


def test_a_lost_stage_is_rebuilt_from_the_ledger(
    responses: Table, write_pairs: Callable[..., Table], here: RoundContext
) -> None:
    pairs = write_pairs(ALL)
    before = label(pairs, responses, here)
    table = label_pairs.fn(pairs, [responses], CONFIG, here)
    (table.path / "manifest.json").unlink()
    (table.path / "part-00000.parquet").unlink()
    assert label(pairs, responses, here) == before
    assert Ledger(path=here.store.ledger).spend().num_labels == len(ALL)


def test_another_labeller_is_asked_anew(
    responses: Table, write_pairs: Callable[..., Table], here: RoundContext
) -> None:
    pairs = write_pairs(ALL[:3])
    label(pairs, responses, here)
    label(pairs, responses, here, LabellingConfig(labeller=SimulatedLabeller(reward=Length(), seed=1)))
    assert Ledger(path=here.store.ledger).spend().num_labels == 6


def test_examples_are_a_table_that_a_person_can_read(
    responses: Table, write_pairs: Callable[..., Table], here: RoundContext, tmp_path: Path
) -> None:
    for _ in range(2):
        rows = label(write_pairs(ALL), responses, here)
    client = here.tracker.client
    table = json.loads(Path(client.download_artifacts(here.run, "examples.json", str(tmp_path))).read_text())
    assert table["columns"] == ["prompt", "chosen", "rejected", "labeller"]
    assert len(table["data"]) == NUM_EXAMPLES
    first = rows[0]
    assert table["data"][0] == ["user: say p0", first["chosen_text"], first["rejected_text"], LONGEST.identity]
    assert json.loads(client.get_run(here.run).data.tags["mlflow.loggedArtifacts"]) == [
        {"path": "examples.json", "type": "table"}
    ]
