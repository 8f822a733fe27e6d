"""Calls of the scripts that run inside Redis, by threads and by coroutines.

Every change of the queue is one script, done whole or not at all. Redis knows a script by its
digest; one that it does not know, after a restart, is sent again.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any, Self

from redis.exceptions import MovedError, NoPermissionError, NoScriptError, RedisError, ResponseError

from masc_core.errors import ConfigError, QueueDownError
from worker.jobs.fair import BATCH_EVERY, ROW
from worker.jobs.queue import DEFAULT_PREFIX, QueueLimits
from worker.jobs.redis.connection import (
    CLUSTER_NODE_MESSAGE,
    FAILOVER_ERRORS,
    RETRY_AFTER,
    AsyncRedis,
    BlockingRedis,
    is_transient,
    reachable_queue,
)

EPHEMERAL_RESULT_SECONDS = 60.0  # of an outcome that nobody asked to keep
MAX_ENDED = 100_000  # jobs that are remembered after their end
MAX_TOGETHER = 64  # calls in one pipeline
TICKS = 10  # of a time-out; see `loop_timeout`
CANCEL_AGAIN_SECONDS = 0.1

MAX_MILLISECONDS = 10**14  # 3000 years: Redis refuses times that are too far away

COMMAND = re.compile(r"\bp?call\('([A-Z]+)'")

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
    parts = ("keys", "common", name)
    keys, common, text = ((folder / f"{part}.lua").read_text("utf-8") for part in parts)
    flags, _, text = text.partition("\n")  # which Redis takes from the first line
    commands = sorted(set(COMMAND.findall(keys + common + text)))
    quoted = ", ".join(f"'{command}'" for command in commands)
    text = (
        f"{flags}\nlocal COMMANDS = {{{quoted}}}\n{keys}{common}"
        f"local function script()\n{text}\nend\nlocal answer = script()\nrepair()\nreturn answer\n"
    )
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


@dataclass(frozen=True, slots=True)
class QueueNamespace:
    """Where in Redis a queue is, and its limits as the scripts take them."""

    keys: str  # prefix of every key; its braces keep them on one node of a cluster
    channels: str  # prefix of the channels: unlike keys, all databases of a server share them
    settings: bytes

    @property
    def rights(self) -> str:
        """What Redis' user needs, as an ACL has it."""
        return f"~{self.keys}* &{self.channels}* +@all -@admin -@dangerous"

    @classmethod
    def of(cls, limits: QueueLimits, db: int, prefix: str = DEFAULT_PREFIX) -> Self:
        """Names of the queue with this prefix in a database."""
        channels = f"{{{prefix}}}:{db}:"
        return cls(cls.key(prefix), channels, _settings(limits, channels))

    @staticmethod
    def key(prefix: str) -> str:
        """Prefix of every key, itself one of the same slot of a cluster."""
        return f"{{{prefix}}}:"


def _settings(limits: QueueLimits, channels: str) -> bytes:
    return json.dumps(
        {
            "channels": channels,
            "row": ROW,
            "batch_every": BATCH_EVERY,
            "max_jobs": limits.max_jobs,
            "max_deliveries": limits.max_deliveries,
            "max_ended": MAX_ENDED,
            "max_result_bytes": limits.max_result_bytes,
            "lease_ms": milliseconds(limits.lease_seconds),
            "result_ms": milliseconds(limits.result_seconds),
            "unkept_ms": milliseconds(min(limits.result_seconds, EPHEMERAL_RESULT_SECONDS)),
            # A record outlasts its result.
            "tombstone_ms": milliseconds(max(limits.tombstone_seconds, limits.result_seconds)),
        }
    ).encode()


def check_access(client: BlockingRedis, namespace: QueueNamespace) -> None:
    """Look whether the user may do what the scripts do; raises `NoPermissionError`.

    A server that is unreachable, or a replica, is not asked: it may still come.
    """
    folder = resources.files(__package__) / "scripts"
    texts = [file.read_text("utf-8") for file in folder.iterdir()]
    commands = {name for text in texts for name in COMMAND.findall(text)}
    commands |= {"EVALSHA", "PING", "SUBSCRIBE"}
    script = (folder / "check_access.lua").read_text("utf-8")
    try:
        refused = client.eval(script, 1, namespace.keys, namespace.channels, *sorted(commands))
    except NoPermissionError:
        raise
    except MovedError:
        raise ConfigError(CLUSTER_NODE_MESSAGE) from None
    except RedisError as error:
        if is_transient(error):
            return
        raise ConfigError(f"Redis answers {error}") from None
    if refused:
        raise NoPermissionError("no right to use " + ", ".join(name.decode() for name in refused))


