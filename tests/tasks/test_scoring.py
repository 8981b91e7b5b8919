"""Scores of responses on a real Ray: one file for each of theirs, as the torch model gives them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cluster.models import Contrast, Policy
from cluster.scorers import Scoring, TorchScorer
from cluster.session import ray_session
from cluster.settings import Settings, TorchSettings
from tasks.features import FeaturesConfig, compute_features
from tasks.labellers.rewards import AnyReward, Length, Sentiment
from tasks.scoring import ScoringJob, score
from tasks.stages import RoundContext, manifest_of
from tasks.tables import RESPONSES, Table, part_path, parts, read, read_features, write_part

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")

SCORING = Scoring(None, None, "mean", 2)


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
    part_path(job.target, 1).touch()
    assert job.missing() == [{"shard": 0}, {"shard": 2}]


def test_nothing_starts_where_nothing_is_missing(responses: Table, tmp_path: Path) -> None:
    job = ScoringJob(responses, SCORING, tmp_path / "scores")
    job.target.mkdir()
    for shard in range(3):
        part_path(job.target, shard).touch()
    assert score(job, tmp_path / "no model", TorchSettings(), lambda *_: None) == 0.0


@pytest.mark.parametrize("proxy", [None, Sentiment()])
def test_no_responses_are_scored_without_a_model_in_a_stage_of_the_proxys_own(
    write_responses: Callable[[dict[str, list[str]]], Table],
    here: RoundContext,
    tmp_path: Path,
    proxy: AnyReward | None,
) -> None:
    nobody = Policy(digest="nobody", model=tmp_path / "no model")
    contrast, config = Contrast(policy=nobody, reference=nobody), FeaturesConfig(proxy=proxy)
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

    seconds = score(job, tiny_model, TorchSettings(), lambda *done: seen.append(done))

    assert seconds > 0
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert [part.name for part in parts(job.target)] == [part.name for part in parts(responses.path)]
    asked = read(responses.path, RESPONSES).to_pylist()
    scorer = TorchScorer(tiny_model, TorchSettings())
    prompts, tokens = [row["messages"] for row in asked], [row["token_ids"] for row in asked]
    for row, found, expected in zip(
        asked, read_features(job.target).to_pylist(), scorer.score(prompts, tokens, SCORING)[0], strict=True
    ):
        names = ("response_id", "prompt_id")
        assert [found[name] for name in names] == [row[name] for name in names]
        assert (found["valid"], found["num_tokens"]) == (row["fault"] is None, len(row["token_ids"]))
        assert found["proxy_score"] == len(row["text"])
        assert found["logp_policy"] == pytest.approx(expected.logp_policy, abs=1e-4)
        assert found["logp_reference"] == found["logp_policy"]
        assert found["feature"] == pytest.approx(expected.feature, abs=1e-5)
    check_only_the_missing_is_scored_again(job, tiny_model)


def check_only_the_missing_is_scored_again(job: ScoringJob, model: Path) -> None:
    """Part of the test above, for it needs the model that is running."""
    before: dict[str, Any] = {part.name: (part.stat().st_mtime_ns, pq.read_table(part)) for part in parts(job.target)}
    part_path(job.target, 1).unlink()
    seen: list[tuple[int, int]] = []
    score(job, model, TorchSettings(), lambda *done: seen.append(done))
    assert seen == [(1, 1)]
    for part in parts(job.target):
        written, table = before[part.name]
        assert pq.read_table(part).equals(table)
        assert (part.stat().st_mtime_ns != written) == (part.name == "part-00001.parquet")
