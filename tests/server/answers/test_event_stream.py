from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator, Callable

import pytest

from server.answers.event_stream import EventStream
from tests.server.asgi import Exchange, until
from tests.server.service import GRID, Service, assert_nothing_left, draw, top_of
from tests.server.sse import Event, read_events
from worker.jobs.outcome import JobFailure

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


async def test_silence_is_broken_by_comments() -> None:
    source, exchange = Source(1), Exchange([])
    source.goes_on.clear()
    task = await start(EventStream(source.events(), keep_alive_seconds=0.01), exchange)
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
    await exchange.blocked.wait()
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
    await exchange.blocked.wait()
    made = source.made
    for _ in range(100):
        await asyncio.sleep(0)
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


BODY = b'{"class_id": 1, "seed": 2, "stream": true}'
PREVIEWS = "masc_time_to_first_preview_seconds_count"


def stream(service: Service, **fields: object) -> list[Event]:
    response = service.generate({"class_id": 1, "seed": 2, "stream": True} | fields)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    return read_events(response.text)


def outcome(service: Service, name: str) -> float:
    return service.sample("masc_requests_total", endpoint="/generate", outcome=name)


def test_everything_is_told_in_order(own_service: Service) -> None:
    events = stream(own_service, num_images=2)
    if events[0].name == "queued":
        assert events.pop(0) == Event("queued", {"position": 0, "estimated_start_seconds": None})
    image = ["progress", "preview"] * GRID
    assert [event.name for event in events] == ["started", *image, *image, "image", "image", "done"]
    previews = [event.data for event in events if event.name == "preview"]
    assert [(p["image"], p["rows"]) for p in previews] == [
        (i, rows) for i in range(2) for rows in range(1, GRID + 1)
    ]
    for i, seed in enumerate((2, 3)):
        file = draw(1, seed, "png")
        drawn = [base64.b64decode(p["b64"]) for p in previews if p["image"] == i]
        assert drawn == [top_of(file, rows) for rows in range(1, GRID + 1)]
        shown = events[-3 + i].data
        assert (base64.b64decode(shown["b64"]), shown["seed"]) == (file, seed)
    assert own_service.sample(PREVIEWS) == 1
    assert outcome(own_service, "ok") == 1


def test_accept_asks_for_a_stream_too(service: Service) -> None:
    response = service.generate(accept="text/event-stream")
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["vary"] == "Accept"
    assert read_events(response.text)[-1].name == "done"


def test_entropies_come_when_asked_for(service: Service) -> None:
    (image,) = [event for event in stream(service, entropies=True) if event.name == "image"]
    assert len(image.data["entropies"]) == GRID**2


def test_who_wants_no_stream_wants_no_previews(own_service: Service) -> None:
    own_service.generate()
    assert own_service.sample(PREVIEWS) == 0


@pytest.mark.parametrize("body", [b'{"stream": true}', b'{"class_id": 99, "stream": true}'])
def test_what_is_refused_is_no_stream(service: Service, body: bytes) -> None:
    response = service.post(body)
    assert response.status_code in {404, 422}
    assert response.headers["content-type"] == "application/problem+json"


def test_a_failure_is_the_last_event(own_service: Service) -> None:
    own_service.painter.failure = JobFailure("NonFiniteError", "a NaN at position 3")
    last = stream(own_service)[-1]
    assert (last.name, last.id) == ("error", "error")
    assert last.data["status"] == 500
    assert last.data["detail"] == "a NaN at position 3"
    assert own_service.sample(PREVIEWS) == 0
    assert outcome(own_service, "error") == 1


@pytest.mark.parametrize("running", [True, False])
def test_who_goes_away_ends_the_job(own_service: Service, running: bool) -> None:
    own_service.painter.gate.clear()

    async def leave(place: bytes) -> None:
        exchange = Exchange([BODY])
        request = asyncio.ensure_future(exchange.run(own_service.app))
        await until(lambda: place in exchange.body)
        exchange.gone.set()
        await asyncio.wait_for(request, 5.0)

    async def run() -> None:
        if running:
            await leave(b"event: started")
            return
        ahead = asyncio.ensure_future(Exchange([BODY]).run(own_service.app))
        await until(lambda: bool(own_service.painter.requests))
        await leave(b"event: queued")
        assert not own_service.queue._waiting
        own_service.painter.gate.set()
        await ahead

    asyncio.run(run())
    assert outcome(own_service, "cancelled") == 1
    assert_nothing_left(own_service)
    assert not own_service.queue._records
    assert not own_service.queue._watchers.watched


def test_a_job_that_somebody_else_ends_ends_its_stream(own_service: Service) -> None:
    own_service.painter.gate.clear()

    async def run() -> list[Event]:
        exchange = Exchange([BODY])
        request = asyncio.ensure_future(exchange.run(own_service.app))
        await until(lambda: b"event: started" in exchange.body)
        location = exchange.header(b"content-location")
        assert location is not None
        async with own_service.client() as client:
            await client.delete(location.decode().removesuffix("/events"))
        await asyncio.wait_for(request, 5.0)
        return read_events(exchange.body.decode())

    last = asyncio.run(run())[-1]
    assert (last.name, last.data["status"]) == ("error", 410)
