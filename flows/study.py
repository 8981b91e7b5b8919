"""The study of on-policy data and negative gradients: the flow `study-bandit`, and what it publishes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from prefect import flow

from cluster.settings import Settings
from cluster.storage import atomic_path
from cluster.tracking import Status, Tracker
from flows.bandit import MEASURES, SOURCES, Cell, StudyConfig, cells, curves, mass_at_peak, results
from flows.curves import draw
from flows.findings import Finals, Finding, findings
from flows.standings import Grid
from tasks.design.arrays import FloatArray
from tasks.design.statistics import band
from tasks.progress import progress

STUDIES = "pairwright-studies"
"""The experiment of all studies in MLflow."""

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


@dataclass(frozen=True)
class Published:
    """What a terminal shows of a study.

    Attributes:
        grids: tables of final rewards.
        findings: the paper's, each with its answer.
        reused: whether the results were found finished.
        out: folder of results, report and figures.
    """

    grids: tuple[Grid, ...]
    findings: tuple[Finding, ...]
    reused: bool
    out: Path


@flow(name="study-bandit")
def study_bandit(config: StudyConfig, out: Path | None = None) -> Published:
    """Train all cells or find them trained, compare them, publish, and tell MLflow."""
    settings = Settings()
    folder = out or settings.store / "study" / BANDIT
    with progress("cells") as report:
        found, reused = results(config, settings.store / "studies" / BANDIT, report)
    shown = findings(finals(config, found))
    published = Published((standings(config, found),), tuple(shown), reused, folder)
    publish(config, found, published)
    log(config, published, settings)
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


def publish(config: StudyConfig, found: pa.Table, published: Published) -> None:
    """Write results, report, config and figures into the study's folder."""
    out = published.out
    with atomic_path(out / "results.parquet") as temporary:
        pq.write_table(found, temporary)
    with atomic_path(out / "report.md") as temporary:
        temporary.write_text(report(config, found, published), encoding="utf-8")
    with atomic_path(out / "config.json") as temporary:
        temporary.write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")
    rewards = curves(config, found)
    for world in config.rewards:
        draw(config, rewards, world, out / f"{world}.png")


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


def log(config: StudyConfig, published: Published, settings: Settings) -> None:
    """Record the study as one run in MLflow; the same config continues the same run."""
    tracker = Tracker(tracking_uri=settings.tracking, experiment=STUDIES, artifact_root=settings.artifact_root)
    run = tracker.open_study(BANDIT, config.digest)
    status: Status = "FAILED"
    try:
        values = config.model_dump(mode="json")
        tracker.log_params(run, {name: json.dumps(value) for name, value in values.items()})
        tracker.log_metrics(run, _metrics(published.findings), step=0)
        answers = {f"finding.{place}": finding.answer for place, finding in enumerate(published.findings, start=1)}
        tracker.set_tags(run, answers)
        tracker.log_folder(run, published.out)
        status = "FINISHED"
    finally:
        tracker.close(run, status)


def _metrics(shown: Sequence[Finding]) -> Mapping[str, float]:
    named = [
        (f"finding_{place}/{number}", contrast)
        for place, finding in enumerate(shown, start=1)
        for number, contrast in enumerate((*finding.deciding, *finding.beside), start=1)
    ]
    return {name: contrast.difference.mean for name, contrast in named}


def _name(cell: Cell) -> str:
    return f"{cell.method}, {cell.source}, {cell.inner_steps}"


def _intervals(values: FloatArray) -> list[str]:
    """Means of (seeds, columns) with their intervals."""
    ends = band(values, np.random.default_rng(3))
    return [f"{mean:.3f} [{low:.3f}, {high:.3f}]" for mean, low, high in zip(*ends, strict=True)]
