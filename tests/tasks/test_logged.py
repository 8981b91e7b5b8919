"""Logged responses: what is read, how many are taken, and the tables they become alone and beside drawn ones."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import InputError
from cluster.models import Policy
from tasks.logged import Logged, LoggedShare, Mixed, OnPolicy, add_logged, check_logged, read_logged
from tasks.prompt_files import read_prompts
from tasks.stages import RoundContext, manifest_of
from tasks.tables import PROMPTS, RESPONSES, Table, parts, read
from tasks.tokeniser import Tokeniser

CHAT = [{"role": "user", "content": "hello"}]
LOG = (
    ("once", [" upon a time", " more", " more\n", "  "]),
    (CHAT, ["good", "sad </s> dull", "ünïcode ☃"]),
    ("once", [" again"]),
    ("twice", [" good", " bad", " poor"]),
)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A file of responses to three prompts, one of which comes twice."""
    return write_log(tmp_path / "log.jsonl", *LOG)


def write_log(path: Path, *rows: tuple[object, object]) -> Path:
    lines = [json.dumps({"prompt": prompt, "responses": responses}) for prompt, responses in rows]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def texts_of(found: dict[str, list[str]], prompts: list[dict[str, Any]]) -> dict[str, list[str]]:
    """The responses by the prompt's last words."""
    names = {row["prompt_id"]: row["messages"][-1]["content"] for row in prompts}
    return {names[prompt]: texts for prompt, texts in found.items()}


def test_responses_are_joined_to_prompts_by_content_and_rows_of_one_prompt_are_one(log: Path) -> None:
    assert texts_of(read_logged(log), read_prompts(log)) == {
        "once": [" upon a time", " more", " more\n", "  ", " again"],
        "hello": ["good", "sad </s> dull", "ünïcode ☃"],
        "twice": [" good", " bad", " poor"],
    }


def test_parquet_and_jsonl_give_the_same_responses(tmp_path: Path) -> None:
    rows = [("one", ["a", "b"]), ("two", ["c"])]
    prompts, responses = zip(*rows, strict=True)
    parquet = tmp_path / "log.parquet"
    pq.write_table(pa.table({"prompt": prompts, "responses": responses}), parquet)
    assert read_logged(parquet) == read_logged(write_log(tmp_path / "log.jsonl", *rows))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "two"}, r"line 2 has no 'responses' \(found \['prompt'\]\): expected a list of strings"),
        ({"prompt": "two", "responses": None}, "line 2 has no 'responses'"),
        ({"prompt": "two", "responses": "b"}, "line 2: 'responses' is of type str: expected a list of strings"),
        ({"prompt": "two", "responses": []}, "line 2: 'responses' is an empty list: expected at least one"),
        ({"prompt": "two", "responses": ["b", 7]}, "line 2: 'responses' holds 7: expected strings alone"),
        ({"responses": ["b"]}, "line 2 has no 'prompt'"),
    ],
)
def test_a_row_without_responses_is_refused_with_its_line(tmp_path: Path, row: object, message: str) -> None:
    path = write_log(tmp_path / "log.jsonl", ("one", ["a"]))
    path.write_text(f"{path.read_text()}\n{json.dumps(row)}\n", encoding="utf-8")
    with pytest.raises(InputError, match=rf"log\.jsonl, {message}"):
        read_logged(path)


def test_a_missing_file_is_refused_with_its_setting(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"responses file .*gone\.jsonl does not exist: check pool\.source\.path"):
        check_logged(Logged(path=tmp_path / "gone.jsonl"), 2, [])
    check_logged(OnPolicy(), 2, [])


