"""A judge's endpoint: a server that speaks OpenAI's chat completions, how it is reached, what its refusals mean."""

import asyncio
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NoReturn
from urllib.parse import urlsplit

from pydantic import BaseModel, NonNegativeInt, ValidationError

from cluster.errors import InputError, LabellerError
from cluster.preflight import is_loopback, without_password
from tasks.labellers.judge.rubric import Verdict, read_verdict

if TYPE_CHECKING:
    from openai import APIError, APIStatusError, AsyncOpenAI

OPENAI = "https://api.openai.com/v1"
NO_KEY = "none"
"""What the client sends where no key is needed; it insists on one."""

ABOUT_THE_TEXTS = frozenset({400, 413, 422})
"""Answers to a conversation that is too long or otherwise not taken."""
LONGEST_WAIT = 120.0
"""Seconds of a Retry-After that the client obeys; it gives up on longer ones."""
CHECK_TIMEOUT = 10.0
QUOTED = 300
"""Characters of an endpoint's own words that an error repeats."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where a judge is reached, and how patiently; answers don't depend on it."""

    base_url: str | None = None
    """Such as http://127.0.0.1:8000/v1; None: what OPENAI_BASE_URL says, or OpenAI itself."""
    api_key_env: str | None = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key; a server on this machine needs none."""
    timeout: float = 60.0
    """Seconds for one reply."""
    max_retries: int = 3
    """Further attempts after no reply, one that is none, or status 408, 409, 429 or 5xx; waits as Retry-After says."""
    max_concurrency: int = 8
    """Requests at a time."""
    limit_name: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the endpoint calls the limit of a reply's tokens; OpenAI's newer models know the second name only."""

    def __post_init__(self) -> None:
        if self.base_url is not None and "@" in urlsplit(self.base_url).netloc:
            raise InputError("the judge's base_url holds a password: put it into the variable of api_key_env")
        if self.base_url is not None and not self.base_url.startswith(("http://", "https://")):
            raise InputError(f"the judge's base_url is {self.base_url!r}: expected http:// or https://")
        if not self.timeout > 0:
            raise InputError(f"the judge's timeout is {self.timeout}: expected seconds above 0")
        if self.max_retries < 0:
            raise InputError(f"the judge's max_retries is {self.max_retries}: expected 0 or more")
        if self.max_concurrency < 1:
            raise InputError(f"the judge's max_concurrency is {self.max_concurrency}: expected 1 or more")

    @property
    def address(self) -> str:
        """The address in force, without a password."""
        return without_password(self._url)

    @property
    def patience(self) -> float:
        """Seconds after which a reply is given up, all attempts and waits included."""
        return (self.max_retries + 1) * self.timeout + self.max_retries * LONGEST_WAIT

    def client(self) -> "AsyncOpenAI":
        """A client, to be closed after use.

        Raises:
            InputError: the key is missing, or holds what no key does.
        """
        from openai import AsyncOpenAI

        return AsyncOpenAI(api_key=self._key(), base_url=self._url, timeout=self.timeout, max_retries=self.max_retries)

    def models(self) -> list[str]:
        """The names of the models that are served.

        Raises:
            InputError: the key is missing or holds what no key does, nothing answers, or what answers has no list of
                models.
        """
        from openai import APIConnectionError, APIStatusError, OpenAI

        timeout = min(self.timeout, CHECK_TIMEOUT)
        with OpenAI(api_key=self._key(), base_url=self._url, timeout=timeout, max_retries=1) as client:
            try:
                text = client.models.with_raw_response.list().text
            except APIConnectionError as error:
                raise InputError(
                    f"no judge answers at {self.address} ({self.masked(str(error.__cause__ or error))}): "
                    "start it, or correct labeller.endpoint.base_url"
                ) from error
            except APIStatusError as error:
                raise InputError(_refusal(error, self)) from None
        return self._names(text)

    def masked(self, text: str) -> str:
        """What an endpoint or a library said, with *** for the key."""
        return text.replace(self._secret, "***") if self._secret else text

    def quoted(self, text: str) -> str:
        """The beginning of what an endpoint said, on one line."""
        line = " ".join(self.masked(text).split())
        return repr(line if len(line) <= QUOTED else f"{line[:QUOTED]}...")

    def _names(self, text: str) -> list[str]:
        try:
            return [model.id for model in _Models.model_validate_json(text).data]
        except ValidationError:
            raise InputError(
                f"what answers at {self.address} is no OpenAI-compatible endpoint "
                f"(its list of models is {self.quoted(text)}): "
                "correct labeller.endpoint.base_url, which usually ends in /v1"
            ) from None

    @property
    def _url(self) -> str:
        return self.base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI

    @property
    def _secret(self) -> str:
        """The key in force; empty: there is none."""
        return "" if self.api_key_env is None else os.environ.get(self.api_key_env, "").strip()

    def _key(self) -> str:
        key = self._secret
        if not (key.isascii() and key.isprintable()):
            raise InputError(
                f"the environment variable {self.api_key_env}, which labeller.endpoint.api_key_env names, holds other "
                "characters than printable ASCII: set it to the key alone"
            )
        if not key and self.api_key_env is not None and not is_loopback(urlsplit(self._url).hostname or ""):
            raise InputError(
                f"the environment variable {self.api_key_env}, which labeller.endpoint.api_key_env names, is not set: "
                f"set it to the key for {self.address}, or write api_key_env: null where none is needed"
            )
        return key or NO_KEY


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What an endpoint said to a conversation."""

    text: str = ""
    is_cut: bool = False
    """Whether the limit of tokens ended it."""
    refusal: str = ""
    """Why it didn't take the conversation."""
    tokens_in: int | None = None
    """None: it doesn't count."""
    tokens_out: int | None = None
    num_retries: int = 0
    started_ns: int = 0
    """Since 1970."""
    ended_ns: int = 0

    @property
    def verdict(self) -> Verdict:
        """What it says."""
        return read_verdict(self.text, is_cut=self.is_cut)


