"""The referee: selectors against uniform pairs, over seeds and budgets, in worlds where their worth is known."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from cluster.errors import InputError
from cluster.session import ray_session
from cluster.settings import Settings
from cluster.storage import atomic_path, digest_of, digest_of_file
from flows.filing import Name
from tasks.design.environments import AnyEnvironment, UtilityTable
from tasks.design.environments.table import FromTable
from tasks.design.pool import Pool
from tasks.design.selectors import AnySelector
from tasks.design.selectors.baselines import Uniform
from tasks.progress import progress
from tasks.referee import OUTCOMES, Proxy, Terms, Trial, code, compute, draw_world, reads_scores
from tasks.tables import check
from tasks.utilities import read_utilities

UNIFORM = "uniform"
"""The selector that all others are compared with; every referee has it."""

RESULTS = pa.schema(
    [
        pa.field("environment", pa.string(), nullable=False),
        pa.field("proxy", pa.string()),
        pa.field("seed", pa.int32(), nullable=False),
        pa.field("selector", pa.string(), nullable=False),
        *OUTCOMES,
    ]
)
"""One row a trial and budget. `proxy`: null where a proxy can't change what the selector does."""

_CONFIG = b"pairwright.config"

Budgets = Annotated[tuple[PositiveInt, ...], Field(min_length=1)]


class Arena(BaseModel):
    """An environment, the proxies that are put on its worlds, and how policies are judged in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    environment: Annotated[AnyEnvironment, Field(discriminator="kind")]
    proxies: tuple[Proxy | None, ...] = Field(
        (None,), min_length=1, description="correlation of a proxy's scores with the utilities, 'length', null for none"
    )
    metric: Literal["regret", "utility"] = Field(
        "regret", description="regret at the environment's beta, or the utility at the config's divergence"
    )
    budgets: Budgets | None = Field(None, description="in place of the config's")
    uniform_budgets: tuple[PositiveInt, ...] | None = Field(None, description="in place of the config's")
    ridge: PositiveFloat | None = Field(None, description="in place of the config's")
    num_rounds: PositiveInt | None = Field(None, description="in place of the config's")
    selectors: tuple[str, ...] | None = Field(None, description="those of the config's that take part; null: all")


class RefereeConfig(BaseModel):
    """Who is compared, where, and how closely."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seeds: int = Field(20, ge=2, description="worlds of each environment; every selector sees all of them")
    budgets: Budgets = Field(description="labels, each spent anew")
    uniform_budgets: tuple[PositiveInt, ...] = Field(
        (), description="larger ones that uniform alone spends, to read how many labels others save"
    )
    environments: dict[Name, Arena] = Field(min_length=1)
    selectors: dict[Name, Annotated[AnySelector, Field(discriminator="kind")]]
    bases: tuple[str, ...] = Field((UNIFORM,), description="selectors that each of the others is compared with")
    ridge: PositiveFloat = Field(1.0, description="of the fit of the policy, in units of one label")
    divergences: tuple[PositiveFloat, ...] = Field(
        (0.1, 0.25, 0.5, 1.0, 2.0), description="KL from the reference at which utilities are read, nats"
    )
    divergence: PositiveFloat = Field(0.5, description="the one of them at which utilities are compared")
    num_rounds: PositiveInt = Field(1, description="equal parts of a budget, with a fit of the policy after each")

    @model_validator(mode="before")
    @classmethod
    def _has_uniform(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("selectors"), dict):
            return values
        return {**values, "selectors": {UNIFORM: {"kind": UNIFORM}, **values["selectors"]}}

    @model_validator(mode="after")
    def _names_are_known(self) -> "RefereeConfig":
        if not isinstance(self.selectors[UNIFORM], Uniform):
            raise ValueError(f"selectors.{UNIFORM} is {self.selectors[UNIFORM].kind}: give that another name")
        unknown = [base for base in self.bases if base not in self.selectors]
        if unknown:
            raise ValueError(f"bases has {unknown}: name some of the selectors {list(self.selectors)}")
        for name, arena in self.environments.items():
            unknown = [selector for selector in arena.selectors or () if selector not in self.selectors]
            if unknown:
                raise ValueError(f"environments.{name}.selectors has {unknown}: name some of {list(self.selectors)}")
        if self.divergence not in self.divergences:
            raise ValueError(f"divergence {self.divergence} is not read: put it among divergences")
        return self

    def selectors_of(self, arena: Arena) -> dict[str, AnySelector]:
        """Those that take part, uniform first; the order is the config's."""
        chosen = self.selectors if arena.selectors is None else {UNIFORM, *arena.selectors}
        return {name: selector for name, selector in self.selectors.items() if name in chosen}

    def budgets_of(self, arena: Arena) -> tuple[int, ...]:
        """What all selectors spend, rising."""
        return tuple(sorted(set(arena.budgets or self.budgets)))

    def uniform_budgets_of(self, arena: Arena) -> tuple[int, ...]:
        """What uniform spends, rising."""
        more = self.uniform_budgets if arena.uniform_budgets is None else arena.uniform_budgets
        return tuple(sorted({*self.budgets_of(arena), *more}))

    @property
    def digest(self) -> str:
        """SHA-256 of all that decides the results."""
        return digest_of(self.model_dump(mode="json", exclude={"bases", "divergence"}))


