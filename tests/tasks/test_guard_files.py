"""Files of guards: what is read, what is refused with its line, and the tables that become of them."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import InputError
from cluster.models import Policy
from tasks.feature_tables import features_schema
from tasks.guard_files import CapabilityFile, TextFile
from tasks.guard_tables import GuardTables, guard_measures
from tasks.guard_texts import write_guard_texts
from tasks.stages import RoundContext, manifest_of
from tasks.tables import RESPONSES, Table, read

CHAT = [{"role": "user", "content": "good or bad"}]
TEXTS = [{"prompt": "once", "response": " upon a time"}, {"prompt": CHAT, "response": "good </s>"}]
QUESTIONS = [
    {"prompt": "love or", "choices": [" hate", " great"], "answer": 0},
    {"prompt": CHAT, "choices": ["fine", "dull", "warm"], "answer": 2, "source": "by hand"},
]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def text(tmp_path: Path) -> TextFile:
    return TextFile(path=write(tmp_path / "text.jsonl", TEXTS))


@pytest.fixture
def capability(tmp_path: Path) -> CapabilityFile:
    return CapabilityFile(path=write(tmp_path / "capability.jsonl", [QUESTIONS[0], "", QUESTIONS[1]]))


def test_texts_and_questions_are_read_in_order_with_their_lines(text: TextFile, capability: CapabilityFile) -> None:
    plain = [{"role": None, "content": "once"}]
    assert [(one.messages, one.responses, one.answer) for one in text.read()] == [
        (plain, (" upon a time",), None),
        (CHAT, ("good </s>",), None),
    ]
    questions = capability.read()
    assert [(one.responses, one.answer) for one in questions] == [
        ((" hate", " great"), 0),
        (("fine", "dull", "warm"), 2),
    ]
    assert questions[1].where == f"{capability.path}, line 3"


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("{", "line 2 is not JSON: Expecting property name"),
        ([1], "line 2: found list, expected an object with prompt, choices, answer"),
        ({"prompt": "a"}, r"line 2: no 'choices' \(found prompt\); line 2: no 'answer' \(found prompt\)"),
        (QUESTIONS[0] | {"prompt": 7}, "line 2: 'prompt' is neither a string nor a list of"),
        (QUESTIONS[0] | {"prompt": ""}, "line 2: 'prompt' is empty"),
        (QUESTIONS[0] | {"choices": "ab"}, "line 2: 'choices' is 'ab': expected a list of texts that are not blank"),
        (QUESTIONS[0] | {"choices": ["a", " "]}, "line 2: 'choices' is .*: expected a list of texts that are not"),
        (QUESTIONS[0] | {"choices": ["a"]}, r"line 2: 'choices' is \['a'\]: expected 2 or more that differ"),
        (QUESTIONS[0] | {"choices": ["a", "a"]}, r"line 2: 'choices' is \['a', 'a'\]: expected 2 or more that differ"),
        (QUESTIONS[0] | {"answer": 2}, "line 2: 'answer' is 2: expected the index of a choice, 0 to 1"),
        (QUESTIONS[0] | {"answer": -1}, "line 2: 'answer' is -1: expected the index"),
        (QUESTIONS[0] | {"answer": "0"}, "line 2: 'answer' is '0': expected the index"),
        (QUESTIONS[0] | {"answer": True}, "line 2: 'answer' is True: expected the index"),
    ],
)
def test_a_question_that_does_not_fit_is_refused_with_its_line(tmp_path: Path, row: Any, fault: str) -> None:
    file = CapabilityFile(path=write(tmp_path / "capability.jsonl", [QUESTIONS[0], row]))
    with pytest.raises(InputError, match=rf"capability\.jsonl does not fit: {fault}.*evaluation\.capability\.path"):
        file.read()


def test_all_faults_of_a_file_are_told_at_once_and_of_many_the_first(tmp_path: Path) -> None:
    rows = [{"prompt": "a"}, TEXTS[0], {"prompt": "a", "response": ""}, "no", {"response": "b"}]
    with pytest.raises(InputError) as refusal:
        TextFile(path=write(tmp_path / "text.jsonl", rows)).read()
    assert str(refusal.value) == (
        f"{tmp_path}/text.jsonl does not fit: line 1: no 'response' (found prompt); line 3: 'response' is '': expected "
        "a text that is not blank; line 4 is not JSON: Expecting value at column 1; line 5: no 'prompt' (found "
        "response). Mend those lines, or name another file in evaluation.text.path"
    )
    with pytest.raises(InputError, match=r"line 20: no .*; and 10 more\. Mend"):
        TextFile(path=write(tmp_path / "text.jsonl", [{"prompt": "a"}] * 30)).read()


def test_a_file_that_is_missing_empty_or_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    with pytest.raises(InputError, match=r"text\.jsonl does not exist: check evaluation\.text\.path"):
        TextFile(path=path).read()
    with pytest.raises(InputError, match=r"text\.jsonl has no rows: it needs one JSON object a line"):
        TextFile(path=write(path, ["", " "])).read()
    path.write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"text\.jsonl is not UTF-8"):
        TextFile(path=path).read()


@pytest.fixture
def base(tiny_model: Path) -> Policy:
    return Policy(digest="base", model=tiny_model)


def test_given_texts_become_responses_without_the_token_that_stops(
    text: TextFile, capability: CapabilityFile, base: Policy, here: RoundContext, tiny_model: Path
) -> None:
    from transformers import AutoTokenizer

    table = write_guard_texts.fn([*text.read(), *capability.read()], base, here)
    rows = read(table.path, RESPONSES).to_pylist()
    assert [row["text"] for row in rows] == [" upon a time", "good </s>", " hate", " great", "fine", "dull", "warm"]
    answers = [None, None, True, False, False, False, True]
    assert [json.loads(row["sampling"]) for row in rows] == [{"answer": answer} for answer in answers]
    assert len({row["response_id"] for row in rows}) == 7
    assert len({row["prompt_id"] for row in rows}) == 4
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    for row in rows:
        assert tokenizer.decode(row["token_ids"]) == row["text"]
        assert tokenizer.eos_token_id not in row["token_ids"]
        assert math.isnan(row["logprob"])
    measures = manifest_of(table).measures
    assert (measures["num_texts"], measures["num_questions"]) == (2, 2)


def test_the_same_content_elsewhere_is_the_same_table_and_another_answer_is_another(
    capability: CapabilityFile, base: Policy, here: RoundContext, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    again = CapabilityFile(path=write(tmp_path / "elsewhere" / "questions.jsonl", QUESTIONS))
    tables = [write_guard_texts.fn(file.read(), base, here) for file in (capability, again)]
    assert tables[0] == tables[1]
    other = CapabilityFile(path=write(tmp_path / "other.jsonl", [QUESTIONS[0] | {"answer": 1}, QUESTIONS[1]]))
    assert write_guard_texts.fn(other.read(), base, here).digest != tables[0].digest


def test_rows_may_repeat(base: Policy, here: RoundContext, tmp_path: Path) -> None:
    file = CapabilityFile(path=write(tmp_path / "twice.jsonl", [QUESTIONS[0]] * 2))
    rows = read(write_guard_texts.fn(file.read(), base, here).path, RESPONSES).to_pylist()
    assert len({row["response_id"] for row in rows}) == 4


def test_what_is_longer_than_the_model_reads_is_refused_with_its_lines(
    base: Policy, here: RoundContext, tmp_path: Path
) -> None:
    rows = [TEXTS[0], {"prompt": "a" * 400, "response": "b" * 200}, TEXTS[1], {"prompt": CHAT, "response": "☃" * 600}]
    file = TextFile(path=write(tmp_path / "text.jsonl", rows))
    with pytest.raises(
        InputError, match=r"longer than the 512 tokens .*line 2 has 600 tokens; .*line 4 has \d+"
    ) as told:
        write_guard_texts.fn(file.read(), base, here)
    assert "line 1 " not in str(told.value)


def scored(write_table: Callable[..., Table], texts: Table, likelihoods: dict[str, tuple[float, float]]) -> Table:
    """Features with these log-probabilities under policy and base, by text."""
    rows = [
        {
            "response_id": row["response_id"],
            "prompt_id": row["prompt_id"],
            "valid": True,
            "num_tokens": len(row["token_ids"]),
            "logp_policy": likelihoods[row["text"]][0],
            "logp_reference": likelihoods[row["text"]][1],
            "feature": [0.0],
            "proxy_score": None,
        }
        for row in read(texts.path, RESPONSES).to_pylist()
    ]
    return write_table(rows[::-1], features_schema(1))


def test_measures_join_texts_and_likelihoods(
    text: TextFile, capability: CapabilityFile, base: Policy, here: RoundContext, write_table: Callable[..., Table]
) -> None:
    texts = write_guard_texts.fn([*text.read(), *capability.read()], base, here)
    lengths = {row["text"]: len(row["token_ids"]) for row in read(texts.path, RESPONSES).to_pylist()}
    per_token = {" upon a time": (-1, -2), "good </s>": (-1, -2), " hate": (-1, -3), " great": (-2, -2)}
    per_token |= {"fine": (-2, -2), "dull": (-3, -3), "warm": (-1, -1)}
    likelihoods = {name: (own * lengths[name], other * lengths[name]) for name, (own, other) in per_token.items()}
    found = guard_measures(GuardTables(texts, scored(write_table, texts, likelihoods)))
    assert found == {
        "perplexity": pytest.approx(math.e),
        "perplexity_se": pytest.approx(0, abs=1e-9),
        "perplexity_base": pytest.approx(math.e**2),
        "perplexity_base_se": pytest.approx(0, abs=1e-9),
        "capability": 1.0,
        "capability_se": 0.0,
        "capability_base": 0.5,
        "capability_base_se": 0.5,
    }


def test_what_has_no_file_has_no_measure(
    text: TextFile, base: Policy, here: RoundContext, write_table: Callable[..., Table]
) -> None:
    texts = write_guard_texts.fn(text.read(), base, here)
    features = scored(write_table, texts, dict.fromkeys((" upon a time", "good </s>"), (-1.0, -1.0)))
    assert set(guard_measures(GuardTables(texts, features))) == {
        name + ending for name in ("perplexity", "perplexity_base") for ending in ("", "_se")
    }
