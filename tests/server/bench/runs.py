"""Runs of a load against the stand-in."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from server.bench.client import Sample, Target, open_session
from server.bench.load import LoadRun, Plan, Record
from server.bench.options import BenchOptions
from tests.server.bench.stand_in import Answer, StandIn, answer_at_once, serving


def make_plan(class_ids: Sequence[int], **options: Any) -> Plan:
    """A plan whose load is chosen later, by `run_load`; it ends only where the options say so."""
    return Plan(BenchOptions(rate=1.0, **options), class_ids)


def with_load(plan: Plan, rate: float | None, clients: int = 1) -> Plan:
    load = {"rate": rate, "clients": clients if rate is None else None}
    return Plan(plan.options.model_copy(update=load), plan.class_ids)


def target(session: Any, stand_in: StandIn, num_images: int = 1) -> Target:
    accept = "image/png" if num_images == 1 else "application/json"
    return Target(session, f"{stand_in.url}/generate", accept, num_images)


def run_load(
    plan: Plan,
    answer: Answer = answer_at_once,
    *,
    rate: float | None = None,
    clients: int = 1,
    timeout: float = 30.0,
) -> tuple[Record, StandIn]:
    """Send a plan's requests to a stand-in, in a loop of their own."""
    stand_in, record = StandIn(answer), Record()

    async def run() -> None:
        async with serving(stand_in), open_session(timeout) as session:
            where = target(session, stand_in, plan.options.num_images)
            await LoadRun(with_load(plan, rate, clients), where, record).run()

    asyncio.run(run())
    return record, stand_in


def measure(
    answer: Answer = answer_at_once, *, num_images: int = 1, timeout: float = 10.0, due: float = 0.0
) -> tuple[Sample, StandIn]:
    """Send one request."""
    stand_in = StandIn(answer)
    body = next(make_plan((1,), num_images=num_images).bodies("measured"))

    async def run() -> Sample:
        async with serving(stand_in), open_session(timeout) as session:
            clock = asyncio.get_running_loop().time
            started = clock()
            return await target(session, stand_in, num_images).measure(
                body, due, lambda: clock() - started
            )

    return asyncio.run(run()), stand_in