async def complete(client: "AsyncOpenAI", endpoint: Endpoint, request: Mapping[str, Any]) -> Reply:
    """Send one request (the body as OpenAI documents it), as often as `endpoint` allows.

    Raises:
        InputError: the endpoint refuses all such requests: the key, the model or the address is wrong.
        LabellerError: no attempt brought a reply.
    """
    started = time.time_ns()
    try:
        async with asyncio.timeout(endpoint.patience):
            reply = await _complete(client, endpoint, request, num_spent=0)
    except TimeoutError as error:
        answer = f"a reply that had not ended after {endpoint.patience:g} s in all"
        raise _gave_up(endpoint, answer, num_retries=endpoint.max_retries) from error
    return replace(reply, started_ns=started, ended_ns=time.time_ns())


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message = _Message()
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: NonNegativeInt
    completion_tokens: NonNegativeInt


class _Completion(BaseModel):
    """As much of a chat completion as a verdict needs; the rest differs from server to server."""

    choices: list[_Choice]
    usage: _Usage | None = None


class _Models(BaseModel):
    class Model(BaseModel):
        id: str

    data: list[Model]


async def _complete(client: "AsyncOpenAI", endpoint: Endpoint, request: Mapping[str, Any], *, num_spent: int) -> Reply:
    """Ask after `num_spent` attempts; the client itself repeats what brings no reply, this what is no completion."""
    from openai import APIConnectionError, APIStatusError

    limited = client.with_options(max_retries=endpoint.max_retries - num_spent)
    options = {name: value for name, value in request.items() if name not in {"model", "messages"}}
    try:
        raw = await limited.chat.completions.with_raw_response.create(
            model=request["model"], messages=request["messages"], extra_body=options
        )
    except APIStatusError as error:
        num_retries = num_spent + _num_retries(error)
        if error.status_code in ABOUT_THE_TEXTS:
            return Reply(refusal=_status(error, endpoint), num_retries=num_retries)
        _refuse(error, endpoint, num_retries=num_retries)
    except APIConnectionError as error:
        answer = f"{error} {error.__cause__ or ''}".strip()
        raise _gave_up(endpoint, endpoint.masked(answer), num_retries=num_spent + _num_retries(error)) from error
    num_retries = num_spent + raw.retries_taken
    try:
        return _reply(_Completion.model_validate_json(raw.text), num_retries)
    except ValidationError:
        if num_retries >= endpoint.max_retries:
            answer = f"what is no chat completion: {endpoint.quoted(raw.text)}"
            raise _gave_up(endpoint, answer, num_retries=num_retries) from None
    await asyncio.sleep(min(0.5 * 2**num_retries, 8.0))
    return await _complete(client, endpoint, request, num_spent=num_retries + 1)


def _reply(completion: _Completion, num_retries: int) -> Reply:
    choice = completion.choices[0] if completion.choices else _Choice()
    usage = completion.usage
    return Reply(
        text=choice.message.content or "",
        is_cut=choice.finish_reason == "length",
        tokens_in=None if usage is None else usage.prompt_tokens,
        tokens_out=None if usage is None else usage.completion_tokens,
        num_retries=num_retries,
    )


def _refuse(error: "APIStatusError", endpoint: Endpoint, *, num_retries: int) -> NoReturn:
    """Raise what a status means that is no reply; not from `error`, whose text may hold the key."""
    if error.status_code in {408, 409, 429} or error.status_code >= 500:
        raise _gave_up(endpoint, _status(error, endpoint), num_retries=num_retries) from None
    raise InputError(_refusal(error, endpoint)) from None


def _refusal(error: "APIStatusError", endpoint: Endpoint) -> str:
    return (
        f"the judge at {endpoint.address} refuses ({_status(error, endpoint)}): {_HINTS.get(error.status_code, _HINT)}"
    )


_HINT = "see that labeller.endpoint.base_url names an OpenAI-compatible endpoint"
_HINTS = {
    401: "put a valid key into the variable that labeller.endpoint.api_key_env names",
    403: "use a key that may use this model",
    404: "correct labeller.model, or labeller.endpoint.base_url, which usually ends in /v1",
}


def _gave_up(endpoint: Endpoint, answer: str, *, num_retries: int) -> LabellerError:
    return LabellerError(
        f"the judge at {endpoint.address} gave no reply in {num_retries + 1} attempts; the last brought {answer}. "
        "What it has answered is kept: run the round again when it is well, "
        "or raise labeller.endpoint.max_retries or timeout"
    )


def _num_retries(error: "APIError") -> int:
    return int(error.request.headers.get("x-stainless-retry-count", "0"))


def _status(error: "APIStatusError", endpoint: Endpoint) -> str:
    """Its number, and what the endpoint said about it."""
    said = error.response.text or error.response.reason_phrase
    return f"HTTP status {error.status_code}: {endpoint.quoted(said)}"
