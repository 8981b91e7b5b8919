"""What is found out before a lineage is touched and before anything is generated."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import InputError
from cluster.settings import Settings
from flows.config import RoundConfig
from flows.opening import open_round


@pytest.mark.parametrize(
    ("features", "fault"),
    [
        (
            {"kind": "lora_gradient", "projection": {"kind": "count_sketch", "dim": 65_536}},
            "features.projection: dim 65,536 exceeds the 32,768 numbers of the gradient: lower it to 32,768 at most",
        ),
        (
            {"kind": "lora_gradient", "target_modules": ["c_attn"]},
            r"features: target_modules \('c_attn',\) names no module of the adapter: expected some of down_proj",
        ),
    ],
)
def test_features_that_the_model_can_not_have_leave_no_lineage(
    tiny_config: dict[str, Any], make_home: Callable[[], Path], features: dict[str, Any], fault: str
) -> None:
    config = RoundConfig.model_validate({**tiny_config["round"], "features": features, "selection": {"budget": 4}})
    settings = Settings(home=make_home(), cache=make_home())
    with pytest.raises(InputError, match=fault), open_round(config, "new", 0, settings):
        pass
    assert not settings.store.exists()
