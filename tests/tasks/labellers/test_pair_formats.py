"""TRL's formats: tables of pairs come back as they were, and say what can't be a pair."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.errors import InputError
from tasks.labellers.formats import FORMATS, read_answers, write_answers
from tasks.labellers.formats.files import Faults, read_rows
from tasks.labellers.formats.parts import Given, Holding
from tasks.labellers.ledger import Entry

pytestmark = pytest.mark.labels

MakeEntry = Callable[..., Entry]

PLAIN = ({"role": None, "content": "say a word"},)
CHAT = ({"role": "system", "content": "be brief"}, {"role": "user", "content": "hello?"})


TEXTS = st.text(max_size=12) | st.sampled_from(["", '"', "a\r\nb", "\x00", "<b>", "🙂", "שלום"])
CHATS = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": TEXTS}), min_size=1
)
PLAINS = TEXTS.filter(bool).map(lambda text: [{"role": None, "content": text}])


def decided(messages: st.SearchStrategy[Any]) -> st.SearchStrategy[list[dict[str, Any]]]:
    texts = st.lists(TEXTS, min_size=2, max_size=2, unique=True)
    one = {"messages": messages, "texts": texts, "choice": st.sampled_from(["first", "second"])}
    return st.lists(st.fixed_dictionaries(one), min_size=1, max_size=5)


def read(path: Path, form: str = "answers") -> list[Given]:
    faults = Faults(path)
    found = read_answers(path, FORMATS[form], faults)
    faults.refuse()
    return found


def written(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("form", ["preference", "unpaired"])
@pytest.mark.parametrize("ending", [".jsonl", ".json", ".parquet"])
@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=decided(CHATS) | decided(PLAINS))
def test_tables_of_pairs_come_back_as_they_were(
    tmp_path: Path, make_entry: MakeEntry, form: str, ending: str, values: list[dict[str, Any]]
) -> None:
    made = [make_entry(**value) for value in values]
    held = list({one.key: one for one in made}.values())
    path = tmp_path / f"pairs{ending}"
    rows, _ = FORMATS[form].table(Holding(entries=held))
    write_answers(path, FORMATS[form], Holding(entries=held))
    assert [placed.row for placed in read_rows(path, Faults(path))] == rows
    given = read(path, form)
    assert [(one.question.key, one.question.first, one.answer.choice) for one in given] == [
        (one.key, one.first if one.choice == "first" else one.second, "first") for one in held
    ]
    again = [
        make_entry(one.question.messages, [one.question.first, one.question.second], choice=kept.choice)
        for one, kept in zip(given, held, strict=True)
    ]
    assert FORMATS[form].table(Holding(entries=again))[0] == rows


def test_repeated_answers_decide_a_pair_by_majority(make_entry: MakeEntry) -> None:
    held = [
        *(
            make_entry(PLAIN, ["a", "b"], choice=choice, repetition=index)
            for index, choice in enumerate(["first", "second", "second"])
        ),
        *(
            make_entry(PLAIN, ["c", "d"], choice=choice, repetition=index)
            for index, choice in enumerate(["first", "second"])
        ),
        make_entry(PLAIN, ["e", "f"], choice="tie"),
        make_entry(PLAIN, ["g", "h"], choice="second", superseded=True),
        make_entry(PLAIN, ["g", "h"], choice="abstain"),
        *(
            make_entry(PLAIN, ["i", "j"], choice=choice, repetition=index)
            for index, choice in enumerate(["abstain", "tie", "first"])
        ),
    ]
    rows, _ = FORMATS["preference"].table(Holding(entries=held))
    assert rows == [
        {"prompt": "say a word", "chosen": "b", "rejected": "a"},
        {"prompt": "say a word", "chosen": "i", "rejected": "j"},
    ]


def test_conversations_and_plain_prompts_do_not_share_a_file(make_entry: MakeEntry) -> None:
    held = [make_entry(PLAIN, ["a", "b"]), make_entry(CHAT, ["a", "b"]), make_entry(CHAT, ["c", "d"])]
    with pytest.raises(InputError, match="2 of 3 pairs have a conversation as prompt and the others plain text"):
        FORMATS["preference"].table(Holding(entries=held))


def test_responses_that_make_no_pairs_are_faults(tmp_path: Path) -> None:
    row = {"prompt": "p", "completion": "a", "label": True}
    with pytest.raises(InputError, match="line 1 and line 2 are no pair: expected the chosen responses of all pairs"):
        read(written(tmp_path / "one.jsonl", row, row | {"prompt": "q", "label": False}), "unpaired")
    with pytest.raises(InputError, match="3 of them, an odd number"):
        read(written(tmp_path / "odd.jsonl", row, row, row), "unpaired")
    two = [{"role": "user", "content": "hm"}, {"role": "assistant", "content": "yes"}]
    with pytest.raises(InputError, match="a completion of 2 messages: expected one"):
        read(written(tmp_path / "turns.jsonl", {"prompt": "p", "chosen": two, "rejected": "b"}), "preference")
