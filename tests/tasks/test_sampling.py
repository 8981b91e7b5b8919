"""Responses of the real engine, served with an adapter and with merged weights, against scores of the torch model."""

import json
import sysconfig
import venv
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from cluster.engines import EngineLimits, Sampling
from cluster.models import Policy
from cluster.session import ray_session
from cluster.settings import EngineSettings, Settings, TorchSettings
from tasks.features import HiddenFeatures
from tasks.generation import GenerationConfig, generate_responses
from tasks.sampling import Drawn, SamplingJob, faults, sample
from tasks.scorers import Scoring, TorchScorer
from tasks.stages import RoundContext, manifest_of
from tasks.tables import PROMPTS, RESPONSES, Table, part_path, parts, read, write_part

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")

NUM_PROMPTS, K, MAX_TOKENS, SHARD = 5, 3, 12, 2
SAMPLING = Sampling(num_responses=K, max_tokens=MAX_TOKENS, temperature=1.0, top_p=1.0)
LIMITS = EngineLimits(max_model_len=96, max_lora_rank=8)


def test_a_response_that_is_blank_or_repeats_an_earlier_one_has_a_fault() -> None:
    texts = ["good", " ", "good", "bad", " good\n", "", "Good"]
    assert faults(texts) == [None, "empty", "duplicate", None, "duplicate", "empty", None]


def job_of(folder: Path, num_prompts: int, shard_size: int) -> SamplingJob:
    prompts = Table(path=folder / "prompts", rows=num_prompts, digest="prompts")
    return SamplingJob(prompts, Policy(digest="base", model=folder), SAMPLING, shard_size, 0, folder / "pool")


def test_shards_cover_the_prompts_and_the_last_one_may_be_shorter(tmp_path: Path) -> None:
    shards = job_of(tmp_path, num_prompts=8, shard_size=3).missing()
    assert [(shard["shard"], shard["start"], shard["stop"]) for shard in shards] == [(0, 0, 3), (1, 3, 6), (2, 6, 8)]
    assert len(job_of(tmp_path, num_prompts=6, shard_size=3).missing()) == 2


def test_only_shards_without_a_file_are_missing(tmp_path: Path) -> None:
    job = job_of(tmp_path, num_prompts=8, shard_size=3)
    job.target.mkdir()
    part_path(job.target, 1).touch()
    assert [shard["shard"] for shard in job.missing()] == [0, 2]


def test_nothing_starts_where_nothing_is_missing(tmp_path: Path) -> None:
    job = job_of(tmp_path, num_prompts=2, shard_size=3)
    job.target.mkdir()
    part_path(job.target, 0).touch()
    drawn = sample(job, tmp_path / "no model", LIMITS, EngineSettings(python=tmp_path / "no python"), lambda *_: None)
    assert drawn == Drawn(0, 0.0)


