"""Calls of the scripts that run inside Redis, by threads and by coroutines.

Every change of the queue is one script, done whole or not at all. Redis knows a script by its
digest; one that it does not know, after a restart, is sent again.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

from redis.exceptions import NoScriptError

from masc_core.errors import QueueDownError
from worker.jobs.queue import QueueLimits
from worker.jobs.redis.connection import (
    RETRY_AFTER,
    AsyncRedis,
    BlockingRedis,
    reachable_queue,
)

PREFIX = "{masc}:"  # of every key; the braces keep them on one node of a cluster
UNKEPT_SECONDS = 60.0  # for an outcome that nobody fetches, because its front end has died
MAX_ENDED = 100_000  # jobs that are remembered after their end
MAX_TOGETHER = 64  # calls in one pipeline
PARTS = 10  # of a time-out; see `loop_timeout`
CANCEL_AGAIN_SECONDS = 0.1

Argument = bytes | str | float


@dataclass(frozen=True, slots=True)
class Script:
    """A script and its digest."""

    text: str
    sha: str


@cache
def load_script(name: str) -> Script:
    """Read the script of that name, with all that it shares with the others."""
    folder = resources.files(__package__) / "scripts"
    text = (folder / "common.lua").read_text("utf-8") + (folder / f"{name}.lua").read_text("utf-8")
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


def channels_of(db: int) -> str:
    """Prefix of the channels; unlike keys, all databases of a server share them."""
    return f"{PREFIX}{db}:"


def settings_of(limits: QueueLimits, db: int) -> bytes:
    """The limits as the scripts take them."""
    return json.dumps(
        {
            "channels": channels_of(db),
            "max_jobs": limits.max_jobs,
            "max_deliveries": limits.max_deliveries,
            "max_ended": MAX_ENDED,
            "lease_ms": milliseconds(limits.lease_seconds),
            "result_ms": milliseconds(limits.result_seconds),
            "unkept_ms": milliseconds(min(limits.result_seconds, UNKEPT_SECONDS)),
            "tombstone_ms": milliseconds(limits.tombstone_seconds),
        }
    ).encode()


def milliseconds(seconds: float) -> int:
    """Whole milliseconds, at least one: Redis takes an expiry of 0 for an error."""
    return max(1, round(seconds * 1000))


class Caller:
    """Calls scripts from any thread, each over a connection of its own; see `settings_of`."""

    def __init__(self, client: BlockingRedis, settings: bytes) -> None:
        self._client, self._settings = client, settings

    def run(self, name: str, *args: Argument) -> Any:  # noqa: ANN401 - as scripts return
        """Run a script; raises `QueueDownError`."""
        script = load_script(name)
        arguments = (PREFIX, self._settings, *args)
        with reachable_queue():
            try:
                return self._client.evalsha(script.sha, 1, *arguments)
            except NoScriptError:
                return self._client.eval(script.text, 1, *arguments)


@dataclass(frozen=True, slots=True)
class _Call:
    script: Script
    args: tuple[Argument, ...]
    answer: asyncio.Future[Any] = field(default_factory=asyncio.Future)

    def set_answer(self, value: object) -> None:
        if self.answer.done():
            return
        if isinstance(value, Exception):
            self.answer.set_exception(value)
        else:
            self.answer.set_result(value)


class AsyncCaller:
    """Calls scripts from many coroutines, over one connection.

    Calls that meet travel in one pipeline, so that a hundred cost little more than one. A caller
    that stops waiting, after some ``seconds`` or before, leaves the connection to the others.
    """

    def __init__(self, client: AsyncRedis, settings: bytes, seconds: float) -> None:
        self._client, self._settings, self._seconds = client, settings, seconds
        self._waiting: list[_Call] = []
        self._sending: asyncio.Task[None] | None = None

    async def run(self, name: str, *args: Argument) -> Any:  # noqa: ANN401 - as scripts return
        """Run a script; raises `QueueDownError`."""
        call = _Call(load_script(name), args)
        self._waiting.append(call)
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send())
        try:
            async with loop_timeout(self._seconds):
                with reachable_queue():
                    return await call.answer
        except TimeoutError:
            raise QueueDownError("the queue does not answer", RETRY_AFTER) from None

    async def close(self) -> None:
        """Send nothing more; whoever still waits for an answer is cancelled."""
        await end_task(self._sending)
        for call in self._waiting:
            call.answer.cancel()

    async def _send(self) -> None:
        while self._waiting:
            together, self._waiting = self._waiting[:MAX_TOGETHER], self._waiting[MAX_TOGETHER:]
            calls = [call for call in together if not call.answer.done()]  # by giving up
            try:
                answers = await self._execute(calls)
            except Exception as error:  # noqa: BLE001 - it is raised where the call was made
                answers = [error] * len(calls)
            except asyncio.CancelledError:
                self._waiting += calls
                raise
            for call, answer in zip(calls, answers, strict=True):
                call.set_answer(answer)

    async def _execute(self, calls: Sequence[_Call]) -> list[Any]:
        answers = await self._evaluate(calls, by_digest=True)
        unknown = [i for i, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if unknown:
            again = await self._evaluate([calls[i] for i in unknown], by_digest=False)
            for i, answer in zip(unknown, again, strict=True):
                answers[i] = answer
        return answers

    async def _evaluate(self, calls: Sequence[_Call], *, by_digest: bool) -> list[Any]:
        pipeline = self._client.pipeline(transaction=False)
        for call in calls:
            script = ("EVALSHA", call.script.sha) if by_digest else ("EVAL", call.script.text)
            pipeline.execute_command(*script, 1, PREFIX, self._settings, *call.args)
        return await pipeline.execute(raise_on_error=False)


@asynccontextmanager
async def loop_timeout(seconds: float) -> AsyncIterator[None]:
    """Let the body take so many seconds in which the event loop runs; raises `TimeoutError`.

    After a hold-up a loop finds the answer and the time-out at once, and `asyncio.timeout` lets the
    time-out win: a server that answered in time would count as away. Here a hold-up, however long,
    counts as the tenth of the time in which it happened, or two. After one in the last tenth no
    time is left, as with `asyncio.timeout`.
    """
    loop = asyncio.get_running_loop()
    part = seconds / PARTS
    timer: asyncio.TimerHandle

    def go_by(due: float, num_left: int) -> None:
        nonlocal timer
        due += part
        if due <= loop.time():  # held up for all of the next part, too
            due = loop.time() + part
        if num_left > 1:
            timer = loop.call_at(due, go_by, due, num_left - 1)
        else:
            limit.reschedule(due)

    async with asyncio.timeout(None) as limit:
        go_by(loop.time(), PARTS)
        try:
            yield
        finally:
            timer.cancel()


async def end_task(task: asyncio.Task[None] | None) -> None:
    """Cancel a task and wait for its end.

    One cancellation can be lost: `asyncio.wait_for`, which the client library uses, swallows it
    before Python 3.12 when what it waits for is done at the same moment.
    """
    while task is not None and not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=CANCEL_AGAIN_SECONDS)
