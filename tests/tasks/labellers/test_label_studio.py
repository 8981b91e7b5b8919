"""Label Studio: tasks that it can show, and the export of what people said there."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.errors import InputError
from cluster.rendering import plain_text
from tasks.labellers.formats import FORMATS, read_answers, write_answers
from tasks.labellers.formats.files import Faults
from tasks.labellers.formats.label_studio import LABELLING_CONFIG
from tasks.labellers.formats.parts import Given, Holding
from tasks.labellers.ledger import Entry, OpenQuestion, question_key, shown
from tasks.labellers.protocol import Question

pytestmark = pytest.mark.labels

MakeEntry = Callable[..., Entry]

PLAIN = ({"role": None, "content": "say a word"},)
CHAT = ({"role": "system", "content": "be brief"}, {"role": "user", "content": "hello?"})


TEXTS = st.text(max_size=12) | st.sampled_from(["", "a\r\nb", "<b>", "🙂", "שלום"])
ANSWERED = st.fixed_dictionaries(
    {
        "messages": st.sampled_from([PLAIN, CHAT]),
        "texts": st.lists(TEXTS, min_size=2, max_size=2, unique=True),
        "choice": st.sampled_from(["first", "second", "tie", "abstain"]),
        "annotator": TEXTS,
        "rationale": TEXTS,
        "superseded": st.booleans(),
    }
)


def read(path: Path, form: str = "label-studio") -> list[Given]:
    faults = Faults(path)
    found = read_answers(path, FORMATS[form], faults)
    faults.refuse()
    return found


def heard(question: Question | Entry, choice: str) -> tuple[str | None, str]:
    return {"first": question.first, "second": question.second}.get(choice), choice if choice in {
        "tie",
        "abstain",
    } else ""


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(ANSWERED, min_size=1, max_size=4), seed=st.integers(0, 9))
def test_who_preferred_which_text_and_why_comes_back(
    tmp_path: Path, make_entry: MakeEntry, values: list[dict[str, Any]], seed: int
) -> None:
    held, path = [make_entry(**value) for value in values], tmp_path / "tasks.json"
    expected = {(one.key, *heard(one, one.choice), one.annotator, one.rationale) for one in held if not one.superseded}
    if not expected:
        return
    write_answers(path, FORMATS["label-studio"], Holding(entries=held, seed=seed))
    assert expected == {
        (one.question.key, *heard(one.question, one.answer.choice), one.answer.annotator, one.answer.rationale)
        for one in read(path)
    }


def test_the_left_response_is_the_one_that_the_ledger_shows_first(make_entry: MakeEntry) -> None:
    held = [make_entry(CHAT, [f"a{number}", f"b{number}"], choice="first") for number in range(20)]
    rows, _ = FORMATS["label-studio"].table(Holding(entries=held))
    for row, one in zip(rows, held, strict=True):
        first = shown(Question(key=one.key, messages=one.messages, first=one.first, second=one.second)).first
        assert row["data"] == {
            "prompt": plain_text(CHAT),
            "first": first,
            "second": one.second if first == one.first else one.first,
            "key": one.key,
        }
        assert row["annotations"][0]["result"][0]["value"] == {"selected": "left" if first == one.first else "right"}
    assert len({row["data"]["first"][0] for row in rows}) == 2


def test_open_questions_are_tasks_without_annotations(make_entry: MakeEntry) -> None:
    asked = Question(key=question_key("say a word", first="x", second="y"), messages=PLAIN, first="x", second="y")
    answered = make_entry(PLAIN, ["a", "b"])
    half = Question(key=answered.key, messages=PLAIN, first="b", second="a")
    waiting = [
        OpenQuestion(question=one, lineage="demo", round=1, labeller="people", wanted=1, annotators=())
        for one in (asked, half)
    ]
    rows, _ = FORMATS["label-studio"].table(Holding(entries=[answered], open_questions=waiting))
    assert [(row["data"]["key"], len(row["annotations"])) for row in rows] == [(answered.key, 1), (asked.key, 0)]


def test_the_labelling_interface_shows_every_column_of_the_tasks(make_entry: MakeEntry) -> None:
    view = ElementTree.fromstring(LABELLING_CONFIG)
    assert {text.attrib["value"] for text in view.iter("Text")} == {"$prompt", "$first", "$second"}
    (pairwise,) = view.iter("Pairwise")
    named = {part.attrib["name"] for part in view.iter() if "name" in part.attrib}
    assert set(pairwise.attrib["toName"].split(",")) <= named
    answered = [
        make_entry(PLAIN, ["a", "b"], choice=choice, rationale="why", annotator=choice)
        for choice in ("first", "tie", "abstain")
    ]
    rows, _ = FORMATS["label-studio"].table(Holding(entries=answered))
    results = [result for row in rows for annotation in row["annotations"] for result in annotation["result"]]
    assert {result["from_name"] for result in results} == {"preference", "tie", "rationale"}
    assert {name for result in results for name in (result["from_name"], result["to_name"])} <= named


ANNOTATION = {  # as Label Studio 1.23 exports them
    "id": 1,
    "completed_by": 7,
    "was_cancelled": False,
    "ground_truth": False,
    "created_at": "2026-11-27T04:00:00.809380Z",
    "lead_time": None,
    "prediction": {},
    "result_count": 0,
    "task": 1,
    "project": 1,
    "parent_annotation": None,
}
DATA = {"prompt": "say a word", "first": "a", "second": "b"}
TASK = {"id": 1, "inner_id": 1, "project": 1, "drafts": [], "predictions": [], "meta": {}, "data": DATA}


def chose(side: str, **changes: Any) -> dict[str, Any]:
    result = {"id": "x", "type": "pairwise", "from_name": "preference", "to_name": "preference", "origin": "manual"}
    return ANNOTATION | {"result": [result | {"value": {"selected": side}}]} | changes


def exported(path: Path, *annotations: dict[str, Any], **changes: Any) -> Path:
    path.write_text(json.dumps([TASK | {"annotations": list(annotations)} | changes]), encoding="utf-8")
    return path


def test_a_users_later_annotation_supersedes_the_earlier_one(tmp_path: Path) -> None:
    early = chose("left", created_at="2026-11-27T03:00:00Z", completed_by={"id": 7, "email": "anna@example.org"})
    late = chose("right", created_at="2026-11-27T04:00:00Z", completed_by={"id": 7, "email": "anna@example.org"})
    other = chose("left", created_at="2026-11-27T05:00:00Z", completed_by=8)
    found = read(exported(tmp_path / "export.json", late, other, early), "label-studio")
    assert [(one.answer.annotator, one.answer.choice, one.superseded) for one in found] == [
        ("anna@example.org", "first", True),
        ("anna@example.org", "second", False),
        ("8", "first", False),
    ]
    assert {one.question.key for one in found} == {question_key("say a word", first="a", second="b")}


TIE = {"type": "choices", "from_name": "tie", "to_name": "prompt", "value": {"choices": ["tie"]}}


@pytest.mark.parametrize(
    ("annotation", "fault"),
    [
        (chose("middle"), "selected is 'middle': expected left or right"),
        (chose("left", result=[]), "neither a side nor a tie, and not skipped"),
        (chose("left", result=[*chose("left")["result"], TIE]), "both left and a tie"),
        (chose("left", result=[TIE | {"value": {"choices": ["both bad"]}}]), "is none of this scheme"),
    ],
)
def test_an_annotation_outside_the_scheme_is_a_fault(tmp_path: Path, annotation: dict[str, Any], fault: str) -> None:
    path = exported(tmp_path / "export.json", chose("left", completed_by=1), annotation)
    with pytest.raises(InputError, match=f"item 1, annotation 2: .*{fault}"):
        read(path, "label-studio")


def test_an_export_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "min.json"
    path.write_text(json.dumps([DATA | {"preference": "left", "annotator": 1}]), encoding="utf-8")
    with pytest.raises(InputError, match="export the project as JSON, not as JSON-MIN"):
        read(path, "label-studio")
