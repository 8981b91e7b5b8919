"""Labelling: ask the labeller which response of each selected pair is better; the ledger pays each label once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from cluster.rendering import plain_text
from cluster.storage import StageKey
from tasks.labellers import AnyLabeller
from tasks.labellers.ledger import Label, Ledger, question_key
from tasks.labellers.protocol import Question
from tasks.labellers.simulated import SimulatedLabeller
from tasks.stages import Publish, RoundContext, run_stage, stage_task
from tasks.tables import PAIRS, PREFERENCES, RESPONSES, Table, part_path, read, write_part

NUM_EXAMPLES = 10


class LabellingConfig(BaseModel):
    """Who labels, and how many questions are asked and paid together."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    labeller: AnyLabeller = SimulatedLabeller()
    batch_size: PositiveInt = Field(16, description="labels committed together: what a killed run may ask for again")


@stage_task("label pairs")
def label_pairs(pairs: Table, responses: Sequence[Table], config: LabellingConfig, here: RoundContext) -> Table:
    """Have every pair of these responses labelled, asking only for labels that the ledger doesn't hold."""

    def work(folder: Path) -> dict[str, Any]:
        chosen, texts = read(pairs.path, PAIRS).to_pylist(), _texts(responses)
        questions = [_question(pair, texts) for pair in chosen]
        ledger = Ledger(path=here.store.ledger)
        labels = ledger.buy(
            questions,
            config.labeller,
            lineage=here.lineage,
            round_number=here.round,
            batch_size=config.batch_size,
        )
        rows = [_row(pair, label, texts, config) for pair, label in zip(chosen, labels, strict=True)]
        write_part(part_path(folder, 0), rows, PREFERENCES)
        return {"cost": sum(label.cost for label in labels)}

    digests = [table.digest for table in responses]
    key = StageKey("preferences", {"labeller": config.labeller.identity}, [pairs.digest, *digests], version=2)
    table = run_stage(key, work, here, publish=Publish("preferences", parquet=True))
    show_examples(key, here)
    return table


def show_examples(key: StageKey, here: RoundContext) -> None:
    """Log some pairs with their label as a table that a person can read."""
    rows = read(here.store.stage(key).path, PREFERENCES).slice(0, NUM_EXAMPLES).to_pylist()
    columns = {
        "prompt": [plain_text(row["messages"]) for row in rows],
        "chosen": [row["chosen_text"] for row in rows],
        "rejected": [row["rejected_text"] for row in rows],
        "labeller": [row["labeller"] for row in rows],
    }
    here.tracker.log_table(here.run, columns, artifact_file="examples.json")


def _texts(responses: Sequence[Table]) -> dict[str, dict[str, Any]]:
    tables = [
        read(table.path, RESPONSES).select(["response_id", "messages", "text", "token_ids"]) for table in responses
    ]
    return {row["response_id"]: row for table in tables for row in table.to_pylist()}


def _question(pair: dict[str, Any], texts: dict[str, dict[str, Any]]) -> Question:
    first, second = texts[pair["response_a"]], texts[pair["response_b"]]
    prompt = plain_text(first["messages"])
    key = question_key(prompt, first=first["text"], second=second["text"])
    return Question(key=key, prompt=prompt, first=first["text"], second=second["text"])


def _row(
    pair: dict[str, Any], label: Label, texts: dict[str, dict[str, Any]], config: LabellingConfig
) -> dict[str, Any]:
    a_won = label.preferred == "first"
    chosen, rejected = (pair["response_a"], pair["response_b"])[:: 1 if a_won else -1]
    probability = label.probability
    return {
        "pair_id": pair["pair_id"],
        "prompt_id": pair["prompt_id"],
        "messages": texts[chosen]["messages"],
        "chosen": chosen,
        "rejected": rejected,
        "chosen_text": texts[chosen]["text"],
        "rejected_text": texts[rejected]["text"],
        "chosen_token_ids": texts[chosen]["token_ids"],
        "rejected_token_ids": texts[rejected]["token_ids"],
        "swapped": label.swapped,
        "probability": probability if probability is None or a_won else 1 - probability,
        "labeller": config.labeller.identity,
        "weight": pair["loss_weight"],
    }
