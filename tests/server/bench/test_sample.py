from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from server.bench.client import NO_ANSWER, Answer, Sample, status_class
from tests.server.bench.runs import measure
from tests.server.bench.stand_in import images, refusal


def test_a_picture_with_its_stages() -> None:
    sample, stand_in = measure(due=-0.5)
    assert (sample.status_class, sample.status, sample.error) == ("ok", 200, "")
    assert sample.due == -0.5 < sample.sent < sample.finished
    stages = {"queue": 0.001, "prefill": 0.002, "decode": 0.0035, "total": 0.00725}
    assert sample.answer.stages == pytest.approx(stages)
    assert sample.answer.model == "tiny/7"
    (headers,) = stand_in.headers
    assert headers["Accept"] == "image/png"
    assert headers["Content-Type"] == "application/json"
    assert stand_in.bodies[0]["class_id"] == 1


def test_several_images_in_json() -> None:
    sample, stand_in = measure(num_images=3)
    assert sample.status_class == "ok"
    assert sample.answer.num_images == 3
    assert sample.answer.stages == {"queue": 0.001, "total": 0.008}
    assert stand_in.headers[0]["Accept"] == "application/json"


def test_the_time_is_that_of_the_whole_answer() -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b"\x89P"
        await asyncio.sleep(0.1)
        yield b"NG"

    async def in_parts(number: int, body: dict[str, Any]) -> web.StreamResponse:
        return web.Response(body=parts(), content_type="image/png")

    sample, _ = measure(in_parts)
    assert sample.status_class == "ok"
    assert sample.finished - sample.sent >= 0.1


@pytest.mark.parametrize(
    ("response", "status", "outcome", "error"),
    [
        (refusal(503, **{"Retry-After": "4"}), 503, "rejected", "503 The queue is full"),
        (refusal(429, "Too many"), 429, "rejected", "429 Too many"),
        (refusal(422, "Not valid"), 422, "error", "422 Not valid"),
        (web.Response(status=500), 500, "error", "500 Internal Server Error"),
        (web.Response(status=599), 599, "error", "599 unknown status"),
        (web.Response(status=302, headers={"Location": "/x"}), 302, "error", "302 Found"),
        (web.Response(text="hello"), NO_ANSWER, "error", "200 without the images"),
        (images(2), NO_ANSWER, "error", "200 without the images"),
    ],
)
def test_answers_without_the_images(
    response: web.Response, status: int, outcome: str, error: str
) -> None:
    async def refuse(number: int, body: dict[str, Any]) -> web.StreamResponse:
        return response

    sample, stand_in = measure(refuse)
    assert (sample.status, sample.status_class, sample.error) == (status, outcome, error)
    assert sample.answer.retry_after == (4.0 if "Retry-After" in response.headers else None)
    assert len(stand_in.bodies) == 1  # no redirection is followed, nothing is sent again


def test_no_answer_in_time() -> None:
    async def never(number: int, body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    sample, _ = measure(never, timeout=0.1)
    assert sample == Sample(0.0, sample.sent, sample.finished, NO_ANSWER, Answer(), "timed out")
    assert sample.finished - sample.sent >= 0.1


def test_outcomes() -> None:
    kinds = {status: status_class(status) for status in (0, 200, 202, 404, 429, 500, 503, 504)}
    assert kinds == {
        0: "error", 200: "ok", 202: "error", 404: "error", 429: "rejected", 500: "error",
        503: "rejected", 504: "error",
    }  # fmt: skip
