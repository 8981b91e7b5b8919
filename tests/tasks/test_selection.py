"""Selection on small written tables: what is chosen, what its rows say, and what earlier labels change."""

import json
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from tasks.design.selectors import AnySelector, TraceDesign, Uniform
from tasks.selection import Labelled, Question, SelectionConfig, choose
from tasks.tables import PAIRS, PREFERENCES, Table, features_schema, part_path, read, write_part

DIM = 5
SELECTORS: list[AnySelector] = [
    Uniform(),
    Uniform(max_pairs_per_prompt=2),
    TraceDesign(),
    TraceDesign(max_pairs_per_prompt=2),
]
RAGGED = {"p": 4, "q": 2, "r": 3, "s": 5, "t": 1}
"""Responses of each prompt; `t` has no pair."""

Ask = Callable[..., Question]


def rows_of(counts: dict[str, int], *, invalid: Sequence[str] = (), seed: int = 0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [
        {
            "response_id": f"{prompt}-{index}",
            "prompt_id": prompt,
            "valid": f"{prompt}-{index}" not in invalid,
            "num_tokens": 4,
            "logp_policy": float(rng.normal(-8, 2)),
            "logp_reference": float(rng.normal(-8, 2)),
            "feature": rng.standard_normal(DIM).astype(np.float32).tolist(),
            "proxy_score": None,
        }
        for prompt, count in counts.items()
        for index in range(count)
    ]


@pytest.fixture
def ask(write_table: Callable[..., Table]) -> Ask:
    """Ask a selector for pairs of the responses of these rows."""

    def build(
        rows: list[dict[str, Any]],
        selector: AnySelector,
        budget: int,
        *,
        earlier: Sequence[Labelled] = (),
        seed: int = 0,
        beta: float = 0.1,
    ) -> Question:
        features = write_table(rows, features_schema(DIM))
        return Question(features.path, earlier, beta, SelectionConfig(selector=selector, budget=budget), seed)

    return build


@pytest.fixture
def labelled(write_table: Callable[..., Table]) -> Callable[[list[dict[str, Any]], list[tuple[str, str]]], Labelled]:
    """Labels of an earlier round: the first response of each pair was chosen."""

    def build(rows: list[dict[str, Any]], pairs: list[tuple[str, str]]) -> Labelled:
        labels = [
            {
                "pair_id": f"{chosen} {rejected}",
                "prompt_id": chosen[0],
                "messages": [{"role": None, "content": chosen[0]}],
                "chosen": chosen,
                "rejected": rejected,
                "chosen_text": "",
                "rejected_text": "",
                "swapped": False,
                "probability": None,
                "labeller": "by hand",
            }
            for chosen, rejected in pairs
        ]
        return Labelled(preferences=write_table(labels, PREFERENCES), features=write_table(rows, features_schema(DIM)))

    return build


def ends(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(row["response_a"], row["response_b"]) for row in rows]


@pytest.mark.parametrize("selector", SELECTORS, ids=repr)
@pytest.mark.parametrize("budget", [1, 5, 7])
def test_exactly_the_budget_of_distinct_valid_pairs_is_chosen_in_order(
    ask: Ask, selector: AnySelector, budget: int
) -> None:
    invalid = ["p-0", "s-1", "s-4"]
    rows, _ = choose(ask(rows_of(RAGGED, invalid=invalid), selector, budget))
    assert [row["order"] for row in rows] == list(range(budget))
    assert len({frozenset(pair) for pair in ends(rows)}) == budget
    assert len({row["pair_id"] for row in rows}) == budget
    for row in rows:
        assert row["response_a"] != row["response_b"]
        assert row["response_a"][0] == row["response_b"][0] == row["prompt_id"]
        assert not {row["response_a"], row["response_b"]} & set(invalid)


@pytest.mark.parametrize("selector", [Uniform(), TraceDesign()], ids=repr)
def test_a_budget_of_all_pairs_takes_every_pair_of_a_ragged_pool(ask: Ask, selector: AnySelector) -> None:
    pairs = {
        frozenset((f"{prompt}-{a}", f"{prompt}-{b}"))
        for prompt, count in RAGGED.items()
        for a, b in combinations(range(count), 2)
    }
    rows, measures = choose(ask(rows_of(RAGGED), selector, len(pairs)))
    assert {frozenset(pair) for pair in ends(rows)} == pairs
    assert measures["num_candidates"] == len(pairs) == 20
    assert measures["num_prompts"] == 4


@pytest.mark.parametrize("selector", SELECTORS, ids=repr)
def test_the_rows_of_a_prompt_need_not_lie_together(ask: Ask, selector: AnySelector) -> None:
    rows = rows_of(RAGGED)
    scattered = [rows[i] for i in np.random.default_rng(1).permutation(len(rows))]
    for row in choose(ask(scattered, selector, 6))[0]:
        assert row["response_a"][0] == row["response_b"][0] == row["prompt_id"]


@pytest.mark.parametrize("selector", SELECTORS[1::2], ids=repr)
def test_a_cap_holds_for_every_prompt(ask: Ask, selector: AnySelector) -> None:
    rows, _ = choose(ask(rows_of(RAGGED), selector, 7))
    taken = [row["prompt_id"] for row in rows]
    assert max(taken.count(prompt) for prompt in RAGGED) == 2


@pytest.mark.parametrize("selector", [Uniform(), TraceDesign()], ids=repr)
def test_more_pairs_than_the_valid_responses_form_are_refused(ask: Ask, selector: AnySelector) -> None:
    question = ask(rows_of({"p": 3}, invalid=["p-1"]), selector, 2)
    with pytest.raises(ValueError, match="budget"):
        choose(question)


def test_uniform_states_its_inclusion_probability_and_no_weight(ask: Ask) -> None:
    rows, measures = choose(ask(rows_of(RAGGED), Uniform(), 5))
    for row in rows:
        assert (row["weight"], row["score"]) == (None, None)
        assert row["inclusion_probability"] == 5 / 20
    assert "objective" not in measures


def test_uniform_under_a_cap_has_no_inclusion_probability(ask: Ask) -> None:
    rows, _ = choose(ask(rows_of(RAGGED), Uniform(max_pairs_per_prompt=2), 5))
    assert {row["inclusion_probability"] for row in rows} == {None}


def test_a_trace_design_states_weights_and_scores_and_no_inclusion_probability(ask: Ask) -> None:
    rows, measures = choose(ask(rows_of(RAGGED), TraceDesign(), 5))
    for row in rows:
        assert 0 <= row["weight"] <= 1
        assert row["score"] > 0
        assert row["inclusion_probability"] is None
    weights = [row["weight"] for row in rows]
    assert weights == sorted(weights, reverse=True)
    assert 0 < measures["lower_bound"] <= measures["objective"]


@pytest.mark.parametrize("selector", SELECTORS, ids=repr)
def test_rows_and_measures_can_be_stored(ask: Ask, selector: AnySelector, tmp_path: Any) -> None:
    rows, measures = choose(ask(rows_of(RAGGED), selector, 5))
    write_part(part_path(tmp_path, 0), rows, PAIRS)
    assert read(tmp_path, PAIRS).to_pylist() == rows
    assert json.loads(json.dumps(measures)) == measures


@pytest.mark.parametrize("selector", SELECTORS, ids=repr)
def test_the_seed_decides_the_choice(ask: Ask, selector: AnySelector) -> None:
    rows = rows_of(RAGGED)
    choices = [choose(ask(rows, selector, 6, seed=seed))[0] for seed in (0, 0, 1)]
    assert choices[0] == choices[1]
    assert (choices[0] != choices[2]) == isinstance(selector, Uniform)


@pytest.mark.parametrize("selector", [Uniform(), TraceDesign()], ids=repr)
def test_a_pair_has_the_same_id_wherever_its_responses_stand(ask: Ask, selector: AnySelector) -> None:
    rows = rows_of({"p": 3})
    one, turned = (choose(ask(order, selector, 3))[0] for order in (rows, rows[::-1]))
    names = [{frozenset(pair): row["pair_id"] for pair, row in zip(ends(of), of, strict=True)} for of in (one, turned)]
    assert names[0] == names[1]


def test_labels_of_an_earlier_round_change_the_choice(
    ask: Ask, labelled: Callable[[list[dict[str, Any]], list[tuple[str, str]]], Labelled]
) -> None:
    """Three prompts whose pairs each lie along an axis of their own: the one that is known is the last choice."""
    rows = rows_of({"p": 2, "q": 2, "r": 2})
    for axis, row in enumerate(rows):
        row["feature"] = [0.0] * DIM
        row["feature"][axis // 2] = (-1.0) ** axis
        row["logp_policy"] = row["logp_reference"] = -8.0
    choices = {}
    for known in ("p", "q", "r"):
        prior = labelled(rows, [(f"{known}-0", f"{known}-1")] * 20)
        chosen, measures = choose(ask(rows, TraceDesign(), 2, earlier=[prior], beta=1.0))
        choices[known] = {row["prompt_id"] for row in chosen}
        assert measures["objective"] < choose(ask(rows, TraceDesign(), 2, beta=1.0))[1]["objective"]
    assert choices == {"p": {"q", "r"}, "q": {"p", "r"}, "r": {"p", "q"}}


def test_several_earlier_rounds_add_up(
    ask: Ask, labelled: Callable[[list[dict[str, Any]], list[tuple[str, str]]], Labelled]
) -> None:
    rows, past = rows_of(RAGGED), rows_of(RAGGED, seed=5)
    pairs = [("p-0", "p-1"), ("s-2", "s-0"), ("q-1", "q-0")]
    at_once = choose(ask(rows, TraceDesign(), 5, earlier=[labelled(past, pairs)]))[1]
    apart = choose(ask(rows, TraceDesign(), 5, earlier=[labelled(past, pairs[:1]), labelled(past, pairs[1:])]))[1]
    assert apart["objective"] == pytest.approx(at_once["objective"])


def test_the_verdict_of_an_earlier_label_carries_no_information(
    ask: Ask, labelled: Callable[[list[dict[str, Any]], list[tuple[str, str]]], Labelled]
) -> None:
    rows, past = rows_of(RAGGED), rows_of(RAGGED, seed=5)
    pairs = [("p-0", "p-1"), ("s-2", "s-0")]
    turned = [(rejected, chosen) for chosen, rejected in pairs]
    objectives = [
        choose(ask(rows, TraceDesign(), 5, earlier=[labelled(past, own)]))[1]["objective"] for own in (pairs, turned)
    ]
    assert objectives[0] == pytest.approx(objectives[1])


def test_shifting_all_features_alike_changes_no_choice(ask: Ask) -> None:
    rows = rows_of(RAGGED)
    shifted = [row | {"feature": [value + 16.0 for value in row["feature"]]} for row in rows]
    assert ends(choose(ask(rows, TraceDesign(), 6))[0]) == ends(choose(ask(shifted, TraceDesign(), 6))[0])
