from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

import pytest

from server.answers import event_stream
from server.answers.event_stream import EventStream
from tests.server.asgi import Exchange
from tests.server.intake.test_dispatch import until

pytestmark = pytest.mark.anyio


class Source:
    """Events that come when they may, and what became of them."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.made = 0
        self.closed = 0
        self.left = 0
        self.goes_on = asyncio.Event()
        self.goes_on.set()

    async def events(self) -> AsyncGenerator[bytes, None]:
        try:
            for number in range(self.count):
                await self.goes_on.wait()
                self.made += 1
                yield b"data: %d\n\n" % number
        finally:
            self.closed += 1

    async def leave(self) -> None:
        await asyncio.sleep(0)  # even when the request is being cancelled
        self.left += 1

    def stream(self) -> EventStream:
        return EventStream(self.events(), {"X-More": "1"}, self.leave)


async def start(stream: EventStream, exchange: Exchange) -> asyncio.Task[None]:
    task = asyncio.create_task(exchange.run(stream))
    await asyncio.sleep(0)
    return task


async def finish(task: asyncio.Task[None]) -> None:
    await asyncio.wait_for(task, 5.0)


async def test_events_are_sent_to_the_end() -> None:
    source, exchange = Source(2), Exchange([])
    await exchange.run(source.stream())
    assert exchange.status == 200
    assert exchange.header(b"content-type") == b"text/event-stream; charset=utf-8"
    assert exchange.header(b"cache-control") == b"no-cache"
    assert exchange.header(b"x-accel-buffering") == b"no"
    assert exchange.header(b"x-more") == b"1"
    assert exchange.body == b": ping\n\nretry: 2000\ndata: 0\n\ndata: 1\n\n"
    assert [message["more_body"] for message in exchange.sent[1:]] == [True, True, True, False]
    assert (source.closed, source.left) == (1, 1)


async def test_silence_is_broken_by_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "KEEP_ALIVE_SECONDS", 0.01)
    source, exchange = Source(1), Exchange([])
    source.goes_on.clear()
    task = await start(source.stream(), exchange)
    await until(lambda: exchange.body.count(b": ping\n\n") > 3)
    source.goes_on.set()
    await finish(task)
    assert exchange.body.endswith(b": ping\n\nretry: 2000\ndata: 0\n\n")


async def test_a_client_that_goes_away_ends_it() -> None:
    source, exchange = Source(9), Exchange([])
    source.goes_on.clear()
    task = await start(source.stream(), exchange)
    await until(lambda: len(exchange.sent) == 2)
    exchange.gone.set()
    await finish(task)
    assert (source.made, source.closed, source.left) == (0, 1, 1)


async def test_a_client_that_is_gone_before_the_first_byte_is_left_too() -> None:
    source, exchange = Source(9), Exchange([])
    exchange.takes.clear()
    exchange.gone.set()
    await finish(await start(source.stream(), exchange))
    assert (source.made, source.left) == (0, 1)


async def test_a_client_that_goes_away_in_the_middle_of_an_event() -> None:
    source, exchange = Source(100_000), Exchange([])
    stream = source.stream()
    task = await start(stream, exchange)
    await until(lambda: len(exchange.sent) > 3)
    exchange.takes.clear()
    await asyncio.sleep(0.01)
    exchange.gone.set()
    await finish(task)
    assert source.made < 100_000
    assert (source.closed, source.left) == (1, 1)
    assert stream.status_code == 200  # it is not collected yet


async def test_a_shutdown_ends_it() -> None:
    source, exchange = Source(9), Exchange([])
    source.goes_on.clear()
    task = await start(source.stream(), exchange)
    await until(lambda: len(exchange.sent) == 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (source.closed, source.left) == (1, 1)


async def test_a_client_that_takes_nothing_is_made_nothing_for() -> None:
    source, exchange = Source(1000), Exchange([])
    task = await start(source.stream(), exchange)
    await until(lambda: len(exchange.sent) > 5)
    exchange.takes.clear()
    await asyncio.sleep(0.02)
    made = source.made
    await asyncio.sleep(0.02)
    assert made == source.made < 1000
    assert made <= len(exchange.sent)
    exchange.takes.set()
    await finish(task)
    assert source.made == 1000


@pytest.mark.parametrize("make", [lambda: ValueError("secret"), lambda: KeyError("secret")])
async def test_what_nobody_foresaw_breaks_the_answer_off(make: Callable[[], Exception]) -> None:
    async def broken() -> AsyncGenerator[bytes, None]:
        yield b"data: 0\n\n"
        raise make()

    source, exchange = Source(0), Exchange([])
    with pytest.raises((ValueError, KeyError)):
        await exchange.run(EventStream(broken(), on_close=source.leave))
    assert source.left == 1
    assert exchange.sent[-1]["more_body"]
