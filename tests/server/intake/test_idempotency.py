from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any

import httpx
import pytest

from server.intake.idempotency import idempotency
from server.schemas.generate import GenerateBody
from tests.server.asgi import Exchange, until
from tests.server.service import Service, assert_problem
from tests.server.sse import read_events
from worker.jobs.outcome import JobFailure

KEY = {"Idempotency-Key": "order-7"}


def send(
    service: Service,
    path: str = "/generate",
    accept: str = "*/*",
    key: str = "order-7",
    **more: Any,
) -> httpx.Response:
    headers = {"Idempotency-Key": key, "Accept": accept}
    return service.call("POST", path, json={"class_id": 1} | more, headers=headers)


def test_a_fingerprint_is_that_of_what_was_meant() -> None:
    body = GenerateBody(class_id=1, cfg_scale=2.0)
    same = GenerateBody.model_validate({"cfg_scale": 2, "num_images": 1, "class_id": 1})
    print_of = idempotency("key", "/generate", body, "png")
    assert idempotency("key", "/generate", same, "png") == print_of
    told = GenerateBody.model_validate({"class_id": 1, "cfg_scale": 2.0, "cfg_schedule": None})
    assert idempotency("key", "/generate", told, "png") == print_of  # a field that came later
    body_of_then = ["/generate", {"class_id": 1, "cfg_scale": 2.0}, "png"]
    text = json.dumps(body_of_then, sort_keys=True, separators=(",", ":"))
    assert print_of is not None
    assert print_of.fingerprint == hashlib.sha256(text.encode()).hexdigest()
    others = [
        idempotency("key", "/jobs", body, "png"),
        idempotency("key", "/generate", body, ""),
        idempotency("key", "/generate", body.model_copy(update={"seed": 0}), "png"),
    ]
    prints = {print_of.fingerprint, *(one.fingerprint for one in others if one)}
    assert len(prints) == 4
    assert idempotency(None, "/generate", body, "png") is None


@pytest.mark.parametrize("accept", ["*/*", "image/webp"])
def test_the_second_answer_is_the_first(own_service: Service, accept: str) -> None:
    first, second = send(own_service, accept=accept), send(own_service, accept=accept)
    assert first.status_code == second.status_code == 200
    assert first.content == second.content
    assert first.headers["content-type"] == second.headers["content-type"]
    assert "idempotency-replayed" not in first.headers
    assert second.headers["idempotency-replayed"] == "true"
    assert len(own_service.painter.requests) == 1


def test_a_stream_is_the_same_but_for_the_wait(own_service: Service) -> None:
    first, second = (send(own_service, stream=True) for _ in range(2))
    assert second.headers["idempotency-replayed"] == "true"
    names = [event.name for event in read_events(second.text)]
    assert names == ["started", *["progress", "preview"] * 4, "image", "done"]
    numbered = [event for event in read_events(first.text) if event.id]
    assert numbered == read_events(second.text)
    assert len(own_service.painter.requests) == 1


def test_a_job_is_submitted_once(own_service: Service) -> None:
    first = send(own_service, "/jobs")
    ended = own_service.ended(first.headers["location"])
    second = send(own_service, "/jobs")
    assert (first.status_code, second.status_code) == (202, 202)
    assert second.headers["location"] == first.headers["location"]
    assert second.headers["idempotency-replayed"] == "true"
    assert second.json() == ended
    assert len(own_service.painter.requests) == 1


def test_other_keys_are_other_requests(own_service: Service) -> None:
    send(own_service)
    assert "idempotency-replayed" not in send(own_service, key="order-8").headers
    assert len(own_service.painter.requests) == 2


def test_the_same_key_for_something_else_is_a_conflict(own_service: Service) -> None:
    send(own_service)
    for response in (
        send(own_service, seed=3),
        send(own_service, accept="image/png"),
        send(own_service, stream=True),
        send(own_service, "/jobs"),
    ):
        assert_problem(response, 409, "Idempotency-Key")
    assert send(own_service).headers["idempotency-replayed"] == "true"
    assert len(own_service.painter.requests) == 1


@pytest.mark.parametrize("key", ["", " ", "a b", "x" * 256, "schl\u00fcssel", "a\tb"])
@pytest.mark.parametrize("path", ["/generate", "/jobs"])
def test_a_key_is_visible_ascii(service: Service, path: str, key: str) -> None:
    headers = {"Idempotency-Key": key.encode("latin-1")}
    response = service.call("POST", path, json={"class_id": 1}, headers=headers)
    assert_problem(response, 422, "Idempotency-Key")


