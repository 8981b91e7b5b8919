"""Imports: a file's answers get into the ledger all or none, none twice, and what became of each is said."""

import json
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.errors import InputError
from cluster.settings import Settings
from tasks.labellers.delivery import Delivery, deliver, labeller_of
from tasks.labellers.formats import FORMATS, read_answers, write_answers
from tasks.labellers.formats.files import Faults
from tasks.labellers.holdings import Wanted
from tasks.labellers.ledger import Account, Entry, Ledger
from tasks.labellers.ledger.outside import record
from tasks.labellers.names import name_of
from tasks.labellers.people import PeopleLabeller
from tasks.labellers.protocol import Answer, Question, Workplace

pytestmark = pytest.mark.labels

MakeQuestion = Callable[..., Question]
CREW = PeopleLabeller(crew="crew", cost=2.0)


@pytest.fixture
def questions(make_question: MakeQuestion) -> list[Question]:
    return [make_question(f"a{number}", f"b{number}", f"prompt {number}") for number in range(3)]


def asked(folder: Path, questions: Sequence[Question], *, repeats: int = 1, lineage: str = "demo") -> Ledger:
    """A ledger in which a lineage waits for people to answer these questions."""
    ledger = Ledger.at(folder / "ledger.sqlite")
    workplace = Workplace(settings=Settings(home=folder), lineage=lineage, round=0)
    ledger.buy(questions, CREW, Account(lineage=lineage, round=0), workplace, repeats=repeats)
    return ledger


