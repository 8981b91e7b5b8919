"""What a comparison compares: selectors on one base config, over seeds and budgets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from flows.config import LineageConfig, RoundConfig, Schedule, fit, load_config, message_of, read_values
from flows.filing import Name
from flows.referee import UNIFORM
from tasks.design.selectors import AnySelector
from tasks.design.selectors.baselines import Uniform

Metric = Literal["win_base", "win_base_length_controlled", "reward"]


class Thresholds(BaseModel):
    """Guards: a gain beyond one of them is marked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_kl: PositiveFloat | None = Field(None, description="from the reference, nats a response; null: no limit")
    max_length_ratio: PositiveFloat = Field(1.5, description="mean tokens of a response, policy over base")
    max_perplexity_ratio: PositiveFloat = Field(1.1, description="of a held-out text, policy over base")
    max_capability_drop: NonNegativeFloat = Field(0.05, description="accuracy of the base minus that of the policy")
    min_diversity_ratio: PositiveFloat = Field(0.8, description="share of distinct bigrams, policy over base")


class ComparisonConfig(BaseModel):
    """Lineages that differ in selector, seed and budget alone; `uniform` is always among the selectors, first."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    comparison: Name = Field(description="name in the store, Prefect and MLflow; its lineages' names begin with it")
    base: LineageConfig = Field(description="what all share; in YAML the file of a lineage's config")
    selectors: dict[Name, Annotated[AnySelector, Field(discriminator="kind")]]
    seeds: tuple[NonNegativeInt, ...] = Field(min_length=1, description="one lineage of every selector each")
    budgets: tuple[PositiveInt, ...] = Field((), description="labels a round, a lineage each; none: the base's")
    rounds: PositiveInt | None = Field(None, description="in place of the base's")
    lineages: tuple[Name, ...] = Field((), description="lineages that ran before and join as they are")
    max_concurrent: PositiveInt = Field(
        1, description="lineages that run at once; where one waits for another's engine, its seconds count the wait"
    )
    metric: Metric = Field("win_base", description="what a round's policy is judged by")
    thresholds: Thresholds = Thresholds()
    schedule: Schedule | None = Field(
        None, description="when a deployment starts; its rounds are those of each lineage"
    )

    @model_validator(mode="before")
    @classmethod
    def _has_uniform(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("selectors"), dict):
            return values
        others = {name: selector for name, selector in values["selectors"].items() if name != UNIFORM}
        return {**values, "selectors": {UNIFORM: values["selectors"].get(UNIFORM, {"kind": UNIFORM}), **others}}

    @model_validator(mode="after")
    def _names_are_clear(self) -> ComparisonConfig:
        if not isinstance(self.selectors[UNIFORM], Uniform):
            raise ValueError(f"selectors.{UNIFORM} is {self.selectors[UNIFORM].kind}: give that another name")
        named: dict[str, list[str]] = {
            place: [str(value) for value in values]
            for place, values in (("seeds", self.seeds), ("budgets", self.budgets), ("lineages", self.lineages))
        }
        for place, values in named.items():
            if twice := {value: None for value in values if values.count(value) > 1}:
                raise ValueError(f"{place} has {', '.join(twice)} more than once: name each once")
        return self

    @model_validator(mode="after")
    def _rounds_fit(self) -> ComparisonConfig:
        faults = list(self._misfits())
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def _misfits(self) -> Iterator[str]:
        for budget, name in product(self.all_budgets, self.selectors):
            try:
                round_of_member(self, name, seed=self.seeds[0], budget=budget)
            except ValidationError as error:
                said = "; ".join(message_of(fault) for fault in error.errors())
                yield f"selectors.{name} does not fit the base at budget {budget}: {said}"

    @property
    def all_budgets(self) -> tuple[int, ...]:
        """Labels a round, the base's where no others are named."""
        return self.budgets or (self.base.round.selection.budget,)

    @property
    def lineage_names(self) -> tuple[str, ...]:
        """The lineages that it runs."""
        return tuple(member.lineage for member in members(self))

    @property
    def num_rounds(self) -> int:
        """Rounds of every lineage."""
        return self.rounds or self.base.rounds


@dataclass(frozen=True)
class Member:
    """A lineage of a comparison, and what it stands for there."""

    lineage: str
    selector: str
    seed: int
    budget: int
    config: LineageConfig


def members(config: ComparisonConfig) -> tuple[Member, ...]:
    """The lineages that a comparison runs, all of a seed before those of the next: they share its pools."""
    places = product(config.seeds, config.all_budgets, config.selectors)
    return tuple(_member(config, name, seed=seed, budget=budget) for seed, budget, name in places)


def round_of_member(config: ComparisonConfig, selector: str, *, seed: int, budget: int) -> RoundConfig:
    """The base's round with another selector, seed and budget.

    Raises:
        ValidationError: they don't fit the round.
    """
    base = config.base.round
    changes = {"selector": config.selectors[selector], "budget": budget}
    selection = type(base.selection).model_validate({**dict(base.selection), **changes})
    return RoundConfig.model_validate({**dict(base), "seed": seed, "selection": selection})


def load_comparison(path: Path) -> ComparisonConfig:
    """Read a comparison from YAML, and the lineage's config that it names as its base.

    Raises:
        InputError: one of the files doesn't exist, is not YAML, or is a config of another type.
        InputError: a value doesn't fit; all faults are listed with their place.
    """
    return _fitted(path, read_values(path, ComparisonConfig))


def load_deployable(path: Path) -> LineageConfig | ComparisonConfig:
    """Read a config that can be deployed: a lineage's or a comparison's.

    Raises:
        InputError: see `load_comparison`.
    """
    values = read_values(path, LineageConfig, ComparisonConfig)
    if isinstance(values, dict) and "base" in values:
        return _fitted(path, values)
    return fit(path, values, LineageConfig)


def named(found: Sequence[Member], lineages: Sequence[str]) -> list[Member]:
    """The members of these names, in order."""
    return [member for member in found if member.lineage in lineages]


def _fitted(path: Path, values: Any) -> ComparisonConfig:
    if isinstance(values, dict) and isinstance(base := values.get("base"), str):
        values = values | {"base": load_config(path.resolve().parent / Path(base).expanduser())}
    return fit(path, values, ComparisonConfig)


def _member(config: ComparisonConfig, selector: str, *, seed: int, budget: int) -> Member:
    name = f"{config.comparison}-{selector}-b{budget}-s{seed}"
    lineage = LineageConfig(
        lineage=name,
        rounds=config.num_rounds,
        experiment=config.comparison,
        comparison=config.comparison,
        called=selector,
        round=round_of_member(config, selector, seed=seed, budget=budget),
    )
    return Member(name, selector, seed, budget, lineage)
