"""What of the ledger is exported: of which lineage, labeller and kind of prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cluster.errors import InputError
from cluster.rendering import Message, is_chat
from tasks.labellers.formats import AnyFormat
from tasks.labellers.formats.parts import Holding
from tasks.labellers.ledger import Ledger
from tasks.labellers.names import matches, name_of


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which answers and open questions; None: whatever there is."""

    lineage: str | None = None
    labeller: str | None = None
    """A word that tells it from others, see `tasks.labellers.names.matches`."""
    prompts: Literal["chat", "plain"] | None = None

    def holding(self, ledger: Ledger, form: AnyFormat) -> Holding:
        """What the ledger holds of it, if the format can hold that.

        Raises:
            InputError: answers of several labellers, in a format that doesn't name them.
        """
        entries = [one for one in ledger.entries(self.lineage) if self._fits(one.labeller, one.messages)]
        waiting = ledger.open_questions(self.lineage) if form.has_open_questions else []
        open_questions = [one for one in waiting if self._fits(one.labeller, one.question.messages)]
        labellers = sorted({entry.labeller for entry in entries} | {one.labeller for one in open_questions})
        if form.of_one_labeller and len(labellers) > 1:
            raise InputError(
                f"the format {form.kind} doesn't say who preferred what, and {len(labellers)} labellers answered: "
                f"choose {', '.join(map(name_of, labellers))} with --labeller, or one lineage with --lineage"
            )
        return Holding(entries=entries, open_questions=open_questions, seed=ledger.seed)

    def _fits(self, labeller: str, messages: Sequence[Message]) -> bool:
        kind = "chat" if is_chat(messages) else "plain"
        return self.prompts in {None, kind} and (self.labeller is None or matches(labeller, self.labeller))
