"""TRL's formats: `prompt, chosen, rejected` of a decided pair, or `prompt, completion, label` of a response."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, StrictBool

from cluster.errors import InputError
from cluster.rendering import Message, is_chat
from tasks.labellers.formats.files import Faults, Placed, Row
from tasks.labellers.formats.parts import (
    Given,
    Holding,
    Spoken,
    Written,
    each_given,
    keyed,
    messages_of,
    parsed,
    spoken_text,
    written_completion,
    written_prompt,
)
from tasks.labellers.ledger import Entry
from tasks.labellers.protocol import Answer
from tasks.tables import required

CHAT = pa.list_(pa.struct([required("role", pa.string()), required("content", pa.string())]))
ENDINGS = (".jsonl", ".json", ".parquet")
"""CSV can't hold conversations in a form that TRL would read as such."""


@dataclass(frozen=True, kw_only=True)
class _Decided:
    messages: Sequence[Message]
    chosen: str
    rejected: str


class _PreferenceRow(BaseModel):
    model_config = ConfigDict(frozen=True)

    prompt: Spoken
    chosen: Spoken
    rejected: Spoken

    def given(self, where: str) -> Given:
        chosen, rejected = spoken_text(self.chosen), spoken_text(self.rejected)
        question = keyed(messages_of(self.prompt), first=chosen, second=rejected)
        return Given(where=where, question=question, answer=Answer(choice="first"))


class _UnpairedRow(BaseModel):
    model_config = ConfigDict(frozen=True)

    prompt: Spoken
    completion: Spoken
    label: StrictBool


@dataclass(frozen=True, kw_only=True)
class _OfDecidedPairs:
    """What TRL's formats have in common."""

    of_one_labeller: ClassVar[bool] = True
    """Whether a file can't tell labellers apart."""
    has_open_questions: ClassVar[bool] = False
    """Whether questions without answers are exported, too."""

    def note(self, holding: Holding) -> str:
        """How many pairs are left out."""
        return _left_out(holding.entries)

    @property
    def endings(self) -> Sequence[str]:
        """Files that it can be written to."""
        return ENDINGS


@dataclass(frozen=True, kw_only=True)
class Preference(_OfDecidedPairs):
    """TRL's preference format: `prompt, chosen, rejected`, a row a pair of which more answers preferred one response.

    Strings where prompts are plain text, lists of messages where they are conversations. Pairs with as many answers
    for either response are left out, and so are those on which all abstained.
    """

    kind: Literal["preference"] = "preference"

    def table(self, holding: Holding) -> tuple[list[Row], pa.Schema]:
        """The decided pairs, in the order of their first answers.

        Raises:
            InputError: no pair is decided, or some prompts are conversations and others plain text.
        """
        pairs, chat = _decided(holding.entries)
        rows: list[Row] = [
            {
                "prompt": written_prompt(pair.messages),
                "chosen": written_completion(pair.chosen, pair.messages),
                "rejected": written_completion(pair.rejected, pair.messages),
            }
            for pair in pairs
        ]
        return rows, pa.schema([required(name, _kind(chat=chat)) for name in ("prompt", "chosen", "rejected")])

    def given(self, placed: Sequence[Placed], faults: Faults) -> list[Given]:
        """An answer for each row, which prefers its first response; faults are noted."""
        return each_given(placed, _PreferenceRow, _PreferenceRow.given, faults)