@dataclass(frozen=True)
class Stand:
    """Where a referee's files lie, and the table that worlds are drawn from."""

    trials: Path
    out: Path
    table: Path | None = None

    @property
    def results(self) -> Path:
        """All rows."""
        return self.out / "results.parquet"


@dataclass(frozen=True)
class Tally:
    """Trials of a run: computed now, and found finished."""

    computed: int
    reused: int


def compare(config: RefereeConfig, stand: Stand, settings: Settings) -> Tally:
    """Compute the trials that are missing, and write the results of all.

    Raises:
        InputError: the table is missing or not needed, a budget is too large, or a proxy doesn't fit its environment.
        TrialError: a selector failed; finished trials are kept.
    """
    table = _table(config, stand.table)
    trials = planned(config, stand, table)
    missing = {trial.digest: trial for trial in trials if not trial.path(stand.trials).exists()}
    if missing:
        with ray_session(settings), progress("trials") as report:
            compute(list(missing.values()), stand.trials, table, report)
    _write_results(config, stand, trials)
    different = len({trial.digest for trial in trials})
    return Tally(len(missing), different - len(missing))


def planned(config: RefereeConfig, stand: Stand, table: UtilityTable | None) -> list[Trial]:
    """All trials, environment by environment; those that a selector can't take part in are left out.

    Raises:
        InputError: a budget exceeds what a selector may choose from, or a proxy doesn't fit the environment.
    """
    digest, sources = None if stand.table is None else digest_of_file(stand.table), code()
    trials = []
    for name, arena in config.environments.items():
        terms = Terms(
            ridge=arena.ridge or config.ridge,
            divergences=config.divergences,
            code=sources,
            num_rounds=arena.num_rounds or config.num_rounds,
            table=digest if isinstance(arena.environment, FromTable) else None,
        )
        first = list(_first_trials(config, name, terms, table))
        trials += [replace(trial, seed=seed) for seed in range(config.seeds) for trial in first]
    return trials


def _first_trials(config: RefereeConfig, name: str, terms: Terms, table: UtilityTable | None) -> Iterator[Trial]:
    """The trials of seed 0 in an environment, once its first world shows that their budgets fit."""
    arena = config.environments[name]
    bare: set[str] = set()
    for proxy in arena.proxies:
        pool = _first_pool(config, name, proxy, table)
        for chosen, selector in config.selectors_of(arena).items():
            if chosen in bare or not _is_served(selector, pool):
                continue
            budgets = config.uniform_budgets_of(arena) if chosen == UNIFORM else config.budgets_of(arena)
            _check_budgets(pool, budgets, (name, chosen), selector)
            if not reads_scores(selector):
                bare.add(chosen)
            yield Trial(
                names=(name, chosen),
                environment=arena.environment,
                proxy=proxy if reads_scores(selector) else None,
                seed=0,
                selector=selector,
                budgets=budgets,
                terms=terms,
            )