def test_prompts_with_too_few_responses_are_counted_and_one_is_named(log: Path, tmp_path: Path) -> None:
    prompts = read_prompts(write_log(tmp_path / "prompts.jsonl", *LOG, ("never", [""])))
    check_logged(Logged(path=log), 3, read_prompts(log))
    with pytest.raises(InputError) as refusal:
        check_logged(Logged(path=log), 4, prompts)
    said = str(refusal.value)
    assert "log.jsonl has fewer than the 4 responses wanted of each prompt for 3 of 4 prompts, the first of" in said
    first = next(row for row in prompts if row["messages"][0]["content"] != "once")["messages"][0]["content"]
    assert {"never": "'never' with 0", "twice": "'twice' with 3", "hello": "'user: hello' with 3"}[first] in said
    with pytest.raises(InputError, match=r"the 1 responses wanted of each prompt for 1 of 4 prompts, .*'never' with 0"):
        check_logged(Mixed(path=log, ratio=0.25), 4, prompts)


@given(st.integers(1, 99), st.integers(2, 40))
def test_a_mixed_pool_has_the_nearest_number_of_logged_responses_and_some_of_both(percent: int, total: int) -> None:
    num = Mixed(path=Path("log"), ratio=percent / 100).num_logged(total)
    assert 1 <= num <= total - 1
    if 50 <= percent * total < 100 * total - 50:  # otherwise the limits decide
        assert -50 < 100 * num - percent * total <= 50


def test_halves_of_a_response_are_logged() -> None:
    assert [Mixed(path=Path("log"), ratio=ratio).num_logged(5) for ratio in (0.1, 0.3, 0.5, 0.7, 0.9)] == [
        1,
        2,
        3,
        4,
        4,
    ]


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.5, math.nan])
def test_a_ratio_that_leaves_one_side_without_responses_is_refused(ratio: float) -> None:
    with pytest.raises(InputError, match=rf"ratio is {ratio}: expected a share between 0 and 1; kind on_policy has no"):
        Mixed(path=Path("log"), ratio=ratio)


@pytest.mark.parametrize("chat", [False, True])
def test_tokens_give_the_text_back_and_end_where_sampling_stops(tiny_model: Path, chat: bool) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    texts = ["good", " a\n\nb ", "ünïcode ☃ 🙂", "", "<s>x</s><|user|>"]
    for text, tokens in zip(texts, Tokeniser(tiny_model)(texts, chat=chat), strict=True):
        assert tokens[-1] == tokenizer.eos_token_id
        assert not set(tokens[:-1]) & set(tokenizer.all_special_ids)
        assert tokenizer.decode(tokens, skip_special_tokens=True) == text


