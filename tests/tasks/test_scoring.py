"""Scores of responses on a real Ray: one file for each of theirs, as the torch model gives them."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow import feather
from safetensors.torch import load_file, save_file

from cluster.classifiers import TorchClassifier
from cluster.models import Contrast, Policy
from cluster.session import ray_session
from cluster.settings import Settings, TorchSettings
from tasks.feature_tables import read_features
from tasks.features import HiddenFeatures, compute_features
from tasks.labellers.rewards import Length, Sentiment
from tasks.proxies import AnyProxy, ImplicitReward, RewardModel
from tasks.scorers import Scoring, TorchScorer
from tasks.scoring import ScoringJob, score
from tasks.stages import RoundContext, manifest_of
from tasks.tables import ARROW, RESPONSES, Table, part_path, parts, read, write_part

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")

SCORING = Scoring(None, None, HiddenFeatures(pooling="mean"), same=True, batch_size=2)


@pytest.fixture
def responses(write_responses: Callable[[dict[str, list[str]]], Table], tmp_path: Path) -> Table:
    """Three files: of two responses, of one with a fault among three, and of one."""
    texts = {"warm": ["good", "bad"], "cold": ["grim", "a much longer response than any other", "grim"], "dull": ["x"]}
    rows = read(write_responses(texts).path, RESPONSES).to_pylist()
    rows[4]["fault"] = "duplicate"
    for shard, prompt in enumerate(texts):
        own = [row for row in rows if row["prompt_id"] == prompt]
        write_part(part_path(tmp_path / "responses", shard), own, RESPONSES)
    return Table(path=tmp_path / "responses", rows=len(rows), digest="responses")


def test_only_files_of_responses_without_scores_are_missing(responses: Table, tmp_path: Path) -> None:
    job = ScoringJob(responses, SCORING, tmp_path / "scores")
    assert job.missing() == [{"shard": 0}, {"shard": 1}, {"shard": 2}]
    job.target.mkdir()
    part_path(job.target, 1, ARROW).touch()
    assert job.missing() == [{"shard": 0}, {"shard": 2}]


def test_nothing_starts_where_nothing_is_missing(responses: Table, tmp_path: Path) -> None:
    job = ScoringJob(responses, SCORING, tmp_path / "scores")
    job.target.mkdir()
    for shard in range(3):
        part_path(job.target, shard, ARROW).touch()
    assert score(job, tmp_path / "no model", TorchSettings(), lambda *_: None) == {"model_seconds": 0.0}


@pytest.mark.parametrize("proxy", [None, Sentiment(), ImplicitReward()])
def test_no_responses_are_scored_without_a_model_in_a_stage_of_the_proxys_own(
    write_responses: Callable[[dict[str, list[str]]], Table],
    here: RoundContext,
    tmp_path: Path,
    proxy: AnyProxy | None,
) -> None:
    nobody = Policy(digest="nobody", model=tmp_path / "no model")
    contrast, config = Contrast(policy=nobody, reference=nobody), HiddenFeatures(proxy=proxy)
    table = compute_features.fn(write_responses({}), contrast, config, here, name="recalled_features")
    assert (table.rows, read_features(table.path).num_rows) == (0, 0)
    assert (manifest_of(table).config["proxy"] is None) == (proxy is None)


@pytest.fixture
def local_ray() -> Iterator[None]:
    with ray_session(Settings()):
        yield


def test_every_response_is_scored_in_a_file_of_the_same_number(
    responses: Table, tiny_model: Path, tmp_path: Path, local_ray: None
) -> None:
    job = ScoringJob(responses, SCORING, tmp_path / "scores", Length(per="character", unit=1.0))
    seen: list[tuple[int, int]] = []

    spent = score(job, tiny_model, TorchSettings(), lambda done, total, _: seen.append((done, total)))

    assert spent["model_seconds"] > 0
    assert spent["tokens_per_second"] > 0
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert [part.stem for part in parts(job.target)] == [part.stem for part in parts(responses.path)]
    asked = read(responses.path, RESPONSES).to_pylist()
    scorer = TorchScorer(tiny_model, TorchSettings())
    prompts, tokens = [row["messages"] for row in asked], [row["token_ids"] for row in asked]
    expected = scorer.score(prompts, tokens, SCORING)
    for number, (row, found) in enumerate(zip(asked, read_features(job.target).to_pylist(), strict=True)):
        names = ("response_id", "prompt_id")
        assert [found[name] for name in names] == [row[name] for name in names]
        assert (found["valid"], found["num_tokens"]) == (row["fault"] is None, len(row["token_ids"]))
        assert found["proxy_score"] == len(row["text"])
        assert found["logp_policy"] == pytest.approx(expected.logp_policy[number], abs=1e-4)
        assert found["logp_reference"] == found["logp_policy"]
        assert found["feature"] == pytest.approx(expected.vectors[number], abs=1e-5)
    check_only_the_missing_is_scored_again(job, tiny_model)


def check_only_the_missing_is_scored_again(job: ScoringJob, model: Path) -> None:
    """Part of the test above, for it needs the model that is running."""
    before: dict[str, Any] = {
        part.name: (part.stat().st_mtime_ns, feather.read_table(part)) for part in parts(job.target)
    }
    part_path(job.target, 1, ARROW).unlink()
    seen: list[tuple[int, int]] = []
    score(job, model, TorchSettings(), lambda done, total, _: seen.append((done, total)))
    assert seen == [(1, 1)]
    for part in parts(job.target):
        written, table = before[part.name]
        assert feather.read_table(part).equals(table)
        assert (part.stat().st_mtime_ns != written) == (part.name == "part-00001.arrow")


def test_a_changed_reward_model_is_another_stage_and_a_moved_one_is_not(
    write_responses: Callable[[dict[str, list[str]]], Table], here: RoundContext, tiny_classifier: Path, tmp_path: Path
) -> None:
    nobody = Policy(digest="nobody", model=tmp_path / "no model")
    contrast, empty = Contrast(policy=nobody, reference=nobody), write_responses({})
    moved, changed = tmp_path / "moved", tmp_path / "changed"
    for folder in (moved, changed):
        shutil.copytree(tiny_classifier, folder)

    def digest(path: Path, max_length: int | None = None) -> str:
        config = HiddenFeatures(proxy=RewardModel(path=path, max_length=max_length))
        return compute_features.fn(empty, contrast, config, here).digest

    first = digest(tiny_classifier)
    assert digest(moved) == digest(changed) == first
    with_another_head(changed, 2.0)
    assert digest(changed) != first
    assert digest(moved, 8) != first


def with_another_head(folder: Path, factor: float) -> None:
    """Multiply all scores of a classifier."""
    weights = load_file(folder / "model.safetensors")
    weights["score.weight"] = weights["score.weight"] * factor
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_reward_model_scores_every_response_once_and_a_stop_between_loses_nothing(
    responses: Table, tiny_model: Path, tiny_classifier: Path, tmp_path: Path, local_ray: None
) -> None:
    proxy = RewardModel(path=tiny_classifier)
    job = ScoringJob(responses, SCORING, tmp_path / "scores", proxy)
    seen: list[tuple[int, int]] = []
    with pytest.raises(Exception, match="no model"):
        score(job, tmp_path / "no model", TorchSettings(), lambda done, total, _: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert parts(job.target) == []
    written = {part: part.stat().st_mtime_ns for part in parts(job.judged)}

    assert score(job, tiny_model, TorchSettings(), lambda *_: None)["model_seconds"] > 0

    assert {part: part.stat().st_mtime_ns for part in parts(job.judged)} == written
    asked = read(responses.path, RESPONSES).to_pylist()
    alone = TorchClassifier(proxy.resolve(), TorchSettings())
    torch.set_num_threads(1)
    for row, found in zip(asked, read_features(job.target).to_pylist(), strict=True):
        expected = alone.score([row["messages"]], [row["text"]], 1)[0]
        assert [found["proxy_score"]] == pytest.approx(expected, abs=1e-5)
    check_the_implicit_reward_is_the_difference_of_log_likelihoods(responses, tiny_model, tmp_path)
    check_a_score_that_is_no_number_is_refused_with_its_response(responses, tiny_classifier, tmp_path)


def check_the_implicit_reward_is_the_difference_of_log_likelihoods(
    responses: Table, model: Path, tmp_path: Path
) -> None:
    """Part of the test above, for it needs the model that is running."""
    job = ScoringJob(responses, SCORING, tmp_path / "implicit", ImplicitReward())
    score(job, model, TorchSettings(), lambda *_: None)
    for row in read_features(job.target).to_pylist():
        assert row["proxy_score"] == row["logp_policy"] - row["logp_reference"] == 0.0


def check_a_score_that_is_no_number_is_refused_with_its_response(
    responses: Table, classifier: Path, tmp_path: Path
) -> None:
    """Part of the test above, for it needs the Ray that is running."""
    shutil.copytree(classifier, tmp_path / "broken")
    with_another_head(tmp_path / "broken", float("nan"))
    job = ScoringJob(responses, SCORING, tmp_path / "none", RewardModel(path=tmp_path / "broken"))
    with pytest.raises(Exception, match="the proxy score of response 'warm-0' is nan, and of 2 of 2 responses it is"):
        score(job, tmp_path / "no model", TorchSettings(), lambda *_: None)
    assert parts(job.judged) == parts(job.target) == []
