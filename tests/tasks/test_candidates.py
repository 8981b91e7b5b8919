"""Candidates: what a round may choose from, and the labels it holds, in arrays."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cluster.errors import InputError
from tasks.candidates import LabelFeatures, Offer, Reading, candidates
from tasks.design.pool import Pool
from tasks.design.preprocess import fit_projection
from tasks.feature_tables import features_schema
from tasks.tables import PastRound, Table

DIM = 3
BETA = 0.5

MakePast = Callable[..., PastRound]
Build = Callable[..., Offer]


def rows_of(counts: dict[str, int], *, mark: str = "", seed: int = 0) -> list[dict[str, Any]]:
    """Scores of responses called mark, prompt, number."""
    rng = np.random.default_rng(seed)
    return [
        {
            "response_id": f"{mark}{prompt}-{index}",
            "prompt_id": prompt,
            "valid": True,
            "num_tokens": 4,
            "logp_policy": float(rng.normal(-8, 2)),
            "logp_reference": float(rng.normal(-8, 2)),
            "feature": rng.standard_normal(DIM).astype(np.float32).tolist(),
            "proxy_score": float(rng.normal()),
        }
        for prompt, count in counts.items()
        for index in range(count)
    ]


@pytest.fixture
def build(write_table: Callable[..., Table]) -> Build:
    """An offer of these scores of this round's pool and of recalled responses."""

    def offer(rows: list[dict[str, Any]], recalled: list[dict[str, Any]], past: list[PastRound]) -> Offer:
        return Offer(*(write_table(own, features_schema(DIM)) for own in (rows, recalled)), past, DIM)

    return offer


def pool_of(offer: Offer, *, labels: LabelFeatures = "current", offer_rounds: int = 0) -> Pool:
    return candidates(
        offer,
        Reading(
            BETA,
            labels,
            offer_rounds,
        ),
    )[0]