@dataclass(frozen=True)
class World:
    """A tuned policy, its prompts, the engines' settings, and the pools that they made."""

    policy: Policy
    prompts: Table
    engines: dict[str, EngineSettings]
    pools: dict[str, Table]

    def rows(self, weights: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = read(self.pools[weights].path, RESPONSES).to_pylist()
        return rows


@pytest.fixture(scope="module")
def policy(tiny_model: Path, make_adapter: Callable[[int], Path]) -> Policy:
    """The tiny model with a random adapter that does change its output."""
    return Policy(digest="a" * 64, model=tiny_model, adapter=make_adapter(0))


@pytest.fixture(scope="module")
def other_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of another environment, which finds all packages in this one's folder; it notes who starts it."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    [packages] = folder.glob("lib/python*/site-packages")
    line = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    (packages / "shared.pth").write_text(line, encoding="utf-8")
    noting = folder / "python"
    noting.write_text(f'#!/bin/sh\necho $$ >> {folder}/started\nexec {folder}/bin/python "$@"\n', encoding="utf-8")
    noting.chmod(0o755)
    return noting


@pytest.fixture(scope="module")
def world(
    policy: Policy,
    other_python: Path,
    join_round: Callable[..., RoundContext],
    make_home: Callable[[], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[World]:
    """A pool with the adapter, by an engine under the other interpreter, and one with merged weights under this."""
    folder = tmp_path_factory.mktemp("prompts")
    rows = [
        {"prompt_id": f"p{i}", "messages": [{"role": "user" if i else None, "content": f"warm or cold {'and ' * i}"}]}
        for i in range(NUM_PROMPTS)
    ]
    write_part(part_path(folder, 0), rows, PROMPTS)
    prompts = Table(path=folder, rows=NUM_PROMPTS, digest="prompts")
    cache = tmp_path_factory.mktemp("cache")
    engines = {"adapter": EngineSettings(python=other_python), "merged": EngineSettings()}
    shape = {"num_responses": K, "max_tokens": MAX_TOKENS, "max_model_len": LIMITS.max_model_len}

    def generate(weights: str) -> Table:
        here = join_round(make_home())
        settings = here.settings.model_copy(update={"cache": cache, "engine": engines[weights]})
        config = GenerationConfig(**shape, shard_size=SHARD, weights=weights, max_lora_rank=LIMITS.max_lora_rank)
        return generate_responses.fn(prompts, policy, config, replace(here, settings=settings))

    with ray_session(Settings()), ThreadPoolExecutor() as threads:  # an engine keeps one core busy while it starts
        pools = dict(zip(engines, threads.map(generate, engines), strict=True))
        yield World(policy, prompts, engines, pools)


@pytest.fixture(scope="module")
def scorer(tiny_model: Path) -> TorchScorer:
    return TorchScorer(tiny_model, TorchSettings())


@pytest.mark.parametrize("weights", ["adapter", "merged"])
def test_the_stored_log_probability_is_that_of_base_and_adapter(
    world: World, scorer: TorchScorer, weights: str
) -> None:
    rows = world.rows(weights)
    prompts, tokens = [row["messages"] for row in rows], [row["token_ids"] for row in rows]
    scores = scorer.score(prompts, tokens, Scoring(world.policy.adapter, None, HiddenFeatures(), same=False))
    drawn = np.array([row["logprob"] for row in rows])
    assert drawn == pytest.approx(scores.logp_policy, abs=1e-2)
    assert np.abs(drawn - scores.logp_reference).max() > 0.5


@pytest.mark.parametrize("weights", ["adapter", "merged"])
def test_every_prompt_is_answered_in_order_by_the_policy(world: World, weights: str) -> None:
    rows, asked = world.rows(weights), read(world.prompts.path, PROMPTS).to_pylist()
    expected = [(prompt["prompt_id"], prompt["messages"], index) for prompt in asked for index in range(K)]
    assert [(row["prompt_id"], row["messages"], row["index"]) for row in rows] == expected
    assert [pq.read_metadata(part).num_rows for part in parts(world.pools[weights].path)] == [6, 6, 3]
    assert len({row["response_id"] for row in rows}) == len(rows)
    assert {row["policy"] for row in rows} == {world.policy.name}
    assert {row["engine"].split()[0] for row in rows} == {"vllm"}
    for row in rows:
        cut = row["finish_reason"] == "length"
        assert len(row["token_ids"]) == MAX_TOKENS if cut else len(row["token_ids"]) <= MAX_TOKENS
    seeds = Counter(json.loads(row["sampling"])["seed"] for row in rows)
    assert sorted(seeds.values()) == [3, 6, 6], "one seed a shard"


def test_the_stage_says_what_it_took(world: World) -> None:
    for weights in world.pools:
        rows, measures = world.rows(weights), manifest_of(world.pools[weights]).measures
        tokens = sum(len(row["token_ids"]) for row in rows)
        assert measures["tokens"] == tokens
        assert measures["mean_tokens"] == pytest.approx(tokens / len(rows))
        assert measures["tokens_per_engine_second"] == pytest.approx(tokens / measures["model_seconds"])
        assert measures["num_empty"] == sum(row["fault"] == "empty" for row in rows)


def test_a_lost_shard_is_drawn_again_as_it_was_and_the_others_stay(world: World, tmp_path: Path) -> None:
    job = SamplingJob(world.prompts, world.policy, SAMPLING, SHARD, 0, tmp_path)
    kept = parts(world.pools["adapter"].path)
    for part in (kept[0], kept[2]):
        (tmp_path / part.name).write_bytes(part.read_bytes())
    written = (tmp_path / kept[0].name).stat().st_mtime_ns
    seen: list[tuple[int, int]] = []

    drawn = sample(
        job, world.policy.model, LIMITS, world.engines["adapter"], lambda done, total, _: seen.append((done, total))
    )

    assert pq.read_table(tmp_path / kept[1].name).equals(pq.read_table(kept[1]))
    assert (tmp_path / kept[0].name).stat().st_mtime_ns == written
    assert drawn.tokens == sum(len(row["token_ids"]) for row in pq.read_table(kept[1]).to_pylist())
    assert drawn.engine_seconds > 0
    assert seen == [(1, 1)]


def test_the_engine_runs_under_the_interpreter_that_the_settings_name(world: World, other_python: Path) -> None:
    started = [Path("/proc", pid, "cmdline") for pid in other_python.with_name("started").read_text().split()]
    assert [path.read_bytes().split(b"\0")[0] for path in started] == [b"ray::VllmEngine"], "the one with the adapter"
