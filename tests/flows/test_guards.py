"""A real round with a judge, a held-out text and a multiple choice: what is told of the policy beside its win rate."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.errors import InputError
from cluster.settings import Settings
from flows.config import load_config
from flows.history import STAGES, recorded
from flows.opening import check_round
from tasks.feature_tables import read_features
from tasks.guards import distinct_bigrams
from tasks.stages import manifest_of
from tasks.tables import RESPONSES, SCORES, Table, read

CONFIGS = Path(__file__).parents[2] / "configs"
TEXTS = [{"prompt": "good or", "response": " bad and warm"}, {"prompt": "happy or", "response": " sad"}]
QUESTIONS = [{"prompt": f"{word} or", "choices": [" dull", " fine", " great love"], "answer": 2} for word in ("a", "b")]
GUARDS = {
    "judge": {"kind": "length", "per": "word"},
    "text": {"path": "text.jsonl"},
    "capability": {"path": "capability.jsonl"},
}


def write_files(folder: Path) -> None:
    for name, rows in {"text": TEXTS, "capability": QUESTIONS}.items():
        lines = "\n".join(json.dumps(row) for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")


@pytest.fixture(scope="module")
def guarded(make_desk: Callable[[str], Any], tiny_classifier: Path) -> dict[str, Table]:
    """The stages of a round whose config asks for all guards, a reward model for judge, its files beside it."""
    desk = make_desk("guarded")
    values = yaml.safe_load(desk.config.read_text())
    values["round"]["evaluation"] |= GUARDS | {"judge": {"kind": "reward_model", "path": str(tiny_classifier)}}
    desk.config.write_text(yaml.safe_dump(values), encoding="utf-8")
    write_files(desk.home)
    desk.run("round", "--round", "0")
    return recorded(desk.store, "guarded", 0)


def test_files_of_guards_are_looked_at_before_a_round(
    write_config: Callable[[dict[str, Any]], Path], tiny_config: dict[str, Any], make_home: Callable[[], Path]
) -> None:
    tiny_config["round"]["evaluation"] |= GUARDS
    path, settings = write_config(tiny_config), Settings(home=make_home())
    with pytest.raises(InputError, match=rf"{path.parent}/text\.jsonl does not exist: check evaluation\.text\.path"):
        check_round(load_config(path).round, settings)
    write_files(path.parent)
    (path.parent / "capability.jsonl").write_text('{"prompt": "a"}')
    with pytest.raises(InputError, match=r"capability\.jsonl does not fit: line 1: no 'choices'"):
        check_round(load_config(path).round, settings)
    assert not settings.store.exists() or not list(settings.store.iterdir())


def test_a_round_with_guards_has_three_stages_more(guarded: dict[str, Table]) -> None:
    assert set(guarded) == {*STAGES, "answer_features_base", "guard_texts", "guard_features"}
    assert guarded["guard_texts"].rows == guarded["guard_features"].rows == 2 + 2 * 3


def test_all_guards_are_told(guarded: dict[str, Table]) -> None:
    measures = manifest_of(guarded["evaluation"]).measures
    pairs = ("judge", "judge_base", "judge_gain", "reward_gain", "win_base_length_controlled", "num_tokens_base")
    files = ("perplexity", "perplexity_base", "capability", "capability_base")
    names = {name + ending for name in (*pairs, *files) for ending in ("", "_se")}
    assert names | {"distinct_2", "distinct_2_base", "reward_hacking"} <= set(measures)
    assert all(math.isfinite(measures[name]) for name in names)
    rows = read(guarded["evaluation"].path, SCORES).to_pylist()
    gains = [row["judge"] - row["judge_base"] for row in rows]
    assert measures["judge_gain"] == pytest.approx(sum(gains) / len(gains))
    opinions = read_features(guarded["answer_features_base"].path).column("proxy_score").to_pylist()
    assert measures["judge_base"] == pytest.approx(sum(opinions) / len(opinions))
    assert len(set(opinions)) > 1
    answers = read(guarded["answers"].path, RESPONSES)
    assert measures["distinct_2"] == distinct_bigrams(answers.column("token_ids").to_pylist())


def test_the_bases_perplexity_is_that_of_the_checkpoint_and_the_policys_is_another(
    guarded: dict[str, Table], tiny_model: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(tiny_model), AutoModelForCausalLM.from_pretrained(tiny_model)
    loss, num_tokens = 0.0, 0
    for row in TEXTS:
        prompt = tokenizer(row["prompt"])["input_ids"]
        text = tokenizer(row["response"], add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logps = model(torch.tensor([[*prompt, *text]])).logits[0].log_softmax(-1)
        loss -= sum(float(logps[len(prompt) - 1 + place, token]) for place, token in enumerate(text))
        num_tokens += len(text)
    measures = manifest_of(guarded["evaluation"]).measures
    assert measures["perplexity_base"] == pytest.approx(math.exp(loss / num_tokens), rel=1e-4)
    assert measures["perplexity"] != pytest.approx(measures["perplexity_base"], rel=1e-4)
    assert read_features(guarded["guard_features"].path).column("fault").null_count == 8


def test_the_files_that_ship_fit_and_their_answers_are_spread() -> None:
    given = load_config(CONFIGS / "sentiment.yaml").round.evaluation.read_given()
    answers = [one.answer for one in given if one.answer is not None]
    assert len(answers) >= 40
    assert len(given) - len(answers) >= 20
    assert max(map(answers.count, range(4))) <= len(answers) / 3, "always taking one place answers few"
