"""Margins: what is joined to what, their signs, and the table that people read."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import tasks.margins
from tasks.feature_tables import features_schema
from tasks.margins import MARGINS, TEXT_LIMIT, Taught, compute_margins, gather_selected, margins, summary
from tasks.stages import RoundContext, manifest_of
from tasks.tables import PAIRS, PREFERENCES, RESPONSES, Table, parts, read

BETA = 0.5
BEFORE = {"p-0": 1.0, "p-1": 0.5, "p-2": -1.0, "q-0": 0.0, "q-1": 0.0}
AFTER = {"p-0": -1.0, "p-1": 4.0, "p-2": -1.5, "q-0": 2.0, "q-1": None}
"""log pi - log pi_ref of every response, nats; None where it could not be scored."""

WriteTable = Callable[..., Table]


def pair(order: int, a: str, b: str, **numbers: float) -> dict[str, Any]:
    names = {"pair_id": f"{a} {b}", "prompt_id": a[0], "response_a": a, "response_b": b}
    nothing = dict.fromkeys(("weight", "inclusion_probability", "loss_weight", "score"))
    return names | nothing | {"order": order, "staleness": 0} | numbers


def label(pair_id: str, chosen: str, rejected: str, outcome: str = "preferred", text: str = "") -> dict[str, Any]:
    return {
        "pair_id": pair_id,
        "prompt_id": chosen[0],
        "messages": [{"role": "user", "content": f"say {chosen[0]}"}],
        "chosen": chosen,
        "rejected": rejected,
        "chosen_text": text or f"text of {chosen}",
        "rejected_text": f"text of {rejected}",
        "chosen_token_ids": [1],
        "rejected_token_ids": [2],
        "outcome": outcome,
        "swapped": False,
        "probability": None,
        "votes_chosen": 1,
        "votes_rejected": 0,
        "num_answers": 1,
        "labeller": "by hand",
        "weight": None,
    }


PAIR_ROWS = [
    pair(0, "p-0", "p-1", score=2.5, weight=0.75, inclusion_probability=0.2, loss_weight=1.5, staleness=2),
    pair(1, "p-0", "p-2"),
    pair(2, "p-1", "p-2"),
    pair(3, "q-0", "q-1"),
]
LABEL_ROWS = [
    label("p-0 p-1", "p-1", "p-0"),  # turned: b was preferred
    label("p-0 p-2", "p-0", "p-2"),
    label("p-1 p-2", "p-1", "p-2", "tie"),
    label("q-0 q-1", "q-0", "q-1"),
    label("late pair", "z-0", "z-1"),
    label("p-0 p-1", "p-0", "p-1"),  # a late answer to a pair that was asked again
]


@pytest.fixture
def scored(write_table: WriteTable) -> Callable[[dict[str, float | None]], Table]:
    """Features with these log-ratios."""

    def write(ratios: dict[str, float | None]) -> Table:
        rows = [
            {
                "response_id": name,
                "prompt_id": name[0],
                "valid": ratio is not None,
                "num_tokens": 2,
                "logp_policy": None if ratio is None else ratio - 3.0,
                "logp_reference": None if ratio is None else -3.0,
                "feature": [0.0],
                "proxy_score": None,
            }
            for name, ratio in ratios.items()
        ]
        return write_table(rows, features_schema(1))

    return write


@pytest.fixture
def taught(write_table: WriteTable, scored: Callable[..., Table]) -> Taught:
    """Four pairs of three prompts' worth of responses, some of the pool and some recalled."""
    pool, recalled = ({name: BEFORE[name] for name in BEFORE if (name[0] == "q") is again} for again in (False, True))
    return Taught(
        pairs=write_table(PAIR_ROWS, PAIRS),
        preferences=write_table(LABEL_ROWS, PREFERENCES),
        before=[scored(pool), scored(recalled)],
        after=scored(AFTER),
    )


def test_margins_are_beta_times_the_difference_of_log_ratios_chosen_minus_rejected(taught: Taught) -> None:
    rows = margins(taught, BETA)
    assert [(row["chosen"], row["rejected"], row["outcome"]) for row in rows] == [
        ("p-1", "p-0", "preferred"),
        ("p-0", "p-2", "preferred"),
        ("p-1", "p-2", "tie"),
        ("q-0", "q-1", "preferred"),
    ]
    assert [row["margin_before"] for row in rows] == [-0.25, 1.0, 0.75, 0.0]
    assert [row["margin_after"] for row in rows] == [2.5, 0.25, 2.75, None]


def test_a_pair_keeps_what_the_selection_said_of_it(taught: Taught) -> None:
    first, second, *_ = margins(taught, BETA)
    names = ("pair_id", "order", "prompt_id", "staleness", "score", "weight", "inclusion_probability", "loss_weight")
    assert [first[name] for name in names] == ["p-0 p-1", 0, "p", 2, 2.5, 0.75, 0.2, 1.5]
    assert [second[name] for name in names] == ["p-0 p-2", 1, "p", 0, None, None, None, None]


def test_the_summary_counts_preferences_alone_and_only_where_both_responses_were_scored(taught: Taught) -> None:
    assert summary(margins(taught, BETA)) == {
        "staleness": 0.5,
        "margin_before": 0.25,  # of -0.25, 1 and 0
        "accuracy_before": 0.5,  # a margin of 0 counts half
        "margin_after": 1.375,  # of 2.5 and 0.25
        "accuracy_after": 1.0,
    }


