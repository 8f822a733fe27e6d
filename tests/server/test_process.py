"""The process of a front end: a real socket, real signals, and clients in threads beside it."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from masc_core.errors import ConfigError
from server.process import listen, serve
from tests.server.asgi import wait_until
from tests.server.service import Service, assert_problem, draw
from tests.server.sse import read_events
from tests.stopwatch import Stopwatch

BODY = {"class_id": 1, "seed": 3}
PNG = {"Accept": "image/png"}


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def serve_with(service: Service, client: Callable[[httpx.Client], None]) -> float:
    """Serve in this thread until a signal, a client beside; seconds until the end."""
    failures: list[BaseException] = []

    def run(port: int) -> None:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as connection:
                client(connection)
        except BaseException as error:  # noqa: BLE001 - raised below
            failures.append(error)
            os.kill(os.getpid(), signal.SIGTERM)
            service.painter.gate.set()

    with listen("127.0.0.1", 0, keys=True) as listener:
        thread = threading.Thread(target=run, args=(listener.getsockname()[1],))
        started = time.monotonic()
        thread.start()
        serve(service.app, listener)
        seconds = time.monotonic() - started
    service.painter.gate.set()
    thread.join(20)
    assert not thread.is_alive()
    if failures:
        raise failures[0]
    return seconds


def test_where_nothing_can_be_made_any_more_it_ends_without_a_signal(own_service: Service) -> None:
    broken = threading.Event()
    with listen("127.0.0.1", 0, keys=True) as listener:
        threading.Timer(0.3, broken.set).start()
        serve(own_service.app, listener, is_broken=broken.is_set)
    assert broken.is_set()
    assert own_service.get("/readyz").status_code == 503


class Asking(threading.Thread):
    """A request for an image, which the worker has begun with when the constructor returns."""

    def __init__(self, service: Service, client: httpx.Client) -> None:
        super().__init__()
        self._client = client
        self.answer: httpx.Response | None = None
        self.start()
        wait_until(lambda: bool(service.painter.requests))

    def run(self) -> None:
        try:
            self.answer = self._client.post("/generate", json=BODY, headers=PNG)
        except httpx.TransportError:
            self.answer = None


class Reading(threading.Thread):
    """A stream, of which something has come when the constructor returns, up to its end."""

    def __init__(self, client: httpx.Client, method: str, path: str, **options: Any) -> None:
        super().__init__()
        self._client, self._request = client, (method, path, options)
        self.text = ""
        self._begun = threading.Event()
        self.start()
        assert self._begun.wait(10)

    def run(self) -> None:
        method, path, options = self._request
        with self._client.stream(method, path, **options) as answer:
            for text in answer.iter_text():
                self.text += text
                self._begun.set()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_was_accepted_is_answered_and_new_work_is_refused_at_once(
    own_service: Service, number: int
) -> None:
    painter = own_service.painter
    painter.gate.clear()

    def client(connection: httpx.Client) -> None:
        assert connection.get("/readyz").status_code == 200
        asking = Asking(own_service, connection)
        with Stopwatch() as watch:
            os.kill(os.getpid(), number)
            while connection.get("/readyz").status_code == 200:
                assert watch.seconds < 0.1
        refused = connection.post("/generate", json=BODY)
        assert refused.status_code == 503
        assert refused.json()["type"].endswith("draining")
        assert int(refused.headers["Retry-After"]) >= 1
        assert connection.get("/healthz").status_code == 200
        painter.gate.set()
        asking.join(10)
        assert asking.answer is not None
        assert asking.answer.content == draw(1, 3, "png")

    assert serve_with(own_service, client) < 10
    assert len(painter.requests) == 1


def test_while_it_drains_no_connection_is_kept(own_service: Service) -> None:
    """So that a client's next try reaches another front end."""
    own_service.painter.gate.clear()

    def client(connection: httpx.Client) -> None:
        asking = Asking(own_service, connection)
        assert "Connection" not in connection.get("/healthz").headers
        os.kill(os.getpid(), signal.SIGTERM)
        while connection.get("/readyz").status_code == 200:
            pass
        for answer in (
            connection.get("/healthz"),
            connection.get("/nothing"),
            connection.post("/generate", json=BODY),
        ):
            assert answer.headers["Connection"] == "close"
        own_service.painter.gate.set()
        asking.join(10)
        assert asking.answer is not None
        assert asking.answer.headers["Connection"] == "close"
        assert asking.answer.content == draw(1, 3, "png")

    serve_with(own_service, client)


def test_without_work_it_ends_soon(own_service: Service) -> None:
    def client(connection: httpx.Client) -> None:
        connection.get("/healthz").raise_for_status()
        os.kill(os.getpid(), signal.SIGTERM)

    assert serve_with(own_service, client) < 5


