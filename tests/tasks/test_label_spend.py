"""Label spend: each round's run says what its lineage's labels have come to by then."""

from collections.abc import Callable
from typing import Any

import pytest

from tasks.labellers.rewards import Length
from tasks.labellers.simulated import SimulatedLabeller
from tasks.labelling import LabellingConfig, label_pairs
from tasks.stages import RoundContext
from tasks.tables import PAIRS, Table

pytestmark = pytest.mark.labels

CONFIG = LabellingConfig(labeller=SimulatedLabeller(reward=Length(per="character"), cost=0.5))
SPEND = ("preferences/num_answers", "preferences/cost", "labels/spent", "labels/cost")


def spend_of(here: RoundContext) -> list[float]:
    metrics = here.tracker.client.get_run(here.run).data.metrics
    return [metrics[name] for name in SPEND]


def run_anew(here: RoundContext, join_round: Callable[..., RoundContext]) -> RoundContext:
    """The same round, whose run in MLflow was lost."""
    here.tracker.client.delete_run(here.run)
    return join_round(here.settings.root, here.lineage, here.round)


def test_a_round_logs_its_own_labels_and_the_lineages_so_far_and_a_late_retry_the_same(
    write_responses: Callable[[dict[str, list[str]]], Table],
    write_table: Callable[..., Table],
    join_round: Callable[..., RoundContext],
    here: RoundContext,
) -> None:
    def pair(prompt: str) -> dict[str, Any]:
        ends = {"response_a": f"{prompt}-0", "response_b": f"{prompt}-1"}
        numbers = dict.fromkeys(("weight", "inclusion_probability", "loss_weight", "score"))
        return {"pair_id": prompt, "prompt_id": prompt, "order": 0, "staleness": 0, **ends, **numbers}

    responses = write_responses({prompt: [f"{prompt} a", f"{prompt} longer"] for prompt in "pqr"})
    rounds = [here, join_round(here.settings.root, round_number=1)]
    pairs = [write_table([pair(prompt) for prompt in own], PAIRS) for own in ("pq", "r")]
    for own, chosen in zip(rounds, pairs, strict=True):
        label_pairs.fn(chosen, [responses], [], CONFIG, own)
    expected = [[2.0, 1.0, 2.0, 1.0], [1.0, 0.5, 3.0, 1.5]]
    label_pairs.fn(pairs[0], [responses], [], CONFIG, here)
    assert [spend_of(own) for own in rounds] == expected
    rounds[0] = run_anew(here, join_round)
    label_pairs.fn(pairs[0], [responses], [], CONFIG, rounds[0])
    assert [spend_of(own) for own in rounds] == expected