def test_a_turn_ends_with_the_templates_token_if_sampling_stops_there(tiny_model: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    template = "{% for m in messages %}<|user|>{{ m['content'] }}<|assistant|>\n{% endfor %}"
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    turn, end = tokenizer.convert_tokens_to_ids(["<|assistant|>", "</s>"])
    for stops, expected in ((end, end), ([end, turn], turn)):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": stops}))
        tokenise = Tokeniser(folder)
        assert [tokenise(["good"], chat=chat)[0][-1] for chat in (True, False)] == [expected, end]
    (folder / "generation_config.json").unlink()
    assert Tokeniser(folder)(["good"], chat=True)[0][-1] == end


@pytest.fixture
def base(tiny_model: Path) -> Policy:
    return Policy(digest="base", model=tiny_model)


@pytest.fixture
def prompts(log: Path, write_table: Callable[..., Table]) -> Table:
    return write_table(read_prompts(log), PROMPTS)


def test_a_logged_pool_has_the_first_responses_and_nobodys_log_probabilities(
    prompts: Table, log: Path, base: Policy, here: RoundContext
) -> None:
    table = add_logged.fn(prompts, None, LoggedShare(Logged(path=log), 3, 2), base, here)
    rows = read(table.path, RESPONSES).to_pylist()
    assert [path.name for path in parts(table.path)] == ["part-00000.parquet", "part-00001.parquet"]
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_prompt.setdefault(row["messages"][-1]["content"], []).append(row)
    assert {name: [row["text"] for row in own] for name, own in by_prompt.items()} == {
        "once": [" upon a time", " more", " more\n"],
        "hello": ["good", "sad </s> dull", "ünïcode ☃"],
        "twice": [" good", " bad", " poor"],
    }
    assert [row["prompt_id"] for row in rows] == [row["prompt_id"] for row in read_prompts(log) for _ in range(3)]
    assert [row["fault"] for row in by_prompt["once"]] == [None, None, "duplicate"]
    assert [row["index"] for row in rows] == [0, 1, 2] * 3
    assert len({row["response_id"] for row in rows}) == 9
    assert all(math.isnan(row["logprob"]) for row in rows)
    told = {(row["finish_reason"], row["policy"], row["engine"], row["sampling"]) for row in rows}
    assert told == {("logged", "logged", "logged", "{}")}
    tokenise = Tokeniser(base.model)
    for row in rows:
        assert [row["token_ids"]] == tokenise([row["text"]], chat=row["messages"][0]["role"] is not None)
    measures = manifest_of(table).measures
    assert measures == {"num_logged": 9, "num_empty": 0, "num_duplicate": 1, "model_seconds": 0.0}


def drawn_row(prompt: dict[str, Any], index: int, text: str) -> dict[str, Any]:
    return {
        "response_id": f"{prompt['prompt_id']}-{index}",
        **prompt,
        "index": index,
        "text": text,
        "token_ids": [7, 2],
        "logprob": -1.5,
        "finish_reason": "stop",
        "fault": None,
        "sampling": '{"seed": 3}',
        "policy": "policy-7",
        "engine": "vllm",
    }


def test_a_mixed_pool_has_the_drawn_responses_as_they_were_and_after_them_the_logged(
    prompts: Table, log: Path, base: Policy, here: RoundContext, write_table: Callable[..., Table]
) -> None:
    own = read_prompts(log)
    drawn = [drawn_row(prompt, index, text) for prompt in own for index, text in enumerate([" more", "new"])]
    table = write_table(drawn, RESPONSES)
    share = LoggedShare(Mixed(path=log, ratio=0.5), 4, 8)
    rows = read(add_logged.fn(prompts, table, share, base, here).path, RESPONSES).to_pylist()
    assert [row["index"] for row in rows] == [0, 1, 2, 3] * 3
    assert [row for row in rows if row["policy"] != "logged"] == drawn
    assert len({row["response_id"] for row in rows}) == 12
    once = [row for row in rows if row["messages"][0]["content"] == "once"]
    assert [row["text"] for row in once] == [" more", "new", " upon a time", " more"]
    assert [row["fault"] for row in once] == [None, None, None, "duplicate"]
    assert [math.isnan(row["logprob"]) for row in once] == [False, False, True, True]


def test_a_pair_of_logged_responses_is_the_same_in_every_round(
    prompts: Table, log: Path, base: Policy, here: RoundContext, write_table: Callable[..., Table]
) -> None:
    share, found = LoggedShare(Mixed(path=log, ratio=0.5), 4, 8), []
    for text in ("first", "second"):
        drawn = [drawn_row(prompt, i, f"{text} {i}") for prompt in read_prompts(log) for i in range(2)]
        rows = read(add_logged.fn(prompts, write_table(drawn, RESPONSES), share, base, here).path, RESPONSES)
        found.append([row["response_id"] for row in rows.to_pylist() if row["policy"] == "logged"])
    assert found[0] == found[1]
    assert len(set(found[0])) == 6


def test_the_stage_is_that_of_the_responses_taken_and_of_the_tokenizer(
    prompts: Table, log: Path, base: Policy, here: RoundContext, tmp_path: Path
) -> None:
    def digest(*, path: Path = log, num: int = 3, shard_size: int = 8, policy: Policy = base) -> str:
        table = add_logged.fn(prompts, None, LoggedShare(Logged(path=path), num, shard_size), policy, here)
        return str(table.digest)

    longer = write_log(tmp_path / "longer.jsonl", *LOG, ("thrice", ["more"]), ("twice", [" fine"]))
    turned = write_log(tmp_path / "turned.jsonl", *LOG[2:], *LOG[:2])
    other = Policy(digest="other", model=base.model)
    assert digest(path=longer) == digest()
    assert len({digest(), digest(path=turned), digest(num=2), digest(shard_size=2), digest(policy=other)}) == 5
