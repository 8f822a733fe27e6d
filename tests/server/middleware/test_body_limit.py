from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from server.middleware.body_limit import DISCARD_BYTES
from tests.server.asgi import Exchange
from tests.server.service import Service, assert_problem

LIMIT = 1024
JSON = (b"content-type", b"application/json")


def padded(size: int) -> bytes:
    body = b'{"class_id": 1, "seed": 2}'
    return body + b" " * (size - len(body))


@pytest.fixture
def small(tmp_path: Path) -> Service:
    return Service(tmp_path, working=False, max_body_bytes=LIMIT)


def exchange(service: Service, *pieces: bytes, length: int | None = None) -> Exchange:
    headers = [JSON]
    if length is not None:
        headers.append((b"content-length", str(length).encode()))
    made = Exchange(pieces, headers)
    asyncio.run(made.run(service.app))
    return made


def test_two_megabytes_are_too_much(service: Service) -> None:
    assert "65536" in assert_problem(service.post(padded(2_000_000)), 413)["detail"]


def test_the_limit_itself_is_allowed(service: Service) -> None:
    assert service.post(padded(65536)).status_code == 200
    assert_problem(service.post(padded(65537)), 413)


@pytest.mark.parametrize("size", [LIMIT, LIMIT + 1])
def test_without_a_length_the_bytes_are_counted(small: Service, size: int) -> None:
    body = padded(size)
    answer = exchange(small, body[:500], body[500:1000], body[1000:])
    assert answer.status == (503 if size == LIMIT else 413)  # 503: there is no worker


def test_a_length_that_lies_does_not_help(small: Service) -> None:
    assert exchange(small, padded(5 * LIMIT), length=10).status == 413


@pytest.mark.parametrize("length", ["", "-1", "x", "1e9", "\u0663", "9" * 400])
def test_a_length_that_is_none_is_no_error(small: Service, length: str) -> None:
    made = Exchange([padded(100)], [JSON, (b"content-length", length.encode())])
    asyncio.run(made.run(small.app))
    assert made.status == (413 if length.startswith("9") else 503)


def test_the_rest_is_read_so_that_the_client_reads_the_answer(small: Service) -> None:
    pieces = [bytes(LIMIT)] * 50
    for length in (None, 50 * LIMIT):
        answer = exchange(small, *pieces, length=length)
        assert answer.status == 413
        assert answer.read == 50
        assert answer.header(b"connection") == b"close"


def test_an_enormous_rest_is_not_read(small: Service) -> None:
    piece = bytes(DISCARD_BYTES // 4)
    answer = exchange(small, *[piece] * 40, length=40 * len(piece))
    assert answer.status == 413
    assert answer.read < 8


def test_a_client_that_asks_first_is_told_before_it_sends(small: Service) -> None:
    headers = [JSON, (b"content-length", b"5000"), (b"expect", b"100-continue")]
    made = Exchange([bytes(5000)], headers)
    asyncio.run(made.run(small.app))
    assert made.status == 413
    assert made.read == 0


@pytest.mark.parametrize("pieces", [[], [b'{"class_id"']])
def test_a_body_that_does_not_come_is_not_waited_for(tmp_path: Path, pieces: list[bytes]) -> None:
    service = Service(tmp_path, working=False, body_timeout=0.05)
    made = Exchange(pieces, [JSON], complete=False)
    asyncio.run(asyncio.wait_for(made.run(service.app), 5.0))
    assert made.status == 408
    assert made.header(b"content-type") == b"application/problem+json"
    assert made.header(b"connection") == b"close"
    assert "0.05 seconds" in made.document["detail"]
    labels = {"endpoint": "/generate", "outcome": "invalid"}
    assert service.sample("masc_requests_total", **labels) == 1


def test_a_body_too_large_that_stalls_is_still_too_large(tmp_path: Path) -> None:
    service = Service(tmp_path, working=False, max_body_bytes=LIMIT, body_timeout=0.05)
    made = Exchange([bytes(5000)], [JSON], complete=False)
    asyncio.run(asyncio.wait_for(made.run(service.app), 5.0))
    assert made.status == 413


def test_once_the_body_is_there_its_time_is_over(tmp_path: Path) -> None:
    with Service(tmp_path, body_timeout=0.05) as service:
        service.painter.gate.clear()
        threading.Timer(0.2, service.painter.gate.set).start()
        assert service.generate().status_code == 200


def test_a_refusal_counts_for_its_route(small: Service) -> None:
    exchange(small, padded(5000))
    labels = {"endpoint": "/generate", "outcome": "invalid"}
    assert small.sample("masc_requests_total", **labels) == 1