def milliseconds(seconds: float) -> int:
    """Whole milliseconds, at least one: Redis takes an expiry of 0 for an error."""
    return max(1, round(min(seconds * 1000, MAX_MILLISECONDS)))


class ScriptRunner:
    """Calls scripts from any thread, each over a connection of its own.

    ``on_failover`` is called when the queue turns out to be on another server: after a failover
    connections may still lead to what is a replica now. New ones look its name up again.
    """

    def __init__(self, client: BlockingRedis, namespace: QueueNamespace) -> None:
        self._client, self._namespace = client, namespace
        self.on_failover: Callable[[ResponseError], None] = lambda _: None

    def run(self, name: str, *args: Argument) -> Any:  # noqa: ANN401 - as scripts return
        """Run a script; raises `QueueDownError`."""
        script = load_script(name)
        arguments = (self._namespace.keys, self._namespace.settings, *args)
        with reachable_queue(name):
            try:
                with suppress(NoScriptError):
                    return self._client.evalsha(script.sha, 1, *arguments)
                return self._client.eval(script.text, 1, *arguments)
            except FAILOVER_ERRORS as error:
                self._client.connection_pool.disconnect(inuse_connections=False)
                self.on_failover(error)
                raise


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


class AsyncScriptRunner:
    """Calls scripts from many coroutines, over one connection.

    Calls that wait at the same time are sent in one pipeline: a hundred cost little more than one.
    A caller that stops waiting, after some ``seconds`` or before, leaves the connection to the
    others.
    ``on_failover`` is that of `ScriptRunner`; ``on_down`` is called when a call finds no server.
    """

    def __init__(self, client: AsyncRedis, namespace: QueueNamespace, seconds: float) -> None:
        self._client, self._namespace, self._seconds = client, namespace, seconds
        self.on_failover: Callable[[ResponseError], None] = lambda _: None
        self.on_down: Callable[[], None] = lambda: None
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
                with reachable_queue(name):
                    return await call.answer
        except TimeoutError:
            self.on_down()
            raise QueueDownError("the queue does not answer", RETRY_AFTER) from None
        except QueueDownError:
            self.on_down()
            raise

    async def close(self) -> None:
        """Send nothing more; whoever still waits for an answer is cancelled."""
        await end_task(self._sending)
        for call in self._waiting:
            call.answer.cancel()

    async def _send(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:MAX_TOGETHER], self._waiting[MAX_TOGETHER:]
            calls = [call for call in batch if not call.answer.done()]  # its caller gave up
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
        for answer in answers:
            if isinstance(answer, FAILOVER_ERRORS):
                self.on_failover(answer)
                await self._client.connection_pool.disconnect()
                break
        return answers

    async def _evaluate(self, calls: Sequence[_Call], *, by_digest: bool) -> list[Any]:
        pipeline = self._client.pipeline(transaction=False)
        for call in calls:
            script = ("EVALSHA", call.script.sha) if by_digest else ("EVAL", call.script.text)
            pipeline.execute_command(
                *script, 1, self._namespace.keys, self._namespace.settings, *call.args
            )
        return await pipeline.execute(raise_on_error=False)


@asynccontextmanager
async def loop_timeout(seconds: float) -> AsyncIterator[None]:
    """`asyncio.timeout` that does not count the time in which the event loop was stalled.

    After a stall the loop finds the answer and the time-out due at once, and `asyncio.timeout` lets
    the time-out win: a server that answered in time would count as down. So the time-out is ten
    timers, each started when the one before has fired, and a stall, however long, counts as one or
    two tenths of the time-out. After one in the last tenth no time is left, as with
    `asyncio.timeout`.
    """
    loop = asyncio.get_running_loop()
    part = seconds / TICKS
    timer: asyncio.TimerHandle

    def tick(due: float, ticks_left: int) -> None:
        nonlocal timer
        due += part
        if due <= loop.time():  # stalled for all of the next part, too
            due = loop.time() + part
        if ticks_left > 1:
            timer = loop.call_at(due, tick, due, ticks_left - 1)
        else:
            limit.reschedule(due)

    async with asyncio.timeout(None) as limit:
        tick(loop.time(), TICKS)
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
