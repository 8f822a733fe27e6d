"""The load of a run: its requests and their times, the loops that send them, what was measured.

The open loop never waits for the server, the closed one does. Arrivals are a Poisson process, fixed
by the seed: gaps are exponential, ``-ln(1 - u) / rate`` with ``u`` uniform in [0, 1), and request
*i* of a phase is the same in both loops. Warm-up and measurement draw from streams of their own, so
what is measured does not depend on how long the warm-up took.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from masc_core.bundle.manifest import Defaults
from server.bench.client import NO_ANSWER, STAGES, Clock, Sample, Target
from server.bench.options import BenchOptions

SEED_RANGE = 2**53  # every client can read such a number
COLUMNS = ("due", "sent", "finished", "status", "num_images", "retry_after", *STAGES)
ROW = np.dtype([(name, np.float64) for name in COLUMNS])  # 100 bytes per request
MAX_TEXTS = 50  # a server may word every refusal differently
OTHER_TEXT = "other"
# Seconds that a closed loop's client waits after no answer: a server that is gone would otherwise
# be asked thousands of times a second.
PAUSE = 0.1

Phase = Literal["warm-up", "measured"]
Rows = npt.NDArray[Any]  # of ROW


@dataclass(frozen=True, slots=True)
class Plan:
    """The requests of one run; each one's class is drawn from ``class_ids``."""

    options: BenchOptions
    class_ids: Sequence[int]

    def bodies(self, phase: Phase) -> Iterator[bytes]:
        """JSON of the requests of a phase; only the measured ones end, after `requests`."""
        return islice(self._bodies(phase), self.options.requests if phase == "measured" else None)

    def schedule(self, rate: float) -> Iterator[tuple[float, bytes]]:
        """Arrivals of an open loop: seconds, those of the warm-up negative, and what is sent."""
        options, warm_up = self.options, self._timed(rate, "warm-up")
        for at, body in takewhile(lambda arrival: arrival[0] < options.warm_up, warm_up):
            yield at - options.warm_up, body
        end = math.inf if options.duration is None else options.duration
        measured = self._timed(rate, "measured")
        yield from takewhile(lambda arrival: arrival[0] < end, measured)

    def _timed(self, rate: float, phase: Phase) -> Iterator[tuple[float, bytes]]:
        return zip(self._arrivals(rate, phase), self.bodies(phase), strict=False)

    def _bodies(self, phase: Phase) -> Iterator[bytes]:
        draw = _uniform(self.options.seed, phase, "requests")
        classes, fields = self.class_ids, self._common_fields()
        while True:
            class_id = classes[int(next(draw) * len(classes))]
            seed = int(next(draw) * SEED_RANGE)
            yield json.dumps({"class_id": class_id, "seed": seed, **fields}).encode()

    def _arrivals(self, rate: float, phase: Phase) -> Iterator[float]:
        at = 0.0
        for u in _uniform(self.options.seed, phase, "arrivals"):
            at -= math.log1p(-u) / rate
            yield at

    def _common_fields(self) -> dict[str, Any]:
        options = self.options
        fields: dict[str, Any] = {"num_images": options.num_images, "format": options.format}
        return fields | options.model_dump(
            include={"model", "priority", *Defaults.model_fields}, exclude_none=True
        )


def _uniform(seed: int, *stream: str) -> Iterator[float]:
    """Draw from [0, 1); of all generators at hand only this method's numbers never change."""
    generator = random.Random("/".join([*stream, str(seed)]))  # noqa: S311 - load, not secrets
    while True:
        yield generator.random()


class Record:
    """What has been measured so far.

    Requests of the warm-up are in the table as well, due before time 0: their answers may fall into
    the measured time and are part of the throughput then. All counters are of the measured requests
    alone.

    Attributes
    ----------
    sent : measured requests that were sent, answered or not
    ended : when sending and waiting ended; None while they go on
    statuses : answers of each status, `NO_ANSWER` among them
    reasons : refusals and errors by what they say of themselves
    models : images' answers by name and version of the model
    first_detail : what the first error said in detail
    """

    def __init__(self) -> None:
        self.sent = 0
        self.ended: float | None = None
        self.statuses: Counter[int] = Counter()
        self.reasons: Counter[str] = Counter()
        self.models: Counter[str] = Counter()
        self.first_detail = ""
        self._values = array("d")

    def add(self, sample: Sample) -> None:
        """Keep one sample."""
        answer = sample.answer
        retry_after = math.nan if answer.retry_after is None else answer.retry_after
        row = (sample.due, sample.sent, sample.finished, sample.status, answer.num_images)
        stages = (answer.stages.get(name, math.nan) for name in STAGES)
        self._values.extend((*row, retry_after, *stages))
        if sample.due >= 0:
            self._count(sample)

    def rows(self) -> Rows:
        """Return the table, in the order of the answers; NaN is what an answer does not tell."""
        return np.array(self._values, np.float64).view(ROW)

    def _count(self, sample: Sample) -> None:
        self.statuses[sample.status] += 1
        if sample.error:
            _count_text(self.reasons, sample.error)
        if sample.answer.model:
            _count_text(self.models, sample.answer.model)
        if sample.status_class == "error" and not self.first_detail:
            self.first_detail = sample.answer.detail


def _count_text(counter: Counter[str], text: str) -> None:
    counter[text if text in counter or len(counter) < MAX_TEXTS else OTHER_TEXT] += 1


@dataclass(frozen=True, slots=True)
class LoadRun:
    """One run against one target; samples go into the record as they complete."""

    plan: Plan
    target: Target
    record: Record

    async def run(self) -> None:
        """Send all requests and wait for all answers."""
        clock = _clock_from(self.plan.options.warm_up)
        try:
            if self.plan.options.rate is not None:
                await self._open(self.plan.schedule(self.plan.options.rate), clock)
            else:
                await self._closed(self.plan.options.clients or 1, clock)
        finally:
            self.record.ended = clock()

    async def _open(self, schedule: Iterable[tuple[float, bytes]], clock: Clock) -> None:
        async with asyncio.TaskGroup() as group:
            for due, body in schedule:
                await asyncio.sleep(max(0.0, due - clock()))  # when late, others have their turn
                group.create_task(self._send(body, due, clock))

    async def _closed(self, clients: int, clock: Clock) -> None:
        warm_up, measured = self.plan.bodies("warm-up"), self.plan.bodies("measured")
        duration = self.plan.options.duration
        end = math.inf if duration is None else duration

        async def ask_in_turn() -> None:
            while (due := clock()) < end:
                body = next(warm_up if due < 0 else measured, None)
                if body is None:
                    return
                if await self._send(body, due, clock) == NO_ANSWER:
                    await asyncio.sleep(PAUSE)

        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(ask_in_turn())

    async def _send(self, body: bytes, due: float, clock: Clock) -> int:
        self.record.sent += due >= 0
        sample = await self.target.measure(body, due, clock)
        self.record.add(sample)
        return sample.status


def _clock_from(warm_up: float) -> Clock:
    time = asyncio.get_running_loop().time
    origin = time() + warm_up
    return lambda: time() - origin
