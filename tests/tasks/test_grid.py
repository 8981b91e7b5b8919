"""Grid: which pairs have a slot where a response stands in this round's pool and its partner in an older one."""

import pyarrow as pa

from tasks.grid import Grid

ROWS = [("x", "x-drawn", 0), ("x", "logged", 0), ("x", "x-more", 0), ("x", "x-old", 1), ("x", "x-older", 1)]


def grid() -> Grid:
    prompts, names, ages = zip(*ROWS, strict=True)
    return Grid.of(pa.table({"prompt_id": prompts, "response_id": names}), list(ages))


def test_a_pair_of_one_pool_is_struck_out_in_either_order() -> None:
    for pair in (("x-drawn", "x-more"), ("x-more", "x-drawn")):
        assert (~grid().without([pair])).sum() == 1
    assert (~grid().without([("x-old", "x-older"), ("x-drawn", "logged")])).sum(axis=1).tolist() == [1, 1]


def test_a_pair_across_pools_strikes_out_no_other() -> None:
    for pair in (("logged", "x-old"), ("x-older", "x-drawn"), ("x-old", "gone")):
        assert grid().without([pair]).all()
