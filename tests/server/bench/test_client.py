from __future__ import annotations

import asyncio
import base64
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from multidict import CIMultiDict
from pydantic import SecretStr

from masc_core.errors import ConfigError
from server.answers.images import server_timing as write_timing
from server.bench.client import (
    FAILURES,
    MAX_TEXT,
    NO_ANSWER,
    Answer,
    Sample,
    describe_failure,
    load_api_key,
    open_session,
    plain,
    read_answer,
    server_timing,
)
from tests.server.bench.runs import measure
from tests.server.bench.stand_in import StandIn, images, refusal, serving
from worker.jobs.outcome import Timings


async def failure_of(url: str, seconds: float = 10.0) -> str:
    async with open_session(seconds) as session:
        with pytest.raises(FAILURES) as raised:
            async with session.get(url) as response:
                await response.read()
    return describe_failure(raised.value)


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert asyncio.run(failure_of(f"http://127.0.0.1:{port}")) == "connection refused"


def test_a_host_that_does_not_exist() -> None:
    too_long = ".".join(["a" * 60] * 5)  # known without asking anybody
    assert asyncio.run(failure_of(f"http://{too_long}")) == "unknown host"


def test_a_server_that_never_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert asyncio.run(failure_of(f"http://127.0.0.1:{port}", seconds=0.05)) == "timed out"


def test_a_plain_server_at_a_secure_address() -> None:
    async def run() -> str:
        async with serving(StandIn()) as server:
            return await failure_of(server.url.replace("http:", "https:"))

    assert asyncio.run(run()) == "no secure connection"


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        (b"", "the connection was closed"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", "the answer broke off"),
    ],
)
def test_an_answer_that_breaks_off(answer: bytes, named: str) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()
        await writer.wait_closed()

    async def run() -> str:
        async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            return await failure_of(f"http://127.0.0.1:{port}")

    assert asyncio.run(run()) == named


def test_connections_are_kept_and_the_key_is_sent() -> None:
    async def run() -> StandIn:
        async with serving(StandIn()) as server, open_session(5.0, SecretStr("k-1")) as session:
            for _ in range(3):
                async with session.get(f"{server.url}/version") as response:
                    assert response.status == 200
            return server

    server = asyncio.run(run())
    assert len(server.connections) == 1
    assert [headers.get("Authorization") for headers in server.headers] == ["Bearer k-1"] * 3


def test_as_many_requests_at_once_as_there_are() -> None:
    number, together = 150, asyncio.Event()

    async def wait_for_all(count: int, body: dict[str, Any]) -> web.Response:
        if count == number - 1:
            together.set()
        await together.wait()
        return web.Response()

    async def run() -> None:
        async with serving(StandIn(wait_for_all)) as server, open_session(20.0) as session:

            async def ask() -> int:
                async with session.post(server.url, json={}) as response:
                    return response.status

            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(ask()) for _ in range(number)]
            assert [task.result() for task in tasks] == [200] * number

    asyncio.run(run())


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASC_API_KEY", raising=False)


def test_the_key_is_the_given_one_or_that_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert load_api_key(None) is None
    monkeypatch.setenv("MASC_API_KEY", "")
    assert load_api_key(None) is None
    monkeypatch.setenv("MASC_API_KEY", "from-the-environment")
    found, given = load_api_key(None), load_api_key("given")
    assert found is not None
    assert found.get_secret_value() == "from-the-environment"
    assert given is not None
    assert given.get_secret_value() == "given"
    assert "environment" not in repr(found) + str(found)


@pytest.mark.parametrize("key", ["", "two words", "line\nbreak", "schl\u00fcssel", "tab\t"])
def test_a_key_that_no_header_carries_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_api_key(key)
    assert "MASC_API_KEY" in str(raised.value)
    assert not key or key not in str(raised.value)


PNG = {"Content-Type": "image/png"}
JSON = {"Content-Type": "application/json; charset=utf-8"}


def test_reads_what_the_server_writes() -> None:
    header = write_timing(Timings(0.001, 0.0025, 1.5, 0.0, 0.25, 1.7535))
    assert server_timing(header) == {
        "queue": 0.001, "prefill": 0.0025, "decode": 1.5, "vq_decode": 0.0, "encode": 0.25,
        "total": 1.7535,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("header", "stages"),
    [
        ("", {}),
        ("queue", {}),
        ("queue;dur=", {}),
        ("queue;dur=x, total;dur=2", {"total": 0.002}),
        ("queue;dur=nan, encode;dur=inf, total;dur=-1", {}),
        ('queue;desc="a wait";dur="3.5"', {"queue": 0.0035}),
        ("cdn-cache;dur=9, queue ; dur = 1", {"queue": 0.001}),
        ("miss, total;DUR=4", {"total": 0.004}),
    ],
)
def test_server_timing_of_others(header: str, stages: dict[str, float]) -> None:
    assert server_timing(header) == pytest.approx(stages)


def test_a_picture() -> None:
    headers = PNG | {"X-Masc-Model": "tiny/7", "Server-Timing": "total;dur=5"}
    assert read_answer(200, headers, b"\x89PNG") == Answer(1, {"total": 0.005}, "tiny/7")
    assert read_answer(200, headers, b"").num_images == 0


def test_images_in_json_with_timings_in_the_header_or_else_in_the_document() -> None:
    document = {
        "model": {"name": "tiny", "version": "7"},
        "images": [{"b64": base64.b64encode(b"x").decode()}] * 3,
        "timings": {"queue": 0.25, "total": 0.5, "decode": None, "other": 1.0},
    }
    content = json.dumps(document).encode()
    assert read_answer(200, JSON, content) == Answer(3, {"queue": 0.25, "total": 0.5}, "tiny/7")
    headers = JSON | {"Server-Timing": "total;dur=400"}
    assert read_answer(200, headers, content).stages == {"total": 0.4}


def test_refusals_say_why_and_until_when() -> None:
    document = {"title": "The queue is full", "detail": "256 jobs wait"}
    headers = CIMultiDict({"content-type": "application/problem+json", "retry-after": "3"})
    answer = read_answer(503, headers, json.dumps(document).encode())
    assert answer == Answer(retry_after=3.0, problem="The queue is full", detail="256 jobs wait")


@pytest.mark.parametrize("wait", ["", "soon", "-1", "nan", "Wed, 21 Oct 2026 07:28:00 GMT"])
def test_a_retry_after_that_is_no_number(wait: str) -> None:
    assert read_answer(429, {"Retry-After": wait}, b"").retry_after is None


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"7", b"null", b"\xff\xfe", b"[" * 100_000, b'{"images": 3, "model": 4}',
        b'{"images": [], "timings": [1]}', b'{"timings": {"total": "x", "queue": 1e999}}',
    ],
)  # fmt: skip
@pytest.mark.parametrize("status", [200, 500])
def test_nonsense_holds_nothing(content: bytes, status: int) -> None:
    answer = read_answer(status, JSON, content)
    assert (answer.num_images, answer.stages, answer.problem) == (0, {}, "")


def test_a_servers_words_cannot_command_the_terminal() -> None:
    assert plain("a\x1b[2Jb\nc\u202e") == "a [2Jb c "
    assert len(plain("x" * 10_000)) == MAX_TEXT


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
        (web.Response(status=202), 202, "error", "202 Accepted"),
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
