"""Environments: worlds in which a selection's worth is known exactly, to compare selectors in seconds."""

from tasks.design.environments.base import Environment, UtilityTable
from tasks.design.environments.linear import Linear
from tasks.design.environments.table import FromTable
from tasks.design.environments.tabular import Tabular

AnyEnvironment = Linear | Tabular | FromTable

__all__ = ["AnyEnvironment", "Environment", "UtilityTable"]
