"""Preference objectives: what a pair teaches, how much it weighs, and which pairs of a batch teach at all.

An objective is a frozen dataclass with a `kind` and `__call__(pairs, beta) -> losses`; the union is the registry.
Nothing here knows of trainers or files.
"""

from typing import get_args

from tasks.objectives.contrastive import Cdpo, Dpo, Hinge, Ipo, Robust, SoftDpo
from tasks.objectives.likelihood import BestOfN, Rwr, SftChosen

AnyObjective = Dpo | SoftDpo | Cdpo | Robust | Ipo | Hinge | SftChosen | BestOfN | Rwr
"""The one place to add an objective."""

OBJECTIVES = {objective.kind: objective for objective in get_args(AnyObjective)}
