"""Tables of utilities from Parquet: real responses with a judge's preference, to compare selectors on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.special import logit

from cluster.errors import InputError
from tasks.design.environments.base import UtilityTable, centred

_COLUMNS = ("prompt_id", "generator", "preference", "num_chars", "embedding")
_CERTAIN = 0.99
_LENGTH_SHARE = 0.1

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False, kw_only=True)
class _Cells:
    """Where each of n rows lies in the padded table: its prompt and its place there, (n,) each."""

    prompt: Array
    place: Array

    def padded(self, values: Array) -> Array:
        """Values (n, ...) of the rows as (P, K, ...), zeros elsewhere."""
        shape = (int(self.prompt.max()) + 1, int(self.place.max()) + 1, *values.shape[1:])
        filled = np.zeros(shape, dtype=values.dtype)
        filled[self.prompt, self.place] = values
        return filled


def read_utilities(path: Path) -> UtilityTable:
    """Read responses of several generators to the same prompts.

    The columns: `prompt_id`, `generator`, `preference` (the judge's probability that the response beats a common
    baseline's, in [0, 1]), `num_chars` (its length), `embedding` (a list of as many numbers in every row); others are
    ignored. One row a response, in any order: prompts are sorted by their id, responses by their generator.

    The utility is the logit of the preference, clipped to [0.01, 0.99]. Features are the embedding at unit length and
    one more number, log(1 + num_chars), scaled so that its variance within prompts is a tenth of the embedding's, all
    coordinates together.

    Raises:
        InputError: the file can't be read, a column is missing or of another kind, a number is missing or out of
            range, embeddings differ in length, a prompt has two responses of one generator, or only one response.
    """
    table = _read(path)
    preference = _numbers(table, "preference", path, most=1.0)
    lengths = _numbers(table, "num_chars", path, most=np.inf)
    embeddings = _embeddings(table, path)
    cells = _cells(table, path)
    valid = cells.padded(np.ones(len(preference), dtype=np.bool_))
    units, logs = cells.padded(embeddings), cells.padded(np.log1p(lengths))[:, :, None]
    spread, length_spread = (float(np.square(centred(block, valid)).sum()) for block in (units, logs))
    scale = np.sqrt(_LENGTH_SHARE * spread / length_spread) if length_spread > 0 else 0.0
    return UtilityTable(
        features=np.concatenate([units, scale * logs], axis=2),
        valid=valid,
        utilities=cells.padded(logit(np.clip(preference, 1 - _CERTAIN, _CERTAIN))),
        lengths=cells.padded(lengths),
    )


def _read(path: Path) -> pa.Table:
    """The columns that count, without nulls, sorted."""
    try:
        found = pq.read_schema(path).names
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{path} can't be read as Parquet: {error}") from error
    missing = [name for name in _COLUMNS if name not in found]
    if missing:
        raise InputError(f"{path} lacks the columns {missing}: expected {list(_COLUMNS)}, found {found}")
    table = pq.read_table(path, columns=list(_COLUMNS))
    if not table.num_rows:
        raise InputError(f"{path} has no rows: expected one a response")
    nulls = {name: table.column(name).null_count for name in _COLUMNS if table.column(name).null_count}
    if nulls:
        raise InputError(f"{path} has nulls in {nulls}: expected a value in every row")
    return table.sort_by([("prompt_id", "ascending"), ("generator", "ascending")])


def _numbers(table: pa.Table, name: str, path: Path, *, most: float) -> Array:
    """A column of finite numbers from 0 to `most`, (n,) float64."""
    kind = table.schema.field(name).type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        raise InputError(f"column {name!r} of {path} holds {kind}: expected numbers")
    numbers: Array = table.column(name).to_numpy().astype(np.float64)
    wrong = np.flatnonzero(~((numbers >= 0) & (numbers <= most) & np.isfinite(numbers)))
    if len(wrong):
        allowed = "finite numbers, 0 or more" if np.isinf(most) else f"numbers from 0 to {most:g}"
        found = f"{numbers[wrong[0]]} {_where(table, wrong[0])}"
        raise InputError(
            f"column {name!r} of {path} has {len(wrong)} rows out of range, such as {found}: expected {allowed}"
        )
    return numbers


def _embeddings(table: pa.Table, path: Path) -> Array:
    """Embeddings at unit length, (n, D) float64."""
    kind = table.schema.field("embedding").type
    lists = pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind)
    if not (lists and pa.types.is_floating(kind.value_type)):
        raise InputError(f"column 'embedding' of {path} holds {kind}: expected lists of floats")
    rows = table.column("embedding").to_numpy()
    sizes = sorted({len(row) for row in rows})
    if len(sizes) > 1 or sizes[0] == 0:
        raise InputError(f"embeddings of {path} have {sizes} numbers: expected the same, 1 or more, in every row")
    vectors = np.stack(rows).astype(np.float64)
    norms = np.linalg.norm(vectors, axis=1)
    wrong = np.flatnonzero(~((norms > 0) & np.isfinite(norms)))
    if len(wrong):
        found = f"{len(wrong)} of norm 0, NaN or infinite, the first {_where(table, wrong[0])}"
        raise InputError(f"embeddings of {path} include {found}: expected vectors that can be scaled to unit length")
    scaled: Array = vectors / norms[:, None]
    return scaled


def _cells(table: pa.Table, path: Path) -> _Cells:
    """Prompts numbered by id, and the rows of each by generator."""
    keys = table.column("prompt_id").to_numpy()
    ids, starts, prompt, counts = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    generators = table.column("generator").to_numpy()
    again = np.flatnonzero((keys[1:] == keys[:-1]) & (generators[1:] == generators[:-1]))
    if len(again):
        found = f"{len(again)} repeated, such as the one {_where(table, again[0])}"
        raise InputError(f"{path} has responses of one generator to one prompt {found}: expected one of each")
    lonely = ids[counts < 2].tolist()
    if lonely:
        found = f"{len(lonely)} prompts have one response, such as prompt_id {lonely[0]!r}"
        raise InputError(f"{path} can't form pairs: {found}: expected 2 or more of every prompt")
    return _Cells(prompt=prompt, place=np.arange(len(keys)) - starts[prompt])


def _where(table: pa.Table, row: int) -> str:
    prompt, generator = (table.column(name)[int(row)].as_py() for name in ("prompt_id", "generator"))
    return f"of prompt_id {prompt!r} and generator {generator!r}"
