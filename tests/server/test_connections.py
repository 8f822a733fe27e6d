"""What clients do to connections before there is a request, over real sockets."""

from __future__ import annotations

import itertools
import json
import logging
import resource
import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

import server.connections
from server.connections import (
    MAX_HEAD_BYTES,
    MAX_LINGERING,
    OnceAMinute,
    possible_connections,
)
from tests.server.listening import listening
from tests.server.service import Service, draw, paint
from tests.stopwatch import Stopwatch

HEAD = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
NOWHERE = b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\n"
ENDLESS = {
    "headers": (HEAD, (b"X-%d: 1\r\n" % i for i in itertools.count())),
    "a value": (HEAD + b"X: ", itertools.repeat(b"y" * 1000)),
    "a name": (HEAD, itertools.repeat(b"y" * 1000)),
    "a URL": (b"GET /", itertools.repeat(b"y" * 1000)),
    "a chunk's size": (POST + b"Transfer-Encoding: chunked\r\n\r\n", itertools.repeat(b"0" * 1000)),
    "trailers": (
        POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n",
        (b"X-%d: 1\r\n" % i for i in itertools.count()),
    ),
}
H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQC\r\n"


@pytest.fixture
def impatient(tmp_path: Path) -> Iterator[tuple[Service, int]]:
    """A service with few connections and little time, and its port."""
    with (
        Service(tmp_path, max_connections=20, head_timeout=0.5) as service,
        listening(service) as port,
    ):
        yield service, port


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, int]]:
    """A service with the limits that the product ships, and its port."""
    with Service(tmp_path_factory.mktemp("roomy")) as service, listening(service) as port:
        yield service, port


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def read_all(connection: socket.socket) -> bytes:
    """Everything up to the end."""
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def read_answer(connection: socket.socket) -> tuple[bytes, bytes]:
    """Head and body of one answer, whose connection stays."""
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += receive(connection)
    head, _, start = answer.partition(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    body = bytearray(start)
    while len(body) < int(fields[b"content-length"]):
        body += receive(connection)
    assert len(body) == int(fields[b"content-length"])
    return head, bytes(body)


def receive(connection: socket.socket) -> bytes:
    """More of an answer that is not whole yet."""
    part = connection.recv(65536)
    assert part
    return part


def is_reset(connection: socket.socket, milliseconds: int = 0) -> bool:
    """Whether more that is sent finds the other end closed."""
    with suppress(OSError):
        connection.sendall(b"more")
    poll = select.poll()
    poll.register(connection, 0)  # errors alone
    return bool(poll.poll(milliseconds))


@pytest.mark.parametrize("kind", ENDLESS)
def test_what_has_no_end_is_refused_soon(roomy: tuple[Service, int], kind: str) -> None:
    service, port = roomy
    refused = service.sample("masc_connections_refused_total", reason="invalid")
    start, parts = ENDLESS[kind]
    sent = 0
    with closing(connect(port)) as connection:
        connection.sendall(start)
        connection.settimeout(0.0)
        while True:
            part = b"".join(itertools.islice(parts, 100))
            try:
                sent += connection.send(part)
                if connection.recv(1, socket.MSG_PEEK):
                    break
            except BlockingIOError:
                time.sleep(0.001)
            assert sent < 4 * MAX_HEAD_BYTES + 2 * 1024 * 1024  # kernels hold some of it
        connection.settimeout(10)
        head, _, body = read_all(connection).partition(b"\r\n\r\n")
    status = int(head.split()[1])
    assert status in {400, 431}
    assert b"connection: close" in head.lower()
    assert json.loads(body)["status"] == status
    assert service.sample("masc_connections_refused_total", reason="invalid") == refused + 1


def test_a_head_may_have_48_kilobytes_and_never_64(roomy: tuple[Service, int]) -> None:
    _, port = roomy
    for size, status in [(48_000, b"200"), (64 * 1024, b"431")]:
        with closing(connect(port)) as connection:
            connection.sendall(HEAD + b"Connection: close\r\nX: " + b"y" * size + b"\r\n\r\n")
            assert read_all(connection).split()[1] == status


@pytest.mark.parametrize("said", [b"", b"GET /heal", HEAD])
def test_who_says_nothing_or_half_a_head_is_closed(
    impatient: tuple[Service, int], said: bytes
) -> None:
    service, port = impatient
    with closing(connect(port)) as connection, Stopwatch() as watch:
        connection.sendall(said)
        answer = read_all(connection)
    assert watch.seconds < 3
    assert answer.startswith(b"HTTP/1.1 408 ") if said else not answer
    assert service.sample("masc_connections_refused_total", reason="timeout") == 1


def test_a_head_that_trickles_in_has_a_deadline_after_the_first_request_too(
    impatient: tuple[Service, int],
) -> None:
    _, port = impatient
    with closing(connect(port)) as connection, Stopwatch() as watch:
        connection.sendall(HEAD + b"\r\n")
        assert read_answer(connection)[0].startswith(b"HTTP/1.1 200")
        for _ in range(100):
            try:
                connection.sendall(b"G")
            except OSError:
                break
            connection.settimeout(0.05)
            try:
                if not connection.recv(65536):
                    break
            except TimeoutError:
                continue
        else:
            pytest.fail("it was not closed")
    assert watch.seconds < 4


def test_so_has_one_that_came_with_the_first_request(impatient: tuple[Service, int]) -> None:
    _, port = impatient
    with closing(connect(port)) as connection, Stopwatch() as watch:
        connection.sendall(HEAD + b"\r\n" + b"GET / HT")
        assert read_all(connection).count(b"HTTP/1.1 408 ") == 1
    assert watch.seconds < 4


def test_a_body_with_two_lengths_is_refused_and_the_connection_closed(
    roomy: tuple[Service, int],
) -> None:
    _, port = roomy
    for start in (HEAD, POST, NOWHERE):
        with closing(connect(port)) as connection:
            lengths = b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            connection.sendall(start + lengths + HEAD + b"\r\n")
            answers = read_all(connection)
        assert answers.count(b"HTTP/1.1 ") == 1
        assert answers.startswith(b"HTTP/1.1 400 ")
        assert b"has two lengths" in answers


def test_head_is_answered_wherever_get_is(roomy: tuple[Service, int]) -> None:
    service, port = roomy
    job = service.submit().headers["location"]
    paths = [
        *("/", "/healthz", "/readyz", "/status", "/version", "/metrics", "/openapi.json"),
        *("/models", "/models/tiny/classes", "/v1/models", "/v1/models/tiny", job),
        *(f"{job}/images/0", "/models/tiny/codebook", "/nowhere", "/generate"),
    ]
    service.ended(job)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        for path in paths:
            got, head = client.get(path), client.head(path)
            assert (head.status_code, head.content) == (got.status_code, b""), path
            assert head.headers["content-type"] == got.headers["content-type"], path
        assert client.head(f"{job}/events").status_code == 405


def test_the_rest_of_a_body_that_nobody_reads_has_a_deadline(
    impatient: tuple[Service, int],
) -> None:
    _, port = impatient
    with closing(connect(port)) as connection, Stopwatch() as watch:
        connection.sendall(
            b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{"
        )
        assert read_answer(connection)[0].startswith(b"HTTP/1.1 404")
        connection.sendall(b"{")
        assert read_all(connection) == b""
    assert watch.seconds < 4


def test_the_longest_silent_connection_makes_room(
    impatient: tuple[Service, int], caplog: pytest.LogCaptureFixture
) -> None:
    service, port = impatient
    with ExitStack() as stack, caplog.at_level(logging.WARNING):
        for _ in range(200):
            stack.enter_context(closing(connect(port)))
        with Stopwatch() as watch:
            assert httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200
    assert watch.seconds < 2
    assert service.sample("masc_connections_refused_total", reason="full") >= 150
    assert len([r for r in caplog.records if "full" in r.getMessage()]) == 1


def test_where_every_connection_has_a_request_another_one_is_refused(
    impatient: tuple[Service, int],
) -> None:
    service, port = impatient
    service.painter.gate.clear()
    body = b'{"class_id": 1, "seed": 3}'
    request = POST + b"Accept: image/png\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    with ExitStack() as stack:
        working = [stack.enter_context(closing(connect(port))) for _ in range(20)]
        for connection in working:
            connection.sendall(request)
        deadline = time.monotonic() + 10
        while service.sample("masc_jobs_accepted_total") < 20:
            assert time.monotonic() < deadline
            service.get("/metrics").raise_for_status()
        with closing(connect(port)) as connection:
            assert read_all(connection).startswith(b"HTTP/1.1 503 ")
        service.painter.gate.set()
        for connection in working:
            assert read_answer(connection)[1] == draw(1, 3, "png")


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_a_request_that_turns_out_bad_is_refused_once_and_without_a_traceback(
    roomy: tuple[Service, int], caplog: pytest.LogCaptureFixture, method: str
) -> None:
    service, port = roomy
    answered = service.sample("masc_requests_total", endpoint="/", outcome="ok")
    with closing(connect(port)) as connection:
        head = f"{method} / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head.encode() + b"zz\r\n")
        answer, _, body = read_all(connection).partition(b"\r\n\r\n")
    assert answer.split()[1] == b"400"
    assert body == b"" if method == "HEAD" else json.loads(body)["status"] == 400
    # The page is still answered, to nobody: after its answer, that of another request.
    deadline = time.monotonic() + 10
    while service.sample("masc_requests_total", endpoint="/", outcome="ok") == answered:
        assert time.monotonic() < deadline
        assert httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_refused_clients_that_stay_take_no_room(impatient: tuple[Service, int]) -> None:
    _, port = impatient
    with ExitStack() as stack:
        for _ in range(60):
            connection = stack.enter_context(closing(connect(port)))
            connection.sendall(b"junk\r\n\r\n")
        assert httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200


def test_of_refused_clients_that_stay_the_oldest_is_closed(
    roomy: tuple[Service, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.connections, "LINGER_SECONDS", 60.0)
    _, port = roomy
    with ExitStack() as stack:
        refused = []
        for _ in range(MAX_LINGERING + 1):
            connection = stack.enter_context(closing(connect(port)))
            connection.sendall(b"junk\r\n\r\n")
            assert read_all(connection).startswith(b"HTTP/1.1 400 ")
            refused.append(connection)
        oldest, *others = refused
        assert any(is_reset(oldest, milliseconds=10) for _ in range(200))
        assert [is_reset(one, milliseconds=10) for one in others] == [False] * MAX_LINGERING


def test_clients_that_read_nothing_make_room_too(impatient: tuple[Service, int]) -> None:
    _, port = impatient
    with ExitStack() as stack:
        for _ in range(40):
            connection = socket.socket()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", port))
            stack.enter_context(closing(connection))
            with suppress(OSError):
                connection.sendall((HEAD.replace(b"healthz", b"openapi.json") + b"\r\n") * 20)
        deadline = time.monotonic() + 10
        while True:
            with suppress(httpx.TransportError):
                if httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200:
                    break
            assert time.monotonic() < deadline


def test_who_takes_nothing_of_an_answer_is_ended_and_who_is_slow_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.connections, "STALL_SECONDS", 0.5)
    with Service(tmp_path) as service, listening(service) as port:
        both = []
        for _ in range(2):
            connection = socket.socket()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", port))
            connection.settimeout(10)
            connection.sendall((HEAD.replace(b"healthz", b"openapi.json") + b"\r\n") * 200)
            both.append(connection)
        silent, slow = both
        deadline = time.monotonic() + 10
        while not service.sample("masc_connections_refused_total", reason="timeout"):
            assert slow.recv(65536)
            assert time.monotonic() < deadline
            time.sleep(0.002)
        with suppress(ConnectionResetError):
            read_all(silent)
        assert slow.recv(65536)
        slow.close()
        silent.close()


def large_image(service: Service, num_bytes: int) -> bytes:
    """Path of an image of so many bytes, of a job that has ended."""
    location = service.submit().headers["location"]
    (lease,) = service.queue.claim("tiny", 1, 0.0)
    result = paint(lease.job)
    image = replace(result.images[0], data=b"x" * num_bytes)
    assert service.queue.report([(lease, replace(result, images=(image,)))]) == [True]
    return f"{location}/images/0".encode()


def test_who_leaves_an_answer_unread_makes_room_at_once(tmp_path: Path) -> None:
    num_bytes = 16 * 1024 * 1024  # more than kernels hold
    with (
        Service(tmp_path, working=False, max_connections=1) as service,
        listening(service) as port,
        closing(socket.socket()) as connection,
    ):
        service.announce()
        path = large_image(service, num_bytes)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(10)
        connection.connect(("127.0.0.1", port))
        connection.sendall(HEAD.replace(b"/healthz", path) + b"\r\n")
        counted = {"endpoint": "/jobs/{id}/images/{index}", "outcome": "ok"}
        deadline = time.monotonic() + 10
        while not service.sample("masc_requests_total", **counted):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200
        assert len(read_all(connection)) < num_bytes


def test_who_has_caught_up_or_left_is_no_longer_taken_for_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.connections, "STALL_SECONDS", 0.3)
    num_bytes = 16 * 1024 * 1024  # more than kernels hold
    counted = {"endpoint": "/jobs/{id}/images/{index}", "outcome": "ok"}
    with (
        Service(tmp_path, working=False) as service,
        listening(service) as port,
        closing(connect(port)) as leaving,
        closing(connect(port)) as reading,
    ):
        service.announce()
        request = HEAD.replace(b"/healthz", large_image(service, num_bytes)) + b"\r\n"
        for connection in (leaving, reading):
            connection.sendall(request)
        deadline = time.monotonic() + 10
        while service.sample("masc_requests_total", **counted) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        leaving.close()
        assert len(read_answer(reading)[1]) == num_bytes
        with Stopwatch() as watch:
            while watch.seconds < 4 * server.connections.STALL_SECONDS:
                reading.sendall(HEAD + b"\r\n")
                assert read_answer(reading)[0].startswith(b"HTTP/1.1 200")
                time.sleep(0.01)
        assert service.sample("masc_connections_refused_total", reason="timeout") == 0


def test_a_body_that_comes_after_the_answer_does_not_end_the_connection(
    impatient: tuple[Service, int],
) -> None:
    service, port = impatient
    with closing(connect(port)) as connection:
        connection.sendall(
            b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n"
        )
        assert read_answer(connection)[0].startswith(b"HTTP/1.1 404")
        connection.sendall(b"hello")
        time.sleep(1.0)  # twice the deadline of a head
        connection.sendall(HEAD + b"\r\n")
        assert read_answer(connection)[0].startswith(b"HTTP/1.1 200")
    assert service.sample("masc_connections_refused_total", reason="timeout") == 0


def test_an_upgrade_is_ignored(roomy: tuple[Service, int]) -> None:
    _, port = roomy
    smuggled = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
    body = b'{"class_id": 1, "seed": 3}' + b" " * 50
    with closing(connect(port)) as connection:
        for content, status in [(body, b"200"), (smuggled, b"422"), (body, b"200")]:
            length = b"Content-Length: %d\r\n" % len(content)
            connection.sendall(POST + H2C + b"Accept: image/png\r\n" + length + b"\r\n" + content)
            head, rest = read_answer(connection)
            assert head.split()[1] == status
            assert b"masc_" not in rest
        connection.sendall(HEAD + b"Connection: close\r\n\r\n")
        assert read_all(connection).count(b"HTTP/1.1 ") == 1


def test_as_many_connections_as_files_can_be_open() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert possible_connections(10) == 10
    assert possible_connections(10**9) < most
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (most, most)


def test_what_a_client_causes_is_logged_once_a_minute() -> None:
    only = OnceAMinute()
    records = [
        logging.LogRecord("x", level, "", 0, text, None, None)
        for level, text in [(30, "a"), (30, "a"), (30, "b"), (40, "c"), (40, "c")]
    ]
    assert [only.filter(record) for record in records] == [True, False, True, True, True]