def _first_pool(config: RefereeConfig, name: str, proxy: Proxy | None, table: UtilityTable | None) -> Pool:
    """The pool of an environment's seed 0.

    Raises:
        InputError: there is no such world.
    """
    try:
        return draw_world(config.environments[name].environment, proxy, 0, table).pool
    except ValueError as error:
        raise InputError(f"environments.{name}: {error}") from error


def _is_served(selector: AnySelector, pool: Pool) -> bool:
    has = {"scores": pool.scores is not None, "log_probs": pool.log_probs is not None}
    return all(has[need] for need in selector.needs)


def _check_budgets(pool: Pool, budgets: Sequence[int], names: tuple[str, str], selector: AnySelector) -> None:
    counts, cap = pool.pair_mask.sum(axis=1), selector.max_pairs_per_prompt
    room = int(counts.sum() if cap is None else np.minimum(counts, cap).sum())
    if max(budgets) > room:
        under = "" if cap is None else f" that max_pairs_per_prompt {cap} leaves"
        raise InputError(
            f"environments.{names[0]}: budget {max(budgets)} of selector {names[1]} exceeds the {room} pairs of the "
            f"pool{under}: lower budgets or uniform_budgets, or ask the environment for more prompts or responses"
        )


def _table(config: RefereeConfig, path: Path | None) -> UtilityTable | None:
    """The table that environments are drawn from.

    Raises:
        InputError: it is missing, nobody asks for it, or it can't be read.
    """
    asking = [name for name, arena in config.environments.items() if isinstance(arena.environment, FromTable)]
    if asking and path is None:
        raise InputError(f"environment {asking[0]} is drawn from a table of utilities: name one with --table PARQUET")
    if path is None:
        return None
    if not asking:
        raise InputError(f"--table {path} serves nobody: no environment of the config has kind 'table'")
    if not path.is_file():
        raise InputError(f"table {path} does not exist: name a Parquet file with --table")
    return read_utilities(path)


def _write_results(config: RefereeConfig, stand: Stand, trials: Sequence[Trial]) -> None:
    tables = [_rows(trial, stand) for trial in trials]
    whole = pa.concat_tables(tables).cast(RESULTS.with_metadata({_CONFIG: config.digest.encode()}))
    with atomic_path(stand.results) as temporary:
        pq.write_table(whole, temporary)


def _rows(trial: Trial, stand: Stand) -> pa.Table:
    """A trial's outcomes under its names."""
    path = trial.path(stand.trials)
    outcomes = check(pq.read_table(path), OUTCOMES, str(path))
    proxy = None if trial.proxy is None else str(trial.proxy)
    named = {"environment": trial.names[0], "proxy": proxy, "seed": trial.seed, "selector": trial.names[1]}
    columns = [pa.array([named[name]] * outcomes.num_rows, RESULTS.field(name).type) for name in named]
    return pa.Table.from_arrays([*columns, *outcomes.columns], schema=RESULTS)


def read_results(config: RefereeConfig, stand: Stand) -> pa.Table:
    """The results of an earlier run.

    Raises:
        InputError: there are none, or they are of another config.
    """
    if not stand.results.is_file():
        raise InputError(f"{stand.results} does not exist: run the referee once without --redraw")
    found = pq.read_table(stand.results)
    if (found.schema.metadata or {}).get(_CONFIG) != config.digest.encode():
        raise InputError(f"{stand.results} is of another config than this: run the referee without --redraw")
    return check(found, RESULTS, str(stand.results))
