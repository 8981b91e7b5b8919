"""Answers from a file: found by content, turned as the question is, repeated where several people gave them."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import Field, TypeAdapter

from cluster.errors import InputError
from tasks.labellers.file import FileLabeller
from tasks.labellers.ledger import Account, Ledger
from tasks.labellers.protocol import Answer, Ask, Labeller, Question, Workplace

pytestmark = pytest.mark.labels

MakeQuestion = Callable[..., Question]
ROW = {"prompt": "user: say something", "first": "a", "second": "b", "choice": "first", "probability": 0.75}


def written(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def answers(labeller: Labeller, workplace: Workplace, *asks: Ask) -> list[Answer]:
    """One answer to every ask, in the order of the asks."""
    given = [each for chunk in labeller(asks, workplace) for each in chunk]
    assert len(given) == len(asks)
    return [next(answer for known, answer in given if known is ask) for ask in asks]


def test_an_answer_is_turned_as_the_question_is(
    tmp_path: Path, workplace: Workplace, make_question: MakeQuestion
) -> None:
    labeller = FileLabeller(path=written(tmp_path / "answers.jsonl", ROW))
    labeller.check()
    there, back = Ask(question=make_question("a", "b")), Ask(question=make_question("b", "a"))
    assert [(answer.choice, answer.probability) for answer in answers(labeller, workplace, there, back)] == [
        ("first", 0.75),
        ("second", 0.25),
    ]


@pytest.mark.parametrize("choice", ["tie", "abstain"])
def test_ties_and_abstentions_stay_what_they_are(
    tmp_path: Path, workplace: Workplace, make_question: MakeQuestion, choice: str
) -> None:
    labeller = FileLabeller(path=written(tmp_path / "answers.jsonl", ROW | {"choice": choice, "rationale": "hm"}))
    for question in (make_question("a", "b"), make_question("b", "a")):
        (answer,) = answers(labeller, workplace, Ask(question=question))
        assert (answer.choice, answer.rationale) == (choice, "hm")


def test_several_annotators_serve_the_repetitions_and_the_last_word_of_each_counts(
    tmp_path: Path, workplace: Workplace, make_question: MakeQuestion
) -> None:
    said = [("anna", "first"), ("bert", "first"), ("anna", "tie"), ("cleo", "second")]
    rows = [ROW | {"annotator": annotator, "choice": choice, "probability": None} for annotator, choice in said]
    labeller = FileLabeller(path=written(tmp_path / "answers.jsonl", *rows))
    asks = [Ask(question=make_question("a", "b"), repetition=repetition) for repetition in range(3)]
    found = answers(labeller, workplace, *asks)
    assert [(answer.annotator, answer.choice) for answer in found] == [
        ("anna", "tie"),
        ("bert", "first"),
        ("cleo", "second"),
    ]
    with pytest.raises(InputError, match=r"no answer to 1 of 4 asks, the first of them number 4 .* found 3 answers"):
        answers(labeller, workplace, *asks, Ask(question=make_question("a", "b"), repetition=3))


def test_numbered_repetitions_are_taken_at_their_word(
    tmp_path: Path, workplace: Workplace, make_question: MakeQuestion
) -> None:
    rows = [
        ROW | {"repetition": 1, "choice": "second"},
        ROW | {"repetition": 0, "choice": "first", "superseded": True},
        ROW | {"repetition": 0, "choice": "tie"},
    ]
    labeller = FileLabeller(path=written(tmp_path / "answers.jsonl", *rows))
    asks = [Ask(question=make_question("a", "b"), repetition=repetition) for repetition in range(2)]
    assert [answer.choice for answer in answers(labeller, workplace, *asks)] == ["tie", "second"]


def test_what_the_file_lacks_is_refused_or_abstained_from(
    tmp_path: Path, workplace: Workplace, make_question: MakeQuestion
) -> None:
    path = written(tmp_path / "answers.jsonl", ROW)
    known, unknown = Ask(question=make_question("a", "b")), Ask(question=make_question("a", "b", "say more"))
    with pytest.raises(InputError, match=r"no answer to 1 of 2 asks, the first of them number 1 to 'user: say more'"):
        answers(FileLabeller(path=path), workplace, known, unknown)
    found = answers(FileLabeller(path=path, missing="abstain"), workplace, known, unknown)
    assert [answer.choice for answer in found] == ["first", "abstain"]


def test_a_key_with_other_responses_is_refused(
    tmp_path: Path, workplace: Workplace, make_question: MakeQuestion
) -> None:
    question = make_question("a", "b")
    row = {"key": question.key, "first": "a", "second": "c", "choice": "first"}
    labeller = FileLabeller(path=written(tmp_path / "answers.jsonl", row))
    labeller.check()
    with pytest.raises(InputError, match="line 1 has other responses than the pair"):
        answers(labeller, workplace, Ask(question=question))


def test_the_check_lists_all_faults(tmp_path: Path) -> None:
    path = written(tmp_path / "answers.jsonl", ROW, ROW | {"choice": "A"}, {"prompt": "p", "first": "a", "second": "b"})
    with pytest.raises(InputError, match=r"2 faults.*line 2: choice: .*\(found 'A'\); line 3: no 'choice', found"):
        FileLabeller(path=path).check()
    with pytest.raises(InputError, match=r"can't be read .* check labelling.labeller.path"):
        FileLabeller(path=tmp_path / "none.jsonl").check()
    with pytest.raises(InputError, match="cost is -1"):
        FileLabeller(path=path, cost=-1.0)


def test_the_content_makes_the_labeller_and_the_place_does_not(tmp_path: Path) -> None:
    one = FileLabeller(path=written(tmp_path / "one.jsonl", ROW))
    same = FileLabeller(path=written(tmp_path / "same.jsonl", ROW))
    other = FileLabeller(path=written(tmp_path / "other.jsonl", ROW | {"choice": "tie"}))
    assert one.identity == same.identity
    assert len({one.identity, other.identity, FileLabeller(path=one.path, missing="abstain").identity}) == 3
    before = one.identity
    written(one.path, ROW | {"choice": "second"})
    os.utime(one.path, ns=(1, 1))
    assert one.identity != before


def test_a_label_studio_export_is_a_file_of_answers(
    tmp_path: Path, workplace: Workplace, make_question: MakeQuestion
) -> None:
    question = make_question("a", "b")
    data = {"prompt": question.prompt, "first": "b", "second": "a", "key": question.key}
    chosen = {"type": "pairwise", "from_name": "preference", "to_name": "preference", "value": {"selected": "left"}}
    skipped = {"result": [], "was_cancelled": True, "completed_by": 2}
    task = {"id": 1, "data": data, "annotations": [{"result": [chosen], "completed_by": 1}, skipped]}
    path = tmp_path / "export.json"
    path.write_text(json.dumps([task]), encoding="utf-8")
    labeller = FileLabeller(path=path, format="label-studio")
    found = answers(labeller, workplace, *(Ask(question=question, repetition=number) for number in range(2)))
    assert [(answer.annotator, answer.choice) for answer in found] == [("1", "second"), ("2", "abstain")]


def test_the_ledger_buys_from_a_file_once(tmp_path: Path, workplace: Workplace, make_question: MakeQuestion) -> None:
    questions = [make_question("a", "b"), make_question("d", "c")]
    rows = [ROW, ROW | {"first": "c", "second": "d", "choice": "second"}]
    ledger = Ledger.at(tmp_path / "ledger.sqlite")
    for lineage in ("demo", "other"):
        labeller = FileLabeller(path=written(tmp_path / f"{lineage}.jsonl", *rows), cost=0.5)
        labels = ledger.buy(questions, labeller, Account(lineage=lineage, round=0), workplace)
        assert [label.choice for (label,) in labels] == ["first", "first"]
    spend = ledger.spend()
    assert (spend.num_bought, spend.paid, spend.num_labels, spend.cost) == (2, 1.0, 4, 2.0)


CONFIG: TypeAdapter[FileLabeller] = TypeAdapter(Annotated[FileLabeller, Field()])


def test_a_config_names_the_file(tmp_path: Path) -> None:
    wanted = CONFIG.validate_python({"kind": "file", "path": str(tmp_path / "x.json"), "format": "label-studio"})
    assert wanted == FileLabeller(path=tmp_path / "x.json", format="label-studio")
    assert CONFIG.validate_json(CONFIG.dump_json(wanted)) == wanted


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=6))
def test_the_preferred_text_is_the_same_however_file_and_question_are_turned(
    tmp_path: Path, workplace: Workplace, make_question: MakeQuestion, turns: Sequence[tuple[bool, bool]]
) -> None:
    rows, asks = [], []
    for number, (row_turned, ask_turned) in enumerate(turns):
        good, bad = f"good {number}", f"bad {number}"
        first, second = (bad, good) if row_turned else (good, bad)
        rows.append(ROW | {"first": first, "second": second, "choice": "second" if row_turned else "first"})
        asks.append(Ask(question=make_question(*((bad, good) if ask_turned else (good, bad)))))
    found = answers(FileLabeller(path=written(tmp_path / "answers.jsonl", *rows)), workplace, *asks)
    for ask, answer in zip(asks, found, strict=True):
        assert {"first": ask.question.first, "second": ask.question.second}[answer.choice].startswith("good")
