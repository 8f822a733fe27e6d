"""A front end's subscription, as a task: one, however many requests wait.

It reconnects until it is closed. Messages in between are lost, so `on_connected` must look again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from worker.jobs.redis.connection import (
    ANSWER_SECONDS,
    RETRY_SECONDS,
    SILENCE_SECONDS,
    AsyncRedis,
)
from worker.jobs.redis.tasks import end_task

logger = logging.getLogger(__name__)


class PubSubTask:
    """Subscribes to channels.

    Parameters
    ----------
    client : connection to Redis
    channels : their names
    on_message : called with a message's channel and text
    on_connected : called after every subscription
    """

    def __init__(
        self,
        client: AsyncRedis,
        channels: Sequence[str],
        on_message: Callable[[str, bytes], None],
        on_connected: Callable[[], None],
    ) -> None:
        self._client, self._channels = client, channels
        self._on_message, self._on_connected = on_message, on_connected
        self._up, self._tried = asyncio.Event(), asyncio.Event()
        self._listening: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Subscribe; returns when that has succeeded or failed for the first time."""
        self._listening = asyncio.create_task(self._listen())
        await self._tried.wait()

    async def close(self) -> None:
        """Unsubscribe."""
        await end_task(self._listening)

    async def up(self) -> None:
        """Wait until the subscription holds."""
        await self._up.wait()

    async def _listen(self) -> None:
        while True:
            try:
                async with self._client.pubsub() as pubsub:
                    await self._subscribe(pubsub)
                    await self._hear(pubsub)
            except (RedisError, OSError) as error:
                if self._up.is_set() or not self._tried.is_set():
                    logger.warning("the queue is away: %s", error)
            except Exception:
                logger.exception("the queue's news cannot be followed")
            self._up.clear()
            self._tried.set()
            await asyncio.sleep(RETRY_SECONDS)

    async def _subscribe(self, pubsub: PubSub) -> None:
        await pubsub.subscribe(*self._channels)
        for _ in self._channels:
            if await pubsub.get_message(timeout=ANSWER_SECONDS) is None:
                raise TimeoutError("the subscription is not confirmed")
        if self._tried.is_set():
            logger.info("the queue is back")
        self._up.set()
        self._tried.set()
        self._on_connected()

    async def _hear(self, pubsub: PubSub) -> None:
        is_asked = False
        while True:
            message = await pubsub.get_message(timeout=SILENCE_SECONDS)
            if message is None:
                if is_asked:
                    raise TimeoutError("the server does not answer")
                await pubsub.ping()
            elif message["type"] == "message":
                self._on_message(message["channel"].decode(), message["data"])
            is_asked = message is None
