from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from masc_core.errors import RateLimitError
from server.auth.api_keys import Client
from server.auth.rate_limit import AWAY_SECONDS, CONNECTIONS, TIMEOUT_SECONDS, RateLimits
from tests.clock import Clock
from tests.redis_server import RedisServer
from tests.server.auth.test_api_keys import ALICE, BOB, write_keys
from tests.server.service import Service, assert_problem
from tests.stopwatch import Stopwatch

UNHURRIED = 10.0  # seconds for Redis to answer on a busy machine
ANN, BEN, FREE = Client("ann", 3), Client("ben", 3), Client("free", 0)


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """One of the test's own, to be stopped and killed."""
    with RedisServer() as server:
        yield server


async def passed(limits: RateLimits, client: Client, tries: int) -> int:
    """How many of so many tries are not refused."""
    count = 0
    for _ in range(tries):
        try:
            await limits.count(client)
        except RateLimitError:
            continue
        count += 1
    return count


def run(limits: RateLimits, *work: Coroutine[Any, Any, int]) -> list[int]:
    """The results of work with these limits, one after another."""

    async def all_of_it() -> list[int]:
        try:
            return [await each for each in work]
        finally:
            await limits.close()

    return asyncio.run(all_of_it())


def test_each_client_has_its_own_count() -> None:
    limits = RateLimits("memory://")
    work = [passed(limits, client, 5) for client in (ANN, BEN, FREE, ANN)]
    assert run(limits, *work) == [3, 3, 5, 0]


def test_a_new_limit_counts_anew() -> None:
    limits = RateLimits("memory://")
    assert run(limits, passed(limits, ANN, 5), passed(limits, Client("ann", 4), 5)) == [3, 4]


def test_the_next_window_opens_when_it_was_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(100.0)
    monkeypatch.setattr(time, "time", clock)
    limits = RateLimits("memory://")

    async def promised() -> float:
        assert await passed(limits, ANN, 3) == 3
        clock.now += 20
        with pytest.raises(RateLimitError, match="ann may start 3 requests a minute") as refusal:
            await limits.count(ANN)
        return refusal.value.retry_after

    wait = asyncio.run(promised())
    assert 40 <= wait <= 41
    clock.now += 39.9
    assert run(limits, passed(limits, ANN, 1)) == [0]
    clock.now += wait - 39.9
    assert run(limits, passed(limits, ANN, 5)) == [3]


def test_front_ends_of_one_redis_count_together(server: RedisServer) -> None:
    first, second = (RateLimits(server.url, timeout=UNHURRIED) for _ in range(2))

    async def together() -> list[int]:
        counts = [await passed(limits, ANN, 2) for limits in (first, second, first)]
        counts.append(await passed(second, BEN, 9))
        await first.close()
        await second.close()
        return counts

    assert asyncio.run(together()) == [2, 1, 0, 3]


def test_redis_s_windows_open_when_it_was_promised(server: RedisServer) -> None:
    limits = RateLimits(server.url, timeout=UNHURRIED)

    async def promised() -> tuple[float, float]:
        await passed(limits, ANN, 3)
        with server.client() as client:
            (name,) = client.keys("masc:limits:*")
            client.pexpire(name, 1400)  # which it tells as one second
            with pytest.raises(RateLimitError) as refusal:
                await limits.count(ANN)
            left = client.pttl(name) / 1000
        return refusal.value.retry_after, left

    async def both() -> None:
        wait, left = await promised()
        assert left <= wait <= 2
        await limits.close()

    asyncio.run(both())


@pytest.mark.parametrize("fault", ["killed", "stopped"])
def test_without_redis_everyone_passes_and_it_is_told_once(
    server: RedisServer,
    fault: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "server.auth.rate_limit")
    clock = Clock(100.0)
    limits = RateLimits(server.url, clock, UNHURRIED)

    async def outage() -> None:
        assert await passed(limits, ANN, 5) == 3
        limits.timeout = TIMEOUT_SECONDS
        if fault == "killed":
            server.kill()
        else:
            server.hang()
        for _ in range(3):
            with Stopwatch() as watch:
                assert await passed(limits, ANN, 50) == 50
                assert watch.seconds < TIMEOUT_SECONDS + 0.5  # it is asked only once
            clock.now += AWAY_SECONDS
        assert len(caplog.records) == 1
        if fault == "killed":
            server.start()
        else:
            server.go_on()
        limits.timeout = UNHURRIED
        assert await passed(limits, BEN, 5) == 3
        await limits.close()

    asyncio.run(outage())
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


def test_many_at_once_wait_no_longer_than_one(server: RedisServer) -> None:
    limits = RateLimits(server.url)

    async def crowd() -> None:
        server.hang()
        with Stopwatch() as watch:
            await asyncio.gather(*(limits.count(ANN) for _ in range(50)))
            assert watch.seconds < TIMEOUT_SECONDS + 0.5
        server.go_on()
        await limits.close()

    asyncio.run(crowd())


def test_exactly_the_limit_of_many_at_once_pass(server: RedisServer) -> None:
    client = Client("crowd", 200)
    limits = RateLimits(server.url, timeout=UNHURRIED)

    async def crowd() -> int:
        return sum(await asyncio.gather(*(passed(limits, client, 1) for _ in range(600))))

    assert run(limits, crowd()) == [200]
    with server.client() as other:
        assert other.info("stats")["total_connections_received"] < 2 * CONNECTIONS


def test_a_url_s_password_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    limits = RateLimits(f"redis://user:hush@127.0.0.1:{port}")
    assert run(limits, passed(limits, ANN, 5)) == [5]
    assert "Redis is away" in caplog.text
    assert "hush" not in caplog.text


def test_over_the_limit_the_answer_is_429(tmp_path: Path) -> None:
    with Service(tmp_path, rate_limit=2, **write_keys(tmp_path)) as service:
        calls = [
            service.call("POST", "/generate", json={"class_id": 0}, headers={"X-API-Key": key})
            for key in (ALICE, BOB, ALICE, ALICE, BOB, BOB)
        ]
        assert [response.status_code for response in calls] == [200, 200, 200, 429, 200, 200]
        problem = assert_problem(calls[3], 429)
        assert problem["type"] == "urn:masc:problem:rate-limit"
        assert 1 <= int(calls[3].headers["retry-after"]) <= 61
        assert service.sample("masc_rejections_total", reason="rate_limit") == 1
        labels = {"endpoint": "/generate", "outcome": "rejected"}
        assert service.sample("masc_requests_total", **labels) == 1
        assert len(service.painter.requests) == 5
        assert service.get("/models", **{"X-API-Key": ALICE}).status_code == 200


def test_who_has_no_key_uses_up_nobody_s_limit(tmp_path: Path) -> None:
    with Service(tmp_path, rate_limit=1, **write_keys(tmp_path)) as service:
        assert [service.generate().status_code for _ in range(3)] == [401, 401, 401]
        response = service.call(
            "POST", "/generate", json={"class_id": 0}, headers={"X-API-Key": ALICE}
        )
        assert response.status_code == 200
