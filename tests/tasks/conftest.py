"""What the tests of the stages share: rounds on homes of their own, and tables written by hand."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cluster.settings import Settings
from cluster.storage import digest_of
from cluster.tracking import Tracker
from tasks.feature_tables import VECTOR, features_schema, write_features
from tasks.stages import RoundContext
from tasks.tables import ARROW, PREFERENCES, RESPONSES, PastRound, Table, part_path, write_arrow

MakeHere = Callable[..., RoundContext]
WriteTable = Callable[[Sequence[dict[str, Any]], pa.Schema], Table]


@pytest.fixture(scope="session")
def join_round() -> MakeHere:
    """Open a round of a lineage on a home."""

    def join(home: Path, lineage: str = "demo", round_number: int = 0) -> RoundContext:
        settings = Settings(home=home, tracking_uri=f"sqlite:///{home}/mlflow.db")
        tracker = Tracker(tracking_uri=settings.tracking, experiment="tests", artifact_root=settings.artifact_root)
        parent = tracker.open_lineage(lineage, {})
        run = tracker.open_round(parent, lineage, round_number=round_number, tags={})
        return RoundContext(lineage, round_number, 0, settings, tracker, run)

    return join


@pytest.fixture
def here(join_round: MakeHere, make_home: Callable[[], Path]) -> RoundContext:
    """Round 0 of the lineage `demo` on a home of its own."""
    return join_round(make_home())


@pytest.fixture
def write_table(tmp_path: Path) -> WriteTable:
    """Write rows as a stage's table."""

    def write(rows: Sequence[dict[str, Any]], schema: pa.Schema) -> Table:
        digest = digest_of([schema.names, repr(rows)])
        folder = tmp_path / "tables" / digest
        if rows:  # as stages do
            table = pa.Table.from_pylist(list(rows), schema=schema)
            if VECTOR in schema.names:
                write_features(part_path(folder, 0, ARROW), table, {})
            else:
                write_arrow(part_path(folder, 0), table, schema)
        return Table(path=folder, rows=len(rows), digest=digest)

    return write


@pytest.fixture
def write_responses(write_table: WriteTable) -> Callable[[dict[str, list[str]]], Table]:
    """Write the responses to each prompt; response i to prompt p is called `p-i`."""

    def write(texts: dict[str, list[str]]) -> Table:
        rows = [
            {
                "response_id": f"{prompt}-{index}",
                "prompt_id": prompt,
                "messages": [{"role": "user", "content": f"say {prompt}"}],
                "index": index,
                "text": text,
                "token_ids": list(text.encode()),
                "logprob": -1.0,
                "finish_reason": "stop",
                "fault": None,
                "sampling": "{}",
                "policy": "policy",
                "engine": "by hand",
            }
            for prompt, own in texts.items()
            for index, text in enumerate(own)
        ]
        return write_table(rows, RESPONSES)

    return write


@pytest.fixture
def past_round(write_table: WriteTable) -> Callable[..., PastRound]:
    """An earlier round, given rows of its features and which response its labels preferred to which."""

    def build(
        rows: Sequence[dict[str, Any]],
        labels: Sequence[tuple[str, str]],
        *,
        recalled: Sequence[dict[str, Any]] = (),
        outcome: str = "preferred",
    ) -> PastRound:
        schema = features_schema(len(rows[0]["feature"]))
        prompts = {row["response_id"]: row["prompt_id"] for row in (*rows, *recalled)}
        labelled = [_label(*pair, prompts.get(pair[0], "elsewhere")) | {"outcome": outcome} for pair in labels]
        return PastRound(
            pool=write_table([_response(row) for row in rows], RESPONSES),
            features=write_table(rows, schema),
            recalled_features=write_table(recalled, schema),
            preferences=write_table(labelled, PREFERENCES),
        )

    return build


def _response(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "response_id": row["response_id"],
        "prompt_id": row["prompt_id"],
        "messages": [{"role": None, "content": f"say {row['prompt_id']}"}],
        "index": 0,
        "text": f"text of {row['response_id']}",
        "token_ids": [1] * row["num_tokens"],
        "logprob": row["logp_policy"],
        "finish_reason": "stop",
        "fault": None if row["valid"] else "empty",
        "sampling": "{}",
        "policy": "policy",
        "engine": "by hand",
    }


def _label(chosen: str, rejected: str, prompt: str) -> dict[str, Any]:
    return {
        "pair_id": f"{chosen} {rejected}",
        "prompt_id": prompt,
        "messages": [{"role": None, "content": "say"}],
        "chosen": chosen,
        "rejected": rejected,
        "chosen_text": f"text of {chosen}",
        "rejected_text": f"text of {rejected}",
        "chosen_token_ids": [1],
        "rejected_token_ids": [2],
        "outcome": "preferred",
        "swapped": False,
        "probability": None,
        "votes_chosen": 1,
        "votes_rejected": 0,
        "num_answers": 1,
        "labeller": "by hand",
    }
