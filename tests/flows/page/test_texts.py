"""Prompts and responses at the labelling page are text, whatever they hold; and the page can be read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from flows.page.texts import readable, text_block

pytestmark = pytest.mark.labels

HUGE = "word " * 40_000
HARM = (
    "<script>window.harmed = 1; alert(1)</script><img src=x onerror='window.harmed = 2; alert(2)'>"
    "<svg onload=alert(3)></svg><iframe src='https://example.com/'></iframe><style>* { display: none }</style>"
)
MARKDOWN = (
    "# Head\n\n![image](https://example.com/a.png) [link](javascript:alert(4)) `code` **bold** <https://example.com>"
)
TEMPLATES = "${alert(5)} {{value}} {{{value}}} {{#each value}}x{{/each}} `${window.harmed = 3}` </div> &lt;b&gt; &amp;"
ARABIC = "مرحبا بالعالم، هذا نص من اليمين إلى اليسار.\nA line from left to right.\n\u202eoverridden\u202c"
EMOJI = "😀👨‍👩‍👧‍👦🏳️‍🌈👍🏽" * 200
HIDDEN = (
    "zero\u200bwidth\u200d\ufeff a\u0301\u0323 null\x00 bell\x07 escape\x1b[31m tab\t delete\x7f\r\n"
    "next\rc1\x85 lone\ud800"
)
PAIRS = [
    ("<b>prompt</b> " + HARM, HARM, MARKDOWN),
    ("templates", TEMPLATES, "\n\n  first lines are blank, and some spaces    stay"),
    ("huge", HUGE, "x" * 200_000),
    ("scripts of the world", ARABIC, EMOJI),
    ("hidden", HIDDEN, HIDDEN + "!"),
]
SIDES = ("#pw-left", "#pw-right")


def boxes(annotator: Any) -> list[dict[str, float]]:
    return [annotator.page.locator(part).bounding_box() for part in (".pw-prompt", *SIDES)]


def scrolls_sideways(annotator: Any) -> bool:
    return bool(annotator.page.evaluate("document.scrollingElement.scrollWidth > window.innerWidth"))


def test_texts_that_mean_harm_are_shown_as_they_are_and_do_nothing(
    open_labelling: Callable[..., Any], open_page: Callable[..., Any], shots: Path
) -> None:
    ann = open_page(open_labelling(PAIRS).url, "Ann")
    for number, (prompt, *responses) in enumerate(PAIRS):
        assert ann.prompt == readable(prompt)
        assert set(ann.sides) == set(map(readable, responses))
        prompt_box, left, right = boxes(ann)
        assert prompt_box["y"] + prompt_box["height"] <= left["y"], "the prompt is above"
        assert left["y"] == right["y"]
        assert left["x"] + left["width"] <= right["x"], "beside each other"
        assert left["width"] == pytest.approx(right["width"], abs=1)
        assert not scrolls_sideways(ann)
        assert ann.page.locator("#pw-first").bounding_box()["y"] < 800, "the buttons need no scrolling"
        ann.page.screenshot(path=shots / f"page-text-{number}.png")

        ann.page.set_viewport_size({"width": 390, "height": 844})
        _, left, right = boxes(ann)
        assert left["y"] + left["height"] <= right["y"], "one above the other"
        assert left["width"] >= 340
        assert not scrolls_sideways(ann)
        ann.page.screenshot(path=shots / f"page-text-{number}-narrow.png")
        ann.page.set_viewport_size({"width": 1280, "height": 800})
        ann.press("s")
    assert ann.alarms == []
    assert ann.page.evaluate("window.harmed") is None
    assert {urlsplit(url).hostname for url in ann.requested} == {"127.0.0.1"}


def test_a_response_without_text_is_said_to_be_empty(
    open_labelling: Callable[..., Any], open_page: Callable[..., Any]
) -> None:
    ann = open_page(open_labelling([("quiet", "", " \n ")]).url, "Ann")
    shown = {ann.text(f"{side} .pw-empty") for side in SIDES}
    assert shown == {"(empty response)", "(only white space)"}


def test_text_finds_its_own_direction() -> None:
    assert 'dir="auto"' in text_block(ARABIC, kind="response")


def test_right_to_left_text_begins_at_the_right(
    open_labelling: Callable[..., Any], open_page: Callable[..., Any]
) -> None:
    ann = open_page(open_labelling([("directions", "مرحبا", "hello")]).url, "Ann")
    starts = """part => {
        const text = document.querySelector(part + ' .pw-text');
        const range = document.createRange();
        range.selectNodeContents(text);
        const [line, box] = [range.getBoundingClientRect(), text.getBoundingClientRect()];
        return [line.left - box.left < 2, box.right - line.right < 2];
    }"""
    found = {text: ann.page.evaluate(starts, side) for text, side in zip(ann.sides, SIDES, strict=True)}
    assert found == {"مرحبا": [False, True], "hello": [True, False]}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_can_be_read_and_used_by_keyboard_in_light_and_dark(
    open_labelling: Callable[..., Any], open_page: Callable[..., Any], shots: Path, scheme: str
) -> None:
    labelling = open_labelling([(f"How do I do {n}?", "Like this.", "Like that.") for n in range(3)])
    ann = open_page(labelling.url, "Ann", options={"color_scheme": scheme})
    ann.press("1")
    ann.press("u")
    for part in (
        "#pw-left .pw-text",
        "#pw-left h2",
        "#pw-first",
        "#pw-notice p",
        "#pw-count",
        "#pw-other",
        ".pw-guide",
    ):
        assert ann.page.evaluate(CONTRAST, part) >= 4.5, part
    names = ["Left is better", "Tie", "Right is better", "Skip", "Undo", "Keep my answer"]
    assert [ann.page.get_by_role("button", name=name, exact=True).is_visible() for name in names] == [True] * 6
    ann.page.get_by_role("button", name="Tie", exact=True).focus()
    ann.page.keyboard.press("Tab")
    style = "getComputedStyle(document.activeElement)"
    assert ann.page.evaluate("document.activeElement.id") == "pw-second"
    assert ann.page.evaluate(f"{style}.outlineStyle + parseInt({style}.outlineWidth)") == "solid3"
    ann.page.screenshot(path=shots / f"page-{scheme}.png")


CONTRAST = """part => {
    const luminance = colour => {
        const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
        const [r, g, b] = colour.match(/[\\d.]+/g).map(v => linear(v / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = element => {
        const colour = getComputedStyle(element).backgroundColor;
        return colour.endsWith(", 0)") ? ground(element.parentElement) : colour;
    };
    const element = document.querySelector(part);
    const [dark, light] = [getComputedStyle(element).color, ground(element)].map(luminance).sort((a, b) => a - b);
    return (light + 0.05) / (dark + 0.05);
}"""
"""The contrast ratio of WCAG 2 between the text of an element and what is behind it."""
