import math

import pytest

from tasks.labellers.judge.measures import judge_measures
from tasks.labellers.protocol import Label

pytestmark = pytest.mark.labels


def label(key: str, verdicts: str, *, refused: bool = False, seconds: float = 1.0) -> Label:
    """A label whose verdicts were, as asked and turned: A, B, T(ie) or -."""
    asked, turned = ({"A": "A", "B": "B", "T": "TIE", "-": "NONE"}[verdict] for verdict in verdicts)
    detail = {"verdict_asked": asked, "verdict_turned": turned, "refused": float(refused), "seconds": seconds}
    return Label(
        key=key,
        repetition=0,
        choice="tie",
        probability=None,
        swapped=False,
        annotator="",
        rationale="",
        cost=0.5,
        bought=True,
        detail={**detail, "tokens_in": 100.0, "tokens_out": 10.0, "retries": 1.0},
    )


def test_a_judge_that_only_looks_at_the_place_has_the_greatest_bias() -> None:
    measures = judge_measures([label(str(i), "AA") for i in range(4)])
    assert measures["first_shown_share"] == 1
    assert measures["first_shown_share_stderr"] == 0
    assert measures["order_dependent_share"] == 1


def test_a_judge_that_only_looks_at_the_responses_has_no_bias_and_no_error_of_it() -> None:
    measures = judge_measures([label("a", "AB"), label("b", "BA"), label("c", "TT")])
    assert measures["first_shown_share"] == 0.5
    assert measures["first_shown_share_stderr"] == 0
    assert measures["order_dependent_share"] == 0


def test_the_standard_error_takes_the_pairs_as_independent() -> None:
    measures = judge_measures([label("a", "AA"), label("b", "BB"), label("c", "AB"), label("d", "AB")])
    assert measures["first_shown_share"] == 0.5
    assert measures["first_shown_share_stderr"] == pytest.approx(math.sqrt(4 / 3 * 2) / 8)
    assert measures["order_dependent_share"] == 0.5


def test_repetitions_of_a_pair_count_as_one_pair() -> None:
    once = judge_measures([label("a", "AA"), label("b", "BB")])
    twice = judge_measures([label(key, verdicts) for key, verdicts in (("a", "AA"), ("b", "BB")) for _ in range(2)])
    assert twice["first_shown_share_stderr"] == pytest.approx(once["first_shown_share_stderr"])


def test_replies_without_a_verdict_and_pairs_not_taken_are_shares_of_their_own() -> None:
    measures = judge_measures([label("a", "A-"), label("b", "TA"), label("c", "AB"), label("d", "--", refused=True)])
    assert measures["unparsable_share"] == pytest.approx(1 / 6)
    assert measures["refused_share"] == pytest.approx(1 / 4)
    assert measures["order_dependent_share"] == pytest.approx(1 / 2)
    assert measures["first_shown_share"] == pytest.approx(3 / 4)


def test_tokens_cost_retries_and_seconds_are_added_up_over_all_labels() -> None:
    measures = judge_measures([label("a", "AB"), label("b", "AB", seconds=3.0)])
    totals = {name: measures[name] for name in ("tokens_in", "tokens_out", "retries", "cost")}
    assert totals == {"tokens_in": 200, "tokens_out": 20, "retries": 2, "cost": 1}
    assert (measures["seconds_mean"], measures["seconds_max"]) == (2, 3)


def test_what_can_not_be_measured_is_left_out() -> None:
    assert judge_measures([]) == {}
    assert "first_shown_share" not in judge_measures([label("a", "TT")])
    assert "order_dependent_share" not in judge_measures([label("a", "A-")])
    assert "first_shown_share_stderr" not in judge_measures([label("a", "AA")])
    assert "unparsable_share" not in judge_measures([label("a", "--", refused=True)])
