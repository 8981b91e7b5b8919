"""What the labelling page shows after each thing that an annotator does."""

from dataclasses import dataclass, replace

from cluster.errors import InputError
from flows.page.desk import Desk, Look, Sheet
from flows.page.texts import SAID
from tasks.labellers.ledger import Receipt
from tasks.labellers.protocol import Choice

STALE = (
    "Not saved: this pair was answered meanwhile, shown to somebody else, or nobody asks for it any more. "
    "Here is what comes next."
)

WRITTEN = {"counted": "Saved", "replaced": "Changed", "kept": "Kept for later, as nobody waits for it now"}


@dataclass(frozen=True, kw_only=True)
class View:
    """One sight of the page."""

    look: Look
    sheet: Sheet | None
    """None: nothing is left for the annotator."""
    said: str = ""
    fault: bool = False
    """Whether that is a fault."""
    completes: bool = False
    """Whether it follows an answer that completed the round."""


@dataclass(frozen=True, kw_only=True)
class Press:
    """An answer as it comes from the browser: who gave it, to the pair of which ticket."""

    annotator: str
    ticket: str
    choice: Choice
    rationale: str = ""


def opening(desk: Desk, annotator: str, *, said: str = "") -> View:
    """The next pair."""
    look = desk.look(annotator)
    return View(look=look, sheet=desk.following(look), said=said)


def answered(desk: Desk, press: Press) -> View:
    """The pair after an answer, which is in the ledger by then; or the same thing with the reason why it is not."""
    try:
        receipt = desk.answer(press.annotator, press.ticket, press.choice, rationale=press.rationale)
    except InputError as error:
        look = desk.look(press.annotator)
        same = look.find(press.ticket)
        sheet = desk.following(look) if same is None else replace(same, rationale=press.rationale)
        return View(look=look, sheet=sheet, said=f"Not saved: {error}", fault=True)
    if receipt is None:
        return replace(opening(desk, press.annotator, said=STALE), fault=True)
    view = opening(desk, press.annotator, said=_saved(receipt, press.choice))
    return replace(view, completes=view.look.standing.complete)


def undone(desk: Desk, annotator: str, ticket: str) -> View:
    """The annotator's answer before the pair of the ticket, to be given again; it stands until then."""
    look = desk.look(annotator)
    sheet = look.preceding(ticket)
    if sheet is None:
        shown = look.find(ticket) or desk.following(look)
        return View(look=look, sheet=shown, said="There is nothing before this that you have answered in this round.")
    said = f"You said: {SAID[sheet.before or 'abstain']}. Answer again to change it, or keep it."
    return View(look=look, sheet=sheet, said=said)


def _saved(receipt: Receipt, choice: Choice) -> str:
    """The ledger's own reason names the lineage, which can tell what the annotator shouldn't know."""
    return f"{WRITTEN[receipt.status]}: {SAID[choice]}."
