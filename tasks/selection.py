"""Selection: spend the labelling budget on the pairs that teach the policy most."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from cluster.storage import StageKey, digest_of
from tasks.design.arrays import FloatArray
from tasks.design.pool import Labels, Pool
from tasks.design.preprocess import Projection, fit_projection
from tasks.design.selection import Selection
from tasks.design.selectors import AnySelector
from tasks.design.selectors.designs import TraceDesign
from tasks.stages import Publish, RoundContext, run_stage, stage_task
from tasks.tables import PAIRS, PREFERENCES, Table, part_path, read, read_features, write_part


class SelectionConfig(BaseModel):
    """How many pairs are worth a label, and who chooses them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    selector: Annotated[AnySelector, Field(discriminator="kind")] = TraceDesign()
    budget: PositiveInt = Field(description="pairs to label in one round")
    num_components: PositiveInt = Field(128, description="principal axes of the standardised features that are kept")


class Labelled(BaseModel):
    """An earlier round's labels and the features its pairs had then."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    preferences: Table
    features: Table


@dataclass(frozen=True)
class Question:
    """All that the selection task needs, to be sent to where it runs."""

    features: Path
    earlier: Sequence[Labelled]
    beta: float
    config: SelectionConfig
    seed: int


@stage_task("select pairs")
def select_pairs(
    features: Table, earlier: Sequence[Labelled], config: SelectionConfig, beta: float, here: RoundContext
) -> Table:
    """Choose the pairs to label, in one Ray task over all candidate pairs of the pool.

    Labels of earlier rounds enter as prior information, with the features and margins stored when they were chosen.

    Raises:
        ValueError: the budget exceeds the pairs of the pool.
    """
    seed = here.seed_of("selection")

    def work(folder: Path) -> dict[str, Any]:
        import ray

        question = Question(features.path, earlier, beta, config, seed)
        remote = ray.remote(num_cpus=here.settings.selection_num_cpus)(choose)
        rows: list[dict[str, Any]]
        measures: dict[str, Any]
        rows, measures = ray.get(remote.remote(question))
        write_part(part_path(folder, 0), rows, PAIRS)
        return measures

    facts = config.model_dump() | {"beta": beta, "seed": seed}
    inputs = [
        features.digest,
        *(table.digest for labelled in earlier for table in (labelled.preferences, labelled.features)),
    ]
    return run_stage(StageKey("pairs", facts, inputs), work, here, publish=Publish("selection", parquet=True))


def choose(question: Question) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of PAIRS in order of choice, and the measures of the selection with its certificate."""
    scored = read_features(question.features)
    grid = _Grid.of(scored)
    valid = grid.fill(scored.column("valid").to_numpy(), False)
    vectors = grid.fill(_vectors(scored), 0.0)
    projection = fit_projection(vectors, valid, dim=min(question.config.num_components, vectors.shape[2]))
    pool = Pool(
        features=np.where(valid[..., None], projection(vectors), 0.0),
        valid=valid,
        rewards=grid.fill(_rewards(scored, question.beta), 0.0),
        beta=question.beta,
        labels=_labels(question.earlier, projection, question.beta),
    )
    selection = question.config.selector(pool, question.config.budget, np.random.default_rng(question.seed))
    return _rows(selection, grid), _measures(pool, selection)


@dataclass(frozen=True)
class _Grid:
    """Where each row of a features table stands in arrays of (prompts, responses)."""

    prompt_ids: list[str]
    response_ids: NDArray[Any]
    places: tuple[NDArray[np.intp], NDArray[np.intp]]

    @classmethod
    def of(cls, scored: pa.Table) -> "_Grid":
        ids = scored.column("prompt_id").to_pylist()
        prompt_ids = list(dict.fromkeys(ids))
        row_of = {prompt_id: row for row, prompt_id in enumerate(prompt_ids)}
        taken = dict.fromkeys(prompt_ids, 0)
        places = []
        for prompt_id in ids:
            places.append((row_of[prompt_id], taken[prompt_id]))
            taken[prompt_id] += 1
        rows, columns = np.array(places, dtype=np.intp).T
        responses = np.full((len(prompt_ids), max(taken.values())), "", dtype=object)
        responses[rows, columns] = scored.column("response_id").to_pylist()
        return cls(prompt_ids, responses, (rows, columns))

    def fill(self, values: NDArray[Any], padding: float | bool) -> NDArray[Any]:
        """An array (prompts, responses, ...) with the values in their places and `padding` elsewhere."""
        filled = np.full((*self.response_ids.shape, *values.shape[1:]), padding, dtype=values.dtype)
        filled[self.places] = values
        return filled


def _vectors(scored: pa.Table) -> FloatArray:
    column = scored.column("feature").combine_chunks()
    return np.asarray(column.flatten()).reshape(len(column), -1).astype(np.float64)


def _rewards(scored: pa.Table, beta: float) -> FloatArray:
    """Implicit rewards beta (log pi - log pi_ref), nats."""
    ratio: FloatArray = scored.column("logp_policy").to_numpy() - scored.column("logp_reference").to_numpy()
    return beta * ratio


def _labels(earlier: Sequence[Labelled], projection: Projection, beta: float) -> Labels | None:
    if not earlier:
        return None
    held = [_held(labelled, projection, beta) for labelled in earlier]
    differences, margins = (np.concatenate(parts) for parts in zip(*held, strict=True))
    return Labels(differences=differences, margins=margins)


def _held(labelled: Labelled, projection: Projection, beta: float) -> tuple[FloatArray, FloatArray]:
    scored = read_features(labelled.features.path)
    row_of = {response: row for row, response in enumerate(scored.column("response_id").to_pylist())}
    labels = read(labelled.preferences.path, PREFERENCES)
    chosen, rejected = ([row_of[i] for i in labels.column(side).to_pylist()] for side in ("chosen", "rejected"))
    vectors, rewards = projection(_vectors(scored)), _rewards(scored, beta)
    return vectors[chosen] - vectors[rejected], rewards[chosen] - rewards[rejected]


def _rows(selection: Selection, grid: _Grid) -> list[dict[str, Any]]:
    ids = grid.response_ids
    ends = zip(ids[selection.prompt, selection.first], ids[selection.prompt, selection.second], strict=True)
    rows = [
        {"pair_id": digest_of(sorted((a, b)))[:32], "order": order, "response_a": a, "response_b": b}
        for order, (a, b) in enumerate(ends)
    ]
    numbers = {
        "prompt_id": np.array(grid.prompt_ids, dtype=object)[selection.prompt],
        "weight": selection.weights,
        "inclusion_probability": selection.inclusion_probabilities,
        "score": selection.scores,
    }
    return [row | {name: None if of is None else of[i] for name, of in numbers.items()} for i, row in enumerate(rows)]


def _measures(pool: Pool, selection: Selection) -> dict[str, Any]:
    prompts = len(np.unique(selection.prompt))
    shared = {"num_candidates": pool.num_pairs, "num_prompts": prompts, "dim": pool.dim}
    return shared | (asdict(selection.certificate) if selection.certificate else {})
