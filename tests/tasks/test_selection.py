"""Selection on small written tables: what is chosen, what its rows say, and what earlier labels change."""

import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.session import ray_session
from cluster.settings import Settings
from tasks.candidates import Offer
from tasks.design.pool import Pool
from tasks.design.selection import Selection
from tasks.design.selectors import SELECTORS, AnySelector
from tasks.design.selectors.baselines import Uniform
from tasks.design.selectors.designs import TraceDesign
from tasks.design.selectors.robust import RobustDesign
from tasks.feature_tables import features_schema
from tasks.selection import NOTES_TAG, Question, SelectionConfig, choose, select_pairs
from tasks.stages import RoundContext, manifest_of
from tasks.tables import PAIRS, PastRound, Table, part_path, read, write_part

DIM = 5
CHOSEN: list[AnySelector] = [
    Uniform(),
    Uniform(max_pairs_per_prompt=2),
    TraceDesign(),
    TraceDesign(max_pairs_per_prompt=2),
    RobustDesign(),
    RobustDesign(max_pairs_per_prompt=2),
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
    """Ask a selector for pairs of the responses of these rows, given recalled responses and earlier rounds."""

    def build(
        rows: list[dict[str, Any]],
        selector: AnySelector,
        budget: int,
        *,
        recalled: list[dict[str, Any]] | None = None,
        past: Sequence[PastRound] = (),
        seed: int = 0,
        beta: float = 0.1,
        offer_rounds: int = 0,
    ) -> Question:
        tables = [write_table(own, features_schema(DIM)) for own in (rows, recalled or [])]
        config = SelectionConfig(selector=selector, budget=budget, offer_rounds=offer_rounds)
        return Question(Offer(*tables, past), beta, config, seed)

    return build


def ends(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(row["response_a"], row["response_b"]) for row in rows]


@pytest.mark.parametrize("selector", CHOSEN, ids=repr)
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


@pytest.mark.parametrize("selector", CHOSEN, ids=repr)
def test_the_rows_of_a_prompt_need_not_lie_together(ask: Ask, selector: AnySelector) -> None:
    rows = rows_of(RAGGED)
    scattered = [rows[i] for i in np.random.default_rng(1).permutation(len(rows))]
    for row in choose(ask(scattered, selector, 6))[0]:
        assert row["response_a"][0] == row["response_b"][0] == row["prompt_id"]


@pytest.mark.parametrize("selector", CHOSEN[1::2], ids=repr)
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
    assert 0 < measures["lower_bound"] <= measures["objective"]


@pytest.mark.parametrize("selector", CHOSEN, ids=repr)
def test_rows_and_measures_can_be_stored(ask: Ask, selector: AnySelector, tmp_path: Any) -> None:
    rows, measures = choose(ask(rows_of(RAGGED), selector, 5))
    write_part(part_path(tmp_path, 0), rows, PAIRS)
    assert read(tmp_path, PAIRS).to_pylist() == rows
    assert json.loads(json.dumps(measures)) == measures


@pytest.mark.parametrize("selector", CHOSEN, ids=repr)
def test_the_seed_decides_the_choice(ask: Ask, selector: AnySelector) -> None:
    rows = rows_of(RAGGED)
    choices = [choose(ask(rows, selector, 6, seed=seed))[0] for seed in (0, 0, 1)]
    assert choices[0] == choices[1]
    assert (choices[0] != choices[2]) == (not isinstance(selector, TraceDesign))


@pytest.mark.parametrize("selector", [Uniform(), TraceDesign()], ids=repr)
def test_a_pair_has_the_same_id_wherever_its_responses_stand(ask: Ask, selector: AnySelector) -> None:
    rows = rows_of({"p": 3})
    one, turned = (choose(ask(order, selector, 3))[0] for order in (rows, rows[::-1]))
    names = [{frozenset(pair): row["pair_id"] for pair, row in zip(ends(of), of, strict=True)} for of in (one, turned)]
    assert names[0] == names[1]


@dataclass(frozen=True, kw_only=True)
class Weighing(Uniform):
    loss_weights: tuple[float, ...] = ()

    def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Selection:
        return replace(super().__call__(pool, budget, rng), loss_weights=np.array(self.loss_weights))


def choose_weighing(ask: Ask, *weights: float) -> list[dict[str, Any]]:
    asked, selector = ask(rows_of(RAGGED), Uniform(), len(weights)), Weighing(loss_weights=weights)
    return choose(replace(asked, config=asked.config.model_copy(update={"selector": selector})))[0]


def test_loss_weights_travel_with_their_pairs_at_a_mean_of_1_and_are_null_where_there_are_none(
    ask: Ask, tmp_path: Path
) -> None:
    write_part(part_path(tmp_path, 0), choose_weighing(ask, 0.25, 0.0, 4.0), PAIRS)
    assert read(tmp_path, PAIRS).column("loss_weight").to_pylist() == pytest.approx(
        [3 * 0.25 / 4.25, 0.0, 3 * 4.0 / 4.25]
    )
    assert {row["loss_weight"] for row in choose(ask(rows_of(RAGGED), Uniform(), 3))[0]} == {None}


@pytest.mark.parametrize(
    ("weights", "found"),
    [([1.0, -0.5], "hold -0.5"), ([1.0, np.nan], "hold nan"), ([np.inf, 1.0], "hold inf"), ([0, 0], "are 0 for all 2")],
)
def test_weights_that_training_could_not_use_are_refused_before_a_label_is_paid(
    ask: Ask, weights: list[float], found: str
) -> None:
    with pytest.raises(ValueError, match=f"^loss_weights of the selection {found}.*: expected finite numbers from 0"):
        choose_weighing(ask, *weights)


def test_labels_of_an_earlier_round_change_the_choice(ask: Ask, past_round: Callable[..., PastRound]) -> None:
    """Three prompts whose pairs each lie along an axis of their own: the one that is known is the last choice."""
    rows = rows_of({"p": 2, "q": 2, "r": 2})
    for axis, row in enumerate(rows):
        row["feature"] = [0.0] * DIM
        row["feature"][axis // 2] = (-1.0) ** axis
        row["logp_policy"] = row["logp_reference"] = -8.0
    before = [row | {"response_id": f"old {row['response_id']}"} for row in rows]
    choices = {}
    for known in ("p", "q", "r"):
        past = [past_round(before, [(f"old {known}-0", f"old {known}-1")] * 20)]
        chosen, measures = choose(ask(rows, TraceDesign(), 2, recalled=before, past=past, beta=1.0))
        choices[known] = {row["prompt_id"] for row in chosen}
        assert measures["objective"] < choose(ask(rows, TraceDesign(), 2, beta=1.0))[1]["objective"]
    assert choices == {"p": {"q", "r"}, "q": {"p", "r"}, "r": {"p", "q"}}


@pytest.mark.parametrize("selector", CHOSEN, ids=repr)
def test_pairs_offered_again_say_how_old_they_are(
    ask: Ask, past_round: Callable[..., PastRound], selector: AnySelector
) -> None:
    """The prompts of all three pools are the same: those of round 0 are too old, and one pair of round 1 is known."""
    pools = [
        [row | {"response_id": f"{number} {row['response_id']}"} for row in rows_of({"p": 3, "q": 2}, seed=number)]
        for number in range(3)
    ]
    past = [past_round(pools[0], [("0 p-0", "0 p-1")]), past_round(pools[1], [("1 p-2", "1 p-0")])]
    rows, measures = choose(ask(pools[2], selector, 6, recalled=pools[0] + pools[1], past=past, offer_rounds=1))
    for row in rows:
        assert row["response_a"][:3] == row["response_b"][:3] == f"{2 - row['staleness']} {row['prompt_id']}"
        assert {row["response_a"], row["response_b"]} != {"1 p-2", "1 p-0"}
    assert measures["num_candidates"] == 4 + 3
    assert measures["staleness"] == sum(row["staleness"] for row in rows) / 6
    assert {row["staleness"] for row in rows} == {0, 1}


@pytest.fixture(scope="module")
def on_ray(join_round: Callable[..., RoundContext], make_home: Callable[[], Path]) -> Iterator[RoundContext]:
    """A round on a home of its own, with a real Ray."""
    with ray_session(Settings()):
        yield join_round(make_home())


@pytest.fixture
def offer(write_table: Callable[..., Table]) -> Offer:
    """A pool of thirty pairs with proxy scores."""
    rows = rows_of(dict.fromkeys("pqrst", 4))
    scored = [row | {"proxy_score": index % 7 / 7} for index, row in enumerate(rows)]
    return Offer(write_table(scored, features_schema(DIM)), write_table([], features_schema(DIM)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
@pytest.mark.parametrize("kind", SELECTORS)
def test_every_selector_serves_a_round(kind: str, offer: Offer, on_ray: RoundContext) -> None:
    config = SelectionConfig(selector=SELECTORS[kind](kind=kind), budget=8)
    table = select_pairs.fn(offer, config, 0.1, on_ray)
    rows = read(table.path, PAIRS).to_pylist()
    assert len({frozenset(pair) for pair in ends(rows)}) == table.rows == 8
    assert {row["staleness"] for row in rows} == {0}
    assert isinstance(manifest_of(table).measures["notes"], list)
    assert select_pairs.fn(offer, config, 0.1, on_ray) == table


@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
def test_passes_and_notes_are_told_while_and_after_it_selects(
    offer: Offer, on_ray: RoundContext, caplog: pytest.LogCaptureFixture
) -> None:
    config = SelectionConfig(selector=TraceDesign(max_passes=2, tolerance=1e-9), budget=7)
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.INFO, "tasks.progress"):
            table = select_pairs.fn(offer, config, 0.1, on_ray)
        (note,) = manifest_of(table).measures["notes"]
        assert note.startswith("the search stopped after 2 passes at a gap of")
        told = {record.levelname: record.getMessage() for record in caplog.records if record.name == "tasks.progress"}
        assert told["WARNING"] == f"demo-r000: {note}"
        if "INFO" in told:
            first = told["INFO"]
    assert re.match(r"pass \d+: relative gap \d\.\d+e[+-]\d+, objective ", first)
    assert "INFO" not in told, "what was found finished has no passes"
    assert sorted(path.name for path in table.path.iterdir()) == ["manifest.json", "part-00000.parquet"]
    run = on_ray.tracker.client.get_run(on_ray.run)
    assert run.data.tags[NOTES_TAG] == note
    assert run.data.metrics.keys() >= {"selection/gap", "selection/passes", "selection/staleness"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
@pytest.mark.parametrize("with_proxy", [True, False])
def test_what_the_default_believes_is_told_to_the_round(
    write_table: Callable[..., Table], join_round: Callable[..., RoundContext], on_ray: RoundContext, with_proxy: bool
) -> None:
    here = join_round(on_ray.settings.home, f"believer-{with_proxy}".lower())
    rows = rows_of(dict.fromkeys("pq", 4))
    scored = [row | {"proxy_score": float(index % 3) if with_proxy else None} for index, row in enumerate(rows)]
    tables = [write_table(own, features_schema(DIM)) for own in (scored, [])]
    believed = manifest_of(select_pairs.fn(Offer(*tables), SelectionConfig(budget=5), 0.1, here)).measures
    assert (believed["misfit"], believed["proxy_correlation"]) == (0.1, 0.5 if with_proxy else None)
    assert (believed["effective_sample_size"], believed["uniform_share"]) == (5.0, 0.0)
    assert believed["length_correlation"] is None, "all responses are as long"
    metrics = here.tracker.client.get_run(here.run).data.metrics
    beliefs = ("misfit", "proxy_correlation", "length_correlation")
    for name in ("objective", "effective_sample_size", "uniform_share", *beliefs):
        assert metrics.get(f"selection/{name}") == believed[name]


def test_a_silent_proxy_is_told_and_the_choice_is_as_without_one(ask: Ask) -> None:
    rows = rows_of(RAGGED)
    silent, measures = choose(ask([row | {"proxy_score": 0.0} for row in rows], RobustDesign(), 6))
    bare, plain = choose(ask(rows, RobustDesign(), 6))
    assert ends(silent) == ends(bare)
    assert measures["notes"] == ["all proxy scores of a prompt are equal: chosen without the proxy"]
    assert (plain["notes"], plain["proxy_correlation"]) == ([], None)


def test_a_proxy_that_labels_contradict_is_left_out_and_one_that_they_confirm_is_trusted_more(
    ask: Ask, past_round: Callable[..., PastRound]
) -> None:
    counts = dict.fromkeys((f"p{number}" for number in range(40)), 2)
    rows = [row | {"proxy_score": float(index % 2)} for index, row in enumerate(rows_of(counts))]
    old = [row | {"response_id": f"old {row['response_id']}"} for row in rows]
    believed = {}
    for better in (0, 1):
        past = [past_round(old, [(f"old {prompt}-{better}", f"old {prompt}-{1 - better}") for prompt in counts])]
        _, believed[better] = choose(ask(rows, RobustDesign(), 6, recalled=old, past=past))
    assert believed[1]["proxy_correlation"] > 0.6
    assert believed[0]["proxy_correlation"] < 0
    (note,) = believed[0]["notes"]
    assert re.fullmatch(r"the proxy's correlation is put at -0\.\d\d: chosen without the proxy", note)


def test_shifting_all_features_alike_changes_no_choice(ask: Ask) -> None:
    rows = rows_of(RAGGED)
    shifted = [row | {"feature": [value + 16.0 for value in row["feature"]]} for row in rows]
    assert ends(choose(ask(rows, TraceDesign(), 6))[0]) == ends(choose(ask(shifted, TraceDesign(), 6))[0])
