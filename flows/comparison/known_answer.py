"""The study of the referee itself: does it find an effect that is there, and none that isn't? Config and results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt

import flows.comparison
import tasks.design
from cluster.shards import Report
from cluster.storage import atomic_path, digest_of, digest_of_file
from flows.comparison.evidence import Evidence
from flows.comparison.judgement import UNIFORM, judge
from flows.comparison.seeds import Roster
from flows.comparison.synthetic import NOISES, Noise, Plan, synthetic_evidence
from tasks.design.arrays import FloatArray
from tasks.design.inference import sign_flips, student
from tasks.design.statistics import LEVEL, Verdict, compare
from tasks.tables import check

Rule = Literal["referee", "student", "sign flips", "bootstrap"]
RULES: tuple[Rule, ...] = get_args(Rule)
"""`referee` judges the evidence as `pairwright compare` does; `student` is the rule that it judges by, alone; the other
two are rules that it could judge by: turned signs, and the studentised bootstrap of `pairwright referee`."""

RESULTS = pa.schema(
    [
        pa.field("noise", pa.string(), nullable=False),
        pa.field("num_seeds", pa.int32(), nullable=False),
        pa.field("num_selectors", pa.int32(), nullable=False),
        pa.field("effect", pa.float64(), nullable=False),
        pa.field("rule", pa.string(), nullable=False),
        pa.field("repetitions", pa.int32(), nullable=False),
        pa.field("num_found", pa.int32(), nullable=False),
        pa.field("num_wrong", pa.int32(), nullable=False),
    ]
)
"""One row a scene and rule. `num_found`: repetitions in which the planted effect was found; `num_wrong`: those in which
anything was found that isn't there."""

_SOURCES = {
    Path(flows.comparison.__file__).parent: ("evidence", "judgement", "known_answer", "seeds", "synthetic"),
    Path(tasks.design.__file__).parent: ("inference", "statistics"),
}


