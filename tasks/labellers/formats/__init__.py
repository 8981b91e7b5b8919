"""Formats of labels: what the ledger's answers look like in files, and how answers are read from them."""

from pathlib import Path
from typing import get_args

import pyarrow as pa

from cluster.errors import InputError
from tasks.labellers.formats.answers import Answers
from tasks.labellers.formats.files import Faults, Row, line, read_rows, write_rows
from tasks.labellers.formats.label_studio import LabelStudio
from tasks.labellers.formats.pairs import Preference, Unpaired
from tasks.labellers.formats.parts import Given, Holding

AnyFormat = Preference | Unpaired | LabelStudio | Answers
"""The one place to add a format."""

FORMATS: dict[str, AnyFormat] = {form.kind: form() for form in get_args(AnyFormat)}


def read_answers(path: Path, form: AnyFormat, faults: Faults) -> list[Given]:
    """The answers of a file in its order; what is wrong with its rows is noted as faults.

    Raises:
        InputError: no such file, or not one of rows.
    """
    placed = read_rows(path, faults)
    if not placed and not faults.found:
        raise InputError(f"{path} is empty: expected answers in the format {form.kind}")
    return form.given(placed, faults)


def write_answers(path: Path, form: AnyFormat, holding: Holding) -> int:
    """Write what the ledger holds as a file of the format, atomically; gives the number of its rows.

    Raises:
        InputError: the format can't be written so, holds nothing, or the file can't be written.
    """
    if path.suffix not in form.endings:
        raise InputError(
            f"{path} ends in {path.suffix!r}: the format {form.kind} is written to files called "
            f"*{', *'.join(form.endings)}"
        )
    rows, schema = _table(form, holding)
    write_rows(path, rows, schema)
    return len(rows)


def printed(form: AnyFormat, holding: Holding) -> str:
    """What the ledger holds as JSONL in the format.

    Raises:
        InputError: the format holds nothing.
    """
    return "".join(f"{line(row)}\n" for row in _table(form, holding)[0])


def _table(form: AnyFormat, holding: Holding) -> tuple[list[Row], pa.Schema]:
    rows, schema = form.table(holding)
    if not rows:
        raise InputError("nothing is there to be exported: label something first, or ask for less")
    return rows, schema
