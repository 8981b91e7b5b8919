"""Selection: spend the labelling budget on the pairs that teach the policy most."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

from cluster.settings import Settings
from cluster.storage import StageKey, digest_of
from tasks.candidates import LabelFeatures, Offer, Reading, candidates
from tasks.design.arrays import FloatArray
from tasks.design.pool import Pool
from tasks.design.selection import Selection
from tasks.design.selectors import AnySelector
from tasks.design.selectors.robust import RobustDesign
from tasks.grid import Grid
from tasks.progress import followed, noting, run_logger
from tasks.stages import Publish, RoundContext, run_stage, stage_task
from tasks.tables import PAIRS, Table, part_path, write_part

NOTES_TAG = "selection.notes"
"""Tag of the round's run in MLflow with what a reader of the selection has to know."""


class SelectionConfig(BaseModel):
    """How many pairs are worth a label, out of which, and who chooses them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    selector: Annotated[AnySelector, Field(discriminator="kind")] = RobustDesign()
    budget: PositiveInt = Field(
        description="pairs to label in one round; a share of them in rounds that regenerate a share of the prompts"
    )
    labels: LabelFeatures = Field(
        "current", description="features of earlier labels: under the present policy, or as stored when chosen"
    )
    offer_rounds: NonNegativeInt = Field(0, description="last rounds whose unlabelled pairs are offered again")


@dataclass(frozen=True)
class Question:
    """All that the selection task needs, to be sent to where it runs."""

    offer: Offer
    beta: float
    config: SelectionConfig
    seed: int


@stage_task("select pairs")
def select_pairs(offer: Offer, config: SelectionConfig, beta: float, here: RoundContext) -> Table:
    """Choose the pairs to label, in one Ray task over all candidate pairs.

    Labels of earlier rounds enter as prior information. What the selector has to say of its choice is logged.

    Raises:
        ValueError: the budget exceeds the pairs that are offered, or the selector lacks what it needs.
        ValueError: the selector's loss weights are no weights.
    """
    question = Question(offer, beta, config, here.seed_of("selection"))

    def work(folder: Path) -> Mapping[str, Any]:
        rows, measures = _ask(question, folder / f".note-{uuid4().hex}", here.settings)
        write_part(part_path(folder, 0), rows, PAIRS)
        return measures

    facts = config.model_dump() | {"beta": beta, "seed": question.seed, "num_components": offer.num_components}
    key = StageKey("pairs", facts, offer.digests, version=5)
    table = run_stage(key, work, here, publish=Publish("selection", parquet=True))
    tell_notes(key, here)
    return table


def tell_notes(key: StageKey, here: RoundContext) -> None:
    """Log the notes of a finished selection as warnings, and tag the round's run with them."""
    manifest = here.store.stage(key).manifest
    notes = manifest.measures["notes"] if manifest else []
    for note in notes:
        run_logger().warning("%s: %s", here.label, note)
    if notes:
        here.tracker.set_tags(here.run, {NOTES_TAG: "; ".join(notes)})


def _ask(question: Question, note: Path, settings: Settings) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    import ray

    memory = int(settings.selection_memory_gib * 2**30) or None
    remote = ray.remote(num_cpus=settings.selection_num_cpus, memory=memory)(choose_noting)
    rows, measures = followed(remote.remote(question, note), note)
    return rows, measures


def choose_noting(question: Question, note: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What `choose` gives; the file `note` has its latest pass until then."""
    with noting("tasks.design", note):
        return choose(question)


def choose(question: Question) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of PAIRS in order of choice, and the measures of the selection with its certificate."""
    config = question.config
    pool, grid = candidates(question.offer, Reading(question.beta, config.labels, config.offer_rounds))
    selection = config.selector(pool, config.budget, np.random.default_rng(question.seed))
    _require_weights(selection.loss_weights)
    return _rows(selection, grid), _measures(pool, selection, grid)


def _require_weights(weights: FloatArray | None) -> None:
    """Refuse weights that training could not use, before any label is paid."""
    if weights is None:
        return
    odd = weights[~(np.isfinite(weights) & (weights >= 0))]
    if len(odd) or not weights.any():
        found = f"hold {odd[0]}" if len(odd) else f"are 0 for all {len(weights)} pairs"
        raise ValueError(f"loss_weights of the selection {found}: expected finite numbers from 0, one above 0 at least")


def _rows(selection: Selection, grid: Grid) -> list[dict[str, Any]]:
    ids = grid.response_ids
    ends = zip(ids[selection.prompt, selection.first], ids[selection.prompt, selection.second], strict=True)
    rows = [
        {"pair_id": digest_of(sorted((a, b)))[:32], "order": order, "response_a": a, "response_b": b}
        for order, (a, b) in enumerate(ends)
    ]
    weights = selection.loss_weights
    numbers = {
        "prompt_id": grid.prompt_ids[selection.prompt],
        "staleness": grid.staleness[selection.prompt],
        "weight": selection.weights,
        "inclusion_probability": selection.inclusion_probabilities,
        "loss_weight": None if weights is None else weights / weights.mean(),
        "score": selection.scores,
    }
    return [row | {name: None if of is None else of[i] for name, of in numbers.items()} for i, row in enumerate(rows)]


def _measures(pool: Pool, selection: Selection, grid: Grid) -> dict[str, Any]:
    shared = {
        "num_candidates": pool.num_pairs,
        "num_prompts": len(np.unique(grid.prompt_ids[selection.prompt])),
        "dim": pool.dim,
        "staleness": float(grid.staleness[selection.prompt].mean()),
        "notes": list(selection.notes),
    }
    return shared | (asdict(selection.certificate) if selection.certificate else {})
