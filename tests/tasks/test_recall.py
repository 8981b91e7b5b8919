"""Recall: which responses of earlier rounds are gathered, each once, and in files that can be scored one by one."""

from collections.abc import Callable
from typing import Any

import pytest

import tasks.recall
from tasks.candidates import Offer
from tasks.design.selectors.baselines import Uniform
from tasks.feature_tables import features_schema, read_features
from tasks.labelling import LabellingConfig, label_pairs
from tasks.recall import recall_responses
from tasks.selection import Question, SelectionConfig, choose
from tasks.stages import RoundContext
from tasks.tables import PAIRS, PREFERENCES, RESPONSES, PastRound, Table, parts, read


def rows_of(mark: str, *, faulty: str = "") -> list[dict[str, Any]]:
    """Three responses to each of two prompts."""
    return [
        {
            "response_id": f"{mark}{prompt}-{index}",
            "prompt_id": prompt,
            "valid": f"{prompt}-{index}" != faulty,
            "num_tokens": 2,
            "logp_policy": -1.0,
            "logp_reference": -1.0,
            "feature": [0.5],
            "proxy_score": None,
        }
        for prompt in "pq"
        for index in range(3)
    ]


@pytest.fixture
def past(past_round: Callable[..., PastRound]) -> list[PastRound]:
    """Three rounds; the last one also labelled a pair of the first one's pool."""
    return [
        past_round(rows_of("0 "), [("0 p-1", "0 p-0")]),
        past_round(rows_of("1 ", faulty="q-1"), [("1 q-0", "1 q-2"), ("1 q-2", "1 q-0")]),
        past_round(rows_of("2 ", faulty="p-0"), [("2 p-1", "2 p-2"), ("0 q-0", "0 q-2")], recalled=rows_of("0 ")),
    ]


ONE, TWO = (
    [f"{mark} {prompt}-{index}" for prompt in "pq" for index in range(3) if f"{prompt}-{index}" != faulty]
    for mark, faulty in (("1", "q-1"), ("2", "p-0"))
)
LABELLED = ["0 p-0", "0 p-1", "0 q-0", "0 q-2", "1 q-0", "1 q-2", "2 p-1", "2 p-2"]


@pytest.mark.parametrize(
    ("labelled", "offer_rounds", "expected"),
    [
        (False, 0, []),
        (True, 0, LABELLED),
        (False, 1, TWO),
        (False, 2, ONE + TWO),
        (True, 1, LABELLED[:6] + TWO),
        (True, 2, LABELLED[:4] + ONE + TWO),
    ],
)
def test_labelled_responses_and_the_usable_ones_of_late_pools_come_once_and_in_order(
    past: list[PastRound], here: RoundContext, labelled: bool, offer_rounds: int, expected: list[str]
) -> None:
    table = recall_responses.fn(past, here, labelled=labelled, offer_rounds=offer_rounds)
    rows = read(table.path, RESPONSES).to_pylist()
    assert [row["response_id"] for row in rows] == expected
    assert table.rows == len(expected)
    assert all(row["text"] == f"text of {row['response_id']}" and row["fault"] is None for row in rows)


def test_more_rounds_than_there_are_offer_all_of_them(past: list[PastRound], here: RoundContext) -> None:
    table = recall_responses.fn(past, here, labelled=False, offer_rounds=9)
    assert table.rows == 6 + len(ONE) + len(TWO)


def test_a_first_round_recalls_nothing_and_writes_no_file(here: RoundContext) -> None:
    table = recall_responses.fn([], here, labelled=True, offer_rounds=2)
    assert table.rows == 0
    assert [path.name for path in table.path.iterdir()] == ["manifest.json"]
    assert read_features(table.path).num_rows == 0


def test_what_is_recalled_is_cut_into_files(
    past: list[PastRound], here: RoundContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks.recall, "SHARD_SIZE", 3)
    table = recall_responses.fn(past, here, labelled=True, offer_rounds=0)
    assert len(parts(table.path)) == 3
    assert read(table.path, RESPONSES).column("response_id").to_pylist() == LABELLED


def test_other_labels_are_another_table(
    past: list[PastRound], here: RoundContext, past_round: Callable[..., PastRound]
) -> None:
    other = [*past[:2], past_round(rows_of("2 ", faulty="p-0"), [("2 p-1", "2 q-0")], recalled=rows_of("0 "))]
    tables = [recall_responses.fn(own, here, labelled=True, offer_rounds=1) for own in (past, past, other)]
    assert tables[0] == tables[1]
    assert tables[0].digest != tables[2].digest


def test_pairs_offered_again_are_labelled_with_their_own_texts(
    past: list[PastRound],
    past_round: Callable[..., PastRound],
    write_table: Callable[..., Table],
    join_round: Callable[..., RoundContext],
    here: RoundContext,
) -> None:
    """All pairs that are left: three of round 2 and three of round 1, beside the six of this round."""
    own, now = past_round(rows_of("3 "), []), join_round(here.settings.root, round_number=3)
    recalled = recall_responses.fn(past, now, labelled=True, offer_rounds=2)
    again = rows_of("0 ") + rows_of("1 ", faulty="q-1") + rows_of("2 ", faulty="p-0")
    scored = write_table([row for row in again if row["valid"]], features_schema(1))
    config = SelectionConfig(selector=Uniform(), budget=12, offer_rounds=2)
    rows, measures = choose(Question(Offer(own.features, scored, past), 0.1, config, 0))
    assert measures["num_candidates"] == 12
    assert sorted(row["staleness"] for row in rows) == [0] * 6 + [1] * 3 + [2] * 3
    pairs = write_table(rows, PAIRS)
    labels = read(label_pairs.fn(pairs, [own.pool, recalled], [], LabellingConfig(), now).path, PREFERENCES).to_pylist()
    assert len(labels) == 12
    for pair, row in zip(rows, labels, strict=True):
        assert {row["chosen"], row["rejected"]} == {pair["response_a"], pair["response_b"]}
        assert [row["chosen_text"], row["rejected_text"]] == [f"text of {row[side]}" for side in ("chosen", "rejected")]