class KnownAnswerConfig(BaseModel):
    """Every noise x number of seeds x number of selectors x effect; each repetition is a comparison made up."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: NonNegativeInt = 0
    num_seeds: tuple[PositiveInt, ...] = Field((3, 5, 10, 20), min_length=1, description="of each selector")
    num_selectors: tuple[PositiveInt, ...] = Field((1, 3, 7), min_length=1, description="beside uniform")
    noises: tuple[Noise, ...] = Field(NOISES, min_length=1, description="what lineages differ in by chance")
    effects: tuple[PositiveFloat, ...] = Field(
        (1.0, 2.0), description="planted in the first selector, in standard deviations of a paired difference"
    )
    repetitions: PositiveInt = Field(200, description="of every scene, by every rule")
    more_repetitions: PositiveInt = Field(
        2000, description="of those without an effect, by the rules that take no time"
    )

    @property
    def digest(self) -> str:
        """SHA-256 of all that decides the results."""
        files = [folder / f"{name}.py" for folder, names in _SOURCES.items() for name in names]
        return digest_of([self.model_dump(mode="json"), [digest_of_file(file) for file in files]])

    def repetitions_of(self, rule: Rule, effect: float) -> int:
        """How often a rule is tried on a scene."""
        return max(self.repetitions, self.more_repetitions) if rule in _QUICK and not effect else self.repetitions


_QUICK: tuple[Rule, ...] = ("student", "sign flips")


@dataclass(frozen=True)
class Scene:
    """What comparisons are made up like; no effect is an effect of 0."""

    noise: Noise
    num_seeds: int
    num_selectors: int
    effect: float

    @property
    def plan(self) -> Plan:
        """The first selector has the effect."""
        effects = {f"selector-{number}": 0.0 for number in range(1, self.num_selectors + 1)}
        return Plan(num_seeds=self.num_seeds, effects={**effects, PLANTED: self.effect}, noise=self.noise)


PLANTED = "selector-1"
"""The selector that has the effect."""

Verdicts = Mapping[str, Verdict]


def scenes(config: KnownAnswerConfig) -> list[Scene]:
    """All of them, in the order of the config, without an effect first."""
    effects = (0.0, *config.effects)
    return [Scene(*parts) for parts in product(config.noises, config.num_seeds, config.num_selectors, effects)]


def results(config: KnownAnswerConfig, folder: Path, report: Report) -> tuple[pa.Table, bool]:
    """The results, and whether they were found finished in the folder; what is computed is kept there."""
    path = folder / f"{config.digest}.parquet"
    if path.exists():
        return check(pq.read_table(path), RESULTS, str(path)), True
    rows, planned = [], scenes(config)
    for number, scene in enumerate(planned, start=1):
        rows += list(_tried(config, scene))
        report(number, len(planned), 0.0)
    found = pa.Table.from_pylist(rows, schema=RESULTS)
    with atomic_path(path) as temporary:
        pq.write_table(found, temporary)
    return found, False


def tried(scene: Scene, rule: Rule, repetitions: int, seed: int = 0) -> tuple[int, int]:
    """How often a rule found the planted effect, and how often anything that isn't there.

    A scene with an effect has the same chances as the one without, and all rules see the same comparisons.
    """
    num_found = num_wrong = 0
    for number in range(repetitions):
        place = (seed, NOISES.index(scene.noise), scene.num_seeds, scene.num_selectors, number)
        rng = np.random.default_rng(place)
        shown = DECIDE[rule](synthetic_evidence(scene.plan, rng), rng)
        true: Verdict = "above" if scene.effect else "no difference shown"
        num_found += bool(scene.effect) and shown[PLANTED] == true
        num_wrong += any(
            verdict not in ("no difference shown", true if selector == PLANTED else "no difference shown")
            for selector, verdict in shown.items()
        )
    return num_found, num_wrong


def _tried(config: KnownAnswerConfig, scene: Scene) -> Iterator[Mapping[str, Any]]:
    for rule in RULES:
        repetitions = config.repetitions_of(rule, scene.effect)
        num_found, num_wrong = tried(scene, rule, repetitions, config.seed)
        counts = {"repetitions": repetitions, "num_found": num_found, "num_wrong": num_wrong}
        yield {**vars(scene), "rule": rule, **counts}


def _by_referee(evidence: Evidence, rng: np.random.Generator) -> Verdicts:  # noqa: ARG001 (a rule)
    found = {one.selector: one.cell.difference for one in judge(evidence).standings}
    return {selector: difference.verdict for selector, difference in found.items() if difference is not None}


def _by_student(evidence: Evidence, rng: np.random.Generator) -> Verdicts:  # noqa: ARG001 (a rule)
    columns = _columns(evidence)
    found = student(list(columns.values()))
    return {selector: difference.verdict for selector, difference in zip(columns, found, strict=True)}


def _by_bootstrap(evidence: Evidence, rng: np.random.Generator) -> Verdicts:
    columns = _columns(evidence)
    found = compare(np.stack(list(columns.values()), axis=1), rng)
    return {selector: difference.verdict for selector, difference in zip(columns, found, strict=True)}


def _by_sign_flips(evidence: Evidence, rng: np.random.Generator) -> Verdicts:
    columns = _columns(evidence)
    adjusted = sign_flips(np.stack(list(columns.values()), axis=1), rng)
    shown = zip(columns.items(), adjusted, strict=True)
    return {name: _verdict(float(values.mean()), p_value) for (name, values), p_value in shown}


def _verdict(mean: float, p_value: float) -> Verdict:
    if p_value > LEVEL:
        return "no difference shown"
    return "above" if mean > 0 else "below"


def _columns(evidence: Evidence) -> dict[str, FloatArray]:
    roster, (budget,) = Roster(evidence), evidence.budgets
    return {name: roster.differences(name, UNIFORM, budget, roster.last) for name in evidence.selectors[1:]}


DECIDE: Mapping[Rule, Callable[[Evidence, np.random.Generator], Verdicts]] = {
    "referee": _by_referee,
    "student": _by_student,
    "sign flips": _by_sign_flips,
    "bootstrap": _by_bootstrap,
}
"""Verdicts of every rule, by selector."""
