"""Notes: what MLflow shows as the description of a run, with links along a lineage's chain."""

from collections.abc import Iterator

from cluster.runs import LineageRuns, LoggedRun, runs_of
from cluster.tracking import Tracker
from tasks.stages import ADAPTER

NOTE_TAG = "mlflow.note.content"
"""What MLflow's pages show as the description of a run."""
PREVIOUS_TAG = "pairwright.previous_run"
BELOW = "*Kept by pairwright. What is written below this line stays.*"
NUM_LISTED = 50
"""Rounds that a lineage's note lists, the last ones: MLflow takes 8000 characters."""


def write_notes(tracker: Tracker, lineage: str, round_number: int) -> None:
    """Write the notes of a lineage's run, of a round's and of those beside it, keeping what people wrote below."""
    runs = runs_of(tracker, lineage)
    if runs.lineage is not None:
        _write(tracker, runs.lineage, lineage_note(lineage, runs))
    for number in range(round_number - 1, round_number + 2):
        if number in runs.rounds:
            _write(tracker, runs.rounds[number], round_note(tracker, lineage, number, runs=runs))
    if round_number - 1 in runs.rounds and round_number in runs.rounds:
        before = runs.rounds[round_number - 1]
        tracker.set_tags(runs.rounds[round_number].run, {PREVIOUS_TAG: before.run})


def lineage_note(lineage: str, runs: LineageRuns) -> str:
    """Markdown that lists a lineage's rounds, oldest first."""
    listed = list(runs.rounds.items())[-NUM_LISTED:]
    lines = [f"* {_link(f'round {number}', run)}{_made(run)}" for number, run in listed]
    left = len(runs.rounds) - len(listed)
    return "\n".join([f"Lineage {lineage}", "", *([f"* {left} earlier rounds"] if left else []), *lines])


def round_note(tracker: Tracker, lineage: str, number: int, *, runs: LineageRuns) -> str:
    """Markdown that links a round with those beside it, its lineage, its adapter and its model version."""
    run = runs.rounds[number]
    whole = f"lineage {lineage}" if runs.lineage is None else _link(f"lineage {lineage}", runs.lineage)
    beside = [
        f"* {place}: {_link(f'round {other}', runs.rounds[other])}{_made(runs.rounds[other])}"
        for place, other in (("before", number - 1), ("after", number + 1))
        if other in runs.rounds
    ]
    return "\n".join([f"Round {number} of {whole}", "", *beside, *_outcome(tracker, run)])


def _outcome(tracker: Tracker, run: LoggedRun) -> Iterator[str]:
    digests = {key.removeprefix("digest."): value for key, value in run.tags.items() if key.startswith("digest.")}
    if "training" in digests:
        yield f"* [adapter {digests['training'][:12]}]({run.link}/artifacts/{ADAPTER})"
    for version in tracker.client.search_model_versions(f"run_id = '{run.run}'"):
        yield f"* [model {version.name} version {version.version}](#/models/{version.name}/versions/{version.version})"
    if digests:
        yield f"* [manifests]({run.link}/artifacts/manifests) of its stages"
        yield f"* datasets: {', '.join(f'{stage} {digest[:12]}' for stage, digest in sorted(digests.items()))}"


def _made(run: LoggedRun) -> str:
    adapter = run.tags.get("digest.training")
    return "" if adapter is None else f", adapter {adapter[:12]}"


def _link(text: str, run: LoggedRun) -> str:
    return f"[{text}]({run.link})"


def _write(tracker: Tracker, run: LoggedRun, note: str) -> None:
    held = run.tags.get(NOTE_TAG, "")
    _, mark, kept = held.partition(BELOW)
    below = kept if mark else f"\n\n{held}" if held else ""
    text = f"{note}\n\n{BELOW}{below}"
    if text != held:
        tracker.set_tags(run.run, {NOTE_TAG: text})