@pytest.mark.parametrize("signals", [1, 2])
def test_work_that_takes_too_long_is_given_up_and_every_client_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, signals: int
) -> None:
    """Whether the time is up or a second signal ends it at once."""
    with Service(tmp_path, drain_seconds=0.6 if signals == 1 else 60.0) as service:
        service.painter.gate.clear()

        def client(connection: httpx.Client) -> None:
            asking = Asking(service, connection)
            kept = connection.post("/jobs", json=BODY).json()["id"]
            streaming = Reading(connection, "POST", "/generate", json=BODY | {"stream": True})
            watching = Reading(connection, "GET", f"/jobs/{kept}/events")
            os.kill(os.getpid(), signal.SIGTERM)
            while connection.get("/readyz").status_code == 200:
                pass
            if signals == 2:  # after which it may not listen any more
                os.kill(os.getpid(), signal.SIGTERM)
            for thread in (asking, streaming, watching):
                thread.join(10)
            assert asking.answer is not None
            assert_problem(asking.answer, 503)
            assert asking.answer.json()["type"].endswith("draining")
            assert "Retry-After" in asking.answer.headers
            *_, last = read_events(streaming.text)
            assert last.name == "error"
            assert last.data["type"].endswith("draining")
            assert "event: error" not in watching.text  # its job goes on

        assert serve_with(service, client) < 10
        assert service.queue._ends == {"cancelled": 2}
    assert "Traceback" not in caplog.text


def test_whose_body_is_not_all_there_at_the_end_is_told_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = ("/generate", "/v1/images/generations")
    answers: list[bytes] = []

    def client(connection: httpx.Client) -> None:
        with ExitStack() as stack:
            halves = []
            for path in paths:
                address = ("127.0.0.1", connection.base_url.port or 0)
                half = stack.enter_context(socket.create_connection(address, timeout=10))
                head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n"
                half.sendall(f"{head}Content-Type: application/json\r\n\r\n{{".encode())
                halves.append(half)
            connection.get("/healthz").raise_for_status()  # by now both are under way
            os.kill(os.getpid(), signal.SIGTERM)
            answers.extend(b"".join(iter(partial(half.recv, 65536), b"")) for half in halves)

    with Service(tmp_path, working=False, drain_seconds=1.0) as service:
        assert serve_with(service, client) < 10
    for path, answer in zip(paths, answers, strict=True):
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in head.lower()
        assert ("error" in json.loads(body)) is path.startswith("/v1")
    assert "Traceback" not in caplog.text


def test_the_job_of_a_client_that_reads_nothing_is_cancelled_at_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Service(tmp_path, drain_seconds=1.0) as service:
        service.painter.rows = threading.Semaphore(0)
        body = json.dumps(BODY | {"stream": True, "num_images": 16}).encode()
        head = b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"

        def client(connection: httpx.Client) -> None:
            url = connection.base_url
            with socket.socket() as silent:
                silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                silent.connect((url.host, url.port or 0))
                silent.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
                while not service.painter.requests:
                    time.sleep(0.001)
                os.kill(os.getpid(), signal.SIGTERM)
                with suppress(httpx.TransportError):
                    while True:
                        connection.get("/healthz")

        assert serve_with(service, client) < 10
        assert service.queue._ends == {"cancelled": 1}
    assert "Traceback" not in caplog.text


def test_an_address_that_cannot_be_had_is_known_at_once() -> None:
    with listen("127.0.0.1", 0, keys=True) as listener:
        port = listener.getsockname()[1]
        with (
            pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}: Address already"),
            listen("127.0.0.1", port, keys=True),
        ):
            pass
    unknown = "nowhere.invalid"
    with pytest.raises(ConfigError, match=unknown), listen(unknown, 1, keys=True):
        pass


@pytest.mark.parametrize(
    ("host", "published", "keys", "warned"),
    [
        ("127.0.0.1", "", False, False),
        ("0.0.0.0", "", False, True),  # noqa: S104
        ("0.0.0.0", "", True, False),  # noqa: S104
        ("0.0.0.0", "127.0.0.1", False, False),  # noqa: S104
        ("0.0.0.0", "localhost", False, False),  # noqa: S104
        ("0.0.0.0", "192.0.2.1", False, True),  # noqa: S104
        ("127.0.0.1", "masc.example", False, True),
    ],
)
def test_open_to_all_without_keys_is_warned_of(
    caplog: pytest.LogCaptureFixture, host: str, published: str, keys: bool, warned: bool
) -> None:
    with listen(host, 0, keys=keys, published_host=published) as listener:
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    assert ("without API keys" in caplog.text) is warned


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
def test_all_addresses_are_those_of_both_families() -> None:
    with listen("::", 0, keys=True) as listener:
        port = listener.getsockname()[1]
        for address in ("127.0.0.1", "::1"):
            socket.create_connection((address, port), timeout=5).close()
