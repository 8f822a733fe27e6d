from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from masc_core.bundle.manifest import Manifest
from masc_core.errors import InvalidFieldError, UnknownClassError
from server.intake.admit import DRAWN_SEED_BITS, resolve, time_limit
from server.schemas.generate import GenerateBody
from tests.server.asgi import Exchange, until
from tests.server.service import Service, assert_nothing_left, assert_problem, write_model
from tests.server.sse import read_events

BODY = b'{"class_id": 1, "seed": 2}'


@pytest.mark.parametrize("path", ["/generate", "/jobs"])
def test_without_a_worker_the_answer_is_no_at_once(tmp_path: Path, path: str) -> None:
    with Service(tmp_path, working=False) as service:
        started = time.monotonic()
        response = service.call("POST", path, json={"class_id": 0})
        assert time.monotonic() - started < 2.0
        assert_problem(response, 503)
        assert int(response.headers["retry-after"]) >= 1
        assert not service.queue._running


def test_a_worker_for_another_model_does_not_count(own_service: Service) -> None:
    own_service.announce(model="other")
    assert "other" in assert_problem(own_service.generate(), 503)["detail"]


def test_a_full_queue_says_when_to_come_back(tmp_path: Path) -> None:
    with Service(tmp_path, max_queue=2) as service:
        service.painter.gate.clear()

        async def run() -> None:
            async with service.client() as client:
                first = asyncio.ensure_future(client.post("/generate", json={"class_id": 0}))
                await until(lambda: bool(service.painter.requests))
                others = [
                    asyncio.ensure_future(client.post("/generate", json={"class_id": i}))
                    for i in (1, 2)
                ]
                await until(lambda: len(service.queue._waiting) == 2)
                refused = await client.post("/generate", json={"class_id": 3})
                assert_problem(refused, 503)
                assert int(refused.headers["retry-after"]) >= 1
                service.painter.gate.set()
                answers = await asyncio.gather(first, *others)
                assert [answer.status_code for answer in answers] == [200, 200, 200]

        asyncio.run(run())
        assert_nothing_left(service)


def test_a_client_that_goes_away_cancels_a_job_that_runs(own_service: Service) -> None:
    own_service.painter.gate.clear()

    async def run() -> Exchange:
        exchange = Exchange([BODY])
        request = asyncio.ensure_future(exchange.run(own_service.app))
        await until(lambda: bool(own_service.painter.requests))
        exchange.gone.set()
        await asyncio.wait_for(request, 5.0)
        return exchange

    assert asyncio.run(run()).status == 499
    assert not own_service.queue._running
    assert_nothing_left(own_service)


def test_a_client_that_goes_away_takes_its_job_out_of_the_queue(own_service: Service) -> None:
    own_service.painter.gate.clear()

    async def run() -> tuple[Exchange, Exchange]:
        served, leaving = Exchange([BODY]), Exchange([BODY])
        first = asyncio.ensure_future(served.run(own_service.app))
        await until(lambda: bool(own_service.painter.requests))
        second = asyncio.ensure_future(leaving.run(own_service.app))
        await until(lambda: bool(own_service.queue._waiting))
        leaving.gone.set()
        await asyncio.wait_for(second, 5.0)
        assert not own_service.queue._waiting
        own_service.painter.gate.set()
        await asyncio.wait_for(first, 5.0)
        return served, leaving

    served, leaving = asyncio.run(run())
    assert (served.status, leaving.status) == (200, 499)
    assert len(own_service.painter.requests) == 1
    assert_nothing_left(own_service)


def test_a_client_that_leaves_while_it_sends_is_no_error(own_service: Service) -> None:
    async def run() -> Exchange:
        exchange = Exchange([BODY[:9]], complete=False)
        exchange.gone.set()
        await exchange.run(own_service.app)
        return exchange

    assert asyncio.run(run()).status == 499
    labels = {"endpoint": "/generate", "outcome": "cancelled"}
    assert own_service.sample("masc_requests_total", **labels) == 1
    assert own_service.painter.requests == []


