"""P17: a training step against TRL's own, and what the stored reference saves."""

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from measuring import Finding, Timed, take_turns
from training.problems import Case, num_tokens, random_pairs, trainer_of, trls

from tasks.trainer.pair_trainer import Recipe

PATIENCE = 120.0
"""Seconds after which a side is not timed again."""


def step_speed(repeats: int, case: Case) -> Iterator[Finding]:
    """Tokens a second of training steps; TRL asks the reference in every step, as it does by default."""
    pairs = random_pairs(case.steps * case.batch)
    tokens = num_tokens(pairs)
    with tempfile.TemporaryDirectory() as folder:
        own = trainer_of(case, pairs, Recipe(), Path(folder) / "own")
        theirs = trls(case, pairs, Path(folder) / "trl")
        ours, plain = _turns(repeats, own.train, theirs.train)
    workload = f"{case.name}, {case.batch} pairs a step in {case.micro}s, 32 + 16 to 63 tokens: tokens/s of a step"
    yield Finding(
        workload=workload,
        ours=f"{tokens / ours.least:.0f} tokens/s",
        peer=f"TRL DPOTrainer: {tokens / plain.least:.0f} tokens/s",
        number=plain.least / ours.least,
        low=1.3,
    )


def reference_saved(repeats: int, case: Case) -> Iterator[Finding]:
    """Training with the reference's log-probabilities at hand against asking for them first, once."""
    pairs = random_pairs(case.steps * case.batch)
    with tempfile.TemporaryDirectory() as folder:
        known = trainer_of(case, pairs, Recipe(), Path(folder) / "own")
        stored, unknown = known.train_dataset, pairs

        def asking() -> None:
            known.train_dataset = unknown
            known.complete_references(known.model.disable_adapter())
            known.train_dataset = stored
            known.train()

        for epochs in (1, 2):
            known.args.max_steps = epochs * case.steps
            with_stored, with_asking = _turns(repeats, known.train, asking)
            yield Finding(
                workload=f"{case.name}, {epochs} epochs of {len(pairs)} pairs: reference stored against asked once",
                ours=str(with_stored),
                peer=f"asked: {with_asking}",
                number=with_asking.least / with_stored.least,
                low=1.05,
            )


def _turns(repeats: int, *sides: Callable[[], Any]) -> tuple[Timed, ...]:
    return take_turns(*sides, repeats=repeats, clock=time.perf_counter, slow=PATIENCE)
