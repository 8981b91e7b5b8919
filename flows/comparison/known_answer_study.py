"""The study of the referee: the flow `study-referee`, and what it publishes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from prefect import flow

from cluster.settings import Settings
from flows.comparison.known_answer import RULES, KnownAnswerConfig, Rule, Scene, results, scenes
from flows.publication import Identity, Published, log, write
from flows.standings import Grid
from tasks.design.inference import wilson
from tasks.progress import progress

REFEREE = "referee"

LEGEND = (
    "False verdicts: share of comparisons in which any selector is called above or below uniform, where none is; "
    "expected is 5 % at most. Power: share in which the one selector that is better is called above; its effect is in "
    "standard deviations of the difference of two lineages of a seed. 95 % intervals of Wilson. Noise: normal; t3, "
    "Student's with 3 degrees of freedom, whose tails are heavy; skewed, exponential for every selector beside normal "
    "for uniform, so that a difference is not as likely as its opposite. A rule that uses its 5 % up exceeds them "
    "in some scenes by chance; the more comparisons, the less."
)

Row = Mapping[str, Any]


@flow(name="study-referee")
def study_referee(config: KnownAnswerConfig, out: Path | None = None) -> Published:
    """Have the referee judge comparisons whose answer is known, or find that done, publish, and tell MLflow."""
    settings = Settings()
    folder = out or settings.store / "study" / REFEREE
    with progress("scenes") as show:
        found, reused = results(config, settings.store / "studies" / REFEREE, show)
    notes = (LEGEND, *summary(found))
    published = Published(tables(config, found), (), notes, reused, folder)
    write(published, config, found, report(published))
    log(published, Identity(REFEREE, config.digest), config, settings)
    return published


def tables(config: KnownAnswerConfig, found: pa.Table) -> tuple[Grid, Grid]:
    """The referee's false verdicts and power, and those of the rules that it could judge by."""
    rows = _by_place(found)
    planned = [scene for scene in scenes(config) if not scene.effect]
    powers = [f"power, effect {effect:g} sd" for effect in config.effects]
    counts = [config.repetitions_of(rule, 0.0) for rule in ("referee", "student")]
    heads = [f"false verdicts of {counts[0]:,}", f"its rule alone, of {counts[1]:,}", *powers]
    whole = [[*_place(scene), *_shares(config, rows, scene)] for scene in planned]
    rules = [f"{rule}: false, power" for rule in RULES[1:]]
    beside = [[*_place(scene), *(_in_short(config, rows, scene, rule) for rule in RULES[1:])] for scene in planned]
    return (
        Grid("The referee where the answer is known", [*PLACE, *heads], whole),
        Grid("Rules that it could judge by", [*PLACE, *rules], beside),
    )


def summary(found: pa.Table) -> list[str]:
    """The largest shares of false verdicts, by rule and kind of noise."""
    said = []
    for rule in RULES:
        for noises, kind in ((SYMMETRIC, "a difference is as likely as its opposite"), (("skewed",), "it is not")):
            rows = [
                row for row in found.to_pylist() if (row["rule"], row["effect"]) == (rule, 0) and row["noise"] in noises
            ]
            if rows:
                worst = max(rows, key=lambda row: float(row["num_wrong"]) / float(row["repetitions"]))
                said.append(
                    f"{rule}, where {kind}: false verdicts in {_told(worst, 'num_wrong')} at most "
                    f"({worst['noise']}, seeds {worst['num_seeds']}, selectors {worst['num_selectors']}); "
                    f"{_pooled(rows)} in all"
                )
    return said


def report(published: Published) -> str:
    """The whole report in Markdown."""
    grids = (grid.markdown() for grid in published.grids)
    return "\n\n".join(["# The referee where the answer is known", *published.notes, *grids, ""])


PLACE = ("noise", "seeds", "selectors")
SYMMETRIC = ("normal", "t3")


def _by_place(found: pa.Table) -> dict[tuple[Scene, str], Row]:
    names = ("noise", "num_seeds", "num_selectors", "effect")
    return {(Scene(*(row[name] for name in names)), row["rule"]): row for row in found.to_pylist()}


def _place(scene: Scene) -> list[str]:
    return [scene.noise, str(scene.num_seeds), str(scene.num_selectors)]


def _shares(config: KnownAnswerConfig, rows: Mapping[tuple[Scene, str], Row], scene: Scene) -> list[str]:
    false = [_told(rows[scene, rule], "num_wrong") for rule in ("referee", "student")]
    return false + [_told(rows[replace(scene, effect=effect), "referee"], "num_found") for effect in config.effects]


def _in_short(config: KnownAnswerConfig, rows: Mapping[tuple[Scene, str], Row], scene: Scene, rule: Rule) -> str:
    """False verdicts, and power for each effect, without intervals."""
    found = [rows[replace(scene, effect=effect), rule] for effect in config.effects]
    powers = ", ".join(f"{row['num_found'] / row['repetitions']:.0%}" for row in found)
    return f"{rows[scene, rule]['num_wrong'] / rows[scene, rule]['repetitions']:.1%}, {powers}"


def _told(row: Row, count: str) -> str:
    return _share(row[count], row["repetitions"])


def _pooled(rows: Sequence[Row]) -> str:
    return _share(sum(row["num_wrong"] for row in rows), sum(row["repetitions"] for row in rows))


def _share(number: int, of: int) -> str:
    low, high = wilson(number, of)
    return f"{100 * number / of:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