def rows(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def row(question: Question, choice: str, **changes: Any) -> dict[str, Any]:
    return {"key": question.key, "first": question.first, "second": question.second, "choice": choice} | changes


def bring(ledger: Ledger, path: Path, form: str = "answers") -> Delivery:
    faults = Faults(path)
    identity = labeller_of(ledger, "demo", "crew")
    return deliver(ledger, identity, read_answers(path, FORMATS[form], faults), faults, annotator=path.stem)


def said(entries: Sequence[Entry]) -> list[tuple[str, str, str, bool]]:
    """Who preferred which text, or what else they said, and whether it is history."""
    texts = [{"first": one.first, "second": one.second}.get(one.choice, one.choice) for one in entries]
    return [(one.annotator, text, one.rationale, one.superseded) for one, text in zip(entries, texts, strict=True)]


def test_tasks_that_were_answered_in_label_studio_answer_the_open_questions(
    tmp_path: Path, questions: list[Question]
) -> None:
    ledger = asked(tmp_path, questions)
    path = tmp_path / "tasks.json"
    form = FORMATS["label-studio"]
    write_answers(path, form, Wanted(lineage="demo").holding(ledger, form))
    tasks = json.loads(path.read_text(encoding="utf-8"))
    assert [task["annotations"] for task in tasks] == [[], [], []]
    pairwise = {"type": "pairwise", "from_name": "preference", "to_name": "preference", "value": {"selected": "right"}}
    tie = {"type": "choices", "from_name": "tie", "to_name": "prompt", "value": {"choices": ["tie"]}}
    for task, result in zip(tasks, ([pairwise], [tie], []), strict=True):
        task["annotations"] = [{"result": result, "was_cancelled": not result, "completed_by": {"email": "anna@x"}}]
    path.write_text(json.dumps(tasks), encoding="utf-8")
    delivery = bring(ledger, path, "label-studio")
    assert [receipt.status for _, receipt in delivery.receipts] == ["counted"] * 3
    assert said([*ledger.entries("demo")]) == [
        ("anna@x", tasks[0]["data"]["second"], "", False),
        ("anna@x", "tie", "", False),
        ("anna@x", "abstain", "", False),
    ]
    assert ledger.open_questions("demo") == []
    assert ledger.spend("demo").cost == 6.0


def test_a_file_with_any_fault_changes_nothing(
    tmp_path: Path, questions: list[Question], make_question: MakeQuestion
) -> None:
    ledger = asked(tmp_path, questions)
    good = row(questions[0], "first")
    path = rows(
        tmp_path / "anna.jsonl",
        good,
        row(make_question("x", "y"), "first"),
        row(questions[1], "left"),
        row(questions[1], "second", second="another text"),
        row(questions[2], "tie", labeller='{"kind": "judge", "model": "m"}'),
        row(questions[2], "tie", cost=3.0),
    )
    with pytest.raises(InputError) as refused:
        bring(ledger, path)
    message = str(refused.value)
    assert "has 5 faults, and nothing of it was used" in message
    assert f"line 2: the ledger knows no pair {make_question('x', 'y').key}" in message
    assert "line 3: choice: input should be 'first', 'second', 'tie' or 'abstain' (found 'left')" in message
    assert "line 4: the ledger holds other responses" in message
    assert "line 5: is of judge:m:" in message
    assert "line 6: the answer to" in message
    assert [*ledger.entries()] == []
    assert len(ledger.open_questions("demo")) == 3
    bring(ledger, rows(path, good))
    assert len([*ledger.entries()]) == 1


def test_an_answer_to_a_closed_round_is_kept_and_said(tmp_path: Path, questions: list[Question]) -> None:
    ledger = asked(tmp_path, questions)
    bring(ledger, rows(tmp_path / "anna.jsonl", row(questions[0], "first")))
    ledger.close("demo", 0)
    delivery = bring(ledger, rows(tmp_path / "anna.jsonl", *(row(question, "first") for question in questions)))
    assert [(one.where, receipt.status) for one, receipt in delivery.receipts] == [
        ("line 2", "kept"),
        ("line 3", "kept"),
    ]
    assert "round 0 of lineage 'demo' has closed" in delivery.receipts[0][1].reason
    assert ledger.spend("demo").num_labels == 1
    assert ledger.answered("demo", before=1) == {question.key for question in questions}


def test_of_two_answers_by_one_annotator_the_latest_counts_and_the_other_is_history(
    tmp_path: Path, questions: list[Question]
) -> None:
    ledger = asked(tmp_path, questions)
    late = row(questions[0], "second", annotator="anna", answered_at="2026-11-27T05:00:00Z")
    early = row(questions[0], "tie", annotator="anna", answered_at="2026-11-27T04:00:00+00:00", rationale="hm")
    delivery = bring(ledger, rows(tmp_path / "answers.jsonl", late, early))
    assert [receipt.status for _, receipt in delivery.receipts] == ["counted", "replaced"]
    assert said([*ledger.entries("demo")]) == [("anna", "tie", "hm", True), ("anna", questions[0].second, "", False)]
    assert ledger.spend("demo").num_labels == 1


def test_an_answer_older_than_the_annotators_last_is_not_used(tmp_path: Path, questions: list[Question]) -> None:
    ledger = asked(tmp_path, questions)
    new = row(questions[0], "second", answered_at="2026-11-27T05:00:00Z")
    bring(ledger, rows(tmp_path / "anna.jsonl", new))
    before = [*ledger.entries()]
    delivery = bring(
        ledger, rows(tmp_path / "anna.jsonl", row(questions[0], "first", answered_at="2026-11-27T04:00:00Z"))
    )
    assert ([one.where for one in delivery.older], delivery.receipts) == (["line 1"], [])
    assert [*ledger.entries()] == before
    again = row(questions[0], "first", answered_at="2026-11-27T06:00:00Z")
    assert [receipt.status for _, receipt in bring(ledger, rows(tmp_path / "anna.jsonl", new, again)).receipts] == [
        "replaced"
    ]
    assert said([*ledger.entries()])[-1] == ("anna", questions[0].first, "", False)


@pytest.fixture
def waiting(tmp_path: Path, questions: list[Question]) -> Path:
    """The file of a ledger in which every question waits for two answers."""
    asked(tmp_path, questions, repeats=2)
    return tmp_path / "ledger.sqlite"


STEPS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(["anna", "bert", "cleo"]),
        st.sampled_from(["first", "second", "tie", "abstain"]),
        st.none() | st.floats(0, 1),
        st.sampled_from(["", "why\r\nnot"]),
        st.booleans(),
    ),
    max_size=8,
)


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_an_export_brought_to_another_ledger_gives_the_same_table_and_to_its_own_changes_nothing(
    tmp_path: Path, waiting: Path, questions: list[Question], steps: list[tuple[int, str, Any, Any, str, bool]]
) -> None:
    ledgers = [Ledger.at(Path(shutil.copy(waiting, tmp_path / f"{name}.sqlite"))) for name in ("one", "other")]
    for number, annotator, choice, probability, rationale, is_turned in steps:
        question = questions[number]
        first, second = (question.second, question.first) if is_turned else (question.first, question.second)
        shown = Question(key=question.key, messages=question.messages, first=first, second=second)
        answer = Answer(choice=choice, probability=probability, annotator=annotator, rationale=rationale)
        ledgers[0].answer(shown, CREW.identity, answer)
    path = tmp_path / "answers.csv"
    before, form = [*ledgers[0].entries()], FORMATS["answers"]
    if not before:
        return
    write_answers(path, form, Wanted().holding(ledgers[0], form))
    assert len(bring(ledgers[0], path).receipts) == 0
    assert [*ledgers[0].entries()] == before
    bring(ledgers[1], path)
    assert table([*ledgers[1].entries()]) == table(before)
    write_answers(path, form, Wanted().holding(ledgers[1], form))
    assert len(bring(ledgers[1], path).receipts) == 0


