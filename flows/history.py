"""What a lineage has done so far, read from its record in the store."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from cluster.errors import InputError
from cluster.models import Contrast, Policy
from cluster.storage import MANIFEST, Store, write_json
from flows.config import LineageConfig, RoundConfig
from tasks.lessons import Explored, Lessons
from tasks.stages import round_record
from tasks.tables import PastRound, Table
from tasks.training import TrainingConfig, trained_policy

ALL_STAGES = (
    "prompts",
    "held_out",
    "guard_texts",
    "drawn",
    "explored",
    "pool",
    "features",
    "recalled",
    "recalled_features",
    "explored_features",
    "selection",
    "preferences",
    "training",
    "selected",
    "selected_features",
    "margins",
    "answers",
    "answers_base",
    "answers_previous",
    "answer_features",
    "answer_features_base",
    "guard_features",
    "evaluation",
    "promotion",
)
"""The stages that a round can have, in order, by the names they have in its record."""

SOME_STAGES = ("drawn", "explored", "explored_features", "answer_features_base", "guard_texts", "guard_features")
"""Those that some rounds have: what the policy writes of a pool that gets logged responses, too; what the reference
says to the prompts, where training explores; what a judge makes of the base's answers; and held-out text and multiple
choice, where files of them are named."""

STAGES = tuple(stage for stage in ALL_STAGES if stage not in SOME_STAGES)
"""Those that every round has."""

ADDED_STAGES = ("selected", "selected_features", "margins")
"""Those of `STAGES` that rounds of earlier releases lack. Nothing builds on them and promotion comes after them, so a
round is finished without."""

NEEDED_STAGES = tuple(stage for stage in STAGES if stage not in ADDED_STAGES)
"""Those that a finished round has, of whatever release."""

MAY_CHANGE = ("labelling.budget", "labelling.labeller.min_labels", "labelling.labeller.deadline_hours")
"""What a lineage's config may change between starts: what its labels may cost, and how long it waits for people."""


@dataclass(frozen=True)
class History:
    """The base policy, and what the rounds before this one left."""

    base: Policy
    policies: Sequence[Policy]
    rounds: Sequence[PastRound]

    @property
    def policy(self) -> Policy:
        """The policy that writes this round's pool."""
        return self.policies[-1] if self.policies else self.base

    @property
    def preferences(self) -> list[Table]:
        """The labels of the rounds before this one, oldest first."""
        return [one.preferences for one in self.rounds]

    def contrast(self, config: TrainingConfig) -> Contrast:
        """The round's policy against the reference that the config names."""
        return Contrast(policy=self.policy, reference=self._named(config.reference), lora=config.lora)

    def lessons(
        self, config: TrainingConfig, preferences: Table, features: Sequence[Table], explored: Explored | None = None
    ) -> Lessons:
        """What this round trains on: its own labels, or those of all rounds so far.

        `features` are the round's own, whose reference is today's; earlier ones have it where it is always the base.
        They are there for late labels, too, whose pairs are of earlier rounds.
        """
        past = [] if config.data == "round" else self.rounds
        scores = [table for one in self.rounds for table in (one.features, one.recalled_features)]
        return Lessons(
            base=self.base,
            start=self._named(config.start),
            reference=self._named(config.reference),
            preferences=[*(one.preferences for one in past), preferences],
            features=[*scores, *features],
            reference_features=[*(scores if config.reference == "base" else []), *features],
            explored=explored,
        )

    def _named(self, name: str) -> Policy:
        return {"base": self.base, "previous": self.policy}[name]


def history(store: Store, lineage: str, round_number: int, base: Policy) -> History:
    """Read the rounds before `round_number`.

    Raises:
        InputError: one of them is unfinished.
    """
    policies, rounds = [], []
    for earlier in range(round_number):
        tables = recorded(store, lineage, earlier)
        if not is_finished(tables):
            raise InputError(
                f"round {round_number} of lineage {lineage!r} can't start: round {earlier} is unfinished "
                f"(found {', '.join(tables) or 'nothing'}): run that one first"
            )
        policies.append(trained_policy(base, tables["training"]))
        rounds.append(
            PastRound(
                pool=tables["pool"],
                features=tables["features"],
                recalled_features=tables["recalled_features"],
                preferences=tables["preferences"],
            )
        )
    return History(base, policies, rounds)


def recorded(store: Store, lineage: str, round_number: int) -> dict[str, Table]:
    """The round's stages that are noted as finished and still are, in order."""
    folder = round_record(store, lineage, round_number)
    files = {stage: folder / f"{stage}.json" for stage in ALL_STAGES}
    tables = {stage: _table(file) for stage, file in files.items() if file.exists()}
    return {stage: table for stage, table in tables.items() if (table.path / MANIFEST).exists()}


def is_finished(tables: dict[str, Table]) -> bool:
    """Whether a round has all the stages that a finished round has."""
    return all(stage in tables for stage in NEEDED_STAGES)


def first_unfinished(store: Store, config: LineageConfig) -> int:
    """Number of the first round that lacks a stage; `config.rounds` if none does."""
    for number in range(config.rounds):
        if not is_finished(recorded(store, config.lineage, number)):
            return number
    return config.rounds


def keep_config(store: Store, lineage: str, config: RoundConfig) -> None:
    """Note the config with which a lineage runs; only `MAY_CHANGE` can change afterwards.

    Raises:
        InputError: the lineage has run with another config.
    """
    file = store.lineage(lineage) / "config.json"
    wanted = config.model_dump(mode="json")
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else wanted
    changes = _changes(_settled(kept), _settled(wanted))
    if changes:
        raise InputError(
            f"lineage {lineage!r} has run with another config: {'; '.join(changes)}. "
            "Give the new config a lineage name of its own, or restore the old values"
        )
    if kept != wanted or not file.exists():
        write_json(file, wanted)


def settled(config: RoundConfig) -> dict[str, Any]:
    """The values of a config that stay for all of a lineage."""
    return cast(dict[str, Any], _settled(config.model_dump(mode="json")))


def _settled(value: object, place: str = "") -> object:
    if not isinstance(value, dict):
        return value
    places = {key: f"{place}.{key}" if place else key for key in value}
    return {key: _settled(inner, places[key]) for key, inner in value.items() if places[key] not in MAY_CHANGE}


def _changes(old: object, new: object, place: str = "round") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = dict.fromkeys([*old, *new])
        return [change for key in keys for change in _changes(old.get(key), new.get(key), f"{place}.{key}")]
    return [] if old == new else [f"{place} was {old!r}, now {new!r}"]


def _table(file: Path) -> Table:
    entry = json.loads(file.read_text(encoding="utf-8"))
    return Table(path=entry["path"], rows=entry["rows"], digest=entry["digest"])
