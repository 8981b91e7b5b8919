"""A comparison's report: what it says of evidence whose answer is known, and how it looks in a real browser."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest

from cluster.storage import StageKey, Store, write_json
from flows.comparison.config import Member
from flows.comparison.evidence import Evidence, LineageFacts
from flows.comparison.judgement import UNIFORM, judge
from flows.comparison.report import write_report
from flows.comparison.synthetic import Plan, synthetic_evidence
from flows.config import LineageConfig
from tasks.stages import round_record
from tasks.tables import PAIRS, PREFERENCES, RESPONSES, part_path, schema_digest, write_part

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

EFFECTS = {
    "first_two": -4.0,
    "best_worst": 6.0,
    "apl": 0.3,
    "adpo": 0.0,
    "active_dpo": 2.0,
    "d_design": 1.0,
    "a_design_of_projected_gradients_whose_name_goes_on_and_on-1e-3": 5.0,
}
HACKED = "best_worst"
LONGEST = "The answer goes on. " * 60
HOSTILE = "<script>document.title='ran'</script><img src=x onerror=\"document.title='ran'\"></span></details> | _a_ `b`"
TEXTS = {("r0", "a"): HOSTILE, ("r1", "b"): LONGEST, ("r2", "a"): "", ("r3", "b"): "\u202eturned\x00"}
CHOICES = {UNIFORM: range(14, 30), "best_worst": range(16), "apl": range(14, 30)}
"""Numbers of the pairs that a selector chooses, in order; those that aren't named choose as uniform does."""
NUM_POOL = 30
A4 = 703
"""Pixels of a page within its margins."""


def planted(effects: dict[str, float], num_seeds: int = 5, **sizes: Any) -> Evidence:
    return synthetic_evidence(Plan(num_seeds=num_seeds, effects=effects, **sizes), np.random.default_rng(0))


def changed(evidence: Evidence, change: Callable[[LineageFacts], LineageFacts]) -> Evidence:
    return replace(evidence, lineages=tuple(change(one) for one in evidence.lineages))


def hacked(one: LineageFacts) -> LineageFacts:
    """A lineage whose answers grow long and whose reward is gamed, if it is of that selector."""
    gamed = {"num_tokens": 90.0, "reward_hacking": 1.0} if one.selector == HACKED else {"reward_hacking": 0.0}
    return replace(one, rounds=tuple(replace(facts, measures={**facts.measures, **gamed}) for facts in one.rounds))


def without(one: LineageFacts, lineage: str, number: int) -> LineageFacts:
    if one.lineage != lineage:
        return one
    rest = tuple(facts for facts in one.rounds if facts.number != number)
    return replace(one, rounds=rest, missing=(number,), why="the engine <ran> out of memory | see its log")


def members_of(evidence: Evidence) -> list[Member]:
    values = {
        "model": {"kind": "folder", "path": "/model"},
        "prompts": {"path": "/prompts", "num_prompts": 400, "num_held_out": 4},
        "selection": {"budget": 64, "selector": {"kind": "uniform"}},
    }
    config = {"lineage": "base", "rounds": evidence.num_rounds, "round": values, "experiment": evidence.comparison}
    base = LineageConfig.model_validate(config)
    return [Member(one.lineage, one.selector, one.seed, one.budget, base) for one in evidence.lineages]


def seal(store: Store, lineage: str, stage: str, rows: Sequence[dict[str, Any]], schema: pa.Schema) -> None:
    """Finish a stage of round 0 with these rows."""
    folder = store.stage(StageKey(stage, {"rows": repr(rows)}, []))
    if folder.manifest is None:
        with folder.work() as started:
            write_part(part_path(folder.path, 0), rows, schema)
            folder.finish(started, rows=len(rows), schema_digest=schema_digest(schema), measures={})
    entry = {"path": str(folder.path), "rows": len(rows), "digest": folder.key.digest, "reused": False}
    write_json(round_record(store, lineage, 0) / f"{stage}.json", entry)


