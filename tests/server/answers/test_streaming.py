from __future__ import annotations

import asyncio
import base64

import pytest

from tests.server.asgi import Exchange
from tests.server.intake.test_dispatch import assert_nothing_left, until
from tests.server.service import GRID, Service, draw, top_of
from tests.server.sse import Event, read_events
from worker.jobs.outcome import JobFailure

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
