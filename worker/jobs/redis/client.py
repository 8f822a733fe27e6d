"""Calls of scripts by many coroutines, over one connection.

Calls that meet travel together, so that a hundred of them cost little more than one, and whoever
stops waiting for an answer leaves the connection to the others as it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from redis.exceptions import NoScriptError

from masc_core.errors import QueueDownError
from worker.jobs.redis.connection import RETRY_AFTER, AsyncRedis, reachable_queue
from worker.jobs.redis.loop_timeout import loop_timeout
from worker.jobs.redis.scripts import PREFIX, Script, load_script
from worker.jobs.redis.tasks import end_task

MAX_TOGETHER = 64


@dataclass(frozen=True, slots=True)
class _Call:
    script: Script
    args: tuple[bytes | str | float, ...]
    answer: asyncio.Future[Any] = field(default_factory=asyncio.Future)


class AsyncCaller:
    """Calls scripts by their names.

    Parameters
    ----------
    client : what is called
    settings : for all scripts
    seconds : for which an answer is waited
    """

    def __init__(self, client: AsyncRedis, settings: bytes, seconds: float) -> None:
        self._client, self._settings, self._seconds = client, settings, seconds
        self._waiting: list[_Call] = []
        self._sending: asyncio.Task[None] | None = None

    async def run(self, name: str, *args: bytes | str | float) -> Any:  # noqa: ANN401 - as scripts return
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
                _pass_on(call.answer, answer)

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


def _pass_on(answer: asyncio.Future[Any], value: object) -> None:
    if answer.done():
        return
    if isinstance(value, Exception):
        answer.set_exception(value)
    else:
        answer.set_result(value)
