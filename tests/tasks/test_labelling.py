"""Labelling: labels follow the ledger, are bought once, and belong to their pair."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import InputError
from cluster.storage import digest_of
from tasks.labellers.ledger import Ledger
from tasks.labellers.people import PeopleLabeller
from tasks.labellers.protocol import Answer, Answered, Ask, Choice, Workplace
from tasks.labellers.rewards import Length
from tasks.labellers.simulated import SimulatedLabeller
from tasks.labelling import NUM_EXAMPLES, LabellingConfig, label_pairs
from tasks.parking import Parked
from tasks.stages import RoundContext, manifest_of
from tasks.tables import PAIRS, PREFERENCES, Table, read

pytestmark = pytest.mark.labels

TEXTS = {f"p{number}": ["a", "longer " * 3, "the longest of all " * 4] for number in range(6)}
LONGEST = SimulatedLabeller(reward=Length(per="character", unit=1.0), temperature=1e-3, cost=0.5)
CONFIG = LabellingConfig(labeller=LONGEST)


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


def label(
    pairs: Table,
    responses: Table,
    here: RoundContext,
    config: LabellingConfig = CONFIG,
    *,
    past: Sequence[Table] = (),
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read(
        label_pairs.fn(pairs, [responses], past, config, here).path, PREFERENCES
    ).to_pylist()
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
    rows = read(label_pairs.fn(pairs, tables, [], CONFIG, here).path, PREFERENCES).to_pylist()
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
    undecided = LabellingConfig(labeller=SimulatedLabeller(reward=Length(), temperature=100.0, cost=0.5))
    first = label(write_pairs(ALL[:10]), responses, here, undecided)
    second = label(write_pairs([(prompt, b, a) for prompt, a, b in ALL[6:]]), responses, other, undecided)
    ledger = Ledger(url=here.settings.ledger)
    assert (ledger.spend("demo").num_labels, ledger.spend("demo").cost) == (10, 5.0)
    assert (ledger.spend("other").num_labels, ledger.spend("other").num_bought) == (12, 8)
    assert (ledger.spend().num_bought, ledger.spend().paid) == (18, 9.0)
    chosen = {row["pair_id"]: row["chosen"] for row in first}
    shared = [row for row in second if row["pair_id"] in chosen]
    assert len(shared) == 4
    assert all(row["chosen"] == chosen[row["pair_id"]] for row in shared)


def test_labelling_again_buys_nothing_and_gives_the_same_table(
    responses: Table, write_pairs: Callable[..., Table], here: RoundContext
) -> None:
    pairs = write_pairs(ALL)
    tables = [label_pairs.fn(pairs, [responses], [], CONFIG, here) for _ in range(2)]
    assert tables[0] == tables[1]
    assert Ledger(url=here.settings.ledger).spend().num_bought == len(ALL)
    assert manifest_of(tables[0]).measures["cost"] == 0.5 * len(ALL)


def test_a_lost_stage_is_rebuilt_from_the_ledger(
    responses: Table, write_pairs: Callable[..., Table], here: RoundContext
) -> None:
    pairs = write_pairs(ALL)
    before = label(pairs, responses, here)
    table = label_pairs.fn(pairs, [responses], [], CONFIG, here)
    (table.path / "manifest.json").unlink()
    (table.path / "part-00000.parquet").unlink()
    assert label(pairs, responses, here) == before
    assert Ledger(url=here.settings.ledger).spend().num_bought == len(ALL)


def test_another_labeller_is_asked_anew(
    responses: Table, write_pairs: Callable[..., Table], here: RoundContext
) -> None:
    pairs = write_pairs(ALL[:3])
    label(pairs, responses, here)
    label(pairs, responses, here, LabellingConfig(labeller=SimulatedLabeller(reward=Length(), seed=1)))
    assert Ledger(url=here.settings.ledger).spend().num_bought == 6


def test_examples_are_a_table_that_a_person_can_read(
    responses: Table, write_pairs: Callable[..., Table], here: RoundContext, tmp_path: Path
) -> None:
    for _ in range(2):
        rows = label(write_pairs(ALL), responses, here)
    client = here.tracker.client
    table = json.loads(Path(client.download_artifacts(here.run, "examples.json", str(tmp_path))).read_text())
    assert table["columns"] == ["prompt", "chosen", "rejected", "outcome", "labeller"]
    assert len(table["data"]) == NUM_EXAMPLES
    first = rows[0]
    assert table["data"][0] == [
        "user: say p0",
        first["chosen_text"],
        first["rejected_text"],
        "preferred",
        LONGEST.identity,
    ]
    assert json.loads(client.get_run(here.run).data.tags["mlflow.loggedArtifacts"]) == [
        {"path": "examples.json", "type": "table"}
    ]


def test_several_answers_make_one_label_with_its_votes(
    responses: Table, write_pairs: Callable[..., Table], here: RoundContext
) -> None:
    even = SimulatedLabeller(reward=Length(), temperature=100.0, cost=0.5)
    rows = label(write_pairs(ALL), responses, here, LabellingConfig(labeller=even, repeats=3))
    for row in rows:
        assert row["votes_chosen"] + row["votes_rejected"] == row["num_answers"] == 3
        assert row["votes_chosen"] > row["votes_rejected"]
        assert row["probability"] == pytest.approx(row["votes_chosen"] / 3)
    assert {row["votes_chosen"] for row in rows} == {2, 3}
    assert Ledger(url=here.settings.ledger).spend("demo").cost == 1.5 * len(ALL)


@dataclass(frozen=True, kw_only=True)
class Shy(SimulatedLabeller):
    """Says no probability, and skips every second repetition."""

    def answers(self, asks: Sequence[Ask]) -> Answered:
        return [
            (ask, replace(answer, probability=None, choice="abstain" if ask.repetition % 2 else answer.choice))
            for ask, answer in super().answers(asks)
        ]


def test_a_pair_with_one_vote_left_has_the_odds_of_its_votes_as_others_of_its_round(
    responses: Table, write_pairs: Callable[..., Table], here: RoundContext
) -> None:
    shy = Shy(reward=Length(per="character"), cost=0.5)
    for repeats, expected in ((2, 1.0), (1, None)):
        config = LabellingConfig.model_construct(**{**CONFIG.model_dump(), "labeller": shy, "repeats": repeats})
        config = config.model_copy(update={"aggregation": CONFIG.aggregation})
        rows = label(write_pairs(ALL), responses, here, config)
        assert {row["probability"] for row in rows} == {expected}
        assert {(row["votes_chosen"], row["num_answers"]) for row in rows} == {(1, repeats)}


def test_more_repeats_buy_only_the_answers_that_are_missing(
    responses: Table, write_pairs: Callable[..., Table], here: RoundContext, join_round: Callable[..., RoundContext]
) -> None:
    pairs = write_pairs(ALL)
    label(pairs, responses, here)
    label(pairs, responses, join_round(here.settings.root, "other"), LabellingConfig(labeller=LONGEST, repeats=3))
    ledger = Ledger(url=here.settings.ledger)
    assert (ledger.spend("demo").num_bought, ledger.spend("other").num_bought) == (len(ALL), 2 * len(ALL))
    assert ledger.spend("other").num_labels == 3 * len(ALL)


def test_another_lineage_pays_for_a_stage_that_it_finds_finished(
    responses: Table, write_pairs: Callable[..., Table], here: RoundContext, join_round: Callable[..., RoundContext]
) -> None:
    pairs, other = write_pairs(ALL), join_round(here.settings.root, "other")
    assert label(pairs, responses, here) == label(pairs, responses, other)
    ledger = Ledger(url=here.settings.ledger)
    assert ledger.spend("demo").cost == ledger.spend("other").cost == 0.5 * len(ALL) == ledger.spend().paid
    with pytest.raises(InputError, match=r"budget"):
        label(pairs, responses, join_round(here.settings.root, "poor"), CONFIG.model_copy(update={"budget": 1.0}))


def test_a_budget_that_is_too_small_is_refused_before_anybody_is_asked(
    responses: Table, write_pairs: Callable[..., Table], here: RoundContext
) -> None:
    poor = LabellingConfig(labeller=LONGEST, budget=0.5 * len(ALL) - 0.5)
    with pytest.raises(InputError, match=r"budget"):
        label(write_pairs(ALL), responses, here, poor)
    assert Ledger(url=here.settings.ledger).spend().num_bought == 0
    assert label(write_pairs(ALL[:-1]), responses, here, poor)


@dataclass(frozen=True, kw_only=True)
class Hesitant(SimulatedLabeller):
    """Answers nothing that begins with prompt p1."""

    def __call__(self, asks: Sequence[Ask], workplace: Workplace) -> Iterator[Answered]:
        return super().__call__([ask for ask in asks if "p1" not in ask.question.prompt], workplace)


def test_a_labeller_that_leaves_asks_open_is_refused_and_its_answers_kept(
    responses: Table, write_pairs: Callable[..., Table], here: RoundContext
) -> None:
    pairs, hesitant = write_pairs(ALL), Hesitant(reward=Length(), cost=0.5)
    with pytest.raises(InputError, match=r"labeller simulated left 3 of 18 asks without an answer"):
        label(pairs, responses, here, LabellingConfig.model_construct(labeller=hesitant))
    assert Ledger(url=here.settings.ledger).spend("demo").num_bought == 15


CREW = PeopleLabeller(crew="editors", min_labels=2, deadline_hours=1.0, cost=2.0)
PEOPLE = LabellingConfig(labeller=CREW)


def answer(here: RoundContext, number: int, choice: Choice = "first") -> None:
    """Have people answer so many of the open questions, in the order in which the ledger gives them."""
    ledger = Ledger(url=here.settings.ledger)
    for waiting in ledger.open_questions("demo")[:number]:
        ledger.answer(waiting.question, waiting.labeller, Answer(choice=choice, annotator="ann"))


def test_a_round_parks_until_people_have_answered(
    responses: Table, write_pairs: Callable[..., Table], here: RoundContext
) -> None:
    pairs = write_pairs(ALL[:4])
    with pytest.raises(Parked):
        label(pairs, responses, here, PEOPLE)
    answer(here, 3)
    with pytest.raises(Parked):
        label(pairs, responses, here, PEOPLE)
    answer(here, 1, "tie")
    rows = label(pairs, responses, here, PEOPLE)
    assert sorted(row["outcome"] for row in rows) == ["preferred"] * 3 + ["tie"]
    spend = Ledger(url=here.settings.ledger).spend("demo")
    assert (spend.num_labels, spend.cost, spend.num_pending) == (4, 8.0, 0)


def test_answers_after_the_deadline_belong_to_the_next_round(
    responses: Table,
    write_pairs: Callable[..., Table],
    here: RoundContext,
    join_round: Callable[..., RoundContext],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pairs = write_pairs(ALL[:4])
    with pytest.raises(Parked):
        label(pairs, responses, here, PEOPLE)
    answer(here, 2)
    late = Ledger(url=here.settings.ledger).open_questions("demo")
    over = LabellingConfig(labeller=replace(CREW, deadline_hours=1e-9))
    table = label_pairs.fn(pairs, [responses], [], over, here)
    first = read(table.path, PREFERENCES).to_pylist()
    assert sorted(row["outcome"] for row in first) == ["preferred"] * 2 + ["unanswered"] * 2
    ledger = Ledger(url=here.settings.ledger)
    assert ledger.spend("demo").pending == 0
    for waiting in late:
        longer: Choice = "first" if len(waiting.question.first) > len(waiting.question.second) else "second"
        receipt = ledger.answer(waiting.question, waiting.labeller, Answer(choice=longer, annotator="bob"))
        assert receipt.status == "kept"
    assert label(pairs, responses, here, over) == first, "a closed round stays as it was"

    following = join_round(here.settings.root, round_number=1)
    soon = LabellingConfig(labeller=replace(CREW, deadline_hours=1e-9, min_labels=1))
    with pytest.raises(Parked):  # what came late is none of the answers that the round itself waits for
        label(write_pairs(ALL[4:6]), responses, following, soon, past=[table])
    answer(following, 1)
    rows = label(write_pairs(ALL[4:6]), responses, following, soon, past=[table])
    assert sorted(row["outcome"] for row in rows[:2]) == ["preferred", "unanswered"]
    assert [row["outcome"] for row in rows[2:]] == ["preferred", "preferred"]
    asked = {row["pair_id"] for row in first if row["outcome"] == "unanswered"}
    assert {row["pair_id"] for row in rows[2:]} == asked
    assert all(len(row["chosen_text"]) > len(row["rejected_text"]) for row in rows[2:])
    assert ledger.spend("demo").cost == 10.0
