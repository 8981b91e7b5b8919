"""Our own format: a row an answer, with everything; of files from elsewhere four columns are enough."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Literal

import pyarrow as pa
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from tasks.labellers.formats.files import WRITERS, Faults, Placed, Row
from tasks.labellers.formats.parts import (
    ChatMessage,
    Given,
    Holding,
    Spoken,
    each_given,
    keyed,
    messages_of,
    turned_answer,
    turned_question,
)
from tasks.labellers.protocol import Answer, Choice
from tasks.tables import MESSAGES, required

SCHEMA = pa.schema(
    [
        required("key", pa.string()),
        required("messages", MESSAGES),
        required("first", pa.string()),
        required("second", pa.string()),
        required("labeller", pa.string()),
        required("repetition", pa.int32()),
        required("choice", pa.string()),
        pa.field("probability", pa.float64()),
        required("swapped", pa.bool_()),
        required("annotator", pa.string()),
        required("rationale", pa.string()),
        required("cost", pa.float64()),
        required("lineage", pa.string()),
        required("round", pa.int32()),
        required("answered_at", pa.string()),
        required("superseded", pa.bool_()),
        required("detail", pa.string()),
    ]
)
"""One row an answer, `first` and `second` in sorted order. `probability`: the labeller's, of preferring the first.
`swapped`: the second was shown first. `answered_at`: ISO 8601, UTC. `detail`: a JSON object."""


def _none_if_empty(value: Any) -> Any:
    """CSV knows no nulls."""
    return None if value == "" else value


def _empty_if_none(value: Any) -> Any:
    return "" if value is None else value


def _from_json(value: Any) -> Any:
    """Cells of CSV and Parquet hold JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value else None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg})") from error


def _utc(value: datetime | None) -> datetime | None:
    return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value


Text = Annotated[str, BeforeValidator(_empty_if_none)]
Name = Annotated[str | None, BeforeValidator(_none_if_empty)]
Count = Annotated[Annotated[int, Field(ge=0)] | None, BeforeValidator(_none_if_empty)]
Share = Annotated[Annotated[float, Field(ge=0, le=1)] | None, BeforeValidator(_none_if_empty)]
Price = Annotated[Annotated[float, Field(ge=0)] | None, BeforeValidator(_none_if_empty)]
Flag = Annotated[bool | None, BeforeValidator(_none_if_empty)]


class AnswerRow(BaseModel):
    """A row as it is read: `first`, `second`, `choice` and either `key` or `prompt`; the other columns may be missing.

    The two responses may stand in any order; `choice` (first, second, tie or abstain) and `probability` speak of that
    order. `prompt` is plain text or a list of messages; `messages` holds the same as a list, in CSV as JSON. Columns
    that are not named here are ignored.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    first: str
    second: str
    choice: Choice
    key: Name = None
    prompt: Annotated[Spoken | None, BeforeValidator(_none_if_empty)] = None
    messages: Annotated[tuple[ChatMessage, ...] | None, BeforeValidator(_from_json)] = None
    labeller: Name = None
    repetition: Count = None
    probability: Share = None
    swapped: Flag = None
    annotator: Text = ""
    rationale: Text = ""
    cost: Price = None
    lineage: Name = None
    round: Count = None
    answered_at: Annotated[datetime | None, BeforeValidator(_none_if_empty)] = None
    superseded: Flag = None
    detail: Annotated[dict[str, float | str] | None, BeforeValidator(_from_json)] = None

    def given(self, where: str) -> Given:
        """The answer that the row gives, in the order shown.

        Raises:
            ValueError: the row doesn't say, or not consistently, of which pair it speaks.
        """
        said = [message.model_dump() for message in self.messages or ()] or messages_of(self.prompt or "")
        messages = said if self.messages or self.prompt else ()
        question = keyed(messages, first=self.first, second=self.second, key=self.key)
        return Given(
            where=where,
            question=turned_question(question) if self.swapped else question,
            answer=turned_answer(self._answer) if self.swapped else self._answer,
            repetition=self.repetition,
            labeller=self.labeller,
            answered_at=_utc(self.answered_at),
            superseded=bool(self.superseded),
        )

    @property
    def _answer(self) -> Answer:
        return Answer(
            choice=self.choice,
            probability=self.probability,
            annotator=self.annotator,
            rationale=self.rationale,
            cost=self.cost,
            detail=self.detail or {},
        )


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Everything that the ledger knows, a row an answer; superseded answers are among them, and flagged."""

    kind: Literal["answers"] = "answers"
    of_one_labeller: ClassVar[bool] = False
    """Whether a file can't tell labellers apart."""
    has_open_questions: ClassVar[bool] = False
    """Whether questions without answers are exported, too."""

    @property
    def endings(self) -> Sequence[str]:
        """Files that it can be written to."""
        return tuple(WRITERS)

    def note(self, holding: Holding) -> str:
        """How many of the answers are history."""
        superseded = sum(entry.superseded for entry in holding.entries)
        return f"{superseded} of them are superseded by later answers, and flagged" if superseded else ""

    def table(self, holding: Holding) -> tuple[list[Row], pa.Schema]:
        """All answers, in their order."""
        rows = [
            {**asdict(entry), "answered_at": entry.answered_at.isoformat(), "detail": _json(dict(entry.detail))}
            for entry in holding.entries
        ]
        return [{name: row[name] for name in SCHEMA.names} for row in rows], SCHEMA

    def given(self, placed: Sequence[Placed], faults: Faults) -> list[Given]:
        """The answers of a file's rows, in their order; faults are noted."""
        return each_given(placed, AnswerRow, AnswerRow.given, faults)


def _json(detail: dict[str, float | str]) -> str:
    return json.dumps(detail, ensure_ascii=False, sort_keys=True)