@dataclass(frozen=True, kw_only=True)
class Unpaired(_OfDecidedPairs):
    """TRL's unpaired format: `prompt, completion, label`, as `KTOTrainer` reads it.

    First the chosen responses of all decided pairs (label true), then in the same order the rejected ones (false), as
    TRL itself takes pairs apart; so they can be put together again.
    """

    kind: Literal["unpaired"] = "unpaired"

    def table(self, holding: Holding) -> tuple[list[Row], pa.Schema]:
        """Both responses of every decided pair.

        Raises:
            InputError: no pair is decided, or some prompts are conversations and others plain text.
        """
        pairs, chat = _decided(holding.entries)
        rows = [_labelled(pair, pair.chosen, label=True) for pair in pairs]
        rows += [_labelled(pair, pair.rejected, label=False) for pair in pairs]
        kinds = [
            required("prompt", _kind(chat=chat)),
            required("completion", _kind(chat=chat)),
            required("label", pa.bool_()),
        ]
        return rows, pa.schema(kinds)

    def given(self, placed: Sequence[Placed], faults: Faults) -> list[Given]:
        """An answer for each row of the first half, which prefers it to its fellow in the second; faults are noted."""
        rows = [parsed(one, _UnpairedRow, faults) for one in placed]
        half = len(rows) // 2
        if len(rows) % 2:
            faults.add("rows", f"{len(rows)} of them, an odd number: {_ORDER}")
            return []
        pairs = zip(placed[:half], rows[:half], placed[half:], rows[half:], strict=True)
        given = [_paired(one, top, other, bottom) for one, top, other, bottom in pairs if top and bottom]
        for fault in (fault for fault in given if isinstance(fault, str)):
            faults.add("rows", fault)
        return [one for one in given if isinstance(one, Given)]


_ORDER = "expected the chosen responses of all pairs, label true, then in the same order the rejected ones, label false"


def _paired(one: Placed, chosen: _UnpairedRow, other: Placed, rejected: _UnpairedRow) -> Given | str:
    if not chosen.label or rejected.label or chosen.prompt != rejected.prompt:
        return f"{one.where} and {other.where} are no pair: {_ORDER}"
    row = _PreferenceRow(prompt=chosen.prompt, chosen=chosen.completion, rejected=rejected.completion)
    try:
        return row.given(one.where)
    except ValueError as error:
        return f"{one.where} and {other.where}: {error}"


def _margins(entries: Sequence[Entry]) -> dict[str, tuple[Entry, int]]:
    """Of every pair its first answer in force, and how many more prefer its first response than its second."""
    found: dict[str, tuple[Entry, int]] = {}
    for entry in (entry for entry in entries if not entry.superseded):
        first, margin = found.get(entry.key, (entry, 0))
        found[entry.key] = first, margin + {"first": 1, "second": -1}.get(entry.choice, 0)
    return found


def _left_out(entries: Sequence[Entry]) -> str:
    undecided = sum(margin == 0 for _, margin in _margins(entries).values())
    return f"{undecided} pairs are left out, which are ties or on which all abstained" if undecided else ""


def _decided(entries: Sequence[Entry]) -> tuple[list[_Decided], bool]:
    """The pairs of which one response is preferred, and whether their prompts are conversations."""
    margins = list(_margins(entries).values())
    decided = []
    for pair, margin in margins:
        if margin:
            chosen, rejected = (pair.first, pair.second)[:: 1 if margin > 0 else -1]
            decided.append(_Decided(messages=pair.messages, chosen=chosen, rejected=rejected))
    if not decided:
        raise InputError(
            f"no pair is decided: found {len(margins)} pairs with answers, all of them ties or abstentions: "
            "export them in the format answers"
        )
    return decided, _all_chat([pair.messages for pair in decided])


def _all_chat(prompts: Sequence[Sequence[Message]]) -> bool:
    num_chats = sum(is_chat(messages) for messages in prompts)
    if 0 < num_chats < len(prompts):
        raise InputError(
            f"{num_chats} of {len(prompts)} pairs have a conversation as prompt and the others plain text, which TRL "
            "can't read from one file: choose a kind with --prompts, or a lineage with --lineage"
        )
    return num_chats > 0


def _kind(*, chat: bool) -> pa.DataType:
    return CHAT if chat else pa.string()


def _labelled(pair: _Decided, text: str, *, label: bool) -> dict[str, Written | bool]:
    completion = written_completion(text, pair.messages)
    return {"prompt": written_prompt(pair.messages), "completion": completion, "label": label}
