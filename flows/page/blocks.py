"""The labelling page: two responses side by side, and a key for each answer."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster.errors import InputError
from flows.page.desk import Desk
from flows.page.logins import check_name
from flows.page.parts import MAX_RATIONALE, Changes, Parts, asking, lay_out, shown
from flows.page.texts import notice, readable
from flows.page.view import Press, View, answered, opening, undone
from tasks.labellers.ledger import Ledger
from tasks.labellers.protocol import Choice

if TYPE_CHECKING:
    from gradio import Blocks

TITLE = "Pairwright: labelling"


def page(ledger: Ledger, lineage: str, *, completed: Callable[[], str] | None = None) -> "Blocks":
    """Make the page of a lineage's open questions.

    `completed` is called after the answer that completes a round, and says in a sentence what came of it.
    """
    from gradio import Blocks

    with Blocks(title=TITLE, analytics_enabled=False, fill_width=True) as blocks:
        parts = lay_out()
        acts = Acts(parts=parts, desk=Desk(ledger=ledger, lineage=lineage), completed=completed)
        _wire(blocks, parts, acts)
    return blocks


@dataclass(frozen=True, kw_only=True)
class Acts:
    """What an annotator can do; a login's name goes before what the browser says."""

    parts: Parts
    desk: Desk
    completed: Callable[[], str] | None

    def come(self, name: str, *, by_login: bool = False) -> Changes:
        """Open the page, or look again."""
        from gradio import update

        if not name:
            return asking(self.parts)
        return {**self._show(lambda: opening(self.desk, name)), self.parts.other: update(visible=not by_login)}

    def enter(self, name: str, *, login: str | None = None) -> Changes:
        """Begin under a name; whoever has logged in has one."""
        if login is not None:
            return self.come(login, by_login=True)
        try:
            kept = check_name(name or "")
        except InputError as error:
            return asking(self.parts, said=str(error))
        return {**self.come(kept), self.parts.annotator: kept}

    def choose(self, press: Press) -> Iterator[Changes]:
        """Answer; the answer that completes a round lets it go on, once the annotator has been told that it is in."""
        if not press.annotator:
            yield asking(self.parts)
            return
        try:
            view = answered(self.desk, press)
        except InputError as error:
            yield {self.parts.notice: notice(str(error), fault=True)}
            return
        yield shown(self.parts, view)
        if view.completes and self.completed is not None:
            yield {self.parts.notice: notice(self.completed())}

    def undo(self, annotator: str, ticket: str) -> Changes:
        """Go back to the answer before."""
        return self._show(lambda: undone(self.desk, annotator, ticket)) if annotator else asking(self.parts)

    def _show(self, look: Callable[[], View]) -> Changes:
        """The view; where the ledger can't be read, what was on the page stays there."""
        try:
            return shown(self.parts, look())
        except InputError as error:
            return {self.parts.notice: notice(str(error), fault=True)}


def _wire(blocks: "Blocks", parts: Parts, acts: Acts) -> None:
    import gradio as gr

    def come(kept: str, request: gr.Request) -> Changes:
        return acts.come(request.username or _known(kept), by_login=request.username is not None)

    def enter(name: str, request: gr.Request) -> Changes:
        return acts.enter(name, login=request.username)

    def undo(kept: str, ticket: str, request: gr.Request) -> Changes:
        return acts.undo(request.username or _known(kept), ticket)

    def leave() -> Changes:
        return asking(parts)

    def when(listen: Callable[..., object], act: Callable[..., object], *inputs: object) -> None:
        listen(
            act,
            list(inputs),
            parts.seen,
            show_progress="hidden",
            api_visibility="private",
            concurrency_limit=None,
        )

    when(blocks.load, come, parts.annotator)
    for listen in (parts.keep.click, parts.again.click):
        when(listen, come, parts.annotator)
    for listen in (parts.start.click, parts.name.submit):
        when(listen, enter, parts.name)
    when(parts.other.click, leave)
    when(parts.undo.click, undo, parts.annotator, parts.ticket)
    for choice, button in parts.buttons.items():
        when(button.click, _chooser(acts, choice), parts.annotator, parts.ticket, parts.why)


def _chooser(acts: Acts, choice: Choice) -> Callable[..., Iterator[Changes]]:
    import gradio as gr

    def choose(kept: str, ticket: str, why: str, request: gr.Request) -> Iterator[Changes]:
        annotator, rationale = request.username or _known(kept), readable((why or "")[:MAX_RATIONALE])
        yield from acts.choose(Press(annotator=annotator, ticket=ticket, choice=choice, rationale=rationale))

    return choose


def _known(kept: str) -> str:
    """The name that the browser kept; empty where it can't be one."""
    try:
        return check_name(kept or "")
    except InputError:
        return ""
