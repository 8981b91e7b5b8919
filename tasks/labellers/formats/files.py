"""Files of labels, whatever their rows mean: JSONL, JSON, CSV and Parquet, each row with its place for messages."""

import csv
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.errors import InputError
from cluster.storage import atomic_path

Row = dict[str, Any]

_HALVES = re.compile("[\ud800-\udfff]")

NUM_FAULTS = 20
"""Faults of a file that a message lists; the others are counted."""


@dataclass(frozen=True)
class Placed:
    """A row, and where it stands: "line 3", "row 3", "task 3"."""

    where: str
    row: Row


@dataclass(frozen=True)
class Faults:
    """What is wrong with a file, gathered so that all of it is told at once."""

    path: Path
    found: list[str] = field(default_factory=list)

    def add(self, where: str, fault: str) -> None:
        """Note a fault and its place."""
        self.found.append(f"{where}: {fault}")

    def refuse(self) -> None:
        """End here if there were any.

        Raises:
            InputError: with the first twenty.
        """
        if self.found:
            listed = "; ".join(self.found[:NUM_FAULTS])
            more = f"; and {len(self.found) - NUM_FAULTS} more" if len(self.found) > NUM_FAULTS else ""
            counted = "1 fault" if len(self.found) == 1 else f"{len(self.found)} faults"
            raise InputError(
                f"{self.path} has {counted}, and nothing of it was used: {listed}{more}. Mend the file and try again"
            )


def read_rows(path: Path, faults: Faults) -> list[Placed]:
    """The rows of a file in its order; lines that can't be read are faults.

    Raises:
        InputError: no such file, an ending that is not of `READERS`, or a file that isn't what its ending says.
    """
    if path.suffix not in READERS:
        raise InputError(f"{path} ends in {path.suffix!r}: expected a file called *{', *'.join(READERS)}")
    if not path.is_file():
        raise InputError(f"{path} does not exist: check the name")
    try:
        return list(READERS[path.suffix](path, faults))
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8") from error
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror or error}): mend it or its permissions") from error


def write_rows(path: Path, rows: Sequence[Row], schema: pa.Schema) -> None:
    """Write rows as what the file's ending says, atomically.

    Raises:
        InputError: an ending that is not of `WRITERS`, or the file can't be written.
    """
    if path.suffix not in WRITERS:
        raise InputError(f"{path} ends in {path.suffix!r}: expected a file called *{', *'.join(WRITERS)}")
    try:
        with atomic_path(path) as temporary:
            WRITERS[path.suffix](temporary, rows, schema)
    except UnicodeEncodeError as error:
        raise InputError(
            f"{path} can't be written: a text holds half of a surrogate pair, which {path.suffix} can't: "
            "name a file called *.jsonl"
        ) from error
    except OSError as error:
        raise InputError(
            f"{path} can't be written ({error.strerror or error}); what it held before is untouched: "
            "mend the folder's permissions or space, or name another file"
        ) from error


def line(row: Row) -> str:
    """Readable JSON; half of a surrogate pair, which UTF-8 doesn't know, makes it ASCII."""
    readable = json.dumps(row, ensure_ascii=False)
    return json.dumps(row) if _HALVES.search(readable) else readable


def _read_jsonl(path: Path, faults: Faults) -> Iterator[Placed]:
    lines = path.read_text(encoding="utf-8-sig").split("\n")  # a JSON string may hold other line separators
    for number, text in enumerate(lines, start=1):
        if text.strip():
            try:
                yield from _objects(json.loads(text), f"line {number}", faults)
            except json.JSONDecodeError as error:
                faults.add(f"line {number}", f"not JSON ({error.msg} at column {error.colno})")


def _read_json(path: Path, faults: Faults) -> Iterator[Placed]:
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path} is not JSON ({error.msg} in line {error.lineno}, column {error.colno}): "
            "call a file with one object a line *.jsonl"
        ) from error
    if not isinstance(found, list):
        raise InputError(f"{path} holds a JSON {type(found).__name__}: expected a list of objects")
    for number, value in enumerate(found, start=1):
        yield from _objects(value, f"item {number}", faults)


def _objects(value: Any, where: str, faults: Faults) -> Iterator[Placed]:
    if isinstance(value, dict):
        yield Placed(where, value)
    else:
        faults.add(where, f"a JSON {type(value).__name__}, expected an object")


def _read_csv(path: Path, faults: Faults) -> Iterator[Placed]:
    csv.field_size_limit(sys.maxsize)  # the module's own limit is shorter than some responses
    with path.open(encoding="utf-8-sig", newline="") as file:
        table = csv.DictReader(file, strict=True)
        try:
            for number, row in enumerate(table, start=1):
                if None in row or None in row.values():
                    faults.add(f"row {number}", f"not as many cells as the {len(table.fieldnames or ())} columns")
                else:
                    yield Placed(f"row {number}", dict(row))
        except csv.Error as error:
            faults.add(f"line {table.line_num}", f"not CSV ({error})")


def _read_parquet(path: Path, faults: Faults) -> Iterator[Placed]:  # noqa: ARG001 - whole or not at all
    try:
        rows = pq.read_table(path).to_pylist()
    except pa.ArrowInvalid as error:
        raise InputError(f"{path} is not Parquet ({error}): write it anew, or give it its own ending") from error
    yield from (Placed(f"row {number}", row) for number, row in enumerate(rows, start=1))


def _write_jsonl(path: Path, rows: Sequence[Row], schema: pa.Schema) -> None:  # noqa: ARG001 - each row names its own
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line(row)}\n" for row in rows)


def _write_json(path: Path, rows: Sequence[Row], schema: pa.Schema) -> None:  # noqa: ARG001 - each row names its own
    lines = ",\n".join(map(line, rows))
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8", newline="\n")


def _write_csv(path: Path, rows: Sequence[Row], schema: pa.Schema) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, schema.names)
        table.writeheader()
        table.writerows({name: _cell(value) for name, value in row.items()} for row in rows)


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value


def _write_parquet(path: Path, rows: Sequence[Row], schema: pa.Schema) -> None:
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), path)


READERS: dict[str, Callable[[Path, Faults], Iterator[Placed]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
"""What can be read, by the ending of a file's name."""

WRITERS: dict[str, Callable[[Path, Sequence[Row], pa.Schema], None]] = {
    ".jsonl": _write_jsonl,
    ".json": _write_json,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
}
"""What can be written, by the ending of a file's name."""
