"""Label Studio's tasks, with what was answered as annotations, and the export (JSON) of a project that holds them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, ClassVar, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from tasks.labellers.formats.files import Faults, Placed, Row
from tasks.labellers.formats.parts import Given, Holding, by_time, keyed, messages_of, parsed
from tasks.labellers.ledger import Entry, shown
from tasks.labellers.ledger.answers import TURNED
from tasks.labellers.protocol import Answer, Choice, Question

LABELLING_CONFIG = """\
<View>
  <Style>
    .pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1em; }
    .pair > div { white-space: pre-wrap; }
  </Style>
  <Header value="Prompt"/>
  <Text name="prompt" value="$prompt"/>
  <Header value="Click the better response; if neither is better, choose tie instead; if you can't say, skip"/>
  <Pairwise name="preference" toName="first,second"/>
  <View className="pair">
    <Text name="first" value="$first"/>
    <Text name="second" value="$second"/>
  </View>
  <Choices name="tie" toName="prompt" choice="multiple" showInline="true">
    <Choice value="tie"/>
  </Choices>
  <TextArea name="rationale" toName="prompt" placeholder="Why?" maxSubmissions="1" editable="true"/>
</View>
"""
"""The labelling interface in which the tasks are to be shown; the form of the answers follows from it."""

SIDES: dict[str, Choice] = {"left": "first", "right": "second"}
SELECTED = {choice: side for side, choice in SIDES.items()}

COLUMNS = pa.schema([("data", pa.string()), ("annotations", pa.string())])
"""Names alone: tasks are nested, and written as JSON."""


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True)

    prompt: str
    first: str
    second: str
    key: str | None = None


class _Annotation(BaseModel):
    model_config = ConfigDict(frozen=True)

    result: list[dict[str, Any]]
    was_cancelled: bool = False
    completed_by: int | str | dict[str, Any] | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None

    @property
    def time(self) -> datetime | None:
        time = self.updated_at or self.created_at
        return time.replace(tzinfo=UTC) if time is not None and time.tzinfo is None else time


class _Task(BaseModel):
    model_config = ConfigDict(frozen=True)

    data: _Data
    annotations: list[_Annotation]


@dataclass(frozen=True, kw_only=True)
class LabelStudio:
    """Tasks for `LABELLING_CONFIG`: one a pair, with `data` {prompt, first, second, key} and `annotations`.

    The response that the ledger shows first is on the left. A tie is the choice `tie`, an abstention a skipped task.
    Label Studio knows its own users only, so annotators stand in the `meta` of each result, which it keeps: answers
    that it got from here are recognised when they come back.
    """

    kind: Literal["label-studio"] = "label-studio"
    of_one_labeller: ClassVar[bool] = True
    """Whether a file can't tell labellers apart."""
    has_open_questions: ClassVar[bool] = True
    """Whether questions without answers are exported, too."""

    @property
    def endings(self) -> Sequence[str]:
        """Files that it can be written to."""
        return (".json", ".jsonl")

    def note(self, holding: Holding) -> str:  # noqa: ARG002 - the same for all
        """The labelling interface to give to the project."""
        return f"labelling interface for the project's settings in Label Studio:\n{LABELLING_CONFIG}"

    def table(self, holding: Holding) -> tuple[list[Row], pa.Schema]:
        """A task for every pair with an answer in force, and for every open question."""
        answered = [entry for entry in holding.entries if not entry.superseded]
        asked = [*(entry.question for entry in answered), *(one.question for one in holding.open_questions)]
        questions = {question.key: question for question in asked}
        tasks: dict[str, Row] = {
            key: {"data": _data(shown(question, holding.seed)), "annotations": []}
            for key, question in questions.items()
        }
        for entry in answered:
            task = tasks[entry.key]
            task["annotations"].append(_annotation(entry, turned=task["data"]["first"] != entry.first))
        return list(tasks.values()), COLUMNS

    def given(self, placed: Sequence[Placed], faults: Faults) -> list[Given]:
        """The annotations of all tasks, those of each task in the order of their times; faults are noted."""
        found: list[Given] = []
        for one in placed:
            if "annotations" not in one.row:
                faults.add(one.where, "no 'annotations': export the project as JSON, not as JSON-MIN or CSV")
            elif task := parsed(one, _Task, faults):
                found += _given(one.where, task, faults)
        return found


