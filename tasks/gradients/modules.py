"""The words of a config, without torch: which modules a gradient is taken in, and how states are pooled."""

import re
from collections.abc import Sequence
from typing import Literal

Pooling = Literal["last", "mean"]
"""The last response token's state, or the mean over all of them."""

ALL_LINEAR = "all-linear"
"""Every module that the adapter trains, in PEFT's words."""

TargetModules = str | tuple[str, ...]
"""As PEFT takes it: `ALL_LINEAR`, a regular expression for a module's whole path, or names that a path ends with."""


def base_path(path: str) -> str:
    """The module's path in the base model, without what PEFT puts around it."""
    return path.removeprefix("base_model.model.")


def chosen(paths: Sequence[str], target_modules: TargetModules) -> list[str]:
    """Those of the adapter's modules that are meant, in their order.

    Raises:
        ValueError: the adapter has none, or none is meant.
    """
    if not paths:
        raise ValueError("the adapter has no LoRA matrices: gradients need an adapter of PEFT's LoRA on linear layers")
    found = [path for path in paths if _is_meant(path, target_modules)]
    if not found:
        names = ", ".join(sorted({path.rsplit(".", 1)[-1] for path in paths}))
        raise ValueError(f"target_modules {target_modules!r} names no module of the adapter: expected some of {names}")
    return found


def _is_meant(path: str, target_modules: TargetModules) -> bool:
    if target_modules == ALL_LINEAR:
        return True
    if isinstance(target_modules, str):
        return re.fullmatch(target_modules, path) is not None
    return any(path == name or path.endswith(f".{name}") for name in target_modules)
