"""How a report writes: numbers with their signs and intervals, names that break, text that nobody vouches for."""

from __future__ import annotations

import math
import re
import textwrap

from tasks.design.statistics import Difference, Saving

METRICS = {
    "win_base": "win rate against the base policy",
    "win_base_length_controlled": "length-controlled win rate against the base policy",
    "reward": "reward",
}
"""What the metrics of a comparison are called."""

SHORT = {"win_base": "win rate", "win_base_length_controlled": "win rate, length-controlled", "reward": "reward"}
"""The same where room is scarce."""

NONE = "\N{EN DASH}"
"""Where there is no number."""

_MINUS = "\N{MINUS SIGN}"
_CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {127: 0x2421}
_DIRECTIONS = {
    code: f"[U+{code:04X}]" for code in (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
}
_ENTITIES = {ord("<"): "&lt;", ord(">"): "&gt;", ord("&"): "&amp;"}
_EMPHASIS = re.compile(r"(?<![^\W_])_|_(?![^\W_])")
"""An underscore that isn't within a word; within one it means nothing."""
_MARKDOWN = {ord(sign): f"\\{sign}" for sign in "\\`*[]#|~$"} | _ENTITIES


def num(value: float | None, digits: int = 3, *, sign: bool = False) -> str:
    """A number with a typographic minus; a dash where there is none."""
    if value is None or math.isnan(value):
        return NONE
    if math.isinf(value):
        return "∞" if value > 0 else f"{_MINUS}∞"
    shown = f"{value:+,.{digits}f}" if sign else f"{value:,.{digits}f}"
    return shown.replace("-", _MINUS)


def interval(difference: Difference | None, digits: int = 3) -> str:
    """A difference, and its interval below it."""
    if difference is None:
        return NONE
    low, high = (num(end, digits, sign=True) for end in (difference.low, difference.high))
    return f"{num(difference.mean, digits, sign=True)}\n[{low}, {high}]"


def saved(saving: Saving | None) -> str:
    """Labels saved, and their interval below."""
    return NONE if saving is None else f"{saving.factor}\n[{saving.low}, {saving.high}]"


def percent(share: float) -> str:
    """A share in hundredths."""
    return NONE if math.isnan(share) else f"{100 * share:.1f} %"


def pieces(name: str) -> list[str]:
    """A name in parts, each with the separator that ends it, where lines may break."""
    return [piece for piece in re.split(r"(?<=[_/ ])|(?<=[-.])(?!\d)", name) if piece]


def wrapped(name: str, width: int) -> str:
    """A name in lines of no more than `width`, broken behind its own separators where it can be."""
    lines: list[str] = [""]
    for part in pieces(name):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(piece for line in lines for piece in (textwrap.wrap(line, width) or [line]) if piece)


def visible(text: str) -> str:
    """Text with its control characters as pictures, and those that turn its direction by their codes."""
    return text.translate(_CONTROLS).translate(_DIRECTIONS)


def markdown(text: str) -> str:
    """Text as Markdown that shows it as it is, in one line of a table."""
    shown = _EMPHASIS.sub(r"\\_", visible(text).translate(_MARKDOWN))
    return shown.replace("\n", "<br>").replace("://", ":&#47;&#47;")
