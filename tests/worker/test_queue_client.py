"""The queue as the loop sees it: away and back, slow, and talked to by a thread."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from masc_core.errors import QueueDownError
from tests.clock import Clock
from worker.jobs.job import Event, GenerationRequest, Job, Lease, Preview, Progress, Started
from worker.jobs.memory import MemoryQueue
from worker.jobs.outcome import ImageOutput, JobFailure, JobResult, Outcome, Timings
from worker.jobs.queue import POLL_SECONDS, REQUEUE, JobReport, WorkerStatus
from worker.jobs.stages import TIMED_STAGES
from worker.jobs.tracing import Tracer
from worker.queue_client import (
    MAX_BATCH,
    MAX_BYTES,
    MAX_OUTBOX,
    PAUSE_SECONDS,
    STALE_SECONDS,
    QueueClient,
)

REQUEST = GenerationRequest(model="tiny", class_id=0, cfg_scale=1.0, seed=0)
RESULT = JobResult((), "tiny", "1", "0" * 64, Timings())
FAILURE = JobFailure("EngineError", "broken")
STARTED = Started("1")
PREVIEW = Preview(0, 1, 8, "jpeg", b"picture")
ROOM = 64


class AwayQueue(MemoryQueue):
    """A queue that can be away; counts who tries to reach it."""

    def __init__(self) -> None:
        super().__init__()
        self.is_away = False
        self.tries: list[str] = []
        self.reports: list[list[JobReport]] = []

    def _reach(self, what: str) -> None:
        self.tries.append(what)
        if self.is_away:
            raise QueueDownError("nobody answers")

    def claim(self, model: str, max_rows: int, timeout: float) -> Sequence[Lease]:
        self._reach("claim")
        return super().claim(model, max_rows, timeout)

    def report(self, reports: Sequence[JobReport]) -> Sequence[bool]:
        self._reach("report")
        self.reports.append(list(reports))
        return super().report(reports)

    def announce(self, status: WorkerStatus) -> None:
        raise AssertionError("not through the client")

    @property
    def reported(self) -> list[JobReport]:
        return [report for together in self.reports for report in together]


class SlowQueue(AwayQueue):
    """A queue as if it were elsewhere, whose calls can be made to last."""

    is_remote = True

    def __init__(self) -> None:
        super().__init__()
        self.is_going, self.is_called = threading.Event(), threading.Event()
        self.is_going.set()

    def _reach(self, what: str) -> None:
        self.is_called.set()
        assert self.is_going.wait(20)
        super()._reach(what)

    @contextmanager
    def lasting_call(self) -> Iterator[None]:
        """A call that has begun lasts as long as the context; enter it with one on its way."""
        self.is_going.clear()
        self.is_called.clear()
        try:
            yield
        finally:
            self.is_going.set()


def submit(queue: MemoryQueue, *jobs: Job) -> None:
    for job in jobs:
        asyncio.run(queue.submit(job))


def jobs(num: int, num_images: int = 1) -> list[Job]:
    return [Job(replace(REQUEST, num_images=num_images), id=f"j{i}") for i in range(num)]


def claimed(queue: MemoryQueue, client: QueueClient, num: int = 1) -> Sequence[Lease]:
    submit(queue, *jobs(num))
    leases = client.claim({"tiny": ROOM}, 10.0)
    assert len(leases) == num
    return leases


def state(queue: MemoryQueue, job_id: str) -> str:
    return asyncio.run(queue.status(job_id)).state


def ids(leases: Sequence[Lease]) -> list[str]:
    return [lease.job_id for lease in leases]


def settled(client: QueueClient) -> None:
    """Wait until all is said."""
    with client._changed:
        assert client._changed.wait_for(lambda: client.is_flushed, 20)


def test_what_is_reported_to_a_queue_that_is_there_arrives_together() -> None:
    queue = AwayQueue()
    client = QueueClient(queue, Clock())
    one, two, three = claimed(queue, client, 3)
    client.report(one, STARTED)
    client.report(two, REQUEUE)
    client.report(three, STARTED)
    client.report(one, RESULT)
    assert not client.is_flushed
    client.flush()
    assert client.is_flushed
    assert [state(queue, f"j{i}") for i in range(3)] == ["ok", "waiting", "running"]
    client.flush()
    assert queue.tries == ["claim", "report"]
    assert queue.reported == [(one, STARTED), (two, REQUEUE), (three, STARTED), (one, RESULT)]


def test_outcomes_wait_in_order_for_a_queue_that_is_away_and_events_do_not() -> None:
    queue, clock = AwayQueue(), Clock()
    client = QueueClient(queue, clock)
    leases = claimed(queue, client, 3)
    queue.is_away = True
    outcomes: list[Outcome] = [RESULT, FAILURE, RESULT]
    for lease, outcome in zip(leases, outcomes, strict=True):
        client.report(lease, STARTED)
        client.report(lease, outcome)
    for _ in range(4):
        clock.now += PAUSE_SECONDS
        client.flush()
    assert not client.is_flushed
    assert ids(client.leases) == ["j0", "j1", "j2"]  # they are still renewed
    queue.is_away = False
    clock.now += PAUSE_SECONDS
    client.flush()
    assert client.is_flushed
    assert queue.reported == list(zip(leases, outcomes, strict=True))
    assert [state(queue, lease.job_id) for lease in leases] == ["ok", "error", "ok"]
    assert client.leases == []


def test_a_queue_that_is_away_is_not_asked_at_every_step(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    queue, clock = AwayQueue(), Clock()
    client = QueueClient(queue, clock)
    one, two = claimed(queue, client, 2)
    queue.is_away, queue.tries = True, []
    client.report(one, RESULT)
    client.flush()
    for _ in range(100):
        client.report(two, STARTED)
        client.flush()
        assert client.claim({"tiny": ROOM}, 0.0) == []
    assert queue.tries == ["report"]
    clock.now += PAUSE_SECONDS
    client.flush()
    assert queue.tries == ["report", "report"]
    queue.is_away = False
    clock.now += PAUSE_SECONDS
    client.report(two, STARTED)
    client.flush()
    assert queue.reported == [(one, RESULT), (two, STARTED)]
    assert [record.message for record in caplog.records] == [
        "the queue is unreachable: nobody answers",
        "the queue is reachable again",
    ]


def test_a_result_that_comes_too_late_is_refused_and_forgotten(
    caplog: pytest.LogCaptureFixture,
) -> None:
    queue = AwayQueue()
    client = QueueClient(queue, Clock())
    (lease,) = claimed(queue, client)
    asyncio.run(queue.cancel("j0"))
    assert client.lost_leases([lease]) == {"j0"}
    client.report(lease, RESULT)
    client.flush()
    assert client.is_flushed
    assert state(queue, "j0") == "cancelled"
    assert "job j0: its lease was lost, the result is refused" in caplog.text


def test_jobs_whose_end_the_queue_takes_are_traced() -> None:
    queue, spans = AwayQueue(), InMemorySpanExporter()
    client = QueueClient(queue, Clock(), tracer=Tracer("test", SimpleSpanProcessor(spans)))
    one, two, _ = claimed(queue, client, 3)
    asyncio.run(queue.cancel("j1"))
    for lease in (one, two):
        client.report(lease, STARTED)
        client.report(lease, RESULT)
    client.flush()
    *stages, job = spans.get_finished_spans()
    names = [stage.name for stage in stages]
    assert names == [name for name in TIMED_STAGES if name != "complete"], "nothing was completed"
    assert job.attributes is not None
    assert (job.name, job.attributes["masc.job.id"]) == ("job", "j0")


def test_a_lease_that_is_lost_is_renewed_no_longer_unless_the_job_has_come_back() -> None:
    queue = AwayQueue()
    client = QueueClient(queue, Clock())
    (lost,) = claimed(queue, client)
    queue.report([(lost, REQUEUE)])
    (lease,) = client.claim({"tiny": ROOM}, 0.0)
    client.drop(lost)
    assert client.leases == [lease]
    client.drop(lease)
    assert client.leases == []


class BrokenQueue(AwayQueue):
    """Has an error that nobody foresaw for some reports, of the second job."""

    broken: object = None

    def report(self, reports: Sequence[JobReport]) -> Sequence[bool]:
        if any(report == self.broken and lease.job_id == "j1" for lease, report in reports):
            raise KeyError("what is this?")
        return super().report(reports)


def test_an_event_that_cannot_be_told_is_dropped_and_its_job_is_known() -> None:
    queue = BrokenQueue()
    client = QueueClient(queue, Clock())
    leases = claimed(queue, client, 3)
    queue.broken = STARTED
    for lease in leases:
        client.report(lease, STARTED)
    with pytest.raises(KeyError):
        client.flush()
    assert client.jobs_at_risk == {"j1"}
    client.flush()
    assert queue.reported == [(leases[0], STARTED), (leases[2], STARTED)]


def test_an_outcome_that_cannot_be_told_is_tried_again_and_the_rest_goes_back_at_the_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    queue = BrokenQueue()
    with QueueClient(queue, Clock()) as client:
        leases = claimed(queue, client, 3)
        queue.broken = RESULT
        for lease in leases[:2]:
            client.report(lease, RESULT)
        for _ in range(3):
            with pytest.raises(KeyError):
                client.flush()
            assert client.jobs_at_risk == {"j1"}
    assert [state(queue, f"j{i}") for i in range(3)] == ["ok", "running", "waiting"]
    assert "not everything could be reported" in caplog.text


def test_what_waits_behind_an_outcome_that_cannot_be_told_is_told_at_the_end() -> None:
    queue = BrokenQueue()
    with QueueClient(queue, Clock()) as client:
        leases = claimed(queue, client, 3)
        queue.broken = RESULT
        for lease in leases:
            client.report(lease, RESULT)
    assert [state(queue, f"j{i}") for i in range(3)] == ["ok", "running", "ok"]


def test_calls_are_of_bounded_size() -> None:
    queue = AwayQueue()
    client = QueueClient(queue, Clock())
    one, two = claimed(queue, client, 2)
    for _ in range(2 * MAX_BATCH):
        client.report(one, STARTED)
    for _ in range(3):
        client.report(one, replace(PREVIEW, data=bytes(MAX_BYTES // 2)))
    image = ImageOutput(bytes(MAX_BYTES), 0, (), 0.0, 0.0)
    for lease in (one, two):
        client.report(lease, replace(RESULT, images=(image,)))
    client.flush()
    assert [len(together) for together in queue.reports] == [MAX_BATCH, MAX_BATCH, 2, 2, 1]


def test_a_full_outbox_drops_previews_then_progress_and_no_outcome() -> None:
    queue = AwayQueue()
    client = QueueClient(queue, Clock())
    one, two, three = claimed(queue, client, 3)
    first, second = Progress(0, 1, 8), Progress(0, 2, 8)
    events: list[Event] = [first, PREVIEW, second, PREVIEW, *[STARTED] * (MAX_OUTBOX - 4)]
    for event in events:
        client.report(one, event)
    started: list[JobReport] = [(one, STARTED)] * (MAX_OUTBOX - 4)
    assert len(client._outbox) == MAX_OUTBOX
    client.report(two, RESULT)
    assert list(client._outbox) == [(one, first), (one, second), *started, (two, RESULT)]
    client.report(one, RESULT)
    client.report(three, RESULT)
    client.flush()
    assert queue.reported == [*started, (two, RESULT), (one, RESULT), (three, RESULT)]


def test_jobs_are_claimed_when_some_have_arrived_and_now_and_then() -> None:
    queue, clock = AwayQueue(), Clock()
    client = QueueClient(queue, clock)

    def num_claims() -> int:
        queue.tries = []
        for _ in range(20):
            client.claim({"tiny": ROOM}, 0.0)
        return queue.tries.count("claim")

    assert num_claims() == 1  # what was there before
    assert num_claims() == 0
    submit(queue, Job(replace(REQUEST, model="another")))
    assert num_claims() == 0
    submit(queue, Job(REQUEST))
    assert num_claims() == 2  # until nothing is left
    clock.now += POLL_SECONDS
    assert num_claims() == 1
    assert num_claims() == 0


def test_what_had_no_room_is_claimed_when_there_is_some() -> None:
    queue = AwayQueue()
    client = QueueClient(queue, Clock())
    submit(queue, *jobs(5, num_images=2))
    assert ids(client.claim({"tiny": 5}, 0.0)) == ["j0", "j1"]
    assert ids(client.claim({"tiny": 0}, 0.0)) == []
    assert queue.tries == ["claim"]
    assert ids(client.claim({"tiny": 4}, 0.0)) == ["j2", "j3"]


def test_a_thread_claims_beside_the_loop_what_there_is_room_for() -> None:
    queue = SlowQueue()
    submit(queue, *jobs(5, num_images=2))
    with QueueClient(queue) as client:
        assert ids(client.claim({"tiny": 4}, 10.0)) == ["j0", "j1"]
        settled(client)
        with queue.lasting_call():
            assert client.claim({"tiny": 4}, 0.0) == []
            assert queue.is_called.wait(20)
            assert client.claim({"tiny": 4}, 0.0) == []  # the same rows
            assert not client.is_flushed
        assert ids(client.claim({"tiny": 4}, 10.0)) == ["j2", "j3"]
        settled(client)
        assert state(queue, "j4") == "waiting"
    assert [state(queue, f"j{i}") for i in range(5)] == ["waiting"] * 5
    assert asyncio.run(queue.stats()).totals.redelivered == {"handed_back": 4}


def test_rows_of_jobs_that_the_loop_has_not_taken_are_not_given_away_twice() -> None:
    queue = SlowQueue()
    with QueueClient(queue) as client:
        client.claim({"tiny": 4}, 0.0)
        submit(queue, *jobs(4, num_images=2))
        with client._changed:
            assert client._changed.wait_for(lambda: len(client._inbox) == 2, 20)
            client._arrived("tiny")
        assert ids(client.claim({"tiny": 4}, 0.0)) == ["j0", "j1"]
        client._arrived("tiny")
        settled(client)
        assert [state(queue, f"j{i}") for i in (2, 3)] == ["waiting"] * 2


def test_a_loop_that_has_not_turned_for_a_while_gets_no_jobs() -> None:
    queue, clock = SlowQueue(), Clock()
    with QueueClient(queue, clock) as client:
        client.claim({"tiny": ROOM}, 0.0)
        settled(client)
        clock.now += STALE_SECONDS + 0.1
        submit(queue, Job(REQUEST, id="j0"))
        client._arrived("")
        assert state(queue, "j0") == "waiting"
        assert ids(client.claim({"tiny": ROOM}, 10.0)) == ["j0"]


def test_the_loop_does_not_wait_for_a_slow_queue_and_what_piles_up_is_one_call() -> None:
    queue = SlowQueue()
    with QueueClient(queue) as client:
        one, two = claimed(queue, client, 2)
        client.claim({"tiny": 0}, 0.0)
        settled(client)
        queue.tries = []
        with queue.lasting_call():
            client.report(one, STARTED)
            client.flush()
            assert queue.is_called.wait(20)
            for rows in range(1, 8):
                assert client.claim({"tiny": 0}, 0.0) == []
                client.report(one, Progress(0, rows, 8))
                client.report(two, Progress(0, rows, 8))
                client.flush()
            client.report(one, RESULT)
            client.flush()
            assert queue.reports == []
            assert ids(client.leases) == ["j1", "j0"]
        settled(client)
        assert [len(together) for together in queue.reports] == [1, 15]
        assert queue.reported[-1] == (one, RESULT)


def test_an_idle_loop_waits_until_a_job_has_been_claimed() -> None:
    queue = SlowQueue()
    with QueueClient(queue) as client:
        assert client.claim({"tiny": ROOM}, 0.01) == []
        settled(client)
        arriving = threading.Thread(target=submit, args=(queue, Job(REQUEST, id="j0")))
        arriving.start()
        assert ids(client.claim({"tiny": ROOM}, 20.0)) == ["j0"]
        arriving.join()


def test_what_has_ended_is_reported_before_the_end_and_the_rest_is_given_back() -> None:
    queue = SlowQueue()
    with QueueClient(queue) as client:
        one, two, _ = claimed(queue, client, 3)
        with queue.lasting_call():
            client.report(two, STARTED)
            client.flush()
            assert queue.is_called.wait(20)
            client.report(one, STARTED)
            client.report(one, RESULT)
    assert client.is_flushed
    assert [state(queue, f"j{i}") for i in range(3)] == ["ok", "waiting", "waiting"]
    assert client.leases == []


def test_jobs_of_an_inbox_that_nobody_empties_are_given_back() -> None:
    queue = SlowQueue()
    with QueueClient(queue) as client:
        client.claim({"tiny": ROOM}, 0.0)
        submit(queue, *jobs(2))
        with client._changed:
            assert client._changed.wait_for(lambda: client._inbox, 20)
    assert asyncio.run(queue.stats()).depth == 2
    assert asyncio.run(queue.status("j0")).deliveries == 0


def test_a_queue_that_comes_back_gets_what_waited_for_it() -> None:
    queue = SlowQueue()
    with QueueClient(queue) as client:
        leases = claimed(queue, client, 3)
        queue.is_away = True
        for lease in leases:
            client.report(lease, RESULT)
        client.flush()
        with client._changed:
            assert client._changed.wait_for(lambda: client._is_down, 20)
        queue.is_away = False
        settled(client)
    assert [state(queue, lease.job_id) for lease in leases] == ["ok"] * 3


class BrokenSlowQueue(SlowQueue, BrokenQueue):
    """Elsewhere, and with errors that nobody foresaw."""


@pytest.mark.parametrize("broken", [STARTED, RESULT])
def test_an_error_of_the_thread_is_raised_in_the_loop(broken: Event | Outcome) -> None:
    queue = BrokenSlowQueue()
    queue.broken = broken
    with QueueClient(queue) as client:
        one, two = claimed(queue, client, 2)
        client.report(one, broken)
        client.report(two, broken)
        client.flush()
        with pytest.raises(KeyError):
            client.claim({"tiny": ROOM}, 20.0)
        assert client.jobs_at_risk == {"j1"}
        if isinstance(broken, JobResult):
            with pytest.raises(KeyError):
                client.claim({"tiny": ROOM}, 20.0)
        else:
            client.report(two, RESULT)
            client.flush()
            settled(client)


def test_the_line_of_one_model_is_looked_at_however_busy_another_is() -> None:
    """The message of its arrival may be lost, and a poll of it is not put off by others' jobs."""
    queue, clock = SlowQueue(), Clock()
    both = {"tiny": ROOM, "other": ROOM}
    with QueueClient(queue, clock) as client:
        assert client.claim(both, 0.01) == []
        queue._listeners.clear()  # from now on messages are lost
        lost = Job(replace(REQUEST, model="other"), id="lost")
        submit(queue, lost)
        until = clock.now + 3 * POLL_SECONDS
        taken: list[str] = []
        while lost.id not in taken:
            assert clock.now < until
            clock.now += POLL_SECONDS / 4
            submit(queue, Job(REQUEST))
            client._arrived("tiny")
            taken += ids(client.claim(both, 10.0))


def test_each_model_is_claimed_for_with_rows_of_its_own() -> None:
    queue = AwayQueue()
    client = QueueClient(queue, Clock())
    submit(queue, *jobs(4), *(Job(replace(REQUEST, model="other"), id=f"o{i}") for i in range(4)))
    assert ids(client.claim({"tiny": 1, "other": 2}, 0.0)) == ["j0", "o0", "o1"]
    assert ids(client.claim({"tiny": 0, "other": 1}, 0.0)) == ["o2"]
    assert ids(client.claim({"tiny": 3, "other": 0}, 0.0)) == ["j1", "j2", "j3"]
