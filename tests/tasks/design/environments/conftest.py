from collections.abc import Callable

import numpy as np
import pytest

from tasks.design.environments.base import UtilityTable


@pytest.fixture(scope="session")
def make_table() -> Callable[..., UtilityTable]:
    """A random table; where asked for, prompts have from two responses to all of them."""

    def build(shape: tuple[int, int, int] = (20, 6, 9), *, seed=0, ragged=False) -> UtilityTable:
        rng = np.random.default_rng(seed)
        counts = rng.integers(2, shape[1] + 1, size=shape[0]) if ragged else np.full(shape[0], shape[1])
        valid = np.arange(shape[1]) < counts[:, None]
        features = rng.standard_normal(shape) * np.arange(1, shape[2] + 1) ** -0.5
        return UtilityTable(
            features=features * valid[:, :, None],
            valid=valid,
            utilities=2 * rng.standard_normal(shape[:2]) * valid,
            lengths=rng.integers(1, 2000, size=shape[:2]) * valid.astype(float),
        )

    return build
