"""The studies by name: what `pairwright study` runs."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from flows.bandit import StudyConfig
from flows.comparison.known_answer import KnownAnswerConfig
from flows.publication import Published
from flows.theory import TheoryConfig

StudyName = Literal["bandit", "theory", "referee"]


@dataclass(frozen=True)
class Study:
    """A study: the type of its config, whose defaults are the shipped one, and what runs it into a folder."""

    config: type[BaseModel]
    run: Callable[[Any, Path | None], Published]


def _bandit(config: StudyConfig, out: Path | None) -> Published:
    from flows.study import study_bandit

    return study_bandit(config, out)


def _theory(config: TheoryConfig, out: Path | None) -> Published:
    from flows.theory_study import study_theory

    return study_theory(config, out)


def _referee(config: KnownAnswerConfig, out: Path | None) -> Published:
    from flows.comparison.known_answer_study import study_referee

    return study_referee(config, out)


STUDIES: dict[StudyName, Study] = {
    "bandit": Study(StudyConfig, _bandit),
    "theory": Study(TheoryConfig, _theory),
    "referee": Study(KnownAnswerConfig, _referee),
}
