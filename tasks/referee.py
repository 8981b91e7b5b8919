"""The referee's work: what a selector's labels teach in worlds where that is known exactly, trial by trial.

A trial is one selector in one world at all its budgets. It is kept as one file, named by all that decides it, so that
a referee that was interrupted, or is asked for more, computes what is missing and nothing else.
"""

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

import tasks.design
from cluster.shards import Report
from cluster.storage import digest_of, digest_of_file
from tasks.design.arrays import FloatArray
from tasks.design.environments import AnyEnvironment
from tasks.design.environments.base import UtilityTable
from tasks.design.environments.proxy import attach_proxy, length_proxy
from tasks.design.environments.purchase import Purchase, best_parameter, present_pool, without_misfit, without_noise
from tasks.design.environments.world import World
from tasks.design.selectors import AnySelector
from tasks.tables import write_part

Proxy = float | Literal["length"]
"""Scores by their correlation with the utilities, or length in disguise."""

FITS = ("best", "without_misfit", "without_noise")
"""Fits beside that of the labels: all pairs with the chances of their labels; the pairs that were bought, with the
chances that the best of the family gives them; the same pairs with their true chances. What lies between one and the
next, and the fit of the labels, tells what of a loss is the choice of pairs and what is the noise of the labels."""

OUTCOMES = pa.schema(
    [
        pa.field("budget", pa.int32(), nullable=False),
        pa.field("labels", pa.int32(), nullable=False),
        pa.field("regret", pa.float64(), nullable=False),
        pa.field("utility", pa.float64(), nullable=False),
        pa.field("divergence", pa.float64(), nullable=False),
        pa.field("frontier", pa.list_(pa.float64()), nullable=False),
        *(pa.field(f"{fit}_regret", pa.float64(), nullable=False) for fit in FITS),
        *(pa.field(f"{fit}_frontier", pa.list_(pa.float64()), nullable=False) for fit in FITS),
        pa.field("selection_seconds", pa.float64(), nullable=False),
        pa.field("seconds", pa.float64(), nullable=False),
        pa.field("notes", pa.list_(pa.string()), nullable=False),
        pa.field("num_prompts", pa.int32(), nullable=False),
        pa.field("num_responses", pa.int32(), nullable=False),
    ]
)
"""One row a budget. `regret`, `utility`, `divergence` (nats): of the fitted policy; `frontier`: its direction's utility
at each of the trial's divergences; with a prefix, those of the FITS. `selection_seconds`: in the selector; `seconds`:
with fits and measures."""

_WORLD, _PROXY, _SELECTION = range(3)
"""Streams of a seed's random numbers."""


def code() -> str:
    """SHA-256 of the sources that trials run: a changed environment, selector or fit makes the same trial another."""
    folder = Path(tasks.design.__file__).parent
    sources = [Path(__file__), *sorted(folder.rglob("*.py"))]
    return digest_of({str(path.relative_to(folder.parent)): digest_of_file(path) for path in sources})