def test_the_longest_key(service: Service) -> None:
    assert send(service, key="~" * 255).status_code == 200


def test_fifty_at_once_are_one_execution_and_fifty_equal_answers(own_service: Service) -> None:
    async def run() -> list[httpx.Response]:
        async with own_service.client() as client:
            calls = [
                client.post("/generate", json={"class_id": 2, "num_images": 3}, headers=KEY)
                for _ in range(50)
            ]
            return await asyncio.gather(*calls)

    answers = asyncio.run(run())
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1
    assert len(own_service.painter.requests) == 1


def test_who_goes_away_leaves_the_job_to_whoever_comes_back(own_service: Service) -> None:
    own_service.painter.gate.clear()
    headers = [(b"content-type", b"application/json"), (b"idempotency-key", b"order-7")]
    body = b'{"class_id": 1, "stream": %s}'

    async def leave(stream: bytes) -> None:
        exchange = Exchange([body % stream], headers)
        request = asyncio.ensure_future(exchange.run(own_service.app))
        await until(lambda: bool(own_service.painter.requests))
        exchange.gone.set()
        await asyncio.wait_for(request, 5.0)

    asyncio.run(leave(b"false"))
    assert own_service.queue._running
    own_service.painter.gate.set()
    answer = send(own_service, stream=False)
    assert (answer.status_code, answer.headers["idempotency-replayed"]) == (200, "true")
    assert len(own_service.painter.requests) == 1


def test_who_leaves_a_stream_with_a_key_can_read_on_elsewhere(own_service: Service) -> None:
    own_service.painter.gate.clear()
    headers = [(b"content-type", b"application/json"), (b"idempotency-key", b"order-7")]

    async def run() -> str:
        exchange = Exchange([b'{"class_id": 1, "stream": true}'], headers)
        request = asyncio.ensure_future(exchange.run(own_service.app))
        await until(lambda: b"event: started" in exchange.body)
        exchange.gone.set()
        await asyncio.wait_for(request, 5.0)
        location = exchange.header(b"content-location")
        assert location is not None
        return location.decode()

    location = asyncio.run(run())
    assert own_service.queue._running
    own_service.painter.gate.set()
    events = read_events(own_service.get(location, **{"Last-Event-ID": "1"}).text)
    assert [event.name for event in events[-2:]] == ["image", "done"]


def test_failures_are_replayed_too(own_service: Service) -> None:
    own_service.painter.failure = JobFailure("NonFiniteError", "a NaN at position 3")
    first = send(own_service)
    own_service.painter.failure = None
    second = send(own_service)
    assert_problem(first, 500)
    assert first.content == second.content
    assert "idempotency-replayed" not in first.headers
    assert second.headers["idempotency-replayed"] == "true"


def test_an_impatient_second_does_not_end_the_first(own_service: Service) -> None:
    own_service.painter.gate.clear()

    async def run() -> tuple[httpx.Response, httpx.Response]:
        async with own_service.client() as client:
            first = asyncio.ensure_future(
                client.post("/generate", json={"class_id": 1}, headers=KEY)
            )
            await until(lambda: bool(own_service.painter.requests))
            hasty = KEY | {"X-Masc-Timeout": "0.05"}
            second = await client.post("/generate", json={"class_id": 1}, headers=hasty)
            own_service.painter.gate.set()
            return await first, second

    first, second = asyncio.run(run())
    assert (first.status_code, second.status_code) == (200, 504)
    assert second.headers["idempotency-replayed"] == "true"


@pytest.mark.parametrize("stream", [False, True])
def test_what_was_given_up_may_be_tried_again(own_service: Service, stream: bool) -> None:
    own_service.painter.gate.clear()
    headers = KEY | {"X-Masc-Timeout": "0.05"}
    body = {"class_id": 1, "stream": stream}
    own_service.call("POST", "/generate", json=body, headers=headers)
    assert own_service.queue._ends == {"expired": 1}
    own_service.painter.gate.set()
    answer = send(own_service, stream=stream)
    assert answer.status_code == 200
    assert "idempotency-replayed" not in answer.headers
