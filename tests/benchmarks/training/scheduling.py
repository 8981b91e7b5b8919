"""SAMS: what training on a part of every batch costs, saves and teaches."""

import multiprocessing
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from datasets import Dataset
from measuring import Finding, anonymous
from training.problems import Case, flipped, random_pairs, sentiment_pairs, trainer_of

from tasks.schedulers import All, AnyScheduler, LargestMargin, LowestChosenLikelihood, RandomPairs, SamS, SmallestMargin
from tasks.trainer.pair_trainer import PairTrainer, Recipe
from tasks.trainer.passes import forward

SEEDS = 3
TRAINED, HELD_OUT = 1024, 512


@dataclass(frozen=True)
class Cost:
    """Seconds of a step, and the most memory that training took above what model and data hold, bytes."""

    seconds: float
    memory: int


def cost(repeats: int, case: Case) -> Iterator[Finding]:
    """Time and memory of a step that keeps half of its batch, against one that keeps all; a process for each turn."""
    costs: dict[str, list[Cost]] = {}
    schedulers: tuple[AnyScheduler, ...] = (
        SamS(num_kept=case.batch // 2),
        RandomPairs(num_kept=case.batch // 2),
        All(),
    )
    for _ in range(repeats):
        for scheduler in schedulers:
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
                costs.setdefault(scheduler.kind, []).append(process.submit(_cost, case, scheduler).result())
    seconds = {kind: statistics.median(one.seconds for one in found) for kind, found in costs.items()}
    memory = {kind: statistics.median(one.memory for one in found) for kind, found in costs.items()}
    for kind in ("sams", "random"):
        workload = f"{case.name}, {case.batch} pairs a step at once, {kind} keeps {case.batch // 2}"
        yield Finding(
            workload=f"{workload}: seconds of a step over those of plain DPO",
            ours=f"{seconds[kind]:.2f} s",
            peer=f"all: {seconds['all']:.2f} s",
            number=seconds[kind] / seconds["all"],
            high=1.05,
        )
        yield Finding(
            workload=f"{workload}: peak memory of training over that of plain DPO",
            ours=f"{memory[kind] / 2**20:.0f} MiB",
            peer=f"all: {memory['all'] / 2**20:.0f} MiB",
            number=memory[kind] / memory["all"],
            high=0.85,
        )


def _cost(case: Case, scheduler: AnyScheduler) -> Cost:
    whole = replace(case, micro=case.batch)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(whole, random_pairs(case.batch * case.steps), Recipe(scheduler=scheduler), Path(folder))
        before, seen, done = anonymous(), [0], threading.Event()

        def watch() -> None:
            while not done.wait(0.005):
                seen.append(anonymous() - before)

        thread = threading.Thread(target=watch)
        thread.start()
        begun = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - begun
        done.set()
        thread.join()
    return Cost(seconds / case.steps, max(seen))


def accuracy(_repeats: int, case: Case) -> Iterator[Finding]:
    """Held-out preference accuracy after one epoch, with and without flipped labels; differences to all pairs."""
    half = case.batch // 2
    schedulers: tuple[AnyScheduler, ...] = (
        All(),
        RandomPairs(num_kept=half),
        SamS(num_kept=half),
        LargestMargin(num_kept=half),
        SmallestMargin(num_kept=half),
        LowestChosenLikelihood(num_kept=half),
    )
    held_out = _known(case, sentiment_pairs(HELD_OUT, 10_000))
    for share in (0.0, 0.2):
        found: dict[str, list[float]] = {scheduler.kind: [] for scheduler in schedulers}
        for seed in range(SEEDS):
            pairs = flipped(_known(case, sentiment_pairs(TRAINED, seed)), share, seed)
            for scheduler in schedulers:
                found[scheduler.kind].append(_accuracy(case, pairs, held_out, Recipe(scheduler=scheduler), seed))
        for scheduler in schedulers:
            gains = [one - other for one, other in zip(found[scheduler.kind], found["all"], strict=True)]
            yield Finding(
                workload=f"{case.name}, {share:.0%} of labels flipped, {scheduler.kind}: accuracy on {HELD_OUT} "
                f"other pairs, {SEEDS} seeds",
                ours=f"{statistics.mean(found[scheduler.kind]):.3f}",
                peer=f"all pairs: {statistics.mean(found['all']):.3f}; difference {statistics.mean(gains):+.3f} "
                f"(s.e. {statistics.stdev(gains) / SEEDS**0.5:.3f})",
                number=statistics.mean(found[scheduler.kind]),
            )


def _known(case: Case, pairs: Dataset) -> Dataset:
    """The pairs with what the base model says of them."""
    with tempfile.TemporaryDirectory() as folder:
        known: Dataset = trainer_of(case, pairs, Recipe(), Path(folder)).train_dataset
    return known


def _accuracy(case: Case, pairs: Dataset, held_out: Dataset, recipe: Recipe, seed: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        arguments = {"max_steps": -1, "num_train_epochs": 1, "learning_rate": 1e-4, "seed": seed}
        trainer = trainer_of(case, pairs, recipe, Path(folder), **arguments)
        trainer.train()
    return float((_margins(trainer, held_out) > 0).double().mean())


def _margins(trainer: PairTrainer, pairs: Dataset) -> torch.Tensor:
    """Implicit margins of pairs, (n,)."""
    model, core, found = trainer.model.eval(), trainer.model.get_base_model(), []
    for start in range(0, len(pairs), 16):
        batch = trainer.data_collator([pairs[row] for row in range(start, min(start + 16, len(pairs)))])
        with torch.no_grad():
            chosen, rejected = forward(model, core, batch).logps.double().chunk(2)
        found.append(chosen - batch["ref_chosen_logps"] - rejected + batch["ref_rejected_logps"])
    return torch.cat(found)
