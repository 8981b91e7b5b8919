"""The referee's work: what a selector's labels teach in worlds where that is known exactly, trial by trial.

A trial is one selector in one world at all its budgets. It is kept as one file, named by all that decides it, so that
a referee that was interrupted, or is asked for more, computes what is missing and nothing else.
"""

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from scipy.special import logsumexp

import tasks.design
from cluster.shards import Report
from cluster.storage import digest_of, digest_of_file
from tasks.design.arrays import FloatArray, IntArray, to_numpy
from tasks.design.environments import AnyEnvironment
from tasks.design.environments.base import UtilityTable
from tasks.design.environments.fitting import fit_policy
from tasks.design.environments.proxy import attach_proxy, length_proxy
from tasks.design.environments.world import World
from tasks.design.pool import Labels, Pool
from tasks.design.selectors import AnySelector
from tasks.tables import write_part

Proxy = float | Literal["length"]
"""Scores by their correlation with the utilities, or length in disguise."""

OUTCOMES = pa.schema(
    [
        pa.field("budget", pa.int32(), nullable=False),
        pa.field("labels", pa.int32(), nullable=False),
        pa.field("regret", pa.float64(), nullable=False),
        pa.field("utility", pa.float64(), nullable=False),
        pa.field("divergence", pa.float64(), nullable=False),
        pa.field("frontier", pa.list_(pa.float64()), nullable=False),
        pa.field("selection_seconds", pa.float64(), nullable=False),
        pa.field("seconds", pa.float64(), nullable=False),
        pa.field("notes", pa.list_(pa.string()), nullable=False),
        pa.field("num_prompts", pa.int32(), nullable=False),
        pa.field("num_responses", pa.int32(), nullable=False),
    ]
)
"""One row a budget. `regret`, `utility`, `divergence` (nats): of the fitted policy; `frontier`: its direction's utility
at each of the trial's divergences. `selection_seconds`: in the selector; `seconds`: with fit and measures."""

_WORLD, _PROXY, _SELECTION = range(3)
"""Streams of a seed's random numbers."""


def code() -> str:
    """SHA-256 of the sources that trials run: a changed environment, selector or fit makes the same trial another."""
    folder = Path(tasks.design.__file__).parent
    return digest_of({str(path.relative_to(folder)): digest_of_file(path) for path in sorted(folder.rglob("*.py"))})


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


@dataclass(frozen=True, eq=False)
class Purchase:
    """Labels bought so far.

    Attributes:
        index: flat pair indices in order of choice, (n,).
        weights: of the labels in the loss, (n,).
        theta: parameter of the policy fitted to them, (dim,).
    """

    index: IntArray
    weights: FloatArray
    theta: FloatArray


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
    for trial in trials:
        rows = [_outcome(trial, world, budget) for budget in trial.budgets]
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


def _outcome(trial: Trial, world: World, budget: int) -> dict[str, Any]:
    """A row of OUTCOMES.

    Raises:
        TrialError: whatever a selector raises, since only its place tells how to see it again.
    """
    begun = time.perf_counter()
    try:
        bought, facts = spend(world, trial, budget)
        measures = judge(world, bought.theta, trial.terms.divergences)
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
        bought = Purchase(index, weights, _fit(world, index, weights, trial.terms.ridge))
    return bought, {"selection_seconds": seconds, "notes": notes}


def _fit(world: World, index: IntArray, weights: FloatArray, ridge: float) -> FloatArray:
    differences = world.differences(index).astype(np.float64)
    shares = weights / weights.mean()
    return fit_policy(differences, world.labels(index), beta=world.pool.beta, ridge=ridge, weights=shares)


def present_pool(world: World, bought: Purchase) -> Pool:
    """The world's pool as it stands after a purchase: labels held, pairs left, rewards and log pi of the fitted policy.

    The chance that the policy writes one of a prompt's responses stays what it was.
    """
    pool = world.pool
    if len(bought.index) == 0:
        return pool
    signs = np.where(world.labels(bought.index), 1.0, -1.0)
    differences = signs[:, None] * world.differences(bought.index)
    gaps = None if pool.scores is None else signs * pool.differences_of(pool.scores).ravel()[bought.index]
    labels = Labels(
        differences=differences,
        margins=pool.beta * differences @ bought.theta,
        score_gaps=gaps,
        prompts=pool.pairs(bought.index)[0],
    )
    offered = pool.pair_mask.copy()
    offered.ravel()[bought.index] = False
    logits = to_numpy(pool.features) @ bought.theta
    return replace(
        pool,
        rewards=pool.rewards + pool.beta * logits,
        labels=labels,
        log_probs=None if pool.log_probs is None else _tilted(pool, pool.log_probs, logits),
        offered=offered,
    )


def _tilted(pool: Pool, log_probs: FloatArray, logits: FloatArray) -> FloatArray:
    """log pi of pi ~ pi_0 exp(logits), with each prompt's total over its valid responses as before, (P, K)."""
    before = np.where(pool.valid, log_probs, -np.inf)
    after = before + logits
    shift = logsumexp(before, axis=1, keepdims=True) - logsumexp(after, axis=1, keepdims=True)
    found: FloatArray = np.where(pool.valid, log_probs + logits + shift, log_probs)
    return found


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
