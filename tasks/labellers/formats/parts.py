"""What the formats share: an answer that a file gives, prompts and completions as TRL writes them, faults in words."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from cluster.rendering import Message, is_chat, plain_text
from tasks.labellers.formats.files import Faults, Placed
from tasks.labellers.ledger import Entry, OpenQuestion, question_key
from tasks.labellers.ledger.answers import TURNED
from tasks.labellers.protocol import Answer, Question

Written = str | list[dict[str, Any]]
"""A prompt or a completion in a file: plain text, or messages with `role` and `content`."""


class ChatMessage(BaseModel):
    """One turn of a conversation; without a role, plain text."""

    model_config = ConfigDict(frozen=True)

    role: str | None = None
    content: str


Spoken = str | list[ChatMessage]
"""A prompt or a completion as it is read."""


@dataclass(frozen=True, kw_only=True)
class Holding:
    """What is exported: answers, questions that wait for people, and the seed that orders what is shown."""

    entries: Sequence[Entry]
    open_questions: Sequence[OpenQuestion] = ()
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Given:
    """An answer that a file gives, to the question in the order of its responses in which it speaks of them.

    Attributes:
        where: its place in the file, for messages.
        question: without messages where the file names the pair by its key alone.
        repetition: which answer to the pair it is; None where the file doesn't say.
        labeller: whose it is; None where the file doesn't say.
        answered_at: None where the file doesn't say.
        superseded: whether its annotator changed their mind later.
    """

    where: str
    question: Question
    answer: Answer
    repetition: int | None = None
    labeller: str | None = None
    answered_at: datetime | None = None
    superseded: bool = False


def by_time(given: Sequence[Given]) -> list[Given]:
    """Oldest first where all have a time, else as they are."""
    if any(one.answered_at is None for one in given):
        return list(given)
    return sorted(given, key=lambda one: one.answered_at or datetime.min.replace(tzinfo=UTC))


Model = TypeVar("Model", bound=BaseModel)


def parsed(placed: Placed, model: type[Model], faults: Faults) -> Model | None:
    """The row as the model, or None and its faults noted."""
    try:
        return model.model_validate(placed.row)
    except ValidationError as error:
        for fault in error.errors():
            place = ".".join(str(part) for part in fault["loc"])
            missing = fault["type"] == "missing"
            said = f"no {place!r}, found {sorted(placed.row)}" if missing else f"{place}: {_said(fault)}"
            faults.add(placed.where, said)
        return None


def each_given(
    placed: Sequence[Placed], model: type[Model], given: Callable[[Model, str], Given], faults: Faults
) -> list[Given]:
    """The answers that rows of a model give, in their order; faults of the rows, and ValueErrors, are noted."""
    found = []
    for one in placed:
        row = parsed(one, model, faults)
        try:
            found += [given(row, one.where)] if row else []
        except ValueError as error:
            faults.add(one.where, str(error))
    return found


def _said(fault: Mapping[str, Any]) -> str:
    said = str(fault["msg"]).removeprefix("Value error, ")
    found = repr(fault["input"])
    return f"{said[:1].lower()}{said[1:]} (found {found if len(found) <= 60 else f'{found[:57]}...'})"


def messages_of(prompt: Spoken) -> tuple[Message, ...]:
    """A prompt as the policy gets it: plain text is one message without a role."""
    if isinstance(prompt, str):
        return ({"role": None, "content": prompt},)
    return tuple(message.model_dump() for message in prompt)


def written_prompt(messages: Sequence[Message]) -> Written:
    """A prompt as TRL reads it."""
    return [dict(message) for message in messages] if is_chat(messages) else plain_text(messages)


def written_completion(text: str, messages: Sequence[Message]) -> Written:
    """A response as TRL reads it beside its prompt."""
    return [{"role": "assistant", "content": text}] if is_chat(messages) else text


def spoken_text(completion: Spoken) -> str:
    """The text of a response.

    Raises:
        ValueError: a conversation of several turns, or none.
    """
    if isinstance(completion, str):
        return completion
    if len(completion) != 1:
        raise ValueError(f"a completion of {len(completion)} messages: expected one, the response")
    return completion[0].content


def keyed(messages: Sequence[Message], *, first: str, second: str, key: str | None = None) -> Question:
    """The question that a row is about; without a key, the one that prompt and responses make.

    Raises:
        ValueError: neither a key nor a prompt, or the key is not that of prompt and responses.
    """
    if not messages:
        if not key:
            raise ValueError("neither 'prompt' (or 'messages') nor 'key': expected one of them, to name the pair")
        return Question(key=key, messages=(), first=first, second=second)
    own = question_key(plain_text(messages), first=first, second=second)
    if key and key != own:
        raise ValueError(f"key {key[:12]}... is not that of this prompt and these responses ({own[:12]}...)")
    return Question(key=own, messages=messages, first=first, second=second)


def turned_question(question: Question) -> Question:
    """The question with its responses in the other order."""
    return replace(question, first=question.second, second=question.first)


def turned_answer(answer: Answer) -> Answer:
    """The same answer to the turned question."""
    probability = answer.probability
    return replace(answer, choice=TURNED[answer.choice], probability=None if probability is None else 1 - probability)
