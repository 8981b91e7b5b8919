"""Files of answers: what is written is read again, whole; what is wrong with a file is said, all at once."""

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.errors import InputError
from cluster.rendering import Message
from tasks.labellers.formats import FORMATS, read_answers, write_answers
from tasks.labellers.formats.answers import SCHEMA, AnswerRow, Answers
from tasks.labellers.formats.files import WRITERS, Faults, read_rows
from tasks.labellers.formats.parts import Given, Holding, turned_answer
from tasks.labellers.ledger import Entry, question_key
from tasks.labellers.protocol import Question

pytestmark = pytest.mark.labels

MakeEntry = Callable[..., Entry]

START = datetime(2026, 11, 27, 3, tzinfo=UTC)
PLAIN: Sequence[Message] = ({"role": None, "content": "say a word"},)
TEXTS = st.text(max_size=12) | st.sampled_from(
    ["", '"', "a,b", "a\r\nb", "\r", "\x00", "\u2028", "<b>", "=1+1", "🙂", "שלום"]
)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": TEXTS}), min_size=1
) | TEXTS.filter(bool).map(lambda text: [{"role": None, "content": text}])


ANSWERED = st.fixed_dictionaries(
    {
        "messages": MESSAGES,
        "texts": st.lists(TEXTS, min_size=2, max_size=2, unique=True),
        "choice": st.sampled_from(["first", "second", "tie", "abstain"]),
        "probability": st.none() | st.floats(0, 1),
        "swapped": st.booleans(),
        "annotator": TEXTS,
        "rationale": TEXTS,
        "repetition": st.integers(0, 9),
        "cost": st.floats(0, 1e9),
        "round": st.integers(0, 9),
        "answered_at": st.integers(0, 10**12).map(lambda micros: START + timedelta(microseconds=micros)),
        "superseded": st.booleans(),
        "detail": st.dictionaries(TEXTS, st.floats(-1e9, 1e9) | TEXTS, max_size=2),
    }
)
QUICK = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read(path: Path, form: str = "answers") -> list[Given]:
    faults = Faults(path)
    found = read_answers(path, FORMATS[form], faults)
    faults.refuse()
    return found


