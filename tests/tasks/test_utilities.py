import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import InputError
from tasks.design.environments.base import centred
from tasks.design.environments.table import FromTable
from tasks.utilities import read_utilities


@pytest.fixture
def columns():
    """Two prompts, of three and two responses, in no order."""
    return {
        "prompt_id": [7, 3, 7, 3, 7],
        "generator": ["b", "x", "a", "c", "z"],
        "preference": [0.5, 1.0, 0.25, 0.0, 0.8],
        "num_chars": [10, 0, 30, 100, 5],
        "embedding": [[2.0, 0.0], [0.0, 1.0], [0.0, -3.0], [1.0, 0.0], [0.6, 0.8]],
        "response": list("uvwxy"),
    }


@pytest.fixture
def write(tmp_path):
    def save(columns):
        path = tmp_path / "utilities.parquet"
        pq.write_table(pa.table(columns), path)
        return path

    return save


def test_rows_find_their_places(columns, write):
    table = read_utilities(write(columns))

    np.testing.assert_array_equal(table.valid, [[True, True, False], [True, True, True]])
    np.testing.assert_array_equal(table.lengths, [[100, 0, 0], [30, 10, 5]])
    np.testing.assert_allclose(table.utilities, [[-np.log(99), np.log(99), 0], [-np.log(3), 0, np.log(4)]], atol=1e-12)
    units = [[[1, 0], [0, 1], [0, 0]], [[0, -1], [1, 0], [0.6, 0.8]]]
    np.testing.assert_allclose(table.features[:, :, :2], units, atol=1e-12)


def test_the_last_feature_is_log_length_with_a_tenth_of_the_variance(columns, write):
    table = read_utilities(write(columns))
    spread = np.square(centred(table.features, table.valid)).sum(axis=(0, 1))
    ratio = table.features[:, :, 2][table.valid] / np.log1p(table.lengths[table.valid]).clip(1e-300)

    assert spread[2] == pytest.approx(spread[:2].sum() / 10)
    np.testing.assert_allclose(ratio[table.lengths[table.valid] > 0], ratio[0])


def test_lengths_that_are_all_alike_are_no_feature(columns, write):
    table = read_utilities(write({**columns, "num_chars": [4] * 5}))

    assert not table.features[:, :, 2].any()


@pytest.mark.parametrize("kind", [pa.list_(pa.float16(), 2), pa.list_(pa.float32()), pa.large_list(pa.float64())])
def test_any_list_of_floats_is_an_embedding(columns, write, kind):
    halves = np.array(columns["embedding"], dtype=np.float16 if "half" in str(kind) else np.float64)
    table = read_utilities(write({**columns, "embedding": pa.array(list(halves), type=kind)}))

    np.testing.assert_allclose(table.features[1, 1, :2], [1, 0], atol=1e-3)


def test_prompts_may_be_named(columns, write):
    table = read_utilities(write({**columns, "prompt_id": list("qpqpq")}))

    np.testing.assert_array_equal(table.lengths, [[100, 0, 0], [30, 10, 5]])


def test_a_world_can_be_drawn_from_it(columns, write):
    world = FromTable(dim=2).draw(np.random.default_rng(0), read_utilities(write(columns)))

    assert np.isfinite(world.target.regret(world.target.policy(np.ones(2)), beta=1.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"preference": None, "num_chars": None},
            r"lacks the columns \['preference', 'num_chars'\]: expected .* found",
        ),
        (
            {"preference": [0.5, np.nan, 0.2, 0.1, 0.3]},
            "1 rows out of range, such as nan of prompt_id 3 and generator 'x'",
        ),
        ({"preference": [0.5, 1.5, 0.2, -1.0, 0.3]}, "2 rows out of range, such as .* expected numbers from 0 to 1"),
        ({"preference": [0.5, None, 0.2, 0.1, 0.3]}, "nulls in {'preference': 1}"),
        ({"preference": list("abcde")}, "column 'preference' of .* holds string: expected numbers"),
        (
            {"num_chars": [1, 2, -3, 4, 5]},
            "such as -3.0 of prompt_id 7 and generator 'a': expected finite numbers, 0 or",
        ),
        ({"embedding": [[1.0], [1.0, 2.0], [1.0], [1.0], [1.0]]}, r"have \[1, 2\] numbers: expected the same"),
        ({"embedding": [[]] * 5}, "holds .*: expected lists of floats"),
        (
            {"embedding": [[1.0], [0.0], [1.0], [np.inf], [1.0]]},
            "2 of norm 0, NaN or infinite, the first of prompt_id 3",
        ),
        ({"embedding": [1.0] * 5}, "holds double: expected lists of floats"),
        ({"generator": ["b", "x", "b", "c", "z"]}, "1 repeated, such as the one of prompt_id 7 and generator 'b'"),
        ({"prompt_id": [7, 3, 7, 4, 7]}, "2 prompts have one response, such as prompt_id 3"),
    ],
)
def test_a_file_that_breaks_the_format_says_where(columns, write, change, message):
    changed = {name: values for name, values in {**columns, **change}.items() if values is not None}

    with pytest.raises(InputError, match=message):
        read_utilities(write(changed))


def test_a_file_without_rows_is_refused(columns, tmp_path):
    path = tmp_path / "empty.parquet"
    pq.write_table(pa.table(columns).slice(0, 0), path)

    with pytest.raises(InputError, match="has no rows"):
        read_utilities(path)


def test_what_is_no_parquet_is_refused(tmp_path):
    (tmp_path / "words").write_text("words")

    for name in ("words", "nothing"):
        with pytest.raises(InputError, match="can't be read as Parquet"):
            read_utilities(tmp_path / name)
