"""The components of the labelling page, and what a view makes of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flows.page.logins import MAX_NAME
from flows.page.texts import guidance, header, notice, pair, rest
from flows.page.view import View
from tasks.labellers.protocol import Choice

MAX_RATIONALE = 4000
"""Characters."""
CHOICES: Mapping[Choice, str] = {
    "first": "Left is better",
    "tie": "Tie",
    "second": "Right is better",
    "abstain": "Skip",
}

Component = Any
"""Gradio's; none of it is imported before the page is made."""
Changes = dict[Component, Any]
"""New values or properties of components."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the page is made of."""

    annotator: Component
    """The name, which the browser keeps."""
    entry: Component
    name: Component
    start: Component
    work: Component
    header: Component
    guide: Component
    pair: Component
    ticket: Component
    choices: Component
    buttons: Mapping[Choice, Component]
    why: Component
    undo: Component
    keep: Component
    again: Component
    other: Component
    notice: Component

    @property
    def seen(self) -> list[Component]:
        """The components that `shown` and the asking for a name change."""
        own = [self.annotator, self.entry, self.work, self.header, self.guide, self.pair, self.ticket, self.choices]
        return [*own, self.buttons["abstain"], self.why, self.keep, self.again, self.other, self.notice]


def lay_out() -> Parts:
    """Make the components, inside of Gradio's `Blocks`."""
    import gradio as gr

    with gr.Column(visible=False, elem_id="pw-entry") as entry:
        name = gr.Textbox(label="Your name", max_length=MAX_NAME, max_lines=1, elem_id="pw-name")
        start = gr.Button("Start", elem_id="pw-start")
    with gr.Column(visible=False, elem_id="pw-work") as work:
        head, guide = gr.HTML(), gr.HTML()
        sides = gr.HTML(elem_id="pw-sheet")
        with gr.Row(elem_id="pw-choices") as choices:
            first, tie, second = _choice("first"), _choice("tie"), _choice("second")
        with gr.Row(elem_id="pw-more"):
            why = gr.Textbox(
                label="Why?",
                placeholder="optional: r to write, Esc to leave",
                lines=1,
                max_lines=4,
                max_length=MAX_RATIONALE,
                elem_id="pw-why",
            )
            skip, undo = _choice("abstain"), _act("Undo", "undo")
            keep, again = _act("Keep my answer", "keep"), _act("Look again", "again")
    with gr.Row(elem_id="pw-foot"):
        notices = gr.HTML(elem_id="pw-notice")
        other = gr.Button("I am someone else", elem_id="pw-other", visible=False)
    return Parts(
        annotator=gr.BrowserState("", storage_key="pairwright-annotator", secret="a name is no secret"),
        entry=entry,
        name=name,
        start=start,
        work=work,
        header=head,
        guide=guide,
        pair=sides,
        ticket=gr.Textbox(visible="hidden"),
        choices=choices,
        buttons={"first": first, "tie": tie, "second": second, "abstain": skip},
        why=why,
        undo=undo,
        keep=keep,
        again=again,
        other=other,
        notice=notices,
    )


def shown(parts: Parts, view: View) -> Changes:
    """A whole view."""
    from gradio import update

    sheet, standing = view.sheet, view.look.standing
    return {
        parts.entry: update(visible=False),
        parts.work: update(visible=True),
        parts.header: header(view.look.annotator, standing),
        parts.guide: guidance(sheet),
        parts.pair: pair(sheet) if sheet else rest(standing, num_open=len(view.look.open)),
        parts.ticket: sheet.ticket if sheet else "",
        parts.why: update(value=sheet.rationale if sheet else "", visible=sheet is not None),
        parts.choices: update(visible=sheet is not None),
        parts.buttons["abstain"]: update(visible=sheet is not None),
        parts.keep: update(visible=sheet is not None and sheet.before is not None),
        parts.again: update(visible=sheet is None),
        parts.notice: notice(view.said, fault=view.fault),
    }


def asking(parts: Parts, *, said: str = "") -> Changes:
    """Who is there? The browser forgets who was."""
    from gradio import update

    return {
        parts.annotator: "",
        parts.entry: update(visible=True),
        parts.work: update(visible=False),
        parts.other: update(visible=False),
        parts.notice: notice(said, fault=bool(said)),
    }


def _choice(choice: Choice) -> Component:
    return _act(CHOICES[choice], choice)


def _act(text: str, name: str) -> Component:
    from gradio import Button

    return Button(text, elem_id=f"pw-{name}", elem_classes="pw-act")
