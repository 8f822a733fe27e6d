"""The application behind a real server and a real socket."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import uvicorn

from tests.server.service import Service, draw

JSON = {"Content-Type": "application/json"}


@contextmanager
def listening(service: Service) -> Iterator[int]:
    """Serve the application, and give the port."""
    config = uvicorn.Config(service.app, log_config=None, access_log=False, ws="none")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            service.painter.gate.set()
            server.should_exit = True
            thread.join()


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


def eventually(service: Service, *, waiting: int, running: int) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if (len(service.queue._waiting), len(service.painter.requests)) == (waiting, running):
            return True
        time.sleep(0.005)
    return False


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
    assert eventually(own_service, waiting=2, running=1)
    for connection in connections:
        connection.close()
    assert eventually(own_service, waiting=0, running=1)
    own_service.painter.gate.set()
    connection = connect(port)
    assert ask(connection, b'{"class_id": 1}')[0] == 200
    connection.close()
    assert not own_service.queue._pending


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


def test_the_log_stays_free_of_tracebacks(
    own_service: Service, port: int, caplog: pytest.LogCaptureFixture
) -> None:
    connection = connect(port)
    for body in (b"", b"{", b"[" * 9000, b'{"class_id": 99}', b'{"stream": true}'):
        assert ask(connection, body)[0] in {404, 422}
    connection.close()
    assert own_service.painter.requests == []
    assert [record for record in caplog.records if record.levelname in {"ERROR", "CRITICAL"}] == []
