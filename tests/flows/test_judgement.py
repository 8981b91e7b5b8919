"""Judgements of evidence made by hand: closed forms, gaps, one seed, unfair comparisons, and what order means."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from flows.comparison.config import Thresholds
from flows.comparison.evidence import COSTS, Evidence, LineageFacts, RoundFacts
from flows.comparison.judgement import Cell, Judgement, Standing, judge

Wins = Mapping[int, Iterable[float | None]]
"""Win rates by seed, round after round; None: the round is missing."""

CLOSE = {0: [0.50, 0.60], 1: [0.52, 0.66], 2: [0.49, 0.59]}
UNIFORM = {0: [0.50, 0.55], 1: [0.55, 0.60], 2: [0.45, 0.57]}


def made(number: int, win: float, budget: int, **measures: float) -> RoundFacts:
    return RoundFacts(
        number=number,
        measures={"win_base": win, "reward": win, "reward_base": 0.5, "kl": float(number + 1), **measures},
        num_labels=budget,
        cost=0.5 * budget,
        seconds=dict.fromkeys(COSTS, 1.0),
        model_seconds=3.0,
        certificate={},
        pool=f"pool-{number}",
        pairs=("a", "b"),
    )


def lineages(selector: str, wins: Wins, budget: int = 10, **measures: float) -> list[LineageFacts]:
    found = []
    for seed, path in wins.items():
        rounds = [made(number, win, budget, **measures) for number, win in enumerate(path) if win is not None]
        missing = tuple(number for number, win in enumerate(path) if win is None)
        name = f"{selector}-b{budget}-s{seed}"
        found.append(LineageFacts(name, selector, seed, budget, tuple(rounds), missing, "it failed" if missing else ""))
    return found


def evidence(*groups: list[LineageFacts], num_rounds: int = 2) -> Evidence:
    everyone = tuple(one for group in groups for one in group)
    return Evidence(
        comparison="by-hand",
        metric="win_base",
        seeds=tuple(sorted({one.seed for one in everyone})),
        budgets=tuple(sorted({one.budget for one in everyone})),
        num_rounds=num_rounds,
        selectors=tuple(dict.fromkeys(["uniform", *(one.selector for one in everyone)])),
        lineages=everyone,
        confounds=(),
        thresholds=Thresholds().model_dump(),
    )


def by_round(judgement: Judgement, selector: str) -> dict[int, Cell]:
    return {cell.round: cell for cell in judgement.cells if cell.selector == selector}


def only(judgement: Judgement) -> Standing:
    (standing,) = judgement.standings
    return standing


def test_differences_are_paired_over_seeds_with_students_interval() -> None:
    judgement = judge(evidence(lineages("uniform", UNIFORM), lineages("close", CLOSE)))
    cell = by_round(judgement, "close")[1]
    expected = stats.ttest_rel([0.60, 0.66, 0.59], [0.55, 0.60, 0.57])
    interval = expected.confidence_interval()
    assert (cell.num_seeds, cell.labels) == (3, 20)
    assert (cell.mean, cell.uniform) == pytest.approx((0.61666667, 0.57333333))
    assert cell.difference is not None
    assert (cell.difference.low, cell.difference.high) == pytest.approx((interval.low, interval.high))
    assert cell.difference.adjusted == pytest.approx(expected.pvalue)
    above = judgement.above["close", "uniform", 10]
    assert above == only(judgement).probability_above == pytest.approx(1 - expected.pvalue / 2)
    assert judgement.above["uniform", "close", 10] == pytest.approx(expected.pvalue / 2)


def test_the_family_is_every_selector_and_budget_after_the_last_round() -> None:
    others = {seed: [0.5, 0.5 + 0.01 * seed] for seed in range(3)}
    groups = [
        lineages(name, wins, budget)
        for budget in (10, 20)
        for name, wins in (("uniform", UNIFORM), ("close", CLOSE), ("other", others))
    ]
    judgement = judge(evidence(*groups))
    shown = [one.cell.difference for one in judgement.standings if one.cell.difference is not None]
    least = min(difference.p_value for difference in shown)
    assert len(shown) == 4
    assert min(difference.adjusted for difference in shown) == pytest.approx(4 * least)
    assert {cell.difference.adjusted for cell in judgement.cells if cell.difference and cell.round == 0} == {1.0}


def test_uniform_has_cells_and_no_standing() -> None:
    judgement = judge(evidence(lineages("uniform", UNIFORM), lineages("close", CLOSE)))
    assert [cell.difference for cell in by_round(judgement, "uniform").values()] == [None, None]
    assert [one.selector for one in judgement.standings] == ["close"]


def test_gains_and_losses_are_told_alike() -> None:
    gain = {seed: [0.5, 0.8 + 0.01 * seed + 0.002 * (-1) ** seed] for seed in range(5)}
    loss = {seed: [0.5, 0.4 + 0.01 * seed - 0.002 * (-1) ** seed] for seed in range(5)}
    same = {seed: [0.5, 0.6 + 0.01 * seed] for seed in range(5)}
    judgement = judge(evidence(lineages("uniform", same), lineages("gain", gain), lineages("loss", loss)))
    assert judgement.headline.startswith(
        "In win rate after 2 rounds: gain (+0.200) above uniform; loss (\N{MINUS SIGN}0.200) below"
    )
    words = {one.selector: one.words for one in judgement.standings}
    assert words["gain"].startswith("gain is above uniform: +0.200 [")
    assert words["loss"].startswith("loss is below uniform: \N{MINUS SIGN}0.200 [")
    assert [one.further_seeds for one in judgement.standings] == [0, 0]


def test_no_difference_shown_says_what_would_show_it() -> None:
    judgement = judge(evidence(lineages("uniform", UNIFORM), lineages("close", {**CLOSE, 2: [0.49, 0.56]})))
    standing = only(judgement)
    assert standing.further_seeds is not None
    assert f"About {standing.further_seeds} further seeds would be needed to show +0.033" in standing.words
    assert judgement.headline == (
        "No difference to uniform shown in win rate after 2 rounds; "
        f"about {standing.further_seeds} further seeds would be needed to show close (+0.033), the nearest to it."
    )


def test_one_seed_is_shown_and_not_judged() -> None:
    judgement = judge(evidence(lineages("uniform", {7: [0.5, 0.5]}), lineages("close", {7: [0.5, 0.9]})))
    standing = only(judgement)
    assert judgement.headline.startswith("No verdict: one seed only")
    assert "run a second seed (seeds: [7, 8]" in judgement.refusals[0]
    assert (standing.cell.mean, standing.cell.difference, standing.probability_above) == (0.9, None, None)
    assert (standing.saving, standing.further_seeds, judgement.above["close", "uniform", 10]) == (None, None, None)
    assert "run a second seed" in standing.words
    assert "above" not in standing.words


def test_an_unfair_comparison_gets_numbers_and_no_verdict() -> None:
    gain = {seed: [0.5, 0.8 + 0.01 * seed] for seed in range(3)}
    fair = evidence(lineages("uniform", UNIFORM), lineages("gain", gain))
    judgement = judge(replace(fair, confounds=("training.reference: base in x; previous in y",)))
    assert judgement.refusals == ("not a fair comparison: training.reference: base in x; previous in y",)
    assert judgement.headline == f"No verdict: {judgement.refusals[0]}."
    assert only(judgement).words.startswith("No verdict on gain, for the reasons above: +0.237 [")
    assert only(judgement).cell.difference == only(judge(fair)).cell.difference


def test_a_seed_that_lacks_the_round_on_either_side_is_left_out_of_it() -> None:
    gaps: Wins = {0: [0.50, 0.60], 1: [0.52, 0.66], 2: [0.49, None]}
    judgement = judge(evidence(lineages("uniform", {**UNIFORM, 3: [0.5, 0.5]}), lineages("close", gaps)))
    rounds = by_round(judgement, "close")
    assert [rounds[number].num_seeds for number in (0, 1)] == [3, 2]
    assert rounds[1].uniform == pytest.approx((0.55 + 0.60) / 2)


def test_where_the_last_round_is_missing_there_is_no_verdict_on_an_earlier_one() -> None:
    early = {seed: [0.9 + 0.001 * seed, None] for seed in range(3)}
    whole = lineages("uniform", UNIFORM), lineages("close", CLOSE), lineages("early", early)
    standing = next(one for one in judge(evidence(*whole)).standings if one.selector == "early")
    assert standing.cell.round == 0
    assert standing.cell.difference is not None
    assert standing.cell.difference.verdict == "no difference shown"
    assert standing.words.startswith("No verdict on early: round 1 is missing.")
    alone = judge(evidence(whole[0], whole[2]))
    assert "no selector has two seeds that have finished the last round (1)" in alone.headline


def test_an_empty_comparison_says_so() -> None:
    assert "nothing to compare" in judge(evidence(lineages("close", CLOSE))).headline
    assert "no selector beside uniform" in judge(evidence(lineages("uniform", UNIFORM))).headline


def test_two_lineages_at_one_place_are_not_averaged() -> None:
    twice = [*lineages("close", CLOSE), replace(lineages("close", {0: [0.9, 0.9]})[0], lineage="zzz")]
    judgement = judge(evidence(lineages("uniform", UNIFORM), twice))
    assert "lineages zzz and close-b10-s0 are one selector" in judgement.headline
    assert only(judgement).cell.num_seeds == 3


def test_neither_the_order_of_lineages_nor_of_seeds_means_anything() -> None:
    found = evidence(lineages("uniform", UNIFORM), lineages("close", CLOSE))
    turned = judge(replace(found, lineages=found.lineages[::-1], seeds=found.seeds[::-1]))
    assert (turned.cells, turned.standings, turned.above) == (
        judge(found).cells,
        judge(found).standings,
        judge(found).above,
    )
    renamed = {0: 2, 1: 0, 2: 1}
    other = judge(replace(found, lineages=tuple(replace(one, seed=renamed[one.seed]) for one in found.lineages)))
    (standing,) = other.standings
    assert standing.cell.difference == only(judge(found)).cell.difference
    assert (standing.saving, standing.words) == (only(judge(found)).saving, only(judge(found)).words)


@pytest.mark.parametrize(
    ("measures", "said"),
    [
        ({"num_tokens": 70.0, "num_tokens_base": 40.0}, "length over base 1.75 (at most 1.5)"),
        ({"perplexity": 24.0, "perplexity_base": 20.0}, "perplexity over base 1.20 (at most 1.1)"),
        ({"capability": 0.5, "capability_base": 0.625}, "drop of capability 0.12 (at most 0.05)"),
        ({"distinct_2": 0.3, "distinct_2_base": 0.6}, "diversity over base 0.50 (at least 0.8)"),
    ],
)
def test_a_gain_beyond_a_guard_is_marked(measures: dict[str, float], said: str) -> None:
    gain = {seed: [0.5, 0.8 + 0.001 * seed * (-1) ** seed] for seed in range(3)}
    same = dict.fromkeys(range(3), (0.5, 0.5))
    judgement = judge(evidence(lineages("uniform", same), lineages("gain", gain, **measures)))
    cell = only(judgement).cell
    assert cell.broken == (said,)
    assert f"This gain breaks 1 guard: {said}." in only(judgement).words
    assert judgement.headline.endswith("A gain that breaks a guard: gain.")
    assert len(cell.unmeasured) == 4, "three guards without a measure, and reward hacking; KL has no limit"


def test_a_limit_of_kl_guards_and_its_absence_does_not() -> None:
    found = evidence(lineages("uniform", UNIFORM), lineages("close", CLOSE))
    limited = replace(found, thresholds=Thresholds(max_kl=1.5).model_dump())
    assert [cell.broken for cell in by_round(judge(limited), "close").values()] == [
        (),
        ("KL in nats 2.00 (at most 1.5)",),
    ]
    assert all(not cell.broken for cell in judge(found).cells)


@pytest.mark.parametrize(("flags", "hacked"), [((1, 1, 0), True), ((1, 0, 0), False), ((1, 0), False)])
def test_reward_is_hacked_where_most_seeds_say_so(flags: tuple[int, ...], hacked: bool) -> None:
    close = [
        one
        for seed, flag in enumerate(flags)
        for one in lineages("close", {seed: CLOSE[seed]}, reward_hacking=float(flag))
    ]
    cell = by_round(judge(evidence(lineages("uniform", UNIFORM), close)), "close")[1]
    assert cell.reward_hacking is hacked
    assert "reward hacking" not in cell.unmeasured


def test_saved_labels_are_read_off_uniforms_own_path() -> None:
    path = {seed: [0.50 + 0.01 * seed, 0.60 + 0.01 * seed, 0.70 + 0.01 * seed] for seed in range(3)}
    fast = {seed: [0.50, 0.60, 0.60 + 0.01 * seed] for seed in range(3)}
    standing = only(judge(evidence(lineages("uniform", path), lineages("fast", fast), num_rounds=3)))
    assert str(standing.saving) == "0.67 [0.67, 0.67]", "uniform has after 20 labels what fast has after 30"


def test_uniforms_other_budgets_tell_of_saved_labels_too() -> None:
    flat = {seed: [0.5 + 0.01 * seed] for seed in range(3)}
    more = {seed: [0.7 + 0.01 * seed] for seed in range(3)}
    groups = lineages("uniform", flat), lineages("uniform", more, 40), lineages("fast", more)
    assert str(only(judge(evidence(*groups, num_rounds=1))).saving) == "4.00 [4.00, 4.00]"
    assert only(judge(evidence(groups[0], groups[2], num_rounds=1))).saving is None


def test_reward_is_compared_where_the_nearer_path_ends() -> None:
    near = [replace(one, rounds=(made(0, 0.7, 10, kl=1.0),)) for one in lineages("near", {0: [0.7], 1: [0.7]})]
    far = [replace(one, rounds=(made(0, 0.9, 10, kl=4.0),)) for one in lineages("uniform", {0: [0.9], 1: [0.9]})]
    found = only(judge(evidence(near, far, num_rounds=1))).matched_kl
    assert found is not None
    assert found.mean == pytest.approx(0.7 - (0.5 + 0.5 * 0.4)), "half of the way in the root of KL"
    assert only(judge(replace(evidence(near, far, num_rounds=1), reference="previous"))).matched_kl is None


def test_selections_overlap_where_the_pools_are_the_same() -> None:
    close = lineages("close", CLOSE)
    rounds = [(replace(one.rounds[0], pairs=("b", "c", "d")), replace(one.rounds[1], pool="own")) for one in close]
    close = [replace(one, rounds=own) for one, own in zip(close, rounds, strict=True)]
    judgement = judge(evidence(lineages("uniform", UNIFORM), close))
    assert judgement.overlap == {("uniform", "close", 10): 0.25, ("close", "uniform", 10): 0.25}


def test_a_metric_that_was_not_measured_is_not_made_up() -> None:
    found = replace(
        evidence(lineages("uniform", UNIFORM), lineages("close", CLOSE)), metric="win_base_length_controlled"
    )
    judgement = judge(found)
    assert judgement.cells == ()
    assert "has win_base_length_controlled" in judgement.headline


def test_labels_of_a_lineage_with_a_hole_are_unknown() -> None:
    hole = {seed: [None, 0.6 + 0.01 * seed] for seed in range(3)}
    standing = only(judge(evidence(lineages("uniform", UNIFORM), lineages("hole", hole))))
    assert math.isnan(standing.cell.labels)
    assert standing.saving is None
    assert standing.matched_kl is None
    assert np.isfinite(standing.cell.mean)