def test_a_shutdown_cancels_the_job(own_service: Service) -> None:
    own_service.painter.gate.clear()

    async def run() -> None:
        request = asyncio.ensure_future(Exchange([BODY]).run(own_service.app))
        await until(lambda: bool(own_service.painter.requests))
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request

    asyncio.run(run())
    labels = {"endpoint": "/generate", "outcome": "cancelled"}
    assert own_service.sample("masc_requests_total", **labels) == 1
    assert_nothing_left(own_service)


def test_the_client_may_have_less_than_the_service_gives() -> None:
    assert time_limit(None, 300.0) == 300.0
    assert time_limit(0.5, 300.0) == 0.5
    assert time_limit(300.0, 300.0) == 300.0
    with pytest.raises(InvalidFieldError, match="at most 300 seconds") as refusal:
        time_limit(300.1, 300.0)
    assert refusal.value.field == "X-Masc-Timeout"


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon", "", "301", "1e9"])
@pytest.mark.parametrize("path", ["/generate", "/jobs"])
def test_what_is_no_number_of_seconds_is_refused(tmp_path: Path, path: str, value: str) -> None:
    service = Service(tmp_path, request_timeout=300, job_timeout=300)
    service.announce()
    response = service.call("POST", path, json={"class_id": 0}, headers={"X-Masc-Timeout": value})
    assert_problem(response, 422, "X-Masc-Timeout")
    assert not service.queue._waiting


@pytest.mark.parametrize(
    ("settings", "headers"), [({"request_timeout": 0.05}, {}), ({}, {"X-Masc-Timeout": "0.05"})]
)
def test_a_request_is_given_up_in_time(
    tmp_path: Path, settings: dict[str, Any], headers: dict[str, str]
) -> None:
    with Service(tmp_path, **settings) as service:
        service.painter.gate.clear()
        response = service.call("POST", "/generate", json={"class_id": 0}, headers=headers)
        assert "0.05 seconds" in assert_problem(response, 504)["detail"]
        assert not service.queue._running
        outcome = {"endpoint": "/generate", "outcome": "timeout"}
        assert service.sample("masc_requests_total", **outcome) == 1
        assert_nothing_left(service)


def test_a_stream_is_given_up_in_time(own_service: Service) -> None:
    own_service.painter.gate.clear()
    response = own_service.call(
        "POST",
        "/generate",
        json={"class_id": 0, "stream": True},
        headers={"X-Masc-Timeout": "0.05"},
    )
    assert response.status_code == 200
    last = read_events(response.text)[-1]
    assert (last.name, last.data["status"], last.id) == ("error", 504, "error")
    assert not own_service.queue._records
    assert own_service.queue._ends == {"expired": 1}
    outcome = {"endpoint": "/generate", "outcome": "timeout"}
    assert own_service.sample("masc_requests_total", **outcome) == 1


def test_a_job_expires(tmp_path: Path) -> None:
    with Service(tmp_path, job_timeout=50.0) as service:
        service.painter.gate.clear()
        service.submit()  # the worker is busy
        assert service.submit().json()["timeout"] == 50.0
        location = service.submit({"X-Masc-Timeout": "0.05"}).headers["location"]
        answer = service.ended(location)
        assert (answer["state"], answer["timeout"]) == ("expired", 0.05)
        assert answer["error"]["status"] == 504


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return write_model(tmp_path)


def test_drawn_seeds_use_all_their_bits(manifest: Manifest) -> None:
    seeds = [resolve(GenerateBody(class_id=0), manifest, "png").seed for _ in range(300)]
    assert 2 ** (DRAWN_SEED_BITS - 4) < max(seeds) < 2**DRAWN_SEED_BITS
    assert len(set(seeds)) == len(seeds)


def test_a_name_that_several_classes_have_is_answered_with_their_ids(manifest: Manifest) -> None:
    with pytest.raises(InvalidFieldError, match="2, 4") as refusal:
        resolve(GenerateBody(class_name="Crane"), manifest, "png")
    assert refusal.value.field == "class_name"


def test_a_class_out_of_range_is_answered_with_the_range(manifest: Manifest) -> None:
    with pytest.raises(UnknownClassError, match="0 to 5") as refusal:
        resolve(GenerateBody(class_id=6), manifest, "png")
    assert refusal.value.field == "class_id"
