"""A generation whose answer is a stream: whoever goes away ends its job, unless it is kept.

What is shown, and how, is a presenter's: our own events, or those of the OpenAI API.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, aclosing, nullcontext
from functools import partial
from typing import Protocol

from prometheus_client import Histogram
from starlette.types import Scope

from masc_core.errors import MascError
from server.answers.event_stream import EventStream
from server.answers.job_updates import JobUpdate, job_updates
from server.errors import problem_type_of
from server.intake.dispatch import release
from server.metrics import set_final_status
from server.middleware.tracing import stage
from server.state import AppState
from worker.jobs.event import NumberedEvent, Preview
from worker.jobs.job import Job
from worker.jobs.outcome import JobResult


class Presenter(Protocol):
    """Turns the moments of a job into events as they go over the wire."""

    def show(self, update: JobUpdate) -> Iterator[bytes]:
        """Events of one moment; there may be none."""

    def fail(self, error: MascError) -> bytes:
        """The last event when there are no images."""


async def sse_events(
    updates: AsyncGenerator[JobUpdate, None],
    presenter: Presenter,
    scope: Scope | None = None,
    delivery: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> AsyncGenerator[bytes, None]:
    """Show every moment, and an error as the last one.

    Parameters
    ----------
    updates : as from `job_updates`
    presenter : shows them
    scope : the request that fails when the job does; None if it only looks on
    delivery : around the images' way to the client
    """
    try:
        async with aclosing(updates):
            async for update in updates:
                with delivery() if isinstance(update, JobResult) else nullcontext():
                    for event in presenter.show(update):
                        yield event
    except MascError as error:
        if scope is not None:
            set_final_status(scope, problem_type_of(error).status)
        yield presenter.fail(error)


def stream_generation(
    state: AppState, scope: Scope, job: Job, presenter: Presenter, seconds: float
) -> EventStream:
    """Answer a request with the events of its job.

    Parameters
    ----------
    front : the front end
    scope : the request
    job : has been admitted
    presenter : shows it
    seconds : after which the request is given up
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    working = ExitStack()
    working.enter_context(state.drain.working())
    updates = _time_first_preview(
        job_updates(state.queue, job.id, until=until), state.metrics.first_preview_seconds
    )

    async def release_job() -> None:
        is_late = loop.time() >= until
        with working:
            await release(state.queue, job, expired=is_late and seconds >= job.timeout)

    headers = {"Content-Location": f"/jobs/{job.id}/events", "Vary": "Accept"}
    delivery = partial(stage, state.metrics, scope, "deliver")
    return EventStream(
        sse_events(updates, presenter, scope, delivery), headers=headers, on_close=release_job
    )


async def _time_first_preview(
    updates: AsyncGenerator[JobUpdate, None], first_preview_seconds: Histogram
) -> AsyncGenerator[JobUpdate, None]:
    """Measure how long the first preview takes."""
    started, seen = time.perf_counter(), False
    async with aclosing(updates):
        async for update in updates:
            if not seen and isinstance(update, NumberedEvent) and isinstance(update.event, Preview):
                first_preview_seconds.observe(time.perf_counter() - started)
                seen = True
            yield update
