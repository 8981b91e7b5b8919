"""People as a labeller: they answer when they can, on a page or in a queue, and the round waits for them."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from cluster.errors import InputError
from cluster.tracking import Tracker
from tasks.labellers.ledger import Ledger
from tasks.labellers.protocol import Answered, Ask, Label, Question, Workplace
from tasks.labellers.terms import Terms

INSTRUCTIONS = "Which response would you rather get? Say tie if neither is better; skip if you can't say."


@dataclass(frozen=True, kw_only=True)
class PeopleLabeller:
    """A crew that answers the ledger's open questions when it can; asking it opens them.

    Answers are kept under `crew` and `instructions`. When a round goes on is no part of that, and may change under a
    lineage: with all answers, or `deadline_hours` after it first asked with `min_labels` of them.
    """

    kind: Literal["people"] = "people"
    crew: str = "people"
    instructions: str = INSTRUCTIONS
    cost: float = 1.0
    min_labels: int | None = None
    """Answers, skips left aside, that are enough once the deadline has passed."""
    deadline_hours: float | None = None
    review_queue: bool = True
    """Whether they can answer in a review queue of MLflow's, too."""

    def __post_init__(self) -> None:
        if not self.crew.strip():
            raise InputError("crew is empty: give these people a name, under which their answers are kept")
        if not 0 <= self.cost < math.inf:
            raise InputError(f"cost is {self.cost}: expected a finite number, 0 or more")
        if self.min_labels is not None and self.min_labels < 1:
            raise InputError(f"min_labels is {self.min_labels}: expected 1 or more, or none for all")
        if self.deadline_hours is not None and not 0 < self.deadline_hours < math.inf:
            raise InputError(f"deadline_hours is {self.deadline_hours}: expected a finite number above 0, or none")
        if (self.min_labels is None) != (self.deadline_hours is None):
            raise InputError(
                f"min_labels is {self.min_labels} and deadline_hours is {self.deadline_hours}: set both, for a round "
                "that goes on with some of its answers, or neither, for one that waits for all"
            )

    @property
    def identity(self) -> str:
        """Kind, crew and instructions as JSON."""
        return json.dumps({"kind": self.kind, "crew": self.crew, "instructions": self.instructions}, sort_keys=True)

    @property
    def terms(self) -> Terms:
        """When a round that asked them goes on."""
        return Terms(min_labels=self.min_labels, deadline_hours=self.deadline_hours)

    @property
    def repeats_itself(self) -> bool:
        """Each repetition is for somebody else."""
        return False

    def price(self, question: Question) -> float:  # noqa: ARG002
        """What each answer costs."""
        return self.cost

    def check(self) -> None:
        """People can always be asked."""

    def __call__(self, asks: Sequence[Ask], workplace: Workplace) -> Iterator[Answered]:
        """Show every ask where people answer, and leave it open: answers enter the ledger when they are given."""
        if self.review_queue and asks:
            from tasks.review_queue import offer

            offer(asks, self.identity, workplace, instructions=self.instructions)
            if workplace.tracker is not None:
                self.collect(Ledger(url=workplace.settings.ledger), workplace.tracker, workplace.lineage)
        return iter(())

    def collect(self, ledger: Ledger, tracker: Tracker, lineage: str) -> None:
        """Take what they said in MLflow's review queues into the ledger."""
        if self.review_queue:
            from tasks.review_queue import take_in

            take_in(ledger, tracker, lineage)

    def measures(self, labels: Sequence[Label]) -> dict[str, float]:
        """How many people answered."""
        return {"num_annotators": float(len({label.annotator for label in labels}))}