def _data(question: Question) -> Row:
    return {"prompt": question.prompt, "first": question.first, "second": question.second, "key": question.key}


def _annotation(entry: Entry, *, turned: bool) -> Row:
    choice = TURNED[entry.choice] if turned else entry.choice
    return {
        "result": [{**part, "meta": {"annotator": entry.annotator}} for part in _results(choice, entry.rationale)],
        "was_cancelled": choice == "abstain",
        "ground_truth": False,
        "created_at": entry.answered_at.isoformat(),
    }


def _results(choice: Choice, rationale: str) -> Iterator[Row]:
    """What `LABELLING_CONFIG` makes of an answer; an abstention has a text, be it empty, to name its annotator."""
    if choice in SELECTED:
        yield _result("pairwise", "preference", "preference", {"selected": SELECTED[choice]})
    if choice == "tie":
        yield _result("choices", "tie", "prompt", {"choices": ["tie"]})
    if rationale or choice == "abstain":
        yield _result("textarea", "rationale", "prompt", {"text": [rationale]})


def _result(kind: str, name: str, to_name: str, value: Row) -> Row:
    return {"id": f"pairwright-{name}", "type": kind, "from_name": name, "to_name": to_name, "value": value}


def _given(where: str, task: _Task, faults: Faults) -> list[Given]:
    data, found = task.data, []
    try:
        question = keyed(messages_of(data.prompt), first=data.first, second=data.second, key=data.key)
    except ValueError as error:
        faults.add(where, str(error))
        return []
    for number, annotation in enumerate(task.annotations, start=1):
        place = f"{where}, annotation {number}"
        try:
            given = Given(where=place, question=question, answer=_answer(annotation), answered_at=annotation.time)
            found.append(given)
        except ValueError as error:
            faults.add(place, str(error))
    return _latest_last(found)


def _answer(annotation: _Annotation) -> Answer:
    values = {part.get("type"): part.get("value") or {} for part in annotation.result}
    said = "\n".join(str(line) for line in values.get("textarea", {}).get("text", []))
    return Answer(choice=_choice(annotation, values), annotator=_annotator(annotation), rationale=said)


def _choice(annotation: _Annotation, values: dict[Any, dict[str, Any]]) -> Choice:
    selected = values.get("pairwise", {}).get("selected")
    tie = values.get("choices", {}).get("choices", [])
    if annotation.was_cancelled:
        return "abstain"
    if tie and tie != ["tie"]:
        raise ValueError(f"the choice {tie!r} is none of this scheme: expected 'tie'")
    if selected is not None and selected not in SIDES:
        raise ValueError(f"selected is {selected!r}: expected left or right")
    if bool(tie) == (selected is not None):
        found = f"both {selected} and a tie" if tie else "neither a side nor a tie, and not skipped"
        raise ValueError(f"{found}: expected one answer")
    return "tie" if tie else SIDES[str(selected)]


def _annotator(annotation: _Annotation) -> str:
    """Whom the answer came from before it went to Label Studio, else the user there: their address or number."""
    for part in annotation.result:
        if "annotator" in (part.get("meta") or {}):
            return str(part["meta"]["annotator"])
    who = annotation.completed_by
    if isinstance(who, dict):
        who = who.get("email") or who.get("id")
    return "" if who is None else str(who)


def _latest_last(given: Sequence[Given]) -> list[Given]:
    """In the order of their times, with an annotator's earlier answers superseded by the last."""
    ordered = by_time(given)
    last = {one.answer.annotator: index for index, one in enumerate(ordered)}
    return [replace(one, superseded=last[one.answer.annotator] != index) for index, one in enumerate(ordered)]
