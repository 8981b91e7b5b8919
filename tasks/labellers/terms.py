"""Terms: how long a round waits for people."""

from datetime import datetime, timedelta

from pydantic import BaseModel, ConfigDict

from tasks.labellers.ledger import Progress


class Terms(BaseModel):
    """When a round that asked people goes on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_labels: int | None = None
    deadline_hours: float | None = None

    def ready(self, progress: Progress, num_wanted: int, now: datetime) -> bool:
        """Whether all have answered, or the deadline has passed with `min_labels`.

        A deadline that passes with fewer closes nothing: the round goes on as soon as they are there.
        """
        if progress.num_answered >= num_wanted:
            return True
        closes_at, given = self.closes_at(progress), progress.num_answered - progress.num_abstained
        return closes_at is not None and now >= closes_at and given >= self._enough(num_wanted)

    def closes_at(self, progress: Progress) -> datetime | None:
        """When the deadline passes, UTC; None: there is none, or nothing has been asked yet."""
        if self.deadline_hours is None or progress.asked_at is None:
            return None
        return progress.asked_at + timedelta(hours=self.deadline_hours)

    def waits(self, progress: Progress, num_wanted: int, now: datetime) -> str:
        """How its answers stand, in words."""
        if self.ready(progress, num_wanted, now):
            return f"has its answers: {progress.num_answered} of {num_wanted}"
        said = f"waits for people: {progress.num_answered} of {num_wanted} answered"
        if progress.num_abstained:
            said += f", {progress.num_abstained} of them skipped"
        if (closes_at := self.closes_at(progress)) is None:
            return said
        when, enough = f"{closes_at:%Y-%m-%d %H:%M} UTC", self._enough(num_wanted)
        passed = f"its deadline passed at {when}, and it goes on with {enough} answers that are no skips"
        return f"{said}; {passed}" if now >= closes_at else f"{said}; {enough} are enough from {when} on"

    def _enough(self, num_wanted: int) -> int:
        return num_wanted if self.min_labels is None else min(self.min_labels, num_wanted)