def test_the_summary_of_pairs_that_nobody_decided_has_no_margins() -> None:
    tie = {"outcome": "tie", "staleness": 3, "margin_before": 1.0, "margin_after": 1.0}
    assert summary([tie]) == {"staleness": 3.0}
    assert summary([]) == {}


def test_margins_scale_with_beta_and_the_share_of_right_signs_does_not(taught: Taught) -> None:
    one, two = (summary(margins(taught, beta)) for beta in (BETA, 2 * BETA))
    assert two == {name: value * (2 if "margin" in name else 1) for name, value in one.items()}


def test_the_stage_keeps_its_contract_and_its_measures_reach_mlflow(taught: Taught, here: RoundContext) -> None:
    table = compute_margins.fn(taught, BETA, here)
    assert read(table.path, MARGINS).to_pylist() == margins(taught, BETA)
    measures = manifest_of(table).measures
    metrics = here.tracker.client.get_run(here.run).data.metrics
    assert measures == summary(margins(taught, BETA))
    assert {f"margins/{name}": value for name, value in measures.items()}.items() <= metrics.items()
    assert [file.path for file in here.tracker.client.list_artifacts(here.run, "margins")] == [
        "margins/part-00000.parquet"
    ]


def test_another_beta_or_another_policy_is_another_table(
    taught: Taught, here: RoundContext, scored: Callable[..., Table]
) -> None:
    other = Taught(taught.pairs, taught.preferences, taught.before, scored(BEFORE))
    tables = [
        compute_margins.fn(*own, here) for own in ((taught, BETA), (taught, BETA), (taught, 2 * BETA), (other, BETA))
    ]
    assert tables[0] == tables[1]
    assert len({table.digest for table in tables}) == 3


def shown(here: RoundContext) -> list[dict[str, str]]:
    """Rows of the table that MLflow's pages show."""
    path = Path(here.tracker.client.download_artifacts(here.run, "selection.json"))
    table = json.loads(path.read_text(encoding="utf-8"))
    return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]


def test_people_read_texts_and_numbers_in_order_of_choice_and_a_retry_adds_no_rows(
    taught: Taught, here: RoundContext
) -> None:
    for _ in range(2):
        compute_margins.fn(taught, BETA, here)
    rows = shown(here)
    assert [row["order"] for row in rows] == ["0", "1", "2", "3"]
    assert rows[0] == {
        "order": "0",
        "prompt": "user: say p",
        "chosen / response a": "text of p-1",
        "rejected / response b": "text of p-0",
        "label": "preferred",
        "score": "2.5",
        "weight": "0.75",
        "inclusion probability": "0.2",
        "loss weight": "1.5",
        "margin before": "-0.25",
        "margin after": "2.5",
        "staleness": "2",
        "pair": "p-0 p-1",
    }
    assert (rows[2]["label"], rows[2]["score"], rows[3]["margin after"]) == ("tie", "", "")
    tables = json.loads(here.tracker.client.get_run(here.run).data.tags["mlflow.loggedArtifacts"])
    assert {"path": "selection.json", "type": "table"} in tables


def test_long_texts_are_cut_and_say_how_long_they_were(
    write_table: WriteTable, scored: Callable[..., Table], here: RoundContext
) -> None:
    texts = ["y" * TEXT_LIMIT, "x" * (TEXT_LIMIT + 1)]
    rows = [label("p-0 p-1", "p-0", "p-1", text=texts[0]), label("p-0 p-2", "p-0", "p-2", text=texts[1])]
    everything = scored(BEFORE)
    taught = Taught(write_table(PAIR_ROWS[:2], PAIRS), write_table(rows, PREFERENCES), [everything], everything)
    compute_margins.fn(taught, BETA, here)
    expected = [texts[0], f"{'x' * TEXT_LIMIT} ... [{TEXT_LIMIT + 1} characters]"]
    assert [row["chosen / response a"] for row in shown(here)] == expected


@pytest.fixture
def responses(write_responses: Callable[[dict[str, list[str]]], Table]) -> Sequence[Table]:
    """A pool and recalled responses, of which nobody selected `p-3`."""
    return [write_responses({"p": ["a", "b", "c", "d"]}), write_responses({"q": ["e", "f"]})]


def test_responses_of_selected_pairs_come_once_in_order_of_choice_from_pool_and_recall(
    responses: Sequence[Table], write_table: WriteTable, here: RoundContext
) -> None:
    rows = [pair(0, "q-1", "q-0"), *PAIR_ROWS[:2]]
    table = gather_selected.fn(write_table(rows, PAIRS), responses, here)
    found = read(table.path, RESPONSES).to_pylist()
    assert [row["response_id"] for row in found] == ["q-1", "q-0", "p-0", "p-1", "p-2"]
    assert [row["text"] for row in found] == ["f", "e", "a", "b", "c"]


def test_selected_responses_are_cut_into_files(
    responses: Sequence[Table], write_table: WriteTable, here: RoundContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks.margins, "SHARD_SIZE", 2)
    table = gather_selected.fn(write_table(PAIR_ROWS, PAIRS), responses, here)
    assert (len(parts(table.path)), table.rows) == (3, 5)
