"""The study of the theory: the flow `study-theory`."""

from pathlib import Path

from prefect import flow

from cluster.settings import Settings
from flows.publication import Identity, Published, log, write
from flows.theory import TheoryConfig, gaps, results
from flows.theory_findings import findings
from flows.theory_report import FIGURE, LEGEND, draw, overview, report, tables
from tasks.progress import progress

THEORY = "theory"


@flow(name="study-theory")
def study_theory(config: TheoryConfig, out: Path | None = None) -> Published:
    """Measure all worlds or find them measured, compare with the theory, publish, and tell MLflow."""
    settings = Settings()
    folder = out or settings.store / "study" / THEORY
    with progress("worlds") as show:
        found, reused = results(config, settings.store / "studies" / THEORY, show)
    measured = gaps(config, found)
    shown = findings(config, measured)
    grids = (*tables(config, measured), overview(measured, shown))
    published = Published(grids, tuple(shown), (LEGEND,), reused, folder)
    write(published, config, found, report(config, measured, published))
    draw(config, measured, folder / FIGURE)
    log(published, Identity(THEORY, config.digest), config, settings)
    return published
