"""A judge's session: every question in both orders, some requests at a time, and what comes in is handed on at once."""

import asyncio
from collections.abc import Callable, Coroutine, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from cluster.errors import InputError, LabellerError
from tasks.labellers.judge.endpoint import Endpoint, Reply, complete
from tasks.labellers.judge.rubric import Hearing
from tasks.labellers.protocol import Ask

if TYPE_CHECKING:
    from openai import AsyncOpenAI

Item = TypeVar("Item")
Compose = Callable[[Hearing, int], Mapping[str, Any]]
"""Make a request of a hearing and the number of the repetition."""

Work = Callable[[asyncio.Semaphore, Callable[[Item], None]], Coroutine[Any, Any, None]]
"""Delivers items, and takes a place of the semaphore for each before it begins it."""

BLANK = Hearing(prompt="", first="", second="")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One ask and the replies to it in both orders."""

    ask: Ask
    asked: Reply
    turned: Reply


def hear(asks: Sequence[Ask], endpoint: Endpoint, compose: Compose) -> Generator[list[Case], None, None]:
    """Put every question to the judge in both orders; gives what is finished, some cases at a time.

    At most `2 * max_concurrency` cases are under way or given and not yet done with by the caller, who asks for the
    next ones when they are: so many a kill can lose. After a failure nothing new is begun, what is under way is
    finished and given, and then the failure is raised. Whoever stops early has to close the iterator, which cancels
    what is under way.

    Raises:
        InputError: the endpoint refuses the key, the model or the settings.
        LabellerError: it gave no reply in all its attempts.
    """

    async def work(room: asyncio.Semaphore, deliver: Callable[[Case], None]) -> None:
        async with endpoint.client() as client:
            session = _Session(client, endpoint, compose)
            await session.hear(iter(asks), room, deliver)

    return _delivered(work, 2 * endpoint.max_concurrency)


class _Session:
    """A client at work."""

    def __init__(self, client: "AsyncOpenAI", endpoint: Endpoint, compose: Compose) -> None:
        self._client, self._endpoint, self._compose = client, endpoint, compose
        self._is_sound = False  # whether it has taken a hearing since it last refused one
        self._probing = asyncio.Lock()
        self._failures: list[InputError | LabellerError] = []

    async def hear(self, asks: Iterator[Ask], room: asyncio.Semaphore, deliver: Callable[[Case], None]) -> None:
        workers = [self._work(asks, room, deliver) for _ in range(self._endpoint.max_concurrency)]
        await asyncio.gather(*workers)
        if self._failures:
            raise self._failures[0]

    async def _work(self, asks: Iterator[Ask], room: asyncio.Semaphore, deliver: Callable[[Case], None]) -> None:
        """Take questions, one after the other, until there is none left or someone has failed."""
        while await room.acquire():
            ask = None if self._failures else next(asks, None)
            case = None if ask is None else await self._hear(ask)
            if case is None:
                room.release()
                return
            deliver(case)

    async def _hear(self, ask: Ask) -> Case | None:
        try:
            asked = await self._reply(Hearing.of(ask.question), ask.repetition)
            turned = await self._reply(Hearing.of(ask.question, turned=True), ask.repetition)
        except (InputError, LabellerError) as error:
            self._failures.append(error)
            return None
        return Case(ask=ask, asked=asked, turned=turned)

    async def _reply(self, hearing: Hearing, repetition: int) -> Reply:
        reply = await complete(self._client, self._endpoint, self._compose(hearing, repetition))
        if not reply.refusal:
            self._is_sound = True
            return reply
        async with self._probing:
            if not self._is_sound:
                return await self._probe(reply)
            self._is_sound = False
            return reply

    async def _probe(self, refused: Reply) -> Reply:
        """See by a hearing without texts whether a refusal is about the texts, or about the settings or the account."""
        probe = await complete(self._client, self._endpoint, self._compose(BLANK, 0))
        if probe.refusal:
            raise InputError(
                f"the judge at {self._endpoint.address} refuses every question ({probe.refusal}): "
                "change the labeller's settings that it names, such as max_tokens, temperature, seed or constrained, "
                "or see to the account that it names; what it has answered is kept"
            )
        self._is_sound = True
        return replace(refused, tokens_in=probe.tokens_in, tokens_out=probe.tokens_out)


@dataclass(frozen=True, kw_only=True)
class _Remote:
    """Reaches into the event loop of another thread, which may have ended."""

    loop: asyncio.AbstractEventLoop
    task: "asyncio.Task[None] | None"
    room: asyncio.Semaphore

    def cancel(self) -> None:
        if self.task is not None:
            self._call(self.task.cancel)

    def make_room(self, number: int) -> None:
        for _ in range(number):
            self._call(self.room.release)

    def _call(self, act: Callable[[], object]) -> None:
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(act)


def _delivered(work: Work[Item], capacity: int) -> Generator[list[Item], None, None]:
    """Run `work` in an event loop of its own thread, and give what it delivers, all that is there at a time.

    Its semaphore has `capacity` places; one is free again when the caller is done with a delivery.
    """
    arrived: SimpleQueue[list[Item]] = SimpleQueue()
    started: Future[_Remote] = Future()

    async def main() -> None:
        room = asyncio.Semaphore(capacity)
        started.set_result(_Remote(loop=asyncio.get_running_loop(), task=asyncio.current_task(), room=room))
        await work(room, lambda item: arrived.put([item]))

    with ThreadPoolExecutor(1, thread_name_prefix="judge") as thread:
        done = thread.submit(asyncio.run, main())
        done.add_done_callback(lambda _: arrived.put([]))
        try:
            while items := _drain(arrived):
                yield items
                started.result().make_room(len(items))
            done.result()
        finally:
            if not done.done():
                started.result().cancel()


def _drain(arrived: SimpleQueue[list[Item]]) -> list[Item]:
    """Wait for an item, and take all that are there; the empty list that ends them stays for the next call."""
    items = arrived.get()
    while items and not arrived.empty():
        more = arrived.get()
        if not more:
            arrived.put(more)
            break
        items += more
    return items
