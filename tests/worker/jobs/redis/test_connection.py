from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import redis
from redis.exceptions import BusyLoadingError, OutOfMemoryError, ResponseError

from masc_core.errors import ConfigError, QueueDownError, QueueFullError
from tests.redis_server import RedisServer
from worker.jobs.redis.connection import (
    check_server,
    connect_async,
    connect_blocking,
    database_of,
    reachable_queue,
)


@contextmanager
def answering(answer: Callable[[bytes], bytes]) -> Iterator[str]:
    """Address of a server that answers in its own way."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    peer, _ = server.accept()
                    with peer:
                        while asked := peer.recv(4096):
                            peer.sendall(answer(asked))

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"redis://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def check(url: str) -> None:
    with connect_blocking(url) as client:
        check_server(client)


def test_a_redis_that_is_as_it_should_be_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    with RedisServer(appendonly="yes") as server:
        check(server.url)
    assert caplog.records == []


def test_one_that_may_lose_jobs_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with RedisServer(**{"maxmemory-policy": "allkeys-lru"}) as server:
        check(server.url)
    messages = " ".join(record.getMessage() for record in caplog.records)
    assert "allkeys-lru" in messages
    assert "append-only file" in messages


@pytest.mark.parametrize("url", ["redis://:wrong@127.0.0.1:{}", "redis://127.0.0.1:{}"])
def test_a_wrong_password_is_an_error_that_does_not_tell_it(url: str) -> None:
    with RedisServer(requirepass="hush") as server:
        check(f"redis://:hush@127.0.0.1:{server.port}")
        with pytest.raises(ConfigError) as refusal:
            check(url.format(server.port))
    assert "hush" not in str(refusal.value)
    assert "wrong" not in str(refusal.value)


def test_a_database_that_is_not_there_is_an_error(redis_url: str) -> None:
    with pytest.raises(ConfigError, match="out of range"):
        check(redis_url.replace("/0", "/12345"))


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH\r\n"])
def test_something_else_is_an_error(answer: bytes) -> None:
    with answering(lambda _: answer) as url, pytest.raises(ConfigError, match="no Redis"):
        check(url)


def test_an_old_redis_is_an_error() -> None:
    body = b"redis_version:6.2.14\r\nmaxmemory_policy:noeviction\r\n"

    def answer(asked: bytes) -> bytes:
        ready = b"+OK\r\n" * asked.count(b"\r\nCLIENT\r\n")
        asks_info = b"\r\n$4\r\nINFO\r\n" in asked
        return ready + (b"$%d\r\n%s\r\n" % (len(body), body) if asks_info else b"")

    with answering(answer) as url, pytest.raises(ConfigError, match=r"7\.0 .* this one is 6\.2"):
        check(url)


def test_one_that_cannot_be_reached_may_still_come(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    check(f"redis://:hush@127.0.0.1:{port}")
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "hush" not in record.getMessage()


def test_a_socket_of_this_machine_will_do(tmp_path: Path) -> None:
    path = tmp_path / "redis.sock"
    with RedisServer(unixsocket=str(path), appendonly="yes"):
        check(f"unix://{path}?db=3")
        with connect_blocking(f"unix://{path}?db=3") as client:
            assert database_of(client) == 3


async def _database(url: str) -> int:
    client = connect_async(url)
    await client.aclose()
    return database_of(client)


@pytest.mark.anyio
@pytest.mark.parametrize(("path", "db"), [("", 0), ("/0", 0), ("/7", 7)])
async def test_the_database_is_that_of_the_url(path: str, db: int) -> None:
    assert await _database("redis://localhost" + path) == db


@pytest.mark.parametrize(
    "error",
    [
        redis.ConnectionError("refused"),
        redis.TimeoutError("slow"),
        BusyLoadingError("LOADING"),
        ResponseError("MISCONF Redis is configured to save RDB snapshots"),
    ],
)
def test_what_passes_is_no_bug(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(QueueDownError), reachable_queue("stats"):
        raise error
    assert caplog.records == []


def test_a_full_redis_is_a_full_queue() -> None:
    with pytest.raises(QueueFullError), reachable_queue("stats"):
        raise OutOfMemoryError("command not allowed")


def test_what_does_not_pass_is_logged_when_it_begins(caplog: pytest.LogCaptureFixture) -> None:
    for num_lines in (1, 2):
        for _ in range(3):
            with pytest.raises(QueueDownError), reachable_queue("stats"):
                raise ResponseError("ERR user_script:1: Script attempted to access")
        assert [record.levelno for record in caplog.records] == [logging.ERROR] * num_lines
        with reachable_queue("status"):
            pass
        with pytest.raises(QueueDownError), reachable_queue("stats"):
            raise ResponseError("ERR the same")
        assert len(caplog.records) == num_lines
        with reachable_queue("stats"):
            pass
