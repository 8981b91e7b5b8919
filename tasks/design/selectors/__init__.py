"""Selectors: ways to spend a labelling budget on a pool. The union below is the one place to add one."""  # noqa: A005 (only ever tasks.design.selectors)

from typing import get_args

from tasks.design.selectors.base import Selector
from tasks.design.selectors.baselines import Uniform
from tasks.design.selectors.designs import ADesign, DDesign, TraceDesign, VDesign

AnySelector = Uniform | TraceDesign | DDesign | ADesign | VDesign

SELECTORS: dict[str, type[AnySelector]] = {selector.kind: selector for selector in get_args(AnySelector)}

__all__ = ["SELECTORS", "AnySelector", "Selector"]
