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
from scipy import stats

from masc_core.bundle.manifest import Defaults
from server.bench.client import NO_ANSWER, STAGES, Answer, Sample, open_session
from server.bench.load import (
    COLUMNS,
    MAX_TEXTS,
    OTHER_TEXT,
    PAUSE,
    SEED_RANGE,
    LoadRun,
    Plan,
    Record,
)
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
            load = LoadRun(
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


DRAWN_IDS = (3, 5, 8)


def requests(plan: Plan, number: int, rate: float = 50.0) -> list[tuple[float, dict[str, Any]]]:
    return [(at, json.loads(body)) for at, body in islice(plan.schedule(rate), number)]


def test_the_same_seed_gives_the_same_requests_at_the_same_times() -> None:
    plan = make_plan(DRAWN_IDS, seed=4, warm_up=1.0)
    assert list(islice(plan.schedule(50), 500)) == list(islice(plan.schedule(50), 500))
    other = make_plan(DRAWN_IDS, seed=5, warm_up=1.0)
    times, bodies = zip(*islice(plan.schedule(50), 500), strict=True)
    other_times, other_bodies = zip(*islice(other.schedule(50), 500), strict=True)
    assert not set(times) & set(other_times)
    assert not set(bodies) & set(other_bodies)


def test_the_requests_of_a_seed_stay_the_same_from_version_to_version() -> None:
    at, body = next(make_plan(DRAWN_IDS, seed=0).schedule(1.0))
    assert at == pytest.approx(2.6894404832147276)
    assert json.loads(body) == {
        "class_id": 5, "seed": 5857257728995083, "num_images": 1, "format": "png",
    }  # fmt: skip


def test_gaps_are_exponential() -> None:
    streams = [islice(make_plan(DRAWN_IDS, seed=seed).schedule(40.0), 2000) for seed in range(20)]
    gaps = np.array([np.diff([0.0, *(at for at, _ in stream)]) for stream in streams])
    assert stats.kstest(gaps.ravel(), "expon", args=(0, 1 / 40)).pvalue > 0.01
    assert gaps.std() == pytest.approx(1 / 40, rel=0.02)
    assert abs(np.corrcoef(gaps[:, 1:].ravel(), gaps[:, :-1].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(gaps[0], gaps[1])[0, 1]) < 0.1


def test_classes_and_seeds_are_uniform() -> None:
    drawn = [json.loads(body) for body in islice(make_plan(DRAWN_IDS).bodies("measured"), 3000)]
    _, counts = np.unique([body["class_id"] for body in drawn], return_counts=True)
    assert len(counts) == 3
    assert stats.chisquare(counts).pvalue > 0.01
    seeds = np.array([body["seed"] for body in drawn])
    assert stats.kstest(seeds / SEED_RANGE, "uniform").pvalue > 0.01
    assert len(set(seeds.tolist())) == 3000


def test_open_and_closed_loops_send_the_same_measured_requests() -> None:
    plan = make_plan(DRAWN_IDS, seed=9, warm_up=2.0)
    measured = [body for at, body in islice(plan.schedule(30), 200) if at >= 0]
    assert measured
    assert measured == list(islice(plan.bodies("measured"), len(measured)))
    hurried = make_plan(DRAWN_IDS, seed=9)
    assert list(islice(hurried.bodies("measured"), 50)) == measured[:50]
    assert next(plan.bodies("warm-up")) != measured[0]


def test_the_warm_up_comes_before_time_zero_and_the_end_is_kept() -> None:
    plan = make_plan(DRAWN_IDS, seed=1, warm_up=3.0, duration=2.0)
    times = [at for at, _ in plan.schedule(100.0)]
    assert times == sorted(times)
    assert -3.0 <= times[0] < -2.8
    assert 1.8 < times[-1] < 2.0
    assert 200 < sum(at < 0 for at in times) < 400
    limited = make_plan(DRAWN_IDS, seed=1, warm_up=3.0, duration=2.0, requests=7)
    assert sum(at >= 0 for at, _ in limited.schedule(100.0)) == 7
    assert len(list(limited.bodies("measured"))) == 7
    assert len(list(islice(limited.bodies("warm-up"), 50))) == 50


def test_a_request_says_what_was_asked_for_and_no_more() -> None:
    (_, body), *_ = requests(make_plan(DRAWN_IDS), 1)
    assert body == {
        "class_id": body["class_id"], "seed": body["seed"], "num_images": 1, "format": "png",
    }  # fmt: skip
    settings: dict[str, Any] = {
        "cfg_scale": 1.5, "cfg_schedule": "step", "cfg_start": 0.0, "temperature": 0.5, "top_k": 0,
        "top_p": 0.9, "cluster_top_k": 3, "cluster_top_p": 0.8, "decoding": "complete",
        "code_temperature": 1.1, "code_top_k": 0, "code_cfg_scale": 2.0,
    }  # fmt: skip
    assert settings.keys() == Defaults.model_fields.keys()
    full = make_plan((2,), num_images=4, format="webp", model="tiny", priority="batch", **settings)
    (_, body), *_ = requests(full, 1)
    assert body == {
        "class_id": 2, "seed": body["seed"], "num_images": 4, "format": "webp", "model": "tiny",
        "priority": "batch", **settings,
    }  # fmt: skip


def sample(
    due: float = 0.0, status: int = 200, error: str = "", model: str = "tiny/7", detail: str = ""
) -> Sample:
    answer = Answer(1, {"queue": 0.25}, model, 3.0 if status == 503 else None, "", detail)
    return Sample(due, due + 0.125, due + 0.5, status, answer, error)


def test_rows_hold_every_number_of_a_sample() -> None:
    record = Record()
    record.add(sample(1.0))
    record.add(sample(2.0, 503))
    rows = record.rows()
    assert rows.dtype.names == COLUMNS
    assert rows["due"].tolist() == [1.0, 2.0]
    assert rows["sent"].tolist() == [1.125, 2.125]
    assert rows["finished"].tolist() == [1.5, 2.5]
    assert rows["status"].tolist() == [200, 503]
    assert rows["num_images"].tolist() == [1, 1]
    assert np.isnan(rows["retry_after"][0])
    assert rows["retry_after"][1] == 3.0
    assert rows["queue"].tolist() == [0.25, 0.25]
    assert all(np.isnan(rows[name]).all() for name in STAGES if name != "queue")
    record.add(sample(3.0))  # a table that was handed out does not hold the record still
    assert (len(rows), len(record.rows())) == (2, 3)


def test_counters_leave_the_warm_up_out() -> None:
    record = Record()
    record.add(sample(-1.0, 500, "500 broken", detail="warm"))
    for _ in range(3):
        record.add(sample(1.0))
    record.add(sample(1.0, 503, "503 full", detail="full"))
    record.add(sample(1.0, 500, "500 broken", model="", detail="first"))
    record.add(sample(1.0, 500, "500 broken", model="", detail="second"))
    assert record.statuses == {200: 3, 503: 1, 500: 2}
    assert record.reasons == {"503 full": 1, "500 broken": 2}
    assert record.models == {"tiny/7": 4}
    assert record.first_detail == "first"
    assert len(record.rows()) == 7


def test_a_server_that_words_every_error_anew_does_not_fill_the_memory() -> None:
    record = Record()
    for number in range(1000):
        record.add(sample(1.0, 500, f"500 request {number}"))
    assert len(record.reasons) == MAX_TEXTS + 1
    assert record.reasons[OTHER_TEXT] == 1000 - MAX_TEXTS
