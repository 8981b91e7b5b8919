"""The labelling page's own markup. Prompts and responses are text in it, whatever they hold."""

from collections.abc import Mapping, Sequence
from html import escape
from time import time_ns

from cluster.rendering import Message, is_chat
from flows.page.desk import Sheet, Standing
from tasks.labellers.protocol import Choice

SAID: Mapping[Choice, str] = {
    "first": "left is better",
    "second": "right is better",
    "tie": "a tie",
    "abstain": "skipped",
}
KEPT_CONTROLS = "\t\n"
VISIBLE = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in KEPT_CONTROLS} | {0x7F: "\u2421"}
"""Control characters become their pictures, so that a response can't differ from another invisibly by them."""
UNPRINTABLE = dict.fromkeys([*range(0x80, 0xA0), *range(0xD800, 0xE000)], "\ufffd")


def readable(text: str) -> str:
    """The text with nothing in it that a browser would swallow: what is shown, before it is escaped."""
    return text.replace("\r\n", "\n").translate(VISIBLE | UNPRINTABLE)


def text_block(text: str, *, kind: str) -> str:
    """A text as one element; where it is empty, that is said."""
    if not text.strip():
        return f'<p class="pw-empty">({"only white space" if text else f"empty {kind}"})</p>'
    return f'<div class="pw-text" dir="auto">{escape(readable(text))}</div>'


def header(annotator: str, standing: Standing) -> str:
    """Progress of all and of the annotator, and who that is."""
    answered, asked = min(standing.answered, standing.asked), standing.asked
    return (
        '<div class="pw-head"><h1>Which response is better?</h1>'
        f'<div class="pw-progress"><progress max="{max(asked, 1)}" value="{answered}" aria-label="answers in">'
        f'</progress><span id="pw-count">{answered} of {asked} answers in, {standing.yours} by you</span></div>'
        f'<span class="pw-who">labelling as <b id="pw-annotator" dir="auto">{escape(annotator)}</b></span></div>'
    )


def guidance(sheet: Sheet | None) -> str:
    """What the annotators are asked to look for, where the labeller says it."""
    if sheet is None or not sheet.instructions:
        return ""
    return f'<div class="pw-guide" aria-label="Instructions">{text_block(sheet.instructions, kind="text")}</div>'


def pair(sheet: Sheet) -> str:
    """The prompt above its two responses; every rendering has a number of its own, which the keys go by."""
    return (
        f'<div class="pw-pair" id="pw-pair" data-turn="{time_ns()}">'
        f'<section class="pw-prompt" aria-label="Prompt" tabindex="0">{_prompt(sheet.question.messages)}</section>'
        f'<div class="pw-sides">{_side("Left", sheet.question.first)}{_side("Right", sheet.question.second)}</div>'
        "</div>"
    )


def rest(standing: Standing, *, num_open: int) -> str:
    """What is said to an annotator for whom nothing is left."""
    if not standing.asked:
        said, more = "There is nothing to label yet.", "Come back when a round waits for answers."
    elif standing.complete:
        said, more = "All answers are in. Thank you.", "The round goes on without you now; you can close this page."
    elif num_open:
        said, more = "Nothing is left for you. Thank you.", f"Others still have {num_open} to answer."
    else:
        said, more = "Nothing is left. Thank you.", "The round has closed."
    return f'<div class="pw-rest" id="pw-rest" data-turn="{time_ns()}"><h2>{said}</h2><p>{more}</p></div>'


def notice(text: str, *, fault: bool = False) -> str:
    """A line about what has happened, read out by screen readers."""
    kind, role = ("pw-notice pw-fault", "alert") if fault else ("pw-notice", "status")
    return f'<p class="{kind}" role="{role}" dir="auto" data-turn="{time_ns()}">{escape(readable(text))}</p>'


def _prompt(messages: Sequence[Message]) -> str:
    if not is_chat(messages):
        return f"<h2>Prompt</h2>{text_block(str(messages[0]['content'] or ''), kind='prompt')}"
    if len(messages) == 1:
        return f"<h2>Prompt</h2>{text_block(messages[0]['content'] or '', kind='message')}"
    return "".join(
        f"<h2>{escape(str(message['role']))}</h2>{text_block(message['content'] or '', kind='message')}"
        for message in messages
    )


def _side(name: str, text: str) -> str:
    return (
        f'<section class="pw-side" id="pw-{name.lower()}" aria-label="{name} response" tabindex="0">'
        f"<h2>{name}</h2>{text_block(text, kind='response')}</section>"
    )
