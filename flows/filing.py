"""Filing: under what MLflow keeps the runs of a lineage, on record with the lineage."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster.errors import InputError
from cluster.storage import Store, write_json

NAME = r"^[a-z0-9][a-z0-9._-]*$"
"""What names of lineages, comparisons and selectors look like."""
Name = Annotated[str, Field(pattern=NAME)]
EXPERIMENT = "pairwright"
"""The experiment of lineages that name none."""
RECORD = "filing.json"
"""File in a lineage's record; those of earlier releases have none."""


class Filing(BaseModel):
    """An MLflow experiment, the comparison that a lineage belongs to, and what its selector is called there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    experiment: str = Field(EXPERIMENT, min_length=1, max_length=500, description="MLflow experiment of its runs")
    comparison: str | None = Field(None, pattern=NAME, description="comparison that it belongs to, a tag of its runs")
    called: str | None = Field(None, pattern=NAME, description="selector tag of its runs; null: the selector's kind")


def filing_of(store: Store, lineage: str) -> Filing:
    """Where a lineage's runs are filed; the default where nothing is on record.

    Raises:
        InputError: its record is damaged, or of another release.
    """
    file = store.lineage(lineage) / RECORD
    try:
        return Filing.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return Filing()
    except ValidationError as error:
        raise InputError(
            f"the record {file} of the lineage's MLflow experiment doesn't fit ({error.error_count()} faults): write "
            '{"experiment": "..."} into it, with the name of the experiment that holds its runs'
        ) from error


def keep_filing(store: Store, lineage: str, filing: Filing) -> None:
    """Put on record where a lineage's runs are filed; one that belongs to a comparison stays in it.

    Raises:
        InputError: it has runs in another experiment.
    """
    folder = store.lineage(lineage)
    kept, has_begun = filing_of(store, lineage), any(folder.glob("round-*"))
    if has_begun and kept.experiment != filing.experiment:
        raise InputError(
            f"lineage {lineage!r} has its runs in MLflow experiment {kept.experiment!r}, not {filing.experiment!r}: "
            "restore experiment, or give the config a lineage name of its own"
        )
    wanted = Filing(
        experiment=filing.experiment,
        comparison=filing.comparison or kept.comparison,
        called=filing.called or kept.called,
    )
    if wanted != kept or not (folder / RECORD).exists():
        write_json(folder / RECORD, wanted.model_dump())
