"""The study of on-policy data and negative gradients: the flow `study-bandit`, and what it publishes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from prefect import flow

from cluster.settings import Settings
from flows.bandit import MEASURES, SOURCES, Cell, StudyConfig, cells, curves, mass_at_peak, results
from flows.curves import draw
from flows.findings import Finals, findings
from flows.publication import Identity, Published, log, write
from flows.standings import Grid
from tasks.design.arrays import FloatArray
from tasks.design.statistics import band
from tasks.progress import progress

BANDIT = "bandit"

LEGEND = (
    "Expected reward at the end, mean over seeds and its 95 % interval. All cells ask for the same number of rewards "
    "and see equal batches. On-policy T steps in a row are on one batch that the policy drew when they began; offline "
    "the batches are one data set of the reference, gone through T times. Findings are differences of these means, "
    "paired over seeds, with 95 % intervals; above and below: at 5 % after correction for all of them together."
)

PACE = (
    "DPO and likelihoods with a negative term have no least loss: trained on, they push rejected actions down without "
    "end, at the pace that Adam allows. The report's column of rejected actions shows how far."
)


@flow(name="study-bandit")
def study_bandit(config: StudyConfig, out: Path | None = None) -> Published:
    """Train all cells or find them trained, compare them, publish, and tell MLflow."""
    settings = Settings()
    folder = out or settings.store / "study" / BANDIT
    with progress("cells") as show:
        found, reused = results(config, settings.store / "studies" / BANDIT, show)
    shown = findings(finals(config, found))
    published = Published((standings(config, found),), tuple(shown), (LEGEND, PACE), reused, folder)
    write(published, config, found, report(config, found, published))
    rewards = curves(config, found)
    for world in config.rewards:
        draw(config, rewards, world, folder / f"{world}.png")
    log(published, Identity(BANDIT, config.digest), config, settings)
    return published


def finals(config: StudyConfig, found: pa.Table) -> Finals:
    """The rewards at the end of all trainings."""
    methods = list(config.methods.values())
    ends = np.stack([values[..., -1] for values in curves(config, found).values()], axis=1)
    shape = (len(config.rewards), len(methods), len(SOURCES), len(config.inner_steps), config.seeds)
    return Finals(
        values=ends.reshape(shape),
        far=np.array([mass_at_peak(config, reward) < 1 for reward in config.rewards.values()]),
        negative=np.array([method.negative for method in methods]),
        contrastive=np.array([method.contrastive for method in methods]),
        inner_steps=sorted(config.inner_steps),
    )


def standings(config: StudyConfig, found: pa.Table) -> Grid:
    """Final rewards: a cell a row, a reward a column."""
    ends = {cell: values[..., -1].T for cell, values in curves(config, found).items()}
    rows = [[_name(cell), str(config.num_queries), *_intervals(values)] for cell, values in ends.items()]
    return Grid("Expected reward at the end", ["method, source, T", "queries", *config.rewards], rows)


def diagnostics(config: StudyConfig, found: pa.Table, world: str) -> Grid:
    """What policies are at the end for one reward: a cell a row, a measure a column, means over seeds."""
    place = list(config.rewards).index(world)
    measured = {measure: curves(config, found, measure) for measure in MEASURES}
    rows = [
        [_name(cell), *(f"{values[cell][place, :, -1].mean():.3g}" for values in measured.values())]
        for cell in cells(config)
    ]
    headings = [
        "method, source, T",
        "reward",
        "entropy",
        "mass on best action",
        "KL(ref ‖ π)",
        "KL(π ‖ ref)",
        "log π chosen",
        "log π rejected",
    ]
    return Grid(f"{world} at the end, mean over seeds; nats", headings, rows)


def report(config: StudyConfig, found: pa.Table, published: Published) -> str:
    """The whole report in Markdown; figures lie beside it."""
    masses = ", ".join(f"{name} {mass_at_peak(config, reward):.2f}" for name, reward in config.rewards.items())
    parts = [
        "# On-policy data and negative gradients, on a bandit",
        f"{config.seeds} seeds, {config.num_queries} rewards asked for by each training. {LEGEND}",
        f"The reference's mass within 10 actions of a reward's peak, over that of equally likely actions: {masses}. "
        "Below 1 it counts as little.",
        *(f"- {finding}" for finding in published.findings),
        *(grid.markdown() for grid in published.grids),
        PACE,
    ]
    for world in config.rewards:
        parts += [f"## {world}", f"![{world}]({world}.png)", diagnostics(config, found, world).markdown()]
    return "\n\n".join([*parts, ""])


def _name(cell: Cell) -> str:
    return f"{cell.method}, {cell.source}, {cell.inner_steps}"


def _intervals(values: FloatArray) -> list[str]:
    """Means of (seeds, columns) with their intervals."""
    ends = band(values, np.random.default_rng(3))
    return [f"{mean:.3f} [{low:.3f}, {high:.3f}]" for mean, low, high in zip(*ends, strict=True)]
