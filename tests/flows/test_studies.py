"""The studies by name: one table of them, and the command that takes their names."""

from typing import get_args, get_type_hints

import pytest

from flows.cli import study
from flows.config import load
from flows.studies import STUDIES, StudyName


def test_the_command_takes_the_names_of_the_table() -> None:
    assert list(get_args(StudyName)) == list(STUDIES)
    assert list(get_args(get_type_hints(study)["name"])) == list(STUDIES)


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_without_a_config_is_the_shipped_one(name: StudyName, request: pytest.FixtureRequest) -> None:
    wanted = STUDIES[name].config
    assert load(request.config.rootpath / "configs" / f"study-{name}.yaml", wanted) == wanted()
