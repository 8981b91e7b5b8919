"""Pairs that a selector chose and uniform did not, with their texts and labels, read from the store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cluster.storage import Store
from flows.comparison.config import Member
from flows.comparison.judgement import UNIFORM
from flows.history import recorded
from tasks.tables import PAIRS, PREFERENCES, PREFERRED, RESPONSES, Table, read

NUM_PAIRS = 10
"""Shown of each selector, in its order of choice."""

FIRST_ROUND = 0
"""The round whose pool all selectors share."""

_OUTCOMES = {"tie": "a tie", "abstained": "the labeller abstained", "unanswered": "not answered"}


@dataclass(frozen=True)
class Response:
    """One of the two sides of a pair; `chosen` is None where neither was preferred."""

    text: str
    chosen: bool | None

    @property
    def verdict(self) -> str:
        """What the label says of it."""
        return {None: "", True: "preferred", False: "not preferred"}[self.chosen]


@dataclass(frozen=True)
class ShownPair:
    """A pair as it is read.

    Attributes:
        order: place in the selector's choice, from 1.
        prompt: who said what, in order; no name for plain text.
        first: response a.
        second: response b.
        label: the outcome in words.
        score: the selector's; None where it has none.
        weight: the selector's; None where it has none.
    """

    order: int
    prompt: tuple[tuple[str, str], ...]
    first: Response
    second: Response
    label: str
    score: float | None
    weight: float | None


@dataclass(frozen=True)
class Showcase:
    """What one selector chose and uniform did not, from one pool.

    Attributes:
        selector: its name.
        lineage: that chose.
        num_chosen: pairs that it chose in all.
        num_shared: of those, pairs that uniform chose too.
        pairs: the first of the others.
    """

    selector: str
    lineage: str
    num_chosen: int
    num_shared: int
    pairs: tuple[ShownPair, ...]


def showcases(members: Sequence[Member], store: Store) -> list[Showcase]:
    """One a selector: of the first seed and budget at which it and uniform chose from the same pool."""
    chosen: dict[str, Showcase] = {}
    uniform = {(one.seed, one.budget): one for one in members if one.selector == UNIFORM}
    for member in members:
        peer = uniform.get((member.seed, member.budget))
        if peer is None or member.selector in {UNIFORM, *chosen}:
            continue
        own, other = (recorded(store, one.lineage, FIRST_ROUND) for one in (member, peer))
        if _comparable(own, other):
            chosen[member.selector] = _showcase(member, own, other)
    return list(chosen.values())


def _comparable(own: Mapping[str, Table], other: Mapping[str, Table]) -> bool:
    """Whether both have selected, from the same pool."""
    have = all("selection" in tables and "pool" in tables for tables in (own, other))
    return have and own["pool"].digest == other["pool"].digest


def _showcase(member: Member, own: Mapping[str, Table], other: Mapping[str, Table]) -> Showcase:
    mine, theirs = (read(tables["selection"].path, PAIRS) for tables in (own, other))
    taken = set(theirs.column("pair_id").to_pylist())
    rows = sorted(mine.to_pylist(), key=lambda row: row["order"])
    alone = [row for row in rows if row["pair_id"] not in taken]
    shown = tuple(_shown(alone[:NUM_PAIRS], own))
    return Showcase(member.selector, member.lineage, len(rows), len(rows) - len(alone), shown)


def _shown(rows: Sequence[Mapping[str, Any]], tables: Mapping[str, Table]) -> Iterator[ShownPair]:
    """The pairs with their texts, and their labels where these are there."""
    sides = {row[side] for row in rows for side in ("response_a", "response_b")}
    responses = _rows(read(tables["pool"].path, RESPONSES), "response_id", sides)
    wanted = {row["pair_id"] for row in rows}
    labelled = read(tables["preferences"].path, PREFERENCES) if "preferences" in tables else PREFERENCES.empty_table()
    labels = _rows(labelled, "pair_id", wanted)
    for row in rows:
        first, second = (responses[row[side]] for side in ("response_a", "response_b"))
        label = labels.get(row["pair_id"])
        decided = label is not None and label["outcome"] == PREFERRED
        chosen = label["chosen"] if label is not None and decided else None
        yield ShownPair(
            order=row["order"] + 1,
            prompt=tuple((said["role"] or "", said["content"]) for said in first["messages"]),
            first=_side(first, chosen),
            second=_side(second, chosen),
            label=_label(label, a_won=chosen == row["response_a"]),
            score=row["score"],
            weight=row["weight"],
        )


def _side(response: Mapping[str, Any], chosen: str | None) -> Response:
    return Response(response["text"], None if chosen is None else response["response_id"] == chosen)


def _label(label: Mapping[str, Any] | None, *, a_won: bool) -> str:
    if label is None:
        return "no label yet"
    if label["outcome"] != PREFERRED:
        return _OUTCOMES.get(label["outcome"], str(label["outcome"]))
    said = f"response {'A' if a_won else 'B'} preferred"
    votes = label["votes_chosen"], label["votes_rejected"]
    return f"{said} by {votes[0]} of {sum(votes)}" if sum(votes) > 1 else said


def _rows(table: pa.Table, key: str, wanted: set[str]) -> dict[str, dict[str, Any]]:
    """Rows by their key, those that are wanted."""
    kept = table.filter(pc.is_in(table.column(key), value_set=pa.array(sorted(wanted), pa.string())))
    return {row[key]: row for row in kept.to_pylist()}
