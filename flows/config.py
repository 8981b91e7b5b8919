"""What a round does, and the lineage it belongs to: the YAML files of configs/ in types."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from prefect.client.schemas.schedules import CronSchedule
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator
from pydantic_core import ErrorDetails

from cluster.errors import InputError
from cluster.models import AnyCheckpoint
from flows.filing import NAME, Filing
from tasks.evaluation import EvaluationConfig
from tasks.features import DEFAULT_KIND, FEATURES, Features
from tasks.generation import GenerationConfig
from tasks.labellers.judge import Judge
from tasks.labellers.people import PeopleLabeller
from tasks.labelling import LabellingConfig
from tasks.logged import Logged, PoolConfig
from tasks.promotion import PromotionConfig
from tasks.prompts import PromptsConfig
from tasks.regeneration import Fresh, LowestReward
from tasks.selection import SelectionConfig
from tasks.training import TrainingConfig

Config = TypeVar("Config", bound=BaseModel)


class RoundConfig(BaseModel):
    """What one round does, stage by stage."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: AnyCheckpoint = Field(description="checkpoint of the base policy")
    seed: int = Field(0, ge=0, description="decides prompts, responses and training; labels have a seed of their own")
    prompts: PromptsConfig
    generation: GenerationConfig = GenerationConfig()
    pool: PoolConfig = PoolConfig()
    features: Features = FEATURES[DEFAULT_KIND]()
    selection: SelectionConfig
    labelling: LabellingConfig = LabellingConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    promotion: PromotionConfig = PromotionConfig()

    @model_validator(mode="after")
    def _selector_is_served(self) -> "RoundConfig":
        selector = self.selection.selector
        if "scores" in selector.needs and self.features.proxy is None:
            raise ValueError(f"selection.selector {selector.kind} needs scores: set features.proxy")
        return self

    @model_validator(mode="after")
    def _training_is_served(self) -> "RoundConfig":
        if self.training.reads_rewards and self.features.proxy is None:
            raise ValueError(
                f"training reads rewards of responses (objective {self.training.objective.kind}, weights.utility or "
                "min_reward_gap), which are the scores of features.proxy: set it"
            )
        return self

    @model_validator(mode="after")
    def _probabilities_are_served(self) -> "RoundConfig":
        labelling, training = self.labelling, self.training
        wanted = "probabilities" in training.objective.needs or training.weights.confidence
        if wanted and labelling.repeats == 1 and isinstance(labelling.labeller, Judge | PeopleLabeller):
            raise ValueError(
                f"training.objective {training.objective.kind} or weights.confidence needs probabilities of labels, "
                f"and one answer of labeller {labelling.labeller.kind} has none: raise labelling.repeats to have votes"
            )
        return self

    @model_validator(mode="after")
    def _regeneration_is_served(self) -> "RoundConfig":
        way = self.prompts.regenerate
        if isinstance(way, LowestReward) and self.features.proxy is None:
            raise ValueError("prompts.regenerate lowest_reward ranks prompts by stored scores: set features.proxy")
        if isinstance(self.pool.source, Logged) and not isinstance(way, Fresh):
            raise ValueError(
                f"prompts.regenerate {way.kind} has nothing to regenerate where pool.source is logged: "
                "choose fresh, or a source that is on_policy or mixed"
            )
        return self

    def selection_in(self, round_number: int) -> SelectionConfig:
        """The selection of one round; a round that regenerates a share of the prompts has that share of the budget."""
        budget = self.prompts.regenerate.part(self.selection.budget, round_number)
        return self.selection.model_copy(update={"budget": budget})

    @model_validator(mode="after")
    def _budgets_fit(self) -> "RoundConfig":
        for round_number in (0, 1):  # all later ones are as the second
            self._require_budget(round_number)
        return self

    def _require_budget(self, round_number: int) -> None:
        budget, selector = self.selection_in(round_number).budget, self.selection.selector
        prompts = self.prompts.regenerate.part(self.prompts.num_prompts, round_number)
        responses, cap = self.generation.num_responses, selector.max_pairs_per_prompt
        whose = f"budget {budget}" + (" of the rounds after the first" if round_number else "")
        pairs = prompts * responses * (responses - 1) // 2
        if budget > pairs:
            raise ValueError(
                f"{whose} exceeds the {pairs} pairs of the pool: "
                "lower selection.budget or raise generation.num_responses"
            )
        if cap is not None and budget > prompts * cap:
            raise ValueError(
                f"{whose} exceeds the {prompts * cap} pairs that "
                f"selection.selector.max_pairs_per_prompt {cap} allows: lower the budget or raise the cap"
            )
        least = prompts * selector.min_pairs_per_prompt
        if responses > 1 and budget < least:
            raise ValueError(
                f"{whose} is below the {least} pairs that "
                "selection.selector.min_pairs_per_prompt asks for: raise the budget or lower the minimum"
            )

    @model_validator(mode="after")
    def _labels_can_be_paid(self) -> "RoundConfig":
        """A judge's price depends on the texts, so that what it costs shows when it is asked."""
        labelling, labeller = self.labelling, self.labelling.labeller
        if labelling.budget is None or isinstance(labeller, Judge):
            return self
        pairs = self.selection_in(0).budget
        least = pairs * labelling.repeats * labeller.cost
        if least > labelling.budget:
            raise ValueError(
                f"labelling.budget {labelling.budget:g} does not pay for the {least:g} that the labels of one round "
                f"cost ({pairs} pairs, {labelling.repeats} answers each, {labeller.cost:g} an answer): "
                "raise it, or lower selection.budget or labelling.repeats"
            )
        return self

    @model_validator(mode="after")
    def _adapter_is_served(self) -> "RoundConfig":
        if self.training.lora.r > self.generation.max_lora_rank:
            raise ValueError(
                f"training.lora.r {self.training.lora.r} exceeds generation.max_lora_rank "
                f"{self.generation.max_lora_rank}, the largest the engine serves: raise that or lower the rank"
            )
        return self