class TrialError(RuntimeError):
    """A trial that ended in an error, with its place."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What all trials in an environment share.

    Attributes:
        ridge: of the fit of the policy, in units of one label.
        divergences: KL from the reference at which the frontier is read, nats.
        num_rounds: equal parts in which a budget is spent, with a fit after each.
        table: digest of the file of utilities that worlds are drawn from; None: they need none.
        code: that of the sources, see `code`.
    """

    ridge: float
    divergences: tuple[float, ...]
    code: str
    num_rounds: int = 1
    table: str | None = None


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One selector in one world.

    Attributes:
        names: of the environment and of the selector in the config, which decide nothing.
        environment: what the world is drawn from.
        proxy: what scores the world's responses; None: nothing does.
        seed: decides world, labels, scores and the selector's own draws.
        selector: what spends the budgets.
        budgets: labels, each spent anew.
        terms: what it shares with others.
    """

    names: tuple[str, str]
    environment: AnyEnvironment
    proxy: Proxy | None
    seed: int
    selector: AnySelector
    budgets: tuple[int, ...]
    terms: Terms

    @property
    def digest(self) -> str:
        """SHA-256 of all that decides the outcome."""
        setting = [asdict(self.environment), self.proxy, self.seed, asdict(self.selector)]
        return digest_of([*setting, self.budgets, asdict(self.terms)])

    def path(self, folder: Path) -> Path:
        """Where its outcome lies once it is there."""
        return folder / f"{self.digest}.parquet"

    def place(self, budget: int) -> str:
        """In words."""
        proxy = "" if self.proxy is None else f", proxy {self.proxy}"
        return f"environment {self.names[0]}{proxy}, seed {self.seed}, selector {self.names[1]}, budget {budget}"


def reads_scores(selector: AnySelector) -> bool:
    """Whether a proxy can change what it does."""
    return "scores" in selector.needs | selector.reads


def compute(trials: Sequence[Trial], folder: Path, table: UtilityTable | None, report: Report) -> None:
    """Run trials in Ray, one task a world, and keep each as it ends.

    Raises:
        TrialError: the first that ended in an error; those that ended before are kept.
    """
    import ray

    groups: dict[object, list[Trial]] = defaultdict(list)
    for trial in trials:
        groups[trial.environment, trial.proxy, trial.seed, trial.terms].append(trial)
    remote, shared = ray.remote(num_cpus=1)(run_trials), ray.put(table)
    running = {remote.remote(group, folder, shared): len(group) for group in groups.values()}
    done = 0
    report(done, len(trials))
    while running:
        (ended,), _ = ray.wait(list(running), num_returns=1)
        ray.get(ended)
        done += running.pop(ended)
        report(done, len(trials))


def run_trials(trials: Sequence[Trial], folder: Path, table: UtilityTable | None) -> None:
    """Run trials that share a world and its scores, and write the outcome of each."""
    world = draw_world(trials[0].environment, trials[0].proxy, trials[0].seed, table)
    best = best_parameter(world, ridge=trials[0].terms.ridge)
    for trial in trials:
        rows = [_outcome(trial, world, best=best, budget=budget) for budget in trial.budgets]
        write_part(trial.path(folder), rows, OUTCOMES)


def draw_world(environment: AnyEnvironment, proxy: Proxy | None, seed: int, table: UtilityTable | None) -> World:
    """The world of a seed; the same for all proxies, scores aside.

    Raises:
        ValueError: the environment or the proxy can't be had.
    """
    world = environment.draw(np.random.default_rng([_WORLD, seed]), table)
    if proxy is None:
        return world
    if proxy == "length":
        return length_proxy(world)
    return attach_proxy(world, proxy, np.random.default_rng([_PROXY, seed]))


def _outcome(trial: Trial, world: World, *, best: FloatArray, budget: int) -> dict[str, Any]:
    """A row of OUTCOMES.

    Raises:
        TrialError: whatever a selector raises, since only its place tells how to see it again.
    """
    begun = time.perf_counter()
    try:
        bought, facts = spend(world, trial, budget)
        measures = {**judge(world, bought.theta, trial.terms.divergences), **_beside(trial, world, bought, best=best)}
    except Exception as error:
        raise TrialError(f"{trial.place(budget)}: {type(error).__name__}: {error}") from error
    sizes = {"num_prompts": world.pool.num_prompts, "num_responses": world.pool.valid.shape[1]}
    spent = {"budget": budget, "labels": len(bought.index), "seconds": time.perf_counter() - begun}
    return {**spent, **facts, **measures, **sizes}


def spend(world: World, trial: Trial, budget: int) -> tuple[Purchase, Mapping[str, Any]]:
    """Spend a budget in the trial's rounds; what was bought, and `selection_seconds` and `notes` of the selector."""
    rng = np.random.default_rng([_SELECTION, trial.seed, budget])
    bought = Purchase(np.zeros(0, dtype=np.intp), np.zeros(0), np.zeros(world.pool.dim))
    seconds, notes = 0.0, list[str]()
    for part in np.array_split(np.arange(budget), min(trial.terms.num_rounds, budget)):
        pool = present_pool(world, bought)
        begun = time.perf_counter()
        selection = trial.selector(pool, len(part), rng)
        seconds += time.perf_counter() - begun
        notes += selection.notes
        index = np.concatenate([bought.index, world.index_of(selection)])
        new = np.ones(len(selection)) if selection.loss_weights is None else selection.loss_weights
        weights = np.concatenate([bought.weights, new])
        bought = Purchase.of(world, index, weights, ridge=trial.terms.ridge)
    return bought, {"selection_seconds": seconds, "notes": notes}


def judge(world: World, theta: FloatArray, divergences: Sequence[float]) -> dict[str, Any]:
    """What the policy of a parameter is worth on the world's target."""
    target = world.target
    policy = target.policy(theta)
    return {
        "regret": target.regret(policy, beta=world.pool.beta),
        "utility": target.utility(policy),
        "divergence": target.divergence(policy),
        "frontier": [target.utility_at(theta, divergence) for divergence in divergences],
    }


def _beside(trial: Trial, world: World, bought: Purchase, *, best: FloatArray) -> dict[str, Any]:
    """Regret and frontier of the FITS."""
    ridge = trial.terms.ridge
    thetas = (
        best,
        without_misfit(world, bought, best, ridge=ridge),
        without_noise(world, bought, ridge=ridge),
    )
    judged = [(fit, judge(world, theta, trial.terms.divergences)) for fit, theta in zip(FITS, thetas, strict=True)]
    return {f"{fit}_{name}": measures[name] for fit, measures in judged for name in ("regret", "frontier")}