def fill(store: Store, members: Sequence[Member]) -> None:
    """Pool, selection and labels of round 0; every fifth label is a tie, of the others every second is for b."""
    shared = {"prompt_id": "p", "messages": [{"role": "user", "content": "Why does it rain?"}]}
    drawn = {"token_ids": [1], "logprob": -1.0, "finish_reason": "stop", "sampling": "{}", "policy": "", "engine": ""}
    pool = [
        {**shared, **drawn, "response_id": f"r{i}-{side}", "index": k, "text": TEXTS.get((f"r{i}", side), f"{side}{i}")}
        for i in range(NUM_POOL)
        for k, side in enumerate("ab")
    ]
    empty = dict.fromkeys(("chosen_text", "rejected_text", "labeller"), "")
    counts = {"votes_chosen": 1, "votes_rejected": 0, "num_answers": 1, "swapped": False}
    tokens = {"chosen_token_ids": [1], "rejected_token_ids": [1]}
    for member in members:
        chosen = CHOICES.get(member.selector, CHOICES[UNIFORM])
        pairs = [
            {"pair_id": f"pair{i}", "order": order, "prompt_id": "p", "response_a": f"r{i}-a", "response_b": f"r{i}-b"}
            | {"staleness": 0, "weight": 1.5, "score": 10.0 - order}
            for order, i in enumerate(chosen)
        ]
        labels = [
            {**shared, **empty, **counts, **tokens, "pair_id": f"pair{i}", "outcome": "preferred" if i % 5 else "tie"}
            | {"chosen": f"r{i}-{'ab'[i % 2]}", "rejected": f"r{i}-{'ba'[i % 2]}"}
            for i in chosen
        ]
        seal(store, member.lineage, "pool", pool, RESPONSES)
        seal(store, member.lineage, "selection", pairs, PAIRS)
        seal(store, member.lineage, "preferences", labels, PREFERENCES)


