from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from server.bench.client import NO_ANSWER, open_session
from server.bench.load import PAUSE, Load, Plan, Record
from tests.server.bench.runs import make_plan, run_load, target, with_load
from tests.server.bench.stand_in import StandIn, picture, refusal, serving

CLASS_IDS = (0, 1, 2)
STALL = 0.4  # seconds
STALLED = 20  # number of the request that meets it
LONG = 0.1  # seconds that no request takes otherwise


def seeds_of(bodies: Iterable[bytes]) -> list[int]:
    return [json.loads(body)["seed"] for body in bodies]


def due_during_stall(plan: Plan, rate: float) -> int:
    """How many requests of an open loop the stall delays by at least `LONG`."""
    times = [at for at, _ in plan.schedule(rate)]
    return sum(times[STALLED] <= at <= times[STALLED] + STALL - LONG for at in times)


def test_a_stall_of_the_server_is_in_the_latencies_of_an_open_loop() -> None:
    lock = asyncio.Lock()

    async def one_at_a_time(number: int, body: dict[str, Any]) -> web.StreamResponse:
        async with lock:
            if number == STALLED:
                await asyncio.sleep(STALL)
        return picture()

    plan = make_plan(CLASS_IDS, requests=100)
    delayed = due_during_stall(plan, 200.0)
    assert delayed > 40
    rows = run_load(plan, one_at_a_time, rate=200.0)[0].rows()
    assert np.count_nonzero(rows["finished"] - rows["due"] >= LONG) >= delayed
    rows = run_load(plan, one_at_a_time)[0].rows()  # a closed loop of one client waits with it
    assert np.count_nonzero(rows["finished"] - rows["due"] >= LONG) < delayed


def test_a_stall_of_the_client_itself_is_in_the_latencies_too() -> None:
    async def block_everything(number: int, body: dict[str, Any]) -> web.StreamResponse:
        if number == STALLED:
            time.sleep(STALL)  # noqa: ASYNC251 - client and server share this loop
        return picture()

    plan = make_plan(CLASS_IDS, requests=100)
    rows = run_load(plan, block_everything, rate=200.0)[0].rows()
    late = rows[rows["sent"] - rows["due"] >= LONG]
    assert len(late) >= due_during_stall(plan, 200.0) - 1  # without the one that met it
    assert np.all(late["finished"] - late["due"] >= LONG)


def test_an_open_loop_sends_what_is_planned_and_never_before_it_is_due() -> None:
    plan = make_plan(CLASS_IDS, seed=3, duration=0.5, warm_up=0.2)
    record, stand_in = run_load(plan, rate=100.0)
    planned = list(plan.schedule(100.0))
    rows = np.sort(record.rows(), order="due")
    assert rows["due"].tolist() == pytest.approx([at for at, _ in planned])
    assert np.all(rows["sent"] >= rows["due"])
    assert record.sent == sum(at >= 0 for at, _ in planned) == record.statuses[200]
    seeds = {body["seed"] for body in stand_in.bodies}
    assert len(seeds) == len(planned)
    assert record.ended is not None
    assert record.ended >= rows["finished"].max()


def test_an_open_loop_does_not_wait_for_answers() -> None:
    waiting, all_there = 0, asyncio.Event()

    async def together(number: int, body: dict[str, Any]) -> web.StreamResponse:
        nonlocal waiting
        waiting += 1
        if waiting == 30:
            all_there.set()
        await all_there.wait()
        return picture()

    record, _ = run_load(make_plan(CLASS_IDS, requests=30), together, rate=500.0)
    assert record.statuses == {200: 30}


def test_a_closed_loop_has_so_many_requests_under_way_and_no_more() -> None:
    under_way = most = 0
    together = asyncio.Event()

    async def count(number: int, body: dict[str, Any]) -> web.StreamResponse:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        if under_way == 4:
            together.set()
        await together.wait()
        under_way -= 1
        return picture()

    plan = make_plan(CLASS_IDS, seed=6, requests=40)
    record, stand_in = run_load(plan, count, clients=4)
    assert most == 4
    assert record.statuses == {200: 40}
    sent = [body["seed"] for body in stand_in.bodies]
    assert sorted(sent) == sorted(seeds_of(plan.bodies("measured")))


def test_a_closed_loop_ends_with_its_time_and_does_not_count_the_warm_up() -> None:
    plan = make_plan(CLASS_IDS, warm_up=0.2, duration=0.3)
    record, stand_in = run_load(plan, clients=2)
    rows = record.rows()
    warm_up = rows[rows["due"] < 0]
    assert 0 < len(warm_up) < len(rows)
    assert record.sent == record.statuses[200] == len(rows) - len(warm_up)
    assert rows["due"].max() < 0.3
    planned = seeds_of(islice(plan.bodies("warm-up"), len(warm_up)))
    planned += seeds_of(islice(plan.bodies("measured"), record.sent))
    assert sorted(body["seed"] for body in stand_in.bodies) == sorted(planned)


def test_a_refusal_is_answered_by_the_next_request_but_silence_by_a_pause() -> None:
    async def refuse(number: int, body: dict[str, Any]) -> web.StreamResponse:
        return refusal(503)

    plan = make_plan(CLASS_IDS, duration=5 * PAUSE)
    record, _ = run_load(plan, refuse)
    assert record.statuses[503] > 10

    async def nothing(number: int, body: dict[str, Any]) -> web.StreamResponse:
        return web.Response()

    record, _ = run_load(plan, nothing)
    assert 1 <= record.statuses[NO_ANSWER] <= 5


def test_a_run_that_is_broken_off_keeps_what_it_has() -> None:
    async def until_the_tenth(number: int, body: dict[str, Any]) -> web.StreamResponse:
        if number >= 10:
            stuck.set()
            await asyncio.Event().wait()
        return picture()

    record, stuck = Record(), asyncio.Event()

    async def run() -> None:
        stand_in = StandIn(until_the_tenth)
        async with serving(stand_in), open_session(30.0) as session:
            load = Load(
                with_load(make_plan(CLASS_IDS), rate=None), target(session, stand_in), record
            )
            task = asyncio.create_task(load.run())
            await stuck.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(run())
    assert (record.sent, record.statuses) == (11, {200: 10})
    assert record.ended is not None
