"""What a lineage has to show: its rounds, their stages, the labels spent, and where everything lies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table as RichTable

from cluster.storage import Manifest, Store
from flows.history import NEEDED_STAGES, recorded
from tasks.labellers.ledger import Ledger
from tasks.stages import manifest_of


@dataclass(frozen=True)
class RoundReport:
    """One round as it stands; manifests of its finished stages by their names in the round."""

    number: int
    manifests: dict[str, Manifest]

    @property
    def finished(self) -> bool:
        """Whether all stages are there that a finished round has."""
        return all(stage in self.manifests for stage in NEEDED_STAGES)

    def measure(self, stage: str, name: str) -> float | None:
        """A number that a stage measured."""
        manifest = self.manifests.get(stage)
        value = manifest.measures.get(name) if manifest else None
        return None if value is None else float(value)

    @property
    def num_decided(self) -> int:
        """Pairs of which one response was preferred; ties, skips and pairs without an answer don't count."""
        manifest = self.manifests.get("preferences")
        if manifest is None:
            return 0
        counts_outcomes = "num_answers" in manifest.measures  # every label of earlier releases was a preference
        return int(manifest.measures.get("num_preferred", 0)) if counts_outcomes else manifest.rows

    @property
    def speed(self) -> dict[str, float]:
        """Seconds of all stages, the share of them in which no model worked, and tokens per second of generation.

        A stage counts the seconds that it took where it first ran, and counts once if it serves the round twice.
        """
        stages = list({manifest.digest: manifest for manifest in self.manifests.values()}.values())
        seconds = sum(manifest.seconds for manifest in stages)
        in_models = sum(float(manifest.measures.get("model_seconds", 0.0)) for manifest in stages)
        found = {"stage_seconds": seconds, "share_outside_models": 1 - in_models / seconds} if seconds else {}
        pool = self.manifests.get("drawn", self.manifests.get("pool"))
        if pool and pool.measures["model_seconds"]:
            tokens = float(pool.measures["tokens"])
            found["tokens_per_second"] = tokens / pool.seconds
            found["tokens_per_engine_second"] = tokens / float(pool.measures["model_seconds"])
        return found


def round_of(store: Store, lineage: str, number: int) -> RoundReport:
    """One round of a lineage as it stands."""
    tables = recorded(store, lineage, number)
    return RoundReport(number, {stage: manifest_of(table) for stage, table in tables.items()})


def rounds_of(store: Store, lineage: str) -> list[RoundReport]:
    """The rounds of a lineage that have begun, in order."""
    folders = sorted(store.lineage(lineage).glob("round-*"))
    return [round_of(store, lineage, int(folder.name.removeprefix("round-"))) for folder in folders]


def lineages_of(store: Store) -> list[str]:
    """Names of all lineages in the store."""
    return sorted(file.parent.name for file in (store.root / "lineages").glob("*/config.json"))


def rounds_table(lineage: str, rounds: Sequence[RoundReport], waits: Mapping[int, str] | None = None) -> RichTable:
    """Win rates, reward, KL and decided pairs of every round; `waits` says what a parked round waits for."""
    table = RichTable(title=f"lineage {lineage}")
    for heading in (
        "round",
        "win rate v. base",
        "win rate v. previous",
        "reward",
        "KL (nats)",
        "pairs decided",
        "champion",
        "state",
    ):
        table.add_column(heading, justify="right")
    for report in rounds:
        champion = report.measure("promotion", "promoted")
        table.add_row(
            str(report.number),
            *(_with_error(report, name) for name in ("win_base", "win_previous", "reward", "kl")),
            str(report.num_decided),
            "" if champion is None else "yes" if champion else "no",
            _state(report, (waits or {}).get(report.number)),
        )
    return table


def stages_table(report: RoundReport) -> RichTable:
    """Rows, seconds and model seconds of every stage of a round, and the folder of each."""
    table = RichTable(title=f"round {report.number}")
    for heading in ("stage", "rows", "seconds", "of that in models", "folder"):
        table.add_column(heading, justify="left" if heading in {"stage", "folder"} else "right")
    for stage, manifest in report.manifests.items():
        inside = report.measure(stage, "model_seconds")
        folder = f"stages/{manifest.stage}/{manifest.digest[:12]}..."
        table.add_row(
            stage, str(manifest.rows), f"{manifest.seconds:.1f}", "" if inside is None else f"{inside:.1f}", folder
        )
    return table


def speed_lines(report: RoundReport) -> list[str]:
    """Where a round's time went, in words."""
    speed = report.speed
    lines = []
    if "tokens_per_second" in speed:
        lines.append(
            f"round {report.number}: generation {speed['tokens_per_second']:.0f} tokens/s with the engine's start, "
            f"{speed['tokens_per_engine_second']:.0f} tokens/s in the engine"
        )
    if "stage_seconds" in speed:
        lines.append(
            f"round {report.number}: {speed['stage_seconds']:.0f} s of stages, "
            f"{speed['share_outside_models']:.0%} outside model compute"
        )
    return lines


def spent(ledger: Ledger, lineage: str) -> str:
    """What the lineage is charged for labels; those that another one had bought before were paid there."""
    spend = ledger.spend(lineage)
    said = f"{spend.num_labels} labels for {spend.cost:g}, {spend.num_bought} of them bought by this lineage"
    return f"{said}; {spend.num_pending} asked for at {spend.pending:g}" if spend.num_pending else said


def _state(report: RoundReport, waits: str | None) -> str:
    if waits is not None and "preferences" not in report.manifests:
        return waits
    missing = [stage for stage in NEEDED_STAGES if stage not in report.manifests]
    return f"lacks {missing[0]}" if missing else "finished"


def _with_error(report: RoundReport, name: str) -> str:
    value, error = report.measure("evaluation", name), report.measure("evaluation", f"{name}_se")
    return "" if value is None else f"{value:.3f} ± {error:.3f}"