@dataclass(frozen=True)
class Written:
    """A report."""

    path: Path

    @property
    def html(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @property
    def markdown(self) -> str:
        return self.path.with_suffix(".md").read_text(encoding="utf-8")

    @property
    def words(self) -> str:
        """The page's text, its tags and style left out."""
        body = self.html.partition("<body>")[2]
        return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", body)).replace("&#39;", "'").replace("&gt;", ">")


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Eight selectors, two budgets, five seeds, three rounds, a gap, a gamed reward, and pairs to read."""
    evidence = planted(EFFECTS, budgets=(64, 1024), num_rounds=3)
    evidence = changed(changed(evidence, hacked), lambda one: without(one, "synthetic-apl-b64-s3", 2))
    folder = tmp_path_factory.mktemp("crowded")
    store, members = Store(folder / "store"), members_of(evidence)
    fill(store, members)
    return Written(write_report(judge(evidence), members, store, folder / "report"))


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Evidence], Written]:
    return lambda evidence: Written(write_report(judge(evidence), [], Store(tmp_path / "store"), tmp_path / "report"))


def test_the_verdict_in_words_stands_before_all_numbers(crowded: Written) -> None:
    evidence = planted(EFFECTS, budgets=(64, 1024), num_rounds=3)
    evidence = changed(changed(evidence, hacked), lambda one: without(one, "synthetic-apl-b64-s3", 2))
    judgement = judge(evidence)
    top = crowded.words.partition("Standings Learning curves")[0]
    assert judgement.headline in top
    assert all(one.words in top for one in judgement.standings)
    assert "above uniform" in judgement.headline
    assert any("further seed" in one.words for one in judgement.standings)


def test_what_breaks_a_guard_is_marked_by_colour_sign_and_words(crowded: Written) -> None:
    rows = re.findall(rf'<th scope="row">{HACKED.replace("_", "_<wbr>")}</th>(.*?)</tr>', crowded.html, re.DOTALL)
    marked = [row for row in rows if 'class="alarm' in row]
    assert len(marked) == 4  # standings and guards of both budgets
    assert all("⚠ broken: length over base 2.25 (at most 1.5)" in row for row in marked)
    assert sum("⚠ yes: reward up" in row for row in marked) == 2
    assert crowded.html.count('<td class="alarm') == 6
    assert "| ⚠ 2.250<br>broken |" in crowded.markdown


def test_a_lineage_with_a_missing_round_is_told_with_the_reason(crowded: Written) -> None:
    assert "the engine &lt;ran&gt; out of memory | see its log" in crowded.html
    assert "| synthetic-apl-b64-s3 | 2 | the engine &lt;ran&gt; out of memory \\| see its log |" in crowded.markdown
    assert "A hollow mark is a mean without the seeds that lack the round" in crowded.words


def test_one_seed_shows_its_numbers_and_no_verdict(write: Callable[[Evidence], Written]) -> None:
    report = write(planted({"apl": 9.0}, num_seeds=1))
    body = report.html.partition("<main>")[2].strip()
    assert body.startswith('<section class="box alarm"')
    assert "No verdict is given" in report.words
    assert "one seed only" in report.words
    assert not re.search("[▲▼]", report.html + report.markdown)
    assert report.html.count("no verdict") == 1


def test_a_confounded_comparison_says_so_at_the_very_top(write: Callable[[Evidence], Written]) -> None:
    odd = "round.training.reference is base in one & 'previous' in another"
    report = write(replace(planted({"apl": 9.0}), confounds=(odd,)))
    alarm = report.html.partition("<main>")[2].partition("</section>")[0]
    assert 'class="box alarm"' in alarm
    assert odd.replace("&", "&amp;").replace("'", "&#39;") in alarm
    assert not re.search("[▲▼]", report.html + report.markdown)
    assert report.markdown.index("base in one") < report.markdown.index("## ")


def test_a_comparison_that_has_measured_nothing_yet_still_has_a_report(write: Callable[[Evidence], Written]) -> None:
    begun = changed(planted({"apl": 1.0}), lambda one: replace(one, rounds=(), missing=(0,), why="not begun"))
    report = write(begun)
    assert "Nothing: no selector has a round in common with uniform." in report.words
    assert report.markdown.count("not begun") == 10


def test_the_same_judgement_gives_the_same_bytes(tmp_path: Path) -> None:
    judgement, store = judge(planted({"apl": 1.0}, num_seeds=2)), Store(tmp_path)
    folders = [write_report(judgement, [], store, tmp_path / name).parent for name in ("one", "two")]
    one, two = ({file.relative_to(at): file.read_bytes() for file in at.rglob("*.*")} for at in folders)
    assert len(one) == 2 + 2 * 7
    assert one == two


def test_figures_that_are_no_more_are_removed(tmp_path: Path) -> None:
    store, out = Store(tmp_path / "store"), tmp_path / "report"
    for num_seeds, names in (
        (2, {"standing", "labels", "difference", "seconds", "frontier", "above", "overlap"}),
        (1, {"labels", "seconds", "frontier", "overlap"}),
    ):
        write_report(judge(planted({"apl": 1.0}, num_seeds=num_seeds)), [], store, out)
        assert {path.name for path in (out / "figures").iterdir()} == {
            f"{name}-b64.{kind}" for name in names for kind in ("svg", "png")
        }


def test_each_selector_shows_ten_pairs_that_uniform_did_not_choose_in_its_own_order(crowded: Written) -> None:
    shown = crowded.html.partition("<h3>best_worst</h3>")[2].partition('</details>\n<details class="chooser"')[0]
    assert "14 of 16 pairs are not among uniform's; 10 shown; lineage synthetic-best_worst-b64-s0" in shown
    assert re.findall(r"<h4>Choice (\d+)</h4>", shown) == [str(number) for number in range(1, 11)]
    labels = re.findall(r"</h4><span>(.*?)</span><span>score (.*?)</span><span>weight (.*?)</span>", shown)
    assert labels[0] == ("a tie", "10.0000", "1.5000")
    assert labels[1] == ("response B preferred", "9.0000", "1.5000")
    assert labels[2] == ("response A preferred", "8.0000", "1.5000")
    assert re.findall(r"Response ([AB]) ✓ preferred", shown) == list("BABAABAB")
    assert "It chose the same pairs as uniform." in crowded.html.partition("<h3>adpo</h3>")[2]


def test_a_long_text_is_cut_and_nothing_of_it_is_lost(crowded: Written) -> None:
    cut = re.search(
        r'>(The answer goes on[^<]*)</span>\s*<details class="rest"><summary>.*?</summary><span[^>]*>([^<]*)<',
        crowded.html,
    )
    assert cut is not None
    assert cut[1] + cut[2] == LONGEST
    assert len(cut[1]) <= 600
    assert "letters more*" in crowded.markdown


def test_texts_of_a_policy_show_and_do_nothing(crowded: Written) -> None:
    for text in (crowded.html, crowded.markdown):
        assert "<script" not in text
        assert "<img src=x" not in text
        assert "&lt;script&gt;" in text
        assert "\u202e" not in text
        assert "\x00" not in text
    assert "[U+202E]turned␀" in crowded.html
    assert "\\| \\_a\\_ \\`b\\`" in crowded.markdown


def test_the_file_names_nothing_outside_itself(crowded: Written) -> None:
    tags = " ".join(re.findall(r"<[^>]+>", crowded.html))
    tags = " ".join(re.findall(r"<[^>]+>", crowded.html))
    addresses = re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?([^"\'\s>)]+)', tags)
    assert len([one for one in addresses if one.startswith("data:image/svg+xml")]) == 2 * 7
    assert {one.partition(":")[0] for one in addresses if not one.startswith("#")} == {"data"}
    anchors = {one[1:] for one in addresses if one.startswith("#")}
    assert anchors <= set(re.findall(r'id="([^"]+)"', crowded.html))


def test_figures_beside_the_markdown_are_there(crowded: Written) -> None:
    named = re.findall(r"!\[[^\n]*\]\((figures/[^)]+\.png)\)", crowded.markdown)
    assert len(set(named)) == 2 * 7
    assert all((crowded.path.parent / name).read_bytes().startswith(b"\x89PNG") for name in named)


@dataclass
class Visit:
    """A page at one width, and what happened on it."""

    page: "Page"
    requests: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


@pytest.fixture(params=[1280, 390])
def visit(request: pytest.FixtureRequest, browser: "Browser", crowded: Written) -> Iterator[Visit]:
    visit = Visit(browser.new_page(viewport={"width": request.param, "height": 900}))
    visit.page.on("request", lambda made: visit.requests.append(made.url))
    visit.page.on("console", lambda said: visit.faults.append(said.text))
    visit.page.on("pageerror", lambda error: visit.faults.append(str(error)))
    visit.page.goto(crowded.path.as_uri())
    yield visit
    visit.page.close()


def test_the_page_needs_no_network_and_has_no_faults(visit: Visit) -> None:
    visit.page.evaluate("Promise.all([...document.images].map(image => image.decode()))")
    assert visit.page.evaluate("[...document.images].filter(image => !image.naturalWidth).length") == 0
    assert visit.page.evaluate("document.images.length") == 2 * 7
    assert {url.partition(":")[0] for url in visit.requests} <= {"file", "data"}
    assert visit.faults == []
    assert visit.page.title() == "synthetic: comparison of selectors"


def test_the_page_fits_its_window_and_its_tables_scroll_within_it(visit: Visit, shots: Path) -> None:
    page, width = visit.page, visit.page.evaluate("innerWidth")
    page.screenshot(path=shots / f"comparison-{width}.png", full_page=True)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width
    wide = page.evaluate(
        "[...document.querySelectorAll('.scroll')].filter(one => one.scrollWidth > one.clientWidth).length"
    )
    assert (wide > 0) == (width == 390)
    assert page.evaluate("[...document.images].every(image => image.alt.length > 20)")
    tops = page.evaluate(
        "[...document.querySelectorAll('details[open] .side')].slice(0, 2).map(one => one.getBoundingClientRect().top)"
    )
    assert (tops[0] == tops[1]) == (width == 1280)


def test_the_page_is_legible_and_its_headings_are_in_order(visit: Visit) -> None:
    sizes = visit.page.evaluate(
        "[...document.querySelectorAll('body *')].filter(one => one.innerText && one.innerText.trim())"
        ".map(one => parseFloat(getComputedStyle(one).fontSize))"
    )
    assert min(sizes) >= 12
    levels = visit.page.evaluate("[...document.querySelectorAll('h1, h2, h3, h4')].map(one => Number(one.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert visit.page.evaluate("[...document.querySelectorAll('th')].every(one => one.scope)")
    assert visit.page.evaluate("[...document.querySelectorAll('table')].every(one => one.caption.textContent)")


def test_the_page_prints(browser: "Browser", crowded: Written, shots: Path) -> None:
    page = browser.new_page(viewport={"width": A4, "height": 1000})
    page.emulate_media(media="print")
    page.goto(crowded.path.as_uri())
    assert page.evaluate("document.scrollingElement.scrollWidth") <= A4
    pdf = page.pdf(path=shots / "comparison.pdf", prefer_css_page_size=True)
    page.close()
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) > 3
