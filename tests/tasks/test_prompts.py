"""Prompts: what is read, what is held out, and whose turn it is."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import InputError
from cluster.storage import digest_of
from tasks.prompt_files import read_prompts
from tasks.prompts import PromptsConfig, check_prompts, draw, draw_prompts, drawable, hold_out_prompts, split
from tasks.stages import RoundContext
from tasks.tables import PROMPTS, read

CHAT = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}]


def ids(rows: list[dict[str, Any]]) -> list[str]:
    return [row["prompt_id"] for row in rows]


def made_up(numbers: range) -> list[dict[str, Any]]:
    return [{"prompt_id": digest_of(number)[:32]} for number in numbers]


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    return tmp_path / "prompts.jsonl"


def lines(path: Path, *prompts: object) -> Path:
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts), encoding="utf-8")
    return path


def test_strings_and_conversations_are_read(jsonl: Path) -> None:
    found = [row["messages"] for row in read_prompts(lines(jsonl, "once upon a time", CHAT))]
    assert sorted(found, key=len) == [[{"role": None, "content": "once upon a time"}], CHAT]


def test_parquet_and_jsonl_give_the_same_prompts(jsonl: Path) -> None:
    for prompts in (["one", "two"], [CHAT, CHAT[1:]]):
        parquet = jsonl.with_suffix(".parquet")
        pq.write_table(pa.table({"prompt": prompts, "other": [1, 2]}), parquet)
        assert read_prompts(parquet) == read_prompts(lines(jsonl, *prompts))


def test_ids_are_hashes_of_the_content_in_whatever_order_it_comes(jsonl: Path, tmp_path: Path) -> None:
    rows = read_prompts(lines(jsonl, "one", "two", CHAT))
    assert rows == read_prompts(lines(tmp_path / "turned.jsonl", CHAT, "two", "one"))
    assert ids(rows) == sorted(ids(rows))
    assert len(set(ids(rows))) == 3
    assert ids(read_prompts(lines(jsonl, "one")))[0] in ids(rows)


def test_a_text_and_a_conversation_of_the_same_words_are_two_prompts(jsonl: Path) -> None:
    assert len(read_prompts(lines(jsonl, "hello", [{"role": "user", "content": "hello"}]))) == 2


def test_repeated_rows_are_dropped(jsonl: Path) -> None:
    assert len(read_prompts(lines(jsonl, "one", CHAT, "one", CHAT))) == 2


def test_empty_lines_and_other_columns_are_passed_over(jsonl: Path) -> None:
    jsonl.write_text('\n{"prompt": "one", "source": 7}\r\n\n   \n{"prompt": "two"}', encoding="utf-8")
    assert {row["messages"][0]["content"] for row in read_prompts(jsonl)} == {"one", "two"}


def test_a_prompt_may_hold_any_character(jsonl: Path) -> None:
    odd = "a\u2028b\u0085c\x0bd\x1ce ☃ \U0001f600"
    jsonl.write_text(json.dumps({"prompt": odd}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_prompts(jsonl)[0]["messages"][0]["content"] == odd


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "two"', r"line 2 is not JSON: .+ at column \d+"),
        ('"two"', r"line 2 has no 'prompt' \(found str\): expected a string or a list of chat messages"),
        ('{"Prompt": "two"}', r"line 2 has no 'prompt' \(found \['Prompt'\]\)"),
        ('{"prompt": null}', "line 2 has no 'prompt'"),
        ('{"prompt": 7}', "line 2: 'prompt' is neither a string nor a list"),
        ('{"prompt": [{"role": "user"}]}', "line 2: 'prompt' is neither a string nor a list"),
        ('{"prompt": []}', "line 2: 'prompt' is an empty conversation: expected at least one"),
        ('{"prompt": ""}', "line 2: 'prompt' is empty text: expected at least one"),
    ],
)
def test_a_row_that_is_no_prompt_is_refused_with_its_line(jsonl: Path, line: str, message: str) -> None:
    jsonl.write_text(f'{{"prompt": "one"}}\n{line}\n', encoding="utf-8")
    with pytest.raises(InputError, match=rf"prompts\.jsonl, {message}"):
        read_prompts(jsonl)


def test_a_parquet_row_that_is_no_prompt_is_refused_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "prompts.parquet"
    pq.write_table(pa.table({"prompt": ["one", None]}), path)
    with pytest.raises(InputError, match=r"prompts\.parquet, row 2 has no 'prompt'"):
        read_prompts(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("prompts.jsonl", b"", "is empty: it needs a row with a column 'prompt'"),
        ("prompts.jsonl", b"\n\n", "is empty"),
        ("prompts.jsonl", b'{"prompt": "\xff"}', r"is not UTF-8 \(.+ at byte 12\): save it as UTF-8"),
        ("prompts.parquet", b'{"prompt": "one"}', r"is not Parquet \(.+\): write it anew"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"prompts file .*{name} {message}"):
        read_prompts(tmp_path / name)


def test_a_missing_file_is_refused(jsonl: Path) -> None:
    with pytest.raises(InputError, match=r"prompts file .*prompts\.jsonl does not exist: check prompts\.path"):
        read_prompts(jsonl)


@given(st.integers(0, 60), st.integers(0, 60), st.floats(0.01, 0.99))
def test_new_prompts_move_no_old_one_across_the_split(old: int, new: int, share: float) -> None:
    before, after = (split(made_up(range(size)), share) for size in (old, old + new))
    for small, large in zip(before, after, strict=True):
        assert [prompt for prompt in ids(large) if prompt in ids(small)] == ids(small)
    assert sorted(ids(before[0]) + ids(before[1])) == sorted(ids(made_up(range(old))))


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.9])
def test_about_the_wanted_share_is_held_out(share: float) -> None:
    drawn, held_out = split(made_up(range(4000)), share)
    assert len(held_out) / 4000 == pytest.approx(share, abs=0.03)
    assert len(drawn) + len(held_out) == 4000


@given(st.integers(1, 12), st.data(), st.integers(1, 9), st.integers(0, 2**32))
def test_no_prompt_comes_again_before_all_others_came(num_rows: int, data: Any, num_rounds: int, seed: int) -> None:
    num_prompts = data.draw(st.integers(1, num_rows))
    rounds = [draw(num_rows, num_prompts, number, seed) for number in range(num_rounds)]
    assert all(len(set(drawn)) == num_prompts for drawn in rounds)
    in_order = [index for drawn in rounds for index in drawn]
    for start in range(0, len(in_order), num_rows):
        one_pass = in_order[start : start + num_rows]
        assert len(set(one_pass)) == len(one_pass)
        assert set(one_pass) <= set(range(num_rows))


def test_after_whole_passes_every_prompt_came_equally_often() -> None:
    came = Counter(index for number in range(10) for index in draw(15, 6, number, seed=3))
    assert came == dict.fromkeys(range(15), 4)


@given(st.integers(0, 2**32), st.integers(0, 5))
def test_a_seed_and_a_round_decide_the_draw(seed: int, number: int) -> None:
    assert draw(30, 7, number, seed) == draw(30, 7, number, seed)


def test_seeds_and_rounds_draw_differently() -> None:
    draws = {tuple(draw(50, 10, number, seed)) for number in range(4) for seed in range(10)}
    assert len(draws) == 40


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_prompts": 999}, r"prompts\.num_prompts is 999, but .* leaves \d+: lower it, or lower prompts\.held_out"),
        ({"num_held_out": 40}, r"prompts\.num_held_out is 40, but .* leaves \d+: lower it, or raise prompts\.held_out"),
    ],
)
def test_a_file_too_small_for_its_config_is_refused(prompts_file: Path, changes: dict[str, Any], message: str) -> None:
    fine = {"path": prompts_file, "num_prompts": 12, "num_held_out": 4}
    check_prompts(PromptsConfig(**fine))
    with pytest.raises(InputError, match=message):
        check_prompts(PromptsConfig(**fine | changes))


def test_rounds_draw_other_prompts_and_hold_out_the_same(
    prompts_file: Path, here: RoundContext, join_round: Any
) -> None:
    config = PromptsConfig(path=prompts_file, num_prompts=12, num_held_out=4)
    rounds = [here, join_round(here.settings.root, round_number=1)]
    drawn = [read(draw_prompts.fn(config, [], one).path, PROMPTS).column("prompt_id").to_pylist() for one in rounds]
    held_out = [hold_out_prompts.fn(config, one) for one in rounds]
    assert [len(set(own)) for own in drawn] == [12, 12]
    assert not set(drawn[0]) & set(drawn[1])
    assert held_out[0] == held_out[1]
    kept = read(held_out[0].path, PROMPTS).column("prompt_id").to_pylist()
    assert len(kept) == 4
    assert not set(kept) & {*drawn[0], *drawn[1]}


def test_the_known_prompts_of_lowest_reward_come_again_lowest_first(
    prompts_file: Path, here: RoundContext, join_round: Any, past_round: Any
) -> None:
    config = PromptsConfig.model_validate(
        {"path": prompts_file, "num_prompts": 5, "num_held_out": 4, "regenerate": {"kind": "lowest_reward"}}
    )
    first = drawn_ids(config, [], here)
    assert first == drawn_ids(PromptsConfig(path=prompts_file, num_prompts=5, num_held_out=4), [], here)
    scores = dict(zip(first, (3.0, -1.0, 2.0, 0.0, 4.0), strict=True))
    rows = [scored_row(f"{prompt}-0", prompt, score) for prompt, score in scores.items()]
    past = [past_round(rows, [])]
    second = join_round(here.settings.root, round_number=1)
    assert drawn_ids(config, past, second) == [first[1], first[3], first[2]]


def drawn_ids(config: PromptsConfig, past: Any, here: RoundContext) -> list[str]:
    return list(read(draw_prompts.fn(config, past, here).path, PROMPTS).column("prompt_id").to_pylist())


def scored_row(name: str, prompt: str, score: float) -> dict[str, Any]:
    return {
        "response_id": name,
        "prompt_id": prompt,
        "valid": True,
        "fault": None,
        "num_tokens": 1,
        "logp_policy": 0.0,
        "logp_reference": 0.0,
        "feature": [0.0],
        "proxy_score": score,
    }


def test_the_stage_is_that_of_its_prompts_whatever_chose_them(
    prompts_file: Path, here: RoundContext, past_round: Any, join_round: Any
) -> None:
    fresh = {"path": prompts_file, "num_prompts": 3, "num_held_out": 4}
    again = {**fresh, "regenerate": {"kind": "lowest_reward", "rho": 1.0}}
    table = draw_prompts.fn(PromptsConfig(**fresh), [], here)
    first = read(table.path, PROMPTS).column("prompt_id").to_pylist()
    past = [past_round([scored_row(f"{prompt}-0", prompt, i) for i, prompt in enumerate(first)], [])]
    second = join_round(here.settings.root, round_number=1)
    assert draw_prompts.fn(PromptsConfig.model_validate(again), past, second) == table
    turned = [past_round([scored_row(f"{prompt}-0", prompt, -i) for i, prompt in enumerate(first)], [])]
    other = draw_prompts.fn(PromptsConfig.model_validate(again), turned, second)
    assert other.digest != table.digest


def test_a_known_prompt_that_left_the_file_is_told(
    tmp_path: Path, here: RoundContext, past_round: Any, join_round: Any
) -> None:
    path = lines(tmp_path / "prompts.jsonl", *(f"prompt {number}" for number in range(9)))
    config = PromptsConfig.model_validate(
        {"path": path, "num_prompts": 2, "num_held_out": 1, "regenerate": {"kind": "random_share", "rho": 1}}
    )
    known = drawable(config)[0]["prompt_id"]
    past = [past_round([scored_row("a", known, 0.0), scored_row("b", "gone", 0.0)], [])]
    with pytest.raises(InputError, match=r"1 of the 2 prompts that shall .*prompts\.jsonl no more, .* gone: put them"):
        draw_prompts.fn(config, past, join_round(here.settings.root, round_number=1))