def again(rows: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """The same responses as another policy scores them."""
    fresh = rows_of({"x": len(rows)}, seed=seed)
    names = ("logp_policy", "logp_reference", "feature")
    return [row | {name: new[name] for name in names} for row, new in zip(rows, fresh, strict=True)]


def vectors(rows: list[dict[str, Any]]) -> Any:
    return np.array([row["feature"] for row in rows], dtype=np.float64)


def implicit(rows: list[dict[str, Any]]) -> Any:
    return BETA * np.array([row["logp_policy"] - row["logp_reference"] for row in rows])


@pytest.mark.parametrize("labels", ["current", "stored"])
def test_labels_speak_of_the_policy_that_they_shall_speak_of(
    build: Build, past_round: MakePast, labels: LabelFeatures
) -> None:
    rows, stored = rows_of({"p": 3, "q": 2}), rows_of({"p": 3, "r": 2}, mark="old ", seed=1)
    current = again(stored, seed=2)
    past = past_round(stored, [("old p-2", "old p-0"), ("old r-0", "old r-1")])
    held = pool_of(build(rows, current, [past]), labels=labels).labels
    source = {"current": current, "stored": stored}[labels]
    projection = fit_projection(lambda: iter([vectors(rows)]), dim=DIM)
    mapped, rewards = projection(vectors(source)), implicit(source)
    assert held is not None
    assert held.differences == pytest.approx(mapped[[2, 3]] - mapped[[0, 4]])
    assert held.margins == pytest.approx(rewards[[2, 3]] - rewards[[0, 4]])


@pytest.mark.parametrize("labels", ["current", "stored"])
def test_labels_of_several_rounds_come_in_their_order(
    build: Build, past_round: MakePast, labels: LabelFeatures
) -> None:
    pools = [rows_of({"p": 2}, mark=f"{number} ", seed=number) for number in (1, 2)]
    scored = [again(pool, seed=7) for pool in pools]
    first = past_round(pools[0], [("1 p-0", "1 p-1")])
    second = past_round(pools[1], [("2 p-1", "2 p-0"), ("1 p-0", "1 p-1")], recalled=scored[0])
    held = pool_of(build(rows_of({"q": 3}), scored[0] + scored[1], [first, second]), labels=labels).labels
    own = {"current": scored, "stored": pools}[labels]
    margins = [rewards[0] - rewards[1] for rewards in (implicit(own[0]), implicit(own[1])[::-1], implicit(scored[0]))]
    assert held is not None
    assert held.margins == pytest.approx(margins)


@pytest.mark.parametrize("labels", ["current", "stored"])
def test_labels_of_one_prompt_share_its_number_whichever_round_bought_them(
    build: Build, past_round: MakePast, labels: LabelFeatures
) -> None:
    pools = [rows_of({"p": 3, "q": 2}, mark=f"{number} ", seed=number) for number in (1, 2)]
    past = [
        past_round(pools[0], [("1 q-0", "1 q-1"), ("1 p-1", "1 p-0")]),
        past_round(pools[1], [("2 p-2", "2 p-0"), ("2 q-1", "2 q-0"), ("1 p-2", "1 p-0")], recalled=pools[0]),
    ]
    held = pool_of(build(rows_of({"r": 3}), pools[0] + pools[1], past), labels=labels).labels
    assert held is not None
    assert held.prompts is not None
    numbers = dict(zip("qp", held.prompts, strict=False))
    assert numbers["q"] != numbers["p"]
    assert held.prompts.tolist() == [numbers[prompt] for prompt in "qppqp"]


def test_a_first_round_holds_no_labels_and_offers_every_pair(build: Build) -> None:
    pool = pool_of(build(rows_of({"p": 3, "q": 2}), [], []), offer_rounds=3)
    assert pool.labels is None
    assert pool.fisher is None
    assert pool.num_pairs == 4


def test_scores_and_log_probabilities_stand_where_their_responses_do(build: Build) -> None:
    rows = rows_of({"p": 2, "q": 1})
    pool = pool_of(build(rows, [], []))
    assert pool.scores is not None
    assert pool.log_probs is not None
    for values, name in ((pool.scores, "proxy_score"), (pool.log_probs, "logp_policy")):
        own = [row[name] for row in rows]
        assert values.tolist() == [own[:2], [own[2], 0.0]]


def test_lengths_are_the_tokens_of_the_responses(build: Build) -> None:
    rows = [row | {"num_tokens": number} for number, row in enumerate(rows_of({"p": 2, "q": 1}), start=3)]
    lengths = pool_of(build(rows, [], [])).lengths
    assert lengths is not None
    assert lengths.tolist() == [[3.0, 4.0], [5.0, 0.0]]


def test_a_pool_without_a_proxy_has_no_scores(build: Build) -> None:
    rows = [row | {"proxy_score": None} for row in rows_of({"p": 3})]
    rows[1] |= {"valid": False, "proxy_score": 1.0}
    assert pool_of(build(rows, [], [])).scores is None


def test_a_proxy_that_left_out_some_valid_responses_is_refused(build: Build, past_round: MakePast) -> None:
    rows, old = rows_of({"p": 3}), rows_of({"p": 2}, mark="old ", seed=1)
    rows[1]["proxy_score"] = None
    fault = "of {} valid responses have no proxy score, expected all or none: were their features written with another"
    with pytest.raises(InputError, match=f"^1 {fault.format(3)}"):
        pool_of(build(rows, [], []))
    rows[1]["valid"] = False
    scores = pool_of(build(rows, [], [])).scores
    assert scores is not None
    assert scores.tolist() == [[rows[0]["proxy_score"], 0.0, rows[2]["proxy_score"]]]
    silent = [row | {"proxy_score": None} for row in old]
    with pytest.raises(InputError, match=f"^2 {fault.format(4)}"):
        pool_of(build(rows, silent, [past_round(old, [("old p-0", "old p-1")])]), offer_rounds=1)


@pytest.mark.parametrize("labels", ["current", "stored"])
def test_score_gaps_are_those_of_before_the_labels_were_bought(
    build: Build, past_round: MakePast, labels: LabelFeatures
) -> None:
    pools = [rows_of({"p": 2}, mark=f"{number} ", seed=number) for number in (1, 2)]
    scored = [
        [row | {"proxy_score": row["logp_policy"]} for row in again(pool, seed=number)]
        for number, pool in enumerate(pools)
    ]
    past = [past_round(pools[0], [("1 p-1", "1 p-0")]), past_round(pools[1], [("2 p-0", "2 p-1")])]
    held = pool_of(build(rows_of({"q": 3}), scored[0] + scored[1], past), labels=labels).labels
    first, second = ([row["proxy_score"] for row in pool] for pool in pools)
    assert held is not None
    assert held.score_gaps == pytest.approx([first[1] - first[0], second[0] - second[1]])


@pytest.mark.parametrize("labels", ["current", "stored"])
@pytest.mark.parametrize("silent", [0, 1])
def test_one_label_without_scores_leaves_all_without_gaps(
    build: Build, past_round: MakePast, labels: LabelFeatures, silent: int
) -> None:
    pools = [rows_of({"p": 3}, mark=f"{number} ", seed=number) for number in (1, 2)]
    pools[1][silent]["proxy_score"] = None
    past = [past_round(pools[0], [("1 p-1", "1 p-0")]), past_round(pools[1], [("2 p-0", "2 p-1")])]
    held = pool_of(build(rows_of({"q": 3}), pools[0] + pools[1], past), labels=labels).labels
    assert held is not None
    assert held.score_gaps is None
    assert len(held.margins) == 2


def test_a_labelled_pair_is_never_offered_again(build: Build, past_round: MakePast) -> None:
    """Labelled in the pool of round 0 and in that of round 1; in either order of its responses."""
    old, older = (rows_of({"p": 4, "q": 2}, mark=f"{number} ", seed=number) for number in (1, 0))
    past = [
        past_round(older, [("0 p-3", "0 p-1"), ("0 q-0", "0 q-1")]),
        past_round(old, [("1 p-0", "1 p-2"), ("0 p-0", "0 p-1")], recalled=older),
    ]
    offer = build(rows_of({"p": 2}, seed=3), older + old, past)
    pool, grid = candidates(offer, Reading(BETA, "current", 2))
    prompt, first, second = pool.pairs(np.flatnonzero(pool.pair_mask))
    offered = set(zip(grid.response_ids[prompt, first], grid.response_ids[prompt, second], strict=True))
    assert len(offered) == 1 + 6 + 6 + 1 + 1 - 4
    assert not offered & {("0 p-1", "0 p-3"), ("0 q-0", "0 q-1"), ("1 p-0", "1 p-2"), ("0 p-0", "0 p-1")}
    assert all(a[:3] == b[:3] for a, b in offered - {("p-0", "p-1")}), "pairs stay within a pool"
    assert dict(zip(grid.response_ids[:, 0], grid.staleness, strict=True)) == {
        "p-0": 0,
        "0 p-0": 2,
        "0 q-0": 2,
        "1 p-0": 1,
        "1 q-0": 1,
    }


@pytest.mark.parametrize("outcome", ["tie", "abstained", "unanswered"])
@pytest.mark.parametrize("labels", ["current", "stored"])
def test_a_pair_without_a_preference_is_no_label_and_is_not_offered_again(
    build: Build, past_round: MakePast, outcome: str, labels: LabelFeatures
) -> None:
    old = rows_of({"p": 3}, mark="old ", seed=1)
    past = [past_round(old, [("old p-0", "old p-1")], outcome=outcome)]
    pool = pool_of(build(rows_of({"p": 2}), old, past), labels=labels, offer_rounds=1)
    assert pool.labels is None
    assert int(pool.pair_mask.sum()) == 1 + 3 - 1, "one pair of the new pool, three of the old, without that one"


def test_a_late_label_has_the_stored_features_of_the_round_that_asked(build: Build, past_round: MakePast) -> None:
    old, newer = rows_of({"p": 3}, mark="old ", seed=1), rows_of({"p": 2}, mark="newer ", seed=2)
    past = [
        past_round(old, [("old p-0", "old p-1")]),
        past_round(newer, [("newer p-0", "newer p-1"), ("old p-2", "old p-0")]),
    ]
    held = pool_of(build(rows_of({"q": 2}), old + newer, past), labels="stored").labels
    rewards, late = implicit(newer), implicit(old)
    assert held is not None
    assert held.margins[1:] == pytest.approx([rewards[0] - rewards[1], late[2] - late[0]])
    assert held.score_gaps is not None


def test_a_response_recalled_for_its_label_alone_is_not_offered(build: Build, past_round: MakePast) -> None:
    old = rows_of({"p": 3}, mark="old ", seed=1)
    past = [past_round(old, [("old p-0", "old p-1")])]
    pool = pool_of(build(rows_of({"p": 2}), old[:2], past))
    assert (pool.num_prompts, pool.num_pairs) == (1, 1)


def test_the_policy_speaks_through_its_own_responses_alone(build: Build, past_round: MakePast) -> None:
    rows, old = rows_of({"p": 4, "q": 3}), rows_of({"p": 3, "r": 4}, mark="old ", seed=1)
    past = [past_round(old, [("old p-0", "old p-1")])]
    pool, grid = candidates(build(rows, old, past), Reading(BETA, "current", 1))
    assert grid.staleness.tolist() == [0, 0, 1, 1]
    own = Pool(features=pool.features[:2], valid=pool.valid[:2], rewards=pool.rewards[:2], beta=BETA)
    assert pool.policy_fisher == pytest.approx(own.policy_fisher)


def test_pairs_offered_again_have_the_scores_of_this_round(build: Build, past_round: MakePast) -> None:
    old = rows_of({"p": 2}, mark="old ", seed=1)
    current = again(old, seed=2)
    pool = pool_of(build(rows_of({"q": 2}), current, [past_round(old, [("old p-0", "old p-1")])]), offer_rounds=1)
    assert pool.rewards[1] == pytest.approx(implicit(current))
