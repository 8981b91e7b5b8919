"""What goes into MLflow's review queues and what comes out: an item is a trace, an opinion an assessment of it."""

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from cluster.traces import Listing, Step, info, span
from cluster.tracking import KIND_TAG

if TYPE_CHECKING:
    from mlflow.entities import Span, TraceInfo

KIND = "review"
QUEUE_TAG = "pairwright.queue"
SCHEME_TAG = "pairwright.scheme"
TAKEN_TAG = "pairwright.taken"
CONTENT = "pairwright.content"
TAG_LIMIT = 250
BRIEF = 1000

PICTURES = {code: 0x2400 + code for code in range(32) if code not in (0x09, 0x0A)} | {0x7F: 0x2421}
"""Of control characters."""
SPACE, JOINER = "&nbsp;", "\N{WORD JOINER}"
ADDRESS = re.compile(r"https?:(?=//)|www(?=\.)|(?<=[-.\w+])(?=@)", re.IGNORECASE)
"""Where a word joiner, which nobody sees, keeps a page from making a link."""
STRUCTURE = re.compile(r"^(\d*)([-#+=:.)])|[\\`*_\[\]<>&~|$]")
"""What Markdown reads as more than text: some characters where a line begins, and others everywhere."""


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """What is asked about every item of a queue: one of some options, and a comment if the reviewer likes."""

    name: str
    options: Sequence[str]
    instruction: str

    @property
    def names(self) -> tuple[str, str]:
        """Its name, and one for where that is taken by another scheme."""
        digest = sha256(json.dumps([*self.options, self.instruction]).encode()).hexdigest()
        return self.name, f"{self.name}-{digest[:8]}"


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What a reviewer reads, as Markdown: `request` above, `response` below."""

    request: str
    response: str


@dataclass(frozen=True, kw_only=True)
class Item:
    """One thing to be judged; `name` tells it from others of its queue."""

    name: str
    shown: Preview
    brief: Preview
    """Shown in its place where the database keeps `BRIEF` characters alone, as all but SQLite do."""
    content: Any
    """What `Reviews.content` gives back, exactly; JSON-able."""
    tags: Mapping[str, str]

    def trace_in(self, queue: str) -> str:
        """The id of its trace in a queue."""
        return f"tr-{sha256(f'{queue}:{self.name}'.encode()).hexdigest()[:32]}"


@dataclass(frozen=True, kw_only=True)
class Opinion:
    """The newest that one reviewer says of an item."""

    identifier: str
    reviewer: str
    value: Any
    comment: str
    taken: bool
    """Whether `Reviews.take` was called for it."""


@dataclass(frozen=True, kw_only=True)
class Reviewed:
    """An item as it lies in MLflow, with what is said of it."""

    trace: str
    queue: str
    tags: Mapping[str, str]
    opinions: Sequence[Opinion]


def verbatim(text: str, limit: int) -> str:
    """A text as Markdown that reads as the text and does nothing else: no tag, image, link or list comes of it.

    Its first `limit` characters, and how many there are; control characters show as pictures of themselves.
    """
    plain = text.replace("\r\n", "\n").translate(PICTURES).encode("utf-8", "replace").decode()
    lines = [_verbatim_line(line) for line in plain[:limit].split("\n")] if plain else ["*(empty)*"]
    cut = "" if len(plain) <= limit else f"\n\n*(the first {limit} of {len(plain)} characters: View full trace)*"
    return "\\\n".join(lines) + cut


def _verbatim_line(line: str) -> str:
    """One line; addresses don't link, and spaces that Markdown would swallow or take for a structure stay."""
    inert = ADDRESS.sub(lambda begin: f"{begin[0]}{JOINER}", line)
    escaped = STRUCTURE.sub(lambda mark: f"{mark[1] or ''}\\{mark[2] or mark[0]}", inert)
    return re.sub("^ +| {2,}|\t", lambda found: SPACE * len(found[0].expandtabs(4)), escaped) or SPACE


def trace_info(trace: str, item: Item, experiment: str, *, run: str, preview: Preview) -> "TraceInfo":
    """An item as MLflow lists it, under the run that it came from."""
    now = time.time_ns()
    listing = Listing(
        request=preview.request,
        response=preview.response,
        started_ns=now,
        ended_ns=now,
        tags={key: value[:TAG_LIMIT] for key, value in {KIND_TAG: KIND, **item.tags}.items()},
    )
    return info(trace, listing, experiment=experiment, run=run)


def span_of(trace: str, item: Item) -> "Span":
    """What MLflow's page of the whole trace shows; the item's content lies beside it."""
    now = time.time_ns()
    shown = Step(name=item.name, inputs=item.shown.request, outputs=item.shown.response, started_ns=now, ended_ns=now)
    return span(trace, shown, kept={CONTENT: item.content})


def reviewed(info: "TraceInfo") -> Reviewed:
    """An item with the last opinion of each reviewer that was neither taken back nor replaced."""
    scheme, newest = info.tags.get(SCHEME_TAG), {}
    for found in sorted(info.assessments, key=lambda each: (each.create_time_ms, each.assessment_id)):
        if found.name == scheme and found.source.source_type == "HUMAN" and found.valid is not False:
            newest[found.source.source_id] = found
    opinions = [
        Opinion(
            identifier=found.assessment_id,
            reviewer=reviewer,
            value=None if found.feedback is None else found.feedback.value,
            comment=found.rationale or "",
            taken=info.tags.get(taken_tag(reviewer)) == found.assessment_id,
        )
        for reviewer, found in newest.items()
    ]
    return Reviewed(trace=info.trace_id, queue=info.tags[QUEUE_TAG], tags=dict(info.tags), opinions=opinions)


def taken_tag(reviewer: str) -> str:
    """The tag of a trace that names the opinion of this reviewer that was used."""
    return f"{TAKEN_TAG}.{sha256(reviewer.encode()).hexdigest()[:16]}"
