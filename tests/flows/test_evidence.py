"""Evidence is what the store and the ledger hold: finished rounds, their costs, and gaps with their reasons."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cluster.settings import Settings
from cluster.storage import StageKey, Store, write_json
from flows.comparison.config import ComparisonConfig, members
from flows.comparison.evidence import COSTS, SPENT_ON, Evidence, LineageFacts, from_json, gather, in_words, to_json
from flows.comparison.judgement import judge
from flows.config import load_config
from flows.history import ALL_STAGES, STAGES, keep_config
from tasks.design.selectors.baselines import Uniform
from tasks.labellers.ledger import Account, Ledger, question_key
from tasks.labellers.protocol import Question, Workplace
from tasks.labellers.rewards import Length
from tasks.labellers.simulated import SimulatedLabeller
from tasks.stages import round_record
from tasks.tables import PAIRS, part_path, write_part

MEASURES: dict[str, dict[str, Any]] = {
    "pool": {"tokens": 1200, "model_seconds": 10.0},
    "training": {"model_seconds": 5.0},
    "evaluation": {"win_base": 0.75, "win_base_se": float("nan"), "kl": 1.5, "judged_by": "length"},
    "selection": {"gap": 0.25, "notes": ["none"], "condition": math.inf},
}
PAIR_IDS = ("second", "first")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.at(tmp_path / "ledger.sqlite")


@pytest.fixture
def config(tiny_config: dict[str, Any]) -> ComparisonConfig:
    return ComparisonConfig.model_validate(
        {
            "comparison": "duel",
            "base": tiny_config,
            "selectors": {"greedy": {"kind": "d_design", "ridge": 0.5}},
            "seeds": [3],
            "thresholds": {"max_kl": 2.0},
        }
    )


def pair(order: int, pair_id: str) -> dict[str, Any]:
    ends = {"pair_id": pair_id, "order": order, "prompt_id": "p", "response_a": "a", "response_b": pair_id}
    return {**ends, "staleness": 0, **dict.fromkeys(("weight", "inclusion_probability", "loss_weight", "score"))}


def finish(store: Store, lineage: str, number: int, stages: tuple[str, ...] = STAGES) -> None:
    """Finish stages of a round, each of which took four seconds; recalled features are the features again."""
    for stage in stages:
        name = "features" if stage == "recalled_features" else stage
        folder = store.stage(key := StageKey(name, {"round": number, "lineage": lineage}, []))
        if folder.manifest is None:
            with folder.work() as started:
                if stage == "selection":
                    rows = [pair(order, pair_id) for order, pair_id in enumerate(PAIR_IDS)]
                    write_part(part_path(folder.path, 0), rows[::-1], PAIRS)
                folder.finish(started - 4, rows=2, schema_digest=None, measures=MEASURES.get(stage, {}))
        entry = {"path": str(folder.path), "rows": 2, "digest": key.digest, "reused": False}
        write_json(round_record(store, lineage, number) / f"{stage}.json", entry)


def buy(ledger: Ledger, lineage: str, number: int, prompts: str, tmp_path: Path) -> None:
    workplace = Workplace(settings=Settings(home=tmp_path), lineage=lineage, round=number)
    labeller = SimulatedLabeller(reward=Length(per="character"), cost=0.5)
    questions = [
        Question(key=question_key(prompt, first="a", second="bb"), messages=[], first="a", second="bb")
        for prompt in prompts
    ]
    ledger.buy(questions, labeller, Account(lineage=lineage, round=number), workplace)


def found(config: ComparisonConfig, store: Store, ledger: Ledger, **reasons: str) -> Evidence:
    return gather(
        config, store, ledger, confounds=(), reasons={key.replace("_", "-"): why for key, why in reasons.items()}
    )


def lineage(evidence: Evidence, name: str) -> LineageFacts:
    return next(one for one in evidence.lineages if one.lineage == name)


def test_a_finished_round_is_read_from_its_manifests(
    config: ComparisonConfig, store: Store, ledger: Ledger, tmp_path: Path
) -> None:
    greedy = "duel-greedy-b16-s3"
    for number in range(2):
        finish(store, greedy, number)
    buy(ledger, greedy, 0, "pqr", tmp_path)
    buy(ledger, greedy, 1, "prs", tmp_path)
    facts = lineage(found(config, store, ledger), greedy)
    first, second = facts.rounds
    assert (facts.selector, facts.seed, facts.budget, facts.missing, facts.why) == ("greedy", 3, 16, (), "")
    assert first.measures == {"win_base": 0.75, "kl": 1.5}
    assert first.certificate == {"gap": 0.25}
    assert first.pairs == PAIR_IDS
    assert first.model_seconds == 15
    assert [(one.num_labels, one.cost) for one in (first, second)] == [(3, 1.5), (1, 0.5)]
    assert first.pool != second.pool
    assert facts.round(1) is second
    assert facts.round(2) is None


def test_seconds_are_told_apart_by_what_they_were_spent_on(
    config: ComparisonConfig, store: Store, ledger: Ledger
) -> None:
    finish(store, "duel-uniform-b16-s3", 0)
    (first,) = lineage(found(config, store, ledger), "duel-uniform-b16-s3").rounds
    known = {stage: SPENT_ON.get(stage, "evaluation") for stage in STAGES if stage != "recalled_features"}
    expected = {cost: 4.0 * list(known.values()).count(cost) for cost in COSTS}
    assert first.seconds == pytest.approx(expected, abs=1.0)
    assert first.seconds["design"] == pytest.approx(4.0, abs=0.5)
    assert set(SPENT_ON) <= set(ALL_STAGES)


def test_what_is_missing_stays_missing_with_a_reason(config: ComparisonConfig, store: Store, ledger: Ledger) -> None:
    finish(store, "duel-uniform-b16-s3", 0)
    finish(store, "duel-uniform-b16-s3", 1, STAGES[: STAGES.index("training")])
    evidence = found(config, store, ledger)
    uniform, greedy = (lineage(evidence, f"duel-{name}-b16-s3") for name in ("uniform", "greedy"))
    assert ([one.number for one in uniform.rounds], uniform.missing, uniform.why) == (
        [0],
        (1,),
        "round 1 lacks training",
    )
    assert (greedy.rounds, greedy.missing, greedy.why) == ((), (0, 1), "round 0 has not begun")
    told = found(config, store, ledger, duel_greedy_b16_s3="the disk was full")
    assert lineage(told, "duel-greedy-b16-s3").why == "the disk was full"


def test_evidence_names_all_that_takes_part_uniform_first(
    config: ComparisonConfig, store: Store, ledger: Ledger
) -> None:
    wide = config.model_copy(update={"budgets": (16, 8), "seeds": (5, 3)})
    evidence = found(wide, store, ledger)
    assert (evidence.selectors, evidence.seeds, evidence.budgets) == (("uniform", "greedy"), (3, 5), (8, 16))
    assert [(one.selector, one.budget, one.seed) for one in evidence.lineages][:5] == [
        ("uniform", 8, 3),
        ("uniform", 8, 5),
        ("uniform", 16, 3),
        ("uniform", 16, 5),
        ("greedy", 8, 3),
    ]
    assert {one.lineage for one in evidence.lineages} == {member.lineage for member in members(wide)}
    assert (evidence.metric, evidence.num_rounds, evidence.reference) == ("win_base", 2, "base")
    assert evidence.thresholds["max_kl"] == 2.0
    assert evidence.kinds == {"uniform": "uniform", "greedy": "d_design (ridge 0.5)"}


def test_a_lineage_that_joins_brings_its_own_place(config: ComparisonConfig, store: Store, ledger: Ledger) -> None:
    elder = config.base.round.model_copy(update={"seed": 11})
    keep_config(store, "elder", elder)
    finish(store, "elder", 0)
    evidence = found(config.model_copy(update={"lineages": ("elder",)}), store, ledger)
    joined = lineage(evidence, "elder")
    assert (joined.selector, joined.seed, joined.budget, joined.missing) == ("robust_design", 11, 16, (1,))
    assert evidence.selectors == ("uniform", "greedy", "robust_design")
    assert evidence.seeds == (3, 11)
    assert evidence.kinds["robust_design"] == "robust_design (max_pairs_per_prompt 2)"


def test_evidence_survives_its_file(config: ComparisonConfig, store: Store, ledger: Ledger) -> None:
    finish(store, "duel-uniform-b16-s3", 0)
    evidence = replace(found(config, store, ledger), confounds=("one", "two"))
    assert from_json(to_json(evidence)) == evidence
    with pytest.raises(ValidationError):
        from_json('{"comparison": "duel"}')


def test_a_selector_is_told_by_what_is_not_as_usual() -> None:
    assert in_words(Uniform()) == "uniform"
    assert in_words(Uniform(max_pairs_per_prompt=2)) == "uniform (max_pairs_per_prompt 2)"


def test_a_real_round_is_evidence(undisturbed: Any, tmp_path: Path) -> None:
    base = load_config(undisturbed.config)
    config = ComparisonConfig(
        comparison="duel", base=base, selectors={}, seeds=(base.round.seed,), lineages=("undisturbed",)
    )
    ledger = Ledger.at(undisturbed.store.ledger)
    evidence = gather(config, undisturbed.store, ledger, confounds=(), reasons={})
    real = lineage(evidence, "undisturbed")
    (first,) = real.rounds
    assert real.missing == (1,)
    assert {"win_base", "reward", "reward_base", "kl", "num_tokens", "num_tokens_base"} <= first.measures.keys()
    assert all(math.isfinite(value) for value in (*first.measures.values(), *first.certificate.values()))
    assert len(first.pairs) == len(set(first.pairs)) == first.num_labels == base.round.selection.budget
    assert set(first.seconds) == set(COSTS)
    assert all(first.seconds[cost] > 0 for cost in COSTS)
    assert 0 < first.model_seconds <= sum(first.seconds.values())
    assert from_json(to_json(evidence)) == evidence
    assert "nothing to compare" in judge(evidence).headline
