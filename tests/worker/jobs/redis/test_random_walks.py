"""Whatever front ends and workers do, in any order: the queue against a few lines of Python.

Time does not pass in here. What only time brings about, the end of a lease or of a job's time, is
brought about by setting its date back inside Redis.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from dataclasses import dataclass

import pytest
import redis
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from masc_core.errors import QueueFullError, ShareExceededError, UnknownJobError
from tests.worker.jobs.samples import job, result
from worker.jobs.fair import BATCH_EVERY, ROW
from worker.jobs.job import Event, Idempotency, Job, Lease, NumberedEvent, Progress
from worker.jobs.outcome import CANCELLED, EXPIRED, EndState, Outcome
from worker.jobs.priority import PRIORITIES, Priority
from worker.jobs.queue import REQUEUE, JobState, QueueLimits, Redelivery, Totals
from worker.jobs.redis.producer import POISONED
from worker.jobs.redis.queue import RedisQueue

LIMITS = QueueLimits(max_jobs=6, lease_seconds=3600.0, max_deliveries=2)
SHARE = 0.5  # three jobs
PLACES_OF_ALL_JOBS = {"idle", "totals", "virtual", "finish", "models", "drained", "dead"}
PLACES_OF_ALL_JOBS |= {"ended", "results"}


@dataclass
class Expected:
    """What is known of a job."""

    job: Job
    number: int = 0
    cost: int = 0
    state: JobState = "waiting"
    token: int = 0
    deliveries: int = 0
    outcome: Outcome | None = None
    events: tuple[Event, ...] = ()
    is_forgotten: bool = False

    @property
    def is_live(self) -> bool:
        return self.state in {"waiting", "running"}

    @property
    def is_last_try(self) -> bool:
        return 0 < self.deliveries >= LIMITS.max_deliveries - 1


class Walk(RuleBasedStateMachine):
    """Two front ends, two workers, two models, two owners."""

    def __init__(self, url: str, inside: redis.Redis) -> None:
        super().__init__()
        inside.flushall()
        self.inside = inside
        self.runner = asyncio.Runner()
        self.queues = [RedisQueue(url, LIMITS) for _ in range(2)]
        for queue in self.queues:
            self.runner.run(queue.__aenter__())
        self.expected: list[Expected] = []
        self.leases: list[tuple[RedisQueue, Lease]] = []
        self.last_tries: dict[int, tuple[Expected, int]] = {}  # the latest of each worker
        self.totals: Counter[str] = Counter()
        self.times: Counter[tuple[str, Priority]] = Counter()  # virtual times
        self.ends: defaultdict[tuple[str, Priority, str], int] = defaultdict(
            int
        )  # of owners' lines
        self.owed: Counter[str] = Counter()
        self.ended: Counter[EndState] = Counter()
        self.redelivered: Counter[Redelivery] = Counter()

    def teardown(self) -> None:
        front = self.queues[0]
        for one in self.expected:
            self.runner.run(front.cancel(one.job.id))
        totals = self.runner.run(front.stats()).totals
        assert totals.accepted == sum(totals.ended.values())
        for one in self.expected:
            self.runner.run(front.forget(one.job.id))
        self.check_what_is_left()
        for queue in self.queues:
            self.runner.run(queue.__aexit__())
        self.runner.close()

    def check_what_is_left(self) -> None:
        kept = [one for one in self.expected if one.job.keep]
        places = {"job", "outcome", "events", "key"} | PLACES_OF_ALL_JOBS
        names = [str(key).removeprefix("{masc}:").split(":") for key in self.inside.scan_iter()]
        assert {place for place, *_ in names} <= places
        assert {name[-1] for name in names if name[0] in {"job", "outcome"}} == {
            one.job.id for one in kept
        }
        for name in names:
            key = "{masc}:" + ":".join(name)
            if name[0] == "key":
                assert self.inside.hget(key, "job") in {one.job.id for one in kept}
            if name[0] not in PLACES_OF_ALL_JOBS:
                assert self.inside.pttl(key) > 0

    def line(self, model: str) -> list[Expected]:
        """Jobs of a model that wait, interactive ones first."""
        waiting = [one for one in self.expected if one.state == "waiting"]
        return sorted(
            (one for one in waiting if one.job.request.model == model),
            key=lambda one: (one.job.priority == "batch", one.number, one.job.id),
        )

    def place(self, new: Expected, weight: float) -> None:
        """Begin where the owner's latest job ends, or at the virtual time."""
        line = new.job.request.model, new.job.priority
        new.number = self.ends[*line, new.job.owner]
        if new.number <= self.times[line]:
            self.times[line] += 1
            new.number = self.times[line]
        new.cost = round(ROW * new.job.request.batch_rows / weight)
        self.ends[*line, new.job.owner] = new.number + new.cost

    def next_of(self, line: list[Expected], model: str) -> Expected | None:
        """Whose turn it is."""
        first = {one.job.priority: one for one in reversed(line)}
        interactive, batch = (first.get(priority) for priority in PRIORITIES)
        if interactive and batch and self.owed[model] >= BATCH_EVERY * batch.job.request.batch_rows:
            return batch
        return interactive or batch

    def has_last_try(self, worker: int) -> bool:
        if worker not in self.last_tries:
            return False
        one, token = self.last_tries[worker]
        return one.state == "running" and one.token == token

    def of(self, lease: Lease) -> Expected:
        return next(one for one in self.expected if one.job.id == lease.job_id)

    def holds(self, lease: Lease) -> bool:
        one = self.of(lease)
        return one.state == "running" and one.token == lease.token

    def end(self, one: Expected, state: EndState, outcome: Outcome) -> None:
        flow = one.job.request.model, one.job.priority, one.job.owner
        if one.state == "waiting" and self.ends[flow] == one.number + one.cost:
            self.ends[flow] = one.number
        one.state, one.outcome = state, outcome
        self.ended[state] += 1

    @initialize()
    def begin(self) -> None:
        stats = self.runner.run(self.queues[0].stats())
        assert stats.totals == Totals()

    @rule(
        front=st.integers(0, 1),
        model=st.sampled_from("ab"),
        owner=st.sampled_from("xy"),
        images=st.integers(1, 3),
        keep=st.booleans(),
        key=st.sampled_from(["", "", "k"]),
        priority=st.sampled_from(PRIORITIES),
        weight=st.sampled_from([0.1, 1.0, 3.0]),
    )
    def submit(
        self,
        front: int,
        model: str,
        owner: str,
        images: int,
        keep: bool,
        key: str,
        priority: Priority,
        weight: float,
    ) -> None:
        new = job(
            images,
            model=model,
            owner=owner,
            keep=keep,
            idempotency=Idempotency(key, "print") if key else None,
            priority=priority,
        )
        earlier = [one for one in self.expected if key and self.stands_for(one, owner)]
        line = [one for one in self.line(model) if one.job.priority == priority]
        try:
            receipt = self.runner.run(self.queues[front].submit(new, SHARE, weight))
        except QueueFullError:
            assert not earlier
            assert len(line) == LIMITS.max_jobs
        except ShareExceededError:
            assert not earlier
            assert sum(one.job.owner == owner for one in line) == SHARE * LIMITS.max_jobs
        else:
            assert receipt.is_new == (not earlier)
            assert receipt.job_id == (earlier[0] if earlier else Expected(new)).job.id
            if receipt.is_new:
                self.expected.append(Expected(new))
                self.place(self.expected[-1], weight)
                self.totals["accepted"] += 1

    def stands_for(self, one: Expected, owner: str) -> bool:
        has_key = one.job.idempotency is not None and one.job.owner == owner
        return has_key and not one.is_forgotten and one.state not in {"cancelled", "expired"}

    @rule(worker=st.integers(0, 1), model=st.sampled_from("ab"), rows=st.integers(0, 6))
    def claim(self, worker: int, model: str, rows: int) -> None:
        expected: list[Expected] = []
        left, takes_last_try = rows, not self.has_last_try(worker)
        line = self.line(model)
        while left > 0:
            own = [one for one in line if takes_last_try or not one.is_last_try]
            one = self.next_of(own, model)
            if one is None or (expected and one.job.request.batch_rows > left):
                break
            line.remove(one)
            expected.append(one)
            left -= one.job.request.batch_rows
            if one.is_last_try:
                takes_last_try = False
                self.last_tries[worker] = (one, one.token + 1)
            if one.job.priority == "batch":
                self.owed[model] = 0
            elif any(another.job.priority == "batch" for another in line):
                self.owed[model] += one.job.request.batch_rows
            reached = model, one.job.priority
            self.times[reached] = max(self.times[reached], one.number)
        leases = self.queues[worker].claim(model, rows, 0.0)
        for one in expected:
            one.state, one.token, one.deliveries = "running", one.token + 1, one.deliveries + 1
        assert [(lease.job, lease.token) for lease in leases] == [
            (one.job, one.token) for one in expected
        ]
        self.leases += [(self.queues[worker], lease) for lease in leases]

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        worker, lease = data.draw(st.sampled_from(self.leases))
        outcome = result(f"{lease.job_id} {lease.token}")
        holds = self.holds(lease)
        assert worker.report([(lease, outcome)]) == [holds]
        if holds:
            self.end(self.of(lease), "ok", outcome)
        else:
            self.totals["fenced"] += 1

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def emit(self, data: st.DataObject) -> None:
        worker, lease = data.draw(st.sampled_from(self.leases))
        one = self.of(lease)
        event = Progress(len(one.events), lease.token, 9)
        worker.report([(lease, event)])
        if self.holds(lease):
            one.events += (event,)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        worker, _ = data.draw(st.sampled_from(self.leases))
        own = [lease for queue, lease in self.leases if queue is worker]
        worker.renew(own)
        # Of a job that was lost and came back to this worker, the older lease is given up too.
        lost = {lease.job_id for lease in own if not self.holds(lease)}
        assert worker.lost_leases(own) == lost

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def hand_back(self, data: st.DataObject) -> None:
        worker, _ = data.draw(st.sampled_from(self.leases))
        own = [lease for queue, lease in self.leases if queue is worker]
        some = data.draw(st.lists(st.sampled_from(own), max_size=3))
        worker.report([(lease, REQUEUE) for lease in some])
        for lease in some:
            if self.holds(lease):
                one = self.of(lease)
                one.state, one.deliveries = "waiting", one.deliveries - 1
                self.redelivered["handed_back"] += 1

    @precondition(lambda self: any(one.state == "running" for one in self.expected))
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from([o for o in self.expected if o.state == "running"]))
        assert self.inside.zadd("{masc}:leases", {one.job.id: 1}, xx=True, ch=True) == 1
        if one.deliveries < LIMITS.max_deliveries:
            one.state = "waiting"
            self.redelivered["lease_expired"] += 1
        else:
            self.end(one, "error", POISONED)
            self.totals["dead_lettered"] += 1

    @precondition(lambda self: any(one.is_live for one in self.expected))
    @rule(data=st.data())
    def expire(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from([o for o in self.expected if o.is_live]))
        assert self.inside.zadd("{masc}:deadlines", {one.job.id: 1}, xx=True, ch=True) == 1
        self.end(one, "expired", EXPIRED)

    @precondition(lambda self: self.expected)
    @rule(front=st.integers(0, 1), data=st.data())
    def cancel(self, front: int, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.expected))
        self.runner.run(self.queues[front].cancel(one.job.id))
        if one.is_live:
            self.end(one, "cancelled", CANCELLED)

    @precondition(lambda self: self.expected)
    @rule(front=st.integers(0, 1), data=st.data())
    def forget(self, front: int, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.expected))
        self.runner.run(self.queues[front].forget(one.job.id))
        one.is_forgotten |= not one.is_live and not one.job.keep

    @precondition(lambda self: self.expected)
    @rule(front=st.integers(0, 1), data=st.data())
    def look(self, front: int, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.expected))
        self.runner.run(self.check(self.queues[front], one))

    async def check(self, front: RedisQueue, one: Expected) -> None:
        if one.is_forgotten:
            with pytest.raises(UnknownJobError):
                await front.status(one.job.id)
            return
        status = await front.status(one.job.id)
        position = None
        if one.state == "waiting":
            position = self.line(one.job.request.model).index(one)
        assert (status.job, status.state) == (one.job, one.state)
        assert (status.position, status.deliveries) == (position, one.deliveries)
        if one.is_live:
            return
        assert await front.outcome(one.job.id) == one.outcome
        numbered = [NumberedEvent(i, event) for i, event in enumerate(one.events, start=1)]
        assert [event async for event in front.events(one.job.id)] == numbered

    @invariant()
    def counts_agree(self) -> None:
        stats = self.runner.run(self.queues[0].stats())
        states = Counter(one.state for one in self.expected)
        assert (stats.depth, stats.running) == (states["waiting"], states["running"])
        assert stats.totals == Totals(
            self.totals["accepted"],
            dict(self.ended),
            dict(self.redelivered),
            self.totals["dead_lettered"],
            self.totals["fenced"],
        )


def test_any_order_of_calls_does_what_is_expected(redis_url: str, inside: redis.Redis) -> None:
    run_state_machine_as_test(  # takes anything that makes one
        lambda: Walk(redis_url, inside),  # type: ignore[arg-type]
        settings=settings(max_examples=40, stateful_step_count=40, deadline=None),
    )
