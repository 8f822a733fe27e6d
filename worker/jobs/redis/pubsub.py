"""Subscriptions to Redis' channels: a front end's as a task, a worker's in a thread.

Both reconnect until they are closed. Messages in between are lost, so `on_connected`, which is
called after every subscription, must look again.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from redis.asyncio.client import PubSub as AsyncPubSub
from redis.client import PubSub
from redis.exceptions import RedisError

from masc_core.errors import QueueDownError
from worker.jobs.redis.client import end_task
from worker.jobs.redis.connection import (
    ANSWER_SECONDS,
    RETRY_SECONDS,
    SILENCE_SECONDS,
    AsyncRedis,
    BlockingRedis,
)

logger = logging.getLogger(__name__)


class _Subscription:
    """What is the same in a task and in a thread."""

    _lost: Exception | None = None  # why the server is not the right one any more

    def reconnect(self, reason: Exception) -> None:
        """Say why, when the server turns out to be the wrong one; a new subscription follows."""
        self._lost = reason

    def _note_loss(self, error: Exception, *, is_new: bool) -> None:
        """Log why the subscription is lost, once until it is back."""
        if is_new:
            logger.warning("the queue is unreachable: %s", self._lost or error)
        self._lost = None


class PubSubTask(_Subscription):
    """A front end's subscription: one, however many requests wait.

    Parameters
    ----------
    client : connection to Redis
    channels : their names
    on_message : called with a message's channel and text
    on_connected : called after every subscription, which holds if it raises no `QueueDownError`
    """

    def __init__(
        self,
        client: AsyncRedis,
        channels: Sequence[str],
        on_message: Callable[[str, bytes], None],
        on_connected: Callable[[], Awaitable[None]],
    ) -> None:
        self._client, self._channels = client, channels
        self._on_message, self._on_connected = on_message, on_connected
        self._connected, self._tried = asyncio.Event(), asyncio.Event()
        self._listening: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Subscribe; returns when that has succeeded or failed for the first time."""
        self._listening = asyncio.create_task(self._listen())
        await self._tried.wait()

    async def close(self) -> None:
        """Unsubscribe."""
        await end_task(self._listening)

    async def wait_until_connected(self) -> None:
        """Wait until the subscription holds."""
        await self._connected.wait()

    async def _listen(self) -> None:
        while True:
            try:
                async with self._client.pubsub() as pubsub:
                    await self._subscribe(pubsub)
                    await self._receive(pubsub)
            except (RedisError, OSError, QueueDownError) as error:
                self._note_loss(error, is_new=self._connected.is_set() or not self._tried.is_set())
            except Exception:
                logger.exception("the subscription to the queue failed")
            self._connected.clear()
            self._tried.set()
            await asyncio.sleep(RETRY_SECONDS)

    async def _subscribe(self, pubsub: AsyncPubSub) -> None:
        await pubsub.subscribe(*self._channels)
        for _ in self._channels:
            if await pubsub.get_message(timeout=ANSWER_SECONDS) is None:
                raise TimeoutError("the subscription is not confirmed")
        await self._on_connected()
        if self._tried.is_set():
            logger.info("the queue is reachable again")
        self._connected.set()
        self._tried.set()

    async def _receive(self, pubsub: AsyncPubSub) -> None:
        is_asked = False  # whether the server is there
        while True:
            message = await pubsub.get_message(timeout=SILENCE_SECONDS)
            if message is None:
                if is_asked:
                    raise TimeoutError("the server does not answer")
                await pubsub.ping()
            elif message["type"] == "message":
                self._on_message(message["channel"].decode(), message["data"])
            is_asked = message is None


class PubSubThread(_Subscription):
    """A worker's subscription to its own channel, which wakes the thread when it is to end, too.

    Parameters as for `PubSubTask`, called in the thread.
    """

    def __init__(
        self,
        client: BlockingRedis,
        channel: str,
        on_message: Callable[[bytes], None],
        on_connected: Callable[[], None],
    ) -> None:
        self._client, self._channel = client, channel
        self._on_message, self._on_connected = on_message, on_connected
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Subscribe, unless that has been done."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._listen, name="queue-pubsub", daemon=True
                )
                self._thread.start()

    def close(self) -> None:
        """Unsubscribe."""
        with self._lock:
            if self._thread is None:
                return
            self._closing.set()
            with suppress(RedisError):  # else it wakes by itself, in a moment
                self._client.publish(self._channel, "")
            self._thread.join()
            self._thread = None

    def _listen(self) -> None:
        is_up = True
        while not self._closing.is_set():
            try:
                with self._client.pubsub() as pubsub:  # type: ignore[no-untyped-call]
                    self._subscribe(pubsub)
                    is_up = True
                    self._receive(pubsub)
            except (RedisError, OSError, QueueDownError) as error:
                self._note_loss(error, is_new=is_up)
                is_up = False
            except Exception:
                logger.exception("the subscription to the queue failed")
            self._closing.wait(RETRY_SECONDS)

    def _subscribe(self, pubsub: PubSub) -> None:
        pubsub.subscribe(self._channel)
        if pubsub.get_message(timeout=ANSWER_SECONDS) is None:
            raise TimeoutError("the subscription is not confirmed")
        self._on_connected()

    def _receive(self, pubsub: PubSub) -> None:
        is_asked = False  # whether the server is there
        while not self._closing.is_set():
            message = pubsub.get_message(timeout=SILENCE_SECONDS)
            if self._lost is not None:  # no other thread can close this connection
                raise self._lost
            if message is None:
                if is_asked:
                    raise TimeoutError("the server does not answer")
                pubsub.ping()
            elif message["type"] == "message":
                self._on_message(message["data"])
            is_asked = message is None
