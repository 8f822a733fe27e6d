"""The application behind a real server and a real socket."""

from __future__ import annotations

import asyncio
import base64
import http.client
import io
import json
import random
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.server.asgi import wait_until
from tests.server.listening import listening
from tests.server.service import Service, draw
from tests.server.sse import read_event, read_events

JSON = {"Content-Type": "application/json"}


@pytest.fixture
def port(own_service: Service) -> Iterator[int]:
    with listening(own_service) as number:
        yield number


def connect(port: int) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", port, timeout=10)


def ask(connection: http.client.HTTPConnection, body: bytes, **headers: str) -> tuple[int, bytes]:
    connection.request("POST", "/generate", body, JSON | headers)
    with connection.getresponse() as response:
        return response.status, response.read()


def test_a_picture_over_the_wire(port: int) -> None:
    connection = connect(port)
    body = json.dumps({"class_id": 2, "seed": 9}).encode()
    for _ in range(2):  # the connection is kept
        assert ask(connection, body, Accept="image/png") == (200, draw(2, 9, "png"))
    connection.close()


def test_a_client_that_sends_too_much_reads_why(port: int) -> None:
    for _ in range(3):
        connection = connect(port)
        status, content = ask(connection, b" " * 2_000_000)
        assert status == 413
        assert json.loads(content)["status"] == 413
        connection.close()
    chunks = iter([b" " * 65_000] * 30)
    connection = connect(port)
    connection.request("POST", "/generate", chunks, JSON, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


def test_a_connection_that_breaks_off_cancels_its_job(own_service: Service, port: int) -> None:
    own_service.painter.gate.clear()
    connections = [connect(port) for _ in range(3)]
    for connection in connections:
        connection.request("POST", "/generate", b'{"class_id": 1}', JSON)
    queue, requests = own_service.queue, own_service.painter.requests
    wait_until(lambda: (len(queue._waiting), len(requests)) == (2, 1))
    for connection in connections:
        connection.close()
    wait_until(lambda: (len(queue._waiting), len(requests)) == (0, 1))
    own_service.painter.gate.set()
    connection = connect(port)
    assert ask(connection, b'{"class_id": 1}')[0] == 200
    connection.close()
    assert not own_service.queue._running


def test_half_a_request_disturbs_nobody(own_service: Service, port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as half:
        half.sendall(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        connection = connect(port)
        assert ask(connection, b'{"class_id": 1}')[0] == 200
        connection.close()
    assert len(own_service.painter.requests) == 1


def test_a_body_that_trickles_in_is_given_up(tmp_path: Path) -> None:
    service = Service(tmp_path, working=False, body_timeout=0.3)
    with listening(service) as port, socket.create_connection(("127.0.0.1", port)) as slow:
        slow.settimeout(0.05)
        slow.sendall(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        started = time.monotonic()
        answer = b""
        while not answer.endswith(b"}") and time.monotonic() - started < 5:
            with suppress(TimeoutError):
                answer += slow.recv(4096)
                continue
            slow.sendall(b" ")
        slow.settimeout(5)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert slow.recv(1) == b""  # the connection is closed


def read_block(response: http.client.HTTPResponse) -> str:
    """One event, as soon as it is there."""
    lines = []
    while line := response.readline().decode().rstrip("\n"):
        lines.append(line)
    return "\n".join(lines)


def test_events_are_there_as_soon_as_they_happen(own_service: Service, port: int) -> None:
    own_service.painter.gate.clear()
    connection = connect(port)
    connection.request("POST", "/generate", b'{"class_id": 1, "stream": true}', JSON)
    response = connection.getresponse()
    assert response.headers["content-type"].startswith("text/event-stream")
    assert read_block(response) == ": ping"
    names = []
    while "started" not in names:
        event = read_event(read_block(response))
        assert event is not None
        names.append(event.name)
    own_service.painter.gate.set()
    assert read_events(response.read().decode())[-1].name == "done"
    connection.close()


def test_a_stream_that_breaks_off_cancels_its_job(own_service: Service, port: int) -> None:
    own_service.painter.gate.clear()
    connection = connect(port)
    connection.request("POST", "/generate", b'{"class_id": 1, "stream": true}', JSON)
    response = connection.getresponse()
    while "started" not in read_block(response):
        pass
    assert own_service.queue._running
    response.close()
    connection.close()
    wait_until(lambda: not own_service.queue._records)


class Heard(socket.socket):
    """What came through a connection that is closed by now."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self._content = content

    def makefile(self, *_: Any, **__: Any) -> Any:
        self.close()
        return io.BytesIO(self._content)


class Crowd:
    """Clients of every kind, each of which may go away at any moment."""

    def __init__(self, port: int, seed: int) -> None:
        self.port = port
        self.random = random.Random(seed)
        self.served = 0
        self.left = 0

    async def visit(self, seed: int) -> None:
        """Ask for an image; stay to the end, or not."""
        streams = self.random.random() < 0.5
        patience = self.random.uniform(0, 0.1) if self.random.random() < 0.5 else 60.0
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(self._request(seed, streams))
            async with asyncio.timeout(patience):
                answer = await reader.read()
        except TimeoutError:
            self.left += 1
        else:
            self._check(answer, seed, streams)
            self.served += 1
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    @staticmethod
    def _request(seed: int, streams: bool) -> bytes:
        body = json.dumps({"class_id": seed % 3, "seed": seed, "stream": streams}).encode()
        lines = ["POST /generate HTTP/1.1", "Host: masc", "Connection: close", "Accept: image/png"]
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}", "", ""]
        return "\r\n".join(lines).encode() + body

    @staticmethod
    def _check(answer: bytes, seed: int, streams: bool) -> None:
        response = http.client.HTTPResponse(Heard(answer))
        response.begin()
        assert response.status == 200
        content = response.read()
        if streams:
            (image,) = [one for one in read_events(content.decode()) if one.name == "image"]
            content = base64.b64decode(image.data["b64"])
        assert content == draw(seed % 3, seed, "png")


def test_of_many_requests_half_of_them_aborted_nothing_is_left(tmp_path: Path) -> None:
    with Service(tmp_path, max_queue=5000) as service, listening(service) as port:
        service.painter.seconds = 0.001
        crowd = Crowd(port, seed=7)

        async def run() -> None:
            for start in range(0, 600, 100):
                await asyncio.gather(*(crowd.visit(start + i) for i in range(100)))

        asyncio.run(run())
        assert crowd.left + crowd.served == 600
        assert crowd.left > 150
        assert crowd.served > 150
        queue = service.queue
        wait_until(lambda: not (queue._records or queue._watchers.watched))
        assert not any([*queue._waiting, *queue._running, *queue._ended])
        totals = asyncio.run(queue.stats()).totals
        assert totals.accepted == sum(totals.ended.values())
        assert totals.ended["ok"] >= crowd.served
        assert totals.ended["cancelled"] > 30


def test_the_log_stays_free_of_tracebacks(
    own_service: Service, port: int, caplog: pytest.LogCaptureFixture
) -> None:
    connection = connect(port)
    for body in (b"", b"{", b"[" * 9000, b'{"class_id": 99}', b'{"stream": true}'):
        assert ask(connection, body)[0] in {404, 422}
    connection.close()
    assert own_service.painter.requests == []
    assert [record for record in caplog.records if record.levelname in {"ERROR", "CRITICAL"}] == []
