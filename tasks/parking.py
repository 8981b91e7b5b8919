"""Parking: a round whose labels come from people lets go of everything until they are in."""

import json
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

from prefect.client.schemas.objects import State
from prefect.states import Completed
from pydantic import BaseModel, ConfigDict

from cluster.storage import Store, write_json
from tasks.labellers.ledger import Ledger
from tasks.labellers.terms import Terms

WAITING = "Waiting"
"""Name of the state in which a task ends whose labels aren't in, and of the round around it."""


class Waiting(BaseModel):
    """What a parked round waits for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lineage: str
    round: int
    num_wanted: int
    terms: Terms
    said: str
    """What it waited for then, in words."""

    def ready(self, ledger: Ledger) -> bool:
        """Whether the round can go on now."""
        return self.terms.ready(ledger.progress(self.lineage, self.round), self.num_wanted, datetime.now(UTC))

    def now(self, ledger: Ledger) -> str:
        """How its answers stand now, in words."""
        return self.terms.waits(ledger.progress(self.lineage, self.round), self.num_wanted, datetime.now(UTC))

    @property
    def state(self) -> State[Any]:
        """The state in which a run ends that waits; its result is this."""
        return Completed(name=WAITING, message=self.said, data=self)


class Parked(Exception):  # noqa: N818
    """People have not answered yet: the round leaves its work unfinished and lets go of what it holds."""

    def __init__(self, waiting: Waiting) -> None:
        super().__init__(waiting.said)
        self.waiting = waiting


def require_answers(ledger: Ledger, terms: Terms, *, lineage: str, round_number: int) -> None:
    """See that the answers are in which a round asked for.

    Raises:
        Parked: they aren't, and its terms say to wait.
    """
    progress, now = ledger.progress(lineage, round_number), datetime.now(UTC)
    if not terms.ready(progress, progress.num_asked, now):
        raise Parked(
            Waiting(
                lineage=lineage,
                round=round_number,
                num_wanted=progress.num_asked,
                terms=terms,
                said=terms.waits(progress, progress.num_asked, now),
            )
        )


def late_keys(
    ledger: Ledger, unanswered: Collection[str], *, store: Store, lineage: str, round_number: int
) -> list[str]:
    """Those of the questions that earlier rounds left unanswered which a round takes in, decided once.

    Answers that came after their round had closed are among them, and those that came while it was closing.
    """
    file = store.lineage(lineage) / f"round-{round_number:03d}" / "late.json"
    if not file.exists():
        answered = ledger.answered(lineage, before=round_number) if unanswered else set()
        write_json(file, [key for key in unanswered if key in answered])
    return [str(key) for key in json.loads(file.read_text(encoding="utf-8"))]
