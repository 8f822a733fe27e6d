from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from aiohttp import web
from pydantic import SecretStr

from masc_core.errors import ConfigError
from server.bench.client import FAILURES, describe_failure, load_api_key, open_session
from tests.server.bench.stand_in import StandIn, serving


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
