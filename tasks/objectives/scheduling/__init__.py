"""Batch schedulers: which pairs of a step are trained on, said before any activation of the others is stored."""

from tasks.objectives.scheduling.seen import Scheduler, Seen

__all__ = ["Scheduler", "Seen"]
