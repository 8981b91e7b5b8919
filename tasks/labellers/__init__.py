"""Labellers: who says which of two responses is better, and the ledger that pays each label once.

A labeller is a frozen dataclass with a `kind`, an `identity`, a `cost` and `__call__`. With one member there is
nothing to discriminate: a config writes `labeller: AnyLabeller = SimulatedLabeller()`, and from the second member on
`Annotated[AnyLabeller, Field(discriminator="kind")]`.
"""

from typing import get_args

from tasks.labellers.simulated import SimulatedLabeller

AnyLabeller = SimulatedLabeller
"""The one place to add a labeller: `SimulatedLabeller | Another`."""

LABELLERS = {labeller.kind: labeller for labeller in get_args(AnyLabeller) or (AnyLabeller,)}
