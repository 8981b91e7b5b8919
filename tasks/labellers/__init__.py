"""Labellers: who says which of two responses is better, and the ledger that pays each answer once.

A labeller is a frozen dataclass with a `kind` that keeps the protocol of `protocol.py`; the union is the registry.
"""

from typing import get_args

from tasks.labellers.file import FileLabeller
from tasks.labellers.judge import Judge
from tasks.labellers.people import PeopleLabeller
from tasks.labellers.reward_model import RewardModelLabeller
from tasks.labellers.simulated import SimulatedLabeller

AnyLabeller = SimulatedLabeller | RewardModelLabeller | Judge | PeopleLabeller | FileLabeller
"""The one place to add a labeller."""

LABELLERS = {labeller.kind: labeller for labeller in get_args(AnyLabeller)}