def written(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("ending", WRITERS)
@QUICK
@given(values=st.lists(ANSWERED, min_size=1, max_size=4))
def test_answers_come_back_whole(
    tmp_path: Path, make_entry: MakeEntry, ending: str, values: list[dict[str, Any]]
) -> None:
    held, path = [make_entry(**value) for value in values], tmp_path / f"answers{ending}"
    assert write_answers(path, Answers(), Holding(entries=held)) == len(held)
    back = [AnswerRow.model_validate(placed.row).model_dump() for placed in read_rows(path, Faults(path))]
    entries = [{name: row[name] for name in SCHEMA.names} for row in back]
    assert [Entry(**(entry | {"messages": list(entry["messages"])})) for entry in entries] == held


@QUICK
@given(value=ANSWERED)
def test_what_an_answer_file_gives_is_what_was_answered(
    tmp_path: Path, make_entry: MakeEntry, value: dict[str, Any]
) -> None:
    held, path = make_entry(**value), tmp_path / "answers.jsonl"
    write_answers(path, Answers(), Holding(entries=[held]))
    (one,) = read(path)
    assert (one.question.key, list(one.question.messages)) == (held.key, held.messages)
    answer = turned_answer(one.answer) if held.swapped else one.answer
    shown = (held.second, held.first) if held.swapped else (held.first, held.second)
    assert (one.question.first, one.question.second) == shown
    assert (answer.choice, answer.annotator, one.superseded) == (held.choice, held.annotator, held.superseded)
    assert one.answered_at == held.answered_at
    assert answer.probability == (None if held.probability is None else pytest.approx(held.probability))


MINIMAL = {"prompt": "say a word", "first": "a", "second": "b", "choice": "second"}


def test_four_columns_make_an_answer(tmp_path: Path) -> None:
    key = question_key("say a word", first="a", second="b")
    (one,) = read(written(tmp_path / "four.jsonl", MINIMAL))
    assert (one.question, one.answer.choice) == (Question(key=key, messages=PLAIN, first="a", second="b"), "second")
    (named,) = read(written(tmp_path / "key.jsonl", {"key": key, "first": "b", "second": "a", "choice": "tie"}))
    assert (named.question.key, named.question.messages, named.question.first) == (key, (), "b")
    (tmp_path / "four.csv").write_text("\ufeffprompt,first,second,choice\nsay a word,a,b,second\n", encoding="utf-8")
    assert read(tmp_path / "four.csv")[0].question == one.question
    chat = [{"role": "user", "content": "hello?"}]
    (spoken,) = read(written(tmp_path / "chat.jsonl", MINIMAL | {"prompt": chat}))
    assert spoken.question.key == question_key("user: hello?", first="a", second="b")


def test_all_faults_of_a_file_are_listed_at_once(tmp_path: Path) -> None:
    path = written(
        tmp_path / "bad.jsonl",
        MINIMAL,
        MINIMAL | {"choice": "left"},
        {"prompt": "p", "first": "a", "choice": "tie"},
        MINIMAL | {"prompt": None},
        MINIMAL | {"key": "0" * 64},
        MINIMAL | {"probability": 1.5, "repetition": -1},
    )
    path.write_text(path.read_text(encoding="utf-8") + "{\n[1]\n", encoding="utf-8")
    with pytest.raises(InputError) as refused:
        read(path)
    message = str(refused.value)
    assert message.startswith(f"{path} has 8 faults, and nothing of it was used: ")
    for fault in (
        "line 7: not JSON",
        "line 8: a JSON list, expected an object",
        "line 2: choice: input should be 'first', 'second', 'tie' or 'abstain' (found 'left')",
        "line 3: no 'second', found ['choice', 'first', 'prompt']",
        "line 4: neither 'prompt' (or 'messages') nor 'key'",
        "line 5: key 000000000000... is not that of this prompt and these responses",
        "line 6: probability: input should be less than or equal to 1 (found 1.5)",
        "line 6: repetition: input should be greater than or equal to 0 (found -1)",
    ):
        assert fault in message


def test_of_many_faults_the_first_twenty_are_listed(tmp_path: Path) -> None:
    path = written(tmp_path / "bad.jsonl", *[MINIMAL | {"choice": "left"}] * 23)
    with pytest.raises(InputError, match="has 23 faults") as refused:
        read(path)
    assert str(refused.value).count("choice:") == 20
    assert "; and 3 more." in str(refused.value)


def spoil(path: Path) -> Path:
    path.write_bytes(b"\xff\xfe")
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "none.jsonl", "does not exist"),
        (lambda folder: folder / "none.txt", "ends in '.txt': expected a file called"),
        (lambda folder: written(folder / "empty.jsonl"), "is empty: expected answers in the format answers"),
        (lambda folder: spoil(folder / "bad.jsonl"), "is not UTF-8"),
        (lambda folder: spoil(folder / "bad.parquet"), "is not Parquet"),
        (lambda folder: written(folder / "bad.json", {}, {}), "is not JSON .* call a file with one object a line"),
        (lambda folder: written(folder / "one.json", {}), "holds a JSON dict: expected a list of objects"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(make(tmp_path))


def test_a_row_with_too_many_cells_is_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_text("prompt,first,second,choice\np,a,b,tie\np,a,b,tie,more\np,a\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"2 faults.*row 2: not as many cells as the 4 columns; row 3: not as many"):
        read(path)


@pytest.mark.parametrize(
    ("form", "ending"),
    [("preference", ".csv"), ("unpaired", ".csv"), ("label-studio", ".parquet"), ("answers", ".xlsx")],
)
def test_a_format_names_the_files_that_it_can_be_written_to(
    tmp_path: Path, make_entry: MakeEntry, form: str, ending: str
) -> None:
    with pytest.raises(InputError, match=f"the format {form} is written to files called"):
        write_answers(tmp_path / f"out{ending}", FORMATS[form], Holding(entries=[make_entry(PLAIN, ["a", "b"])]))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_keeps_what_it_held(tmp_path: Path, make_entry: MakeEntry) -> None:
    path = tmp_path / "file" / "out.jsonl"
    (tmp_path / "file").write_text("kept", encoding="utf-8")
    with pytest.raises(InputError, match=r"can't be written .* what it held before is untouched"):
        write_answers(path, Answers(), Holding(entries=[make_entry(PLAIN, ["a", "b"])]))
    assert (tmp_path / "file").read_text(encoding="utf-8") == "kept"


def test_half_a_surrogate_pair_fits_json_alone(tmp_path: Path, make_entry: MakeEntry) -> None:
    holding = Holding(entries=[make_entry(PLAIN, ["a", "b"], rationale="\ud83d oh")])
    write_answers(tmp_path / "answers.jsonl", Answers(), holding)
    assert json.loads((tmp_path / "answers.jsonl").read_text(encoding="utf-8"))["rationale"] == "\ud83d oh"
    for ending in (".csv", ".parquet"):
        with pytest.raises(InputError, match="half of a surrogate pair"):
            write_answers(tmp_path / f"answers{ending}", Answers(), holding)
    assert [path.name for path in tmp_path.iterdir()] == ["answers.jsonl"]


def test_nothing_makes_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing is there to be exported"):
        write_answers(tmp_path / "answers.jsonl", Answers(), Holding(entries=[]))
    assert list(tmp_path.iterdir()) == []
