"""Grid: where the responses of tables stand in the arrays that selectors see."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tasks.design.arrays import BoolArray, IntArray
from tasks.design.kernels import pair_slots


@dataclass(frozen=True, eq=False)
class Grid:
    """Where each response stands in arrays of (prompts, responses); a prompt has a row in every pool it came in.

    Attributes:
        prompt_ids: prompt of each row, (P,).
        staleness: rounds since the pool of each row was written, (P,); rows of this round come first.
        response_ids: "" in padding, (P, K).
        places: row and column of each response.
    """

    prompt_ids: NDArray[Any]
    staleness: IntArray
    response_ids: NDArray[Any]
    places: tuple[IntArray, IntArray]

    @classmethod
    def of(cls, scored: pa.Table, staleness: Sequence[int]) -> "Grid":
        """The grid of a features table, given the staleness of each of its rows."""
        keys = list(zip(scored.column("prompt_id").to_pylist(), staleness, strict=True))
        row_of = {key: row for row, key in enumerate(dict.fromkeys(keys))}
        taken, places = dict.fromkeys(row_of, 0), []
        for key in keys:
            places.append((row_of[key], taken[key]))
            taken[key] += 1
        rows, columns = np.array(places, dtype=np.intp).T
        responses = np.full((len(row_of), max(taken.values())), "", dtype=object)
        responses[rows, columns] = scored.column("response_id").to_pylist()
        prompts, ages = zip(*row_of, strict=True)
        return cls(np.array(prompts, dtype=object), np.array(ages, dtype=np.intp), responses, (rows, columns))

    def fill(self, values: NDArray[Any], padding: float | bool) -> NDArray[Any]:
        """An array (prompts, responses, ...) with the values in their places and `padding` elsewhere."""
        filled = np.full((*self.response_ids.shape, *values.shape[1:]), padding, dtype=values.dtype)
        filled[self.places] = values
        return filled

    def without(self, pairs: Iterable[tuple[str, str]]) -> BoolArray:
        """Which pair slots are none of these pairs of response ids, (P, m).

        A pair has no slot where its responses stand in pools of different rounds.
        """
        place_of = dict(zip(self.response_ids[self.places], zip(*self.places, strict=True), strict=True))
        first, second = pair_slots(self.response_ids.shape[1])
        slot_of = np.zeros((self.response_ids.shape[1],) * 2, dtype=np.intp)
        slot_of[first, second] = slot_of[second, first] = np.arange(len(first))
        mask = np.ones((len(self.prompt_ids), len(first)), dtype=np.bool_)
        for a, b in pairs:
            if a in place_of and b in place_of:
                (row, column), (second_row, other) = place_of[a], place_of[b]
                if row == second_row:
                    mask[row, slot_of[column, other]] = False
        return mask