class Schedule(BaseModel):
    """When the next rounds of a lineage start."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cron: str = Field(description="five fields, for example '0 2 * * *'")
    timezone: str = "UTC"
    rounds_per_start: PositiveInt = Field(1, description="rounds that one start runs")

    @model_validator(mode="after")
    def _known_to_prefect(self) -> "Schedule":
        try:
            CronSchedule(cron=self.cron, timezone=self.timezone)
        except ValidationError as error:
            raise ValueError("; ".join(message_of(fault) for fault in error.errors())) from error
        return self


class LineageConfig(Filing):
    """A lineage: a config, a selector and a seed, over some rounds. One file is one deployment."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lineage: str = Field(pattern=NAME, description="name in the store, Prefect and MLflow")
    rounds: PositiveInt = Field(1, description="rounds of the lineage in all")
    schedule: Schedule | None = None
    round: RoundConfig

    @property
    def lineage_names(self) -> tuple[str, ...]:
        """The lineages that it runs: this one."""
        return (self.lineage,)

    @property
    def filing(self) -> Filing:
        """Under what MLflow files its runs."""
        return Filing(experiment=self.experiment, comparison=self.comparison, called=self.called)


COMMANDS = {
    "round": "run, round, deploy or serve",
    "base": "compare, deploy or serve",
    "environments": "referee",
    "rewards": "study bandit",
    "worlds": "study theory",
    "noises": "study referee",
}
"""What takes a config, by the key that tells its type."""


def load_config(path: Path) -> LineageConfig:
    """Read a lineage's config, see `load`."""
    return load(path, LineageConfig)


def load(path: Path, model: type[Config]) -> Config:
    """Read a config of a type from YAML; relative paths in it are relative to the file.

    Raises:
        InputError: no such file, not YAML, or a config of another type.
        InputError: a value doesn't fit; all faults are listed with their place.
    """
    return fit(path, read_values(path, model), model)


def read_values(path: Path, *models: type[BaseModel]) -> Any:
    """The values of a config of one of these types, as they stand in YAML.

    Raises:
        InputError: no such file, not YAML, or a config of another type.
    """
    if not path.is_file():
        raise InputError(f"config {path} does not exist")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"config {path} is not YAML: {error}") from error
    _require_type(path, values, models)
    return values


def fit(path: Path, values: Any, model: type[Config]) -> Config:
    """The values of a file as a config; relative paths in it are relative to the file.

    Raises:
        InputError: a value doesn't fit; all faults are listed with their place.
    """
    try:
        return model.model_validate(_anchored(values, path.resolve().parent))
    except ValidationError as error:
        raise InputError(f"config {path} does not fit:\n{_faults(error)}") from error


def _require_type(path: Path, values: Any, models: Sequence[type[BaseModel]]) -> None:
    found = [key for key in COMMANDS if isinstance(values, dict) and key in values]
    if found and not any(model.model_fields.keys() & set(found) for model in models):
        raise InputError(f"config {path} has {found[0]!r}, so pairwright {COMMANDS[found[0]]} takes it: name another")


def _anchored(value: Any, folder: Path) -> Any:
    """The values with every string under a key `path` made absolute."""
    if isinstance(value, list):
        return [_anchored(item, folder) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: str(folder / Path(item).expanduser())
        if key == "path" and isinstance(item, str)
        else _anchored(item, folder)
        for key, item in value.items()
    }


UNKNOWN_KEY = {"extra_forbidden", "unexpected_keyword_argument"}
"""What pydantic calls it in a model and in a dataclass."""


def _faults(error: ValidationError) -> str:
    lines = []
    for fault in _telling(error.errors()):
        place = ".".join(str(part) for part in fault["loc"]) or "config"
        found = "" if isinstance(fault["input"], dict | BaseModel) else f" (found {fault['input']!r})"
        hint = ": no such key; check its spelling" if fault["type"] in UNKNOWN_KEY else f": {message_of(fault)}"
        lines.append(f"  {place}{hint}{found}")
    return "\n".join(lines)


def _telling(faults: Sequence[ErrorDetails]) -> list[ErrorDetails]:
    """The faults without those of union members that a `kind` did not ask for.

    A selector within a selector is a plain union: each member that is not meant complains about the `kind` alone.
    """
    misfits = [fault for fault in faults if fault["type"] == "literal_error" and fault["loc"][-1] == "kind"]
    others = [fault for fault in faults if fault not in misfits]
    met = {fault["loc"][: len(misfit["loc"]) - 2] for fault in others for misfit in misfits}
    unmet = {misfit["loc"][:-2]: misfit for misfit in misfits if misfit["loc"][:-2] not in met}
    named = [
        {**misfit, "loc": (*place, "kind"), "msg": "no such kind; the README lists them"}
        for place, misfit in unmet.items()
    ]
    return [*others, *(cast(ErrorDetails, fault) for fault in named)]


def message_of(fault: Mapping[str, Any]) -> str:
    """What pydantic says of a fault."""
    return str(fault["msg"]).removeprefix("Value error, ")
