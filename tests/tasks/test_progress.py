"""Progress: what work in another process says of itself is kept in a file, line over line."""

import logging
from pathlib import Path

import pytest

import tasks.progress
from tasks.progress import noting, run_logger

LOGGER = logging.getLogger("tasks.design.test")


@pytest.fixture(autouse=True)
def every_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks.progress, "NOTE_SECONDS", 0.0)


def test_the_last_line_is_kept_whole(tmp_path: Path) -> None:
    note = tmp_path / ".note"
    with noting("tasks.design", note):
        for number in range(3):
            LOGGER.info("pass %d", number)
            assert note.read_text() == f"pass {number}"
    assert list(tmp_path.iterdir()) == [note]


def test_nothing_is_kept_outside_of_the_block_or_of_other_loggers(tmp_path: Path) -> None:
    level = logging.getLogger("tasks.design").level
    with noting("tasks.design", tmp_path / ".note"):
        logging.getLogger("tasks").warning("elsewhere")
        LOGGER.debug("too fine")
    LOGGER.warning("too late")
    assert list(tmp_path.iterdir()) == []
    assert logging.getLogger("tasks.design").level == level


def test_lines_that_follow_too_soon_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks.progress, "NOTE_SECONDS", 1e6)
    with noting("tasks.design", tmp_path / ".note"):
        for number in range(3):
            LOGGER.info("pass %d", number)
    assert (tmp_path / ".note").read_text() == "pass 0"


def test_a_line_that_cannot_be_written_ends_no_work(tmp_path: Path) -> None:
    with noting("tasks.design", tmp_path / "gone" / ".note"):
        LOGGER.info("pass 1")
    assert list(tmp_path.iterdir()) == []


def test_outside_of_prefect_there_is_a_logger_too() -> None:
    assert run_logger().name == "tasks.progress"