def table(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """All that was said; when it reached the ledger is another matter."""
    kept = [asdict(entry) | {"answered_at": None, "detail": None} for entry in entries]
    return sorted(kept, key=repr)


def test_a_labeller_is_found_by_any_word_that_tells_it_from_others(tmp_path: Path, questions: list[Question]) -> None:
    ledger = asked(tmp_path, questions)
    other = PeopleLabeller(crew="others")
    workplace = Workplace(settings=Settings(home=tmp_path), lineage="demo", round=1)
    assert labeller_of(ledger, "demo", None) == CREW.identity
    ledger.buy(questions, other, Account(lineage="demo", round=1), workplace)
    for name in ("crew", name_of(CREW.identity), CREW.identity):
        assert labeller_of(ledger, "demo", name) == CREW.identity
    for name, found in (
        (None, "2 labellers, expected one"),
        ("people", "2 labellers called 'people'"),
        ("x", "no labellers"),
    ):
        with pytest.raises(InputError, match=rf"has {found}.*found people:crew:\w{{8}}, people:others:\w{{8}}"):
            labeller_of(ledger, "demo", name)
    with pytest.raises(InputError, match="lineage 'nobody' has asked for no labels: found demo"):
        labeller_of(ledger, "nobody", None)


def test_answers_without_a_name_are_of_whom_the_import_says(tmp_path: Path, questions: list[Question]) -> None:
    ledger = asked(tmp_path, questions, repeats=2)
    path = rows(
        tmp_path / "pairs.jsonl",
        *(
            {"prompt": [dict(m) for m in one.messages], "chosen": one.second, "rejected": one.first}
            for one in questions
        ),
    )
    for annotator in ("anna", "bert", "anna"):
        faults = Faults(path)
        deliver(ledger, CREW.identity, read_answers(path, FORMATS["preference"], faults), faults, annotator=annotator)
    entries = [*ledger.entries()]
    assert said(entries) == [(name, one.second, "", False) for name in ("anna", "bert") for one in questions]
    assert all(entry.answered_at <= datetime.now(UTC) for entry in entries)


def pair(question: Question) -> dict[str, Any]:
    """The row of TRL that prefers the first response."""
    return {"prompt": [dict(one) for one in question.messages], "chosen": question.first, "rejected": question.second}


@pytest.mark.parametrize("form", ["answers", "preference"])
@pytest.mark.parametrize("reason", ["", "shorter"])
def test_a_file_without_times_that_comes_again_does_not_take_back_what_was_said_since(
    tmp_path: Path, questions: list[Question], form: str, reason: str
) -> None:
    ledger, path = asked(tmp_path, questions), tmp_path / "anna.jsonl"
    bring(ledger, rows(path, row(questions[0], "first", rationale=reason)))
    ledger.answer(questions[0], CREW.identity, Answer(choice="second", annotator="anna"))
    before, again = [*ledger.entries()], {"answers": row(questions[0], "first"), "preference": pair(questions[0])}
    delivery = bring(ledger, rows(path, again[form]), form)
    assert ([one.where for one in delivery.older], delivery.receipts) == (["line 1"], [])
    assert [*ledger.entries()] == before
    assert said(before)[-1] == ("anna", questions[0].second, "", False)
    bring(ledger, rows(path, row(questions[0], "first"), row(questions[0], "tie")))
    assert said([*ledger.entries()])[len(before) :] == [("anna", "tie", "", False)]


@pytest.mark.parametrize("time", [{}, {"answered_at": "2999-01-01T00:00:00Z"}])
def test_an_answer_without_a_reason_does_not_replace_the_same_one_with_a_reason(
    tmp_path: Path, questions: list[Question], time: dict[str, str]
) -> None:
    ledger, path = asked(tmp_path, questions), tmp_path / "anna.jsonl"
    ledger.answer(questions[0], CREW.identity, Answer(choice="first", annotator="anna", rationale="shorter"))
    delivery = bring(ledger, rows(path, row(questions[0], "first", **time)))
    assert (len(delivery.held), delivery.receipts) == (1, [])
    bring(ledger, rows(path, row(questions[0], "first", rationale="kinder", **time)))
    assert said([*ledger.entries()]) == [
        ("anna", questions[0].first, "shorter", True),
        ("anna", questions[0].first, "kinder", False),
    ]


def test_what_is_said_while_a_file_waits_to_be_written_is_not_taken_back(
    tmp_path: Path, questions: list[Question]
) -> None:
    ledger, path = asked(tmp_path, questions), rows(tmp_path / "anna.jsonl", row(questions[0], "first"))
    with ThreadPoolExecutor(1) as aside:
        with ledger.database.writing() as connection:
            delivered = aside.submit(bring, ledger, path)
            wait([delivered], timeout=1.0)
            for choice in ("first", "tie"):
                record(connection, questions[0], CREW.identity, Answer(choice=choice, annotator="anna"))
        assert delivered.result(60).receipts == []
    assert said([*ledger.entries()])[-1] == ("anna", "tie", "", False)
