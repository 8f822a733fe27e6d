"""The worker's loop: claim jobs, step the engines, report what came of it.

One thread owns it, and never waits for the queue while there is work. A job larger than the engine
enters it in parts; a job that is abandoned or out of time is dropped between two steps.
An engine's error fails the jobs that were in it, and the others go on; after several errors in a
row the worker ends.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack

from masc_core.device import use_device
from masc_core.errors import CapacityError, EngineError, MascError, RequestError
from worker.engine.request import FailedImage
from worker.heartbeat import Heartbeat
from worker.job_run import RunningJob, check_request
from worker.jobs.job import Lease, Started
from worker.jobs.outcome import EXPIRED, JobFailure, Outcome
from worker.jobs.queue import HAND_BACK, JobConsumer, WorkerStatus
from worker.jobs.tracing import Tracer
from worker.metrics import WorkerMetrics
from worker.model.loaded_model import (
    ImageProgress,
    LoadedModel,
    MadeImage,
    ModelEvent,
    StartedImage,
)
from worker.model.versions import NO_REFUSAL, ModelReloader, ModelVersions, Refusal
from worker.queue_client import QueueClient

logger = logging.getLogger(__name__)

IDLE_SECONDS = 0.2  # that a step without work waits for a job
PAUSE_AFTER_ERROR_SECONDS = 0.2
MAX_FAILURES = 3  # one after another, before the worker ends
STALL_SECONDS = 30.0
DRAIN_SECONDS = 25.0
END_SECONDS = 4.0  # for the step under way, and to let everything go


class WorkerLoop:
    """Serves one model from one queue.

    Parameters
    ----------
    queue : where jobs come from and outcomes go
    loaded : the version that is served
    metrics : what is counted
    worker_id : this worker's name in the queue
    reloader : makes other versions ready; None where the version stays
    tracer : records jobs; None where traces are off
    stall_seconds : without a step, after which the worker is not ready
    drain_seconds : that `run` may take for claimed jobs, once it was told to stop
    """

    def __init__(
        self,
        queue: JobConsumer,
        loaded: LoadedModel,
        metrics: WorkerMetrics,
        worker_id: str,
        *,
        reloader: ModelReloader | None = None,
        tracer: Tracer | None = None,
        stall_seconds: float = STALL_SECONDS,
        drain_seconds: float = DRAIN_SECONDS,
    ) -> None:
        self.worker_id = worker_id
        self._queue = QueueClient(queue, tracer=tracer)
        self._metrics, self._reloader = metrics, reloader
        self._versions = ModelVersions(loaded)
        self._running: dict[str, RunningJob] = {}
        self._heartbeat = Heartbeat(queue, worker_id, lambda: self._queue.leases, stall_seconds)
        self._stopping = threading.Event()
        self._drain_seconds, self._drain_end = drain_seconds, float("inf")
        self._events: deque[ModelEvent] = deque()  # of versions, not handled yet
        self._claimed: deque[Lease] = deque()  # jobs that are not admitted yet
        self._handled: set[str] = set()  # job that is being admitted, or whose event is handled
        self._engine_failures = 0  # of engines, since the last image
        self._failed_steps = 0  # one after another
        metrics.serve(loaded.bundle)
        metrics.rows_capacity.set(loaded.engine.capacity_rows)

    @property
    def status(self) -> WorkerStatus:
        """What this worker announces."""
        return self._heartbeat.status

    @property
    def is_stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping.is_set()

    @property
    def is_overdue(self) -> bool:
        """Whether `run` should have ended: a step hangs."""
        return time.monotonic() > self._drain_end + END_SECONDS

    @property
    def is_idle(self) -> bool:
        """Whether nothing is claimed that has not been reported."""
        return not self._running and self._queue.is_flushed

    def run(self) -> None:
        """Warm up, then serve until `stop`.

        On the way out the jobs that have begun are finished, if there is time, and all others are
        given back.

        Raises
        ------
        MascError : the warm-up image failed, or the engine does again and again
        """
        use_device(self._versions.newest.bundle.device)
        with ExitStack() as stack:
            stack.callback(self._versions.close)
            stack.enter_context(self._heartbeat)
            self.warm_up()
            if self._reloader is not None:
                self._reloader.start()
                stack.callback(self._close_reloader, self._reloader)
            stack.enter_context(self._queue)  # which gives back what is left, at the end
            stack.callback(self._running.clear)
            while not self._is_done:
                self._step_safely()

    def stop(self, drain_seconds: float | None = None) -> None:
        """Claim nothing more, and end `run` when what has begun is done. From any thread.

        Parameters
        ----------
        drain_seconds : that this may take, by default what the worker was made with; of several
            calls the earliest end holds
        """
        seconds = self._drain_seconds if drain_seconds is None else drain_seconds
        self._drain_end = min(self._drain_end, time.monotonic() + seconds)
        self._stopping.set()
        self._heartbeat.drain()

    def warm_up(self) -> None:
        """Make one real image, and announce this worker as ready.

        Raises
        ------
        MascError : the image failed
        """
        self._announce(ready=False, detail="warming up")
        started = time.perf_counter()
        try:
            self._warm_up_newest()
        except Exception as error:
            reason = str(error) if isinstance(error, MascError) else "see the log"
            self._announce(ready=False, detail=f"the warm-up image failed: {reason}")
            raise
        self._announce(ready=True, refusal=self._reloader.refusal if self._reloader else None)
        logger.info(
            "worker %s serves %s %s after a warm-up image of %.2f s",
            self.worker_id,
            self._versions.newest.manifest.name,
            self._versions.newest.manifest.version,
            time.perf_counter() - started,
        )

    def _warm_up_newest(self) -> None:
        """Make the first image, with the version before where this one cannot make it."""
        try:
            self._versions.newest.warm_up()
        except Exception as error:
            if self._reloader is None:
                raise
            loaded = self._reloader.load_previous(error)
            self._versions.newest.close()
            self._versions = ModelVersions(loaded)
            self._metrics.serve(loaded.bundle)
            loaded.warm_up()

    def step(self) -> None:
        """Claim jobs, step the engine of every loaded version once, report what came of it."""
        self._heartbeat.beat()
        self._change_versions()
        self._drop_lost()
        # claim; without work this waits a moment for a job
        self._claimed += self._claim()
        while self._claimed:  # if one cannot be admitted, the next step goes on behind it
            lease = self._claimed.popleft()
            self._handled = {lease.job_id}
            self._start_job(lease)
        self._handled = set()
        if self.is_stopping:
            self._hand_back_waiting()
        # run
        for loaded in self._versions:
            self._events += loaded.step()
        # report
        while self._events:
            event = self._events.popleft()
            self._handled = {event.task.job_id}  # whose failure it is, if handling it fails
            self._handle(event)
        self._handled = set()
        self._queue.flush()
        self._metrics.rows_active.set(sum(loaded.rows_active for loaded in self._versions))

    @property
    def _is_done(self) -> bool:
        return self._stopping.is_set() and (self.is_idle or time.monotonic() > self._drain_end)

    def _step_safely(self) -> None:
        try:
            self.step()
        except Exception as error:
            self._fail_jobs(error)
            self._failed_steps += 1
            if max(self._engine_failures, self._failed_steps) >= MAX_FAILURES:
                what = "engine" if self._engine_failures >= MAX_FAILURES else "worker"
                self._announce(ready=False, detail=f"the {what} fails again and again")
                raise EngineError(f"the {what} fails again and again, see the log") from error
            time.sleep(PAUSE_AFTER_ERROR_SECONDS)
        else:
            self._failed_steps = 0

    def _fail_jobs(self, error: Exception) -> None:
        """Fail the jobs that an error affects; there may be none, the queue can have one too."""
        in_engines = set[str]().union(*(loaded.jobs_at_risk for loaded in self._versions))
        jobs = sorted(in_engines | self._handled | self._queue.jobs_at_risk)
        logger.error(
            "worker %s: an error that affects jobs %s", self.worker_id, jobs, exc_info=error
        )
        self._engine_failures += bool(in_engines)
        self._handled, self._queue.jobs_at_risk = set(), set()
        for loaded in self._versions:
            loaded.jobs_at_risk = set()
        for job_id in jobs:
            self._fail(job_id, error)

    def _change_versions(self) -> None:
        if self._reloader is None:
            return
        loaded = self._reloader.take()
        if loaded is not None:
            self._versions.add(loaded)
            self._metrics.serve(loaded.bundle)
            logger.info("serving %s %s from now on", loaded.manifest.name, loaded.manifest.version)
        refusal = self._reloader.refusal
        if loaded is not None or refusal.version != self._heartbeat.status.refused:
            self._announce(ready=True, refusal=refusal)
        self._versions.close_retired()

    def _drop_lost(self) -> None:
        if not self._running:
            return
        for job_id in self._queue.abandoned([job.lease for job in self._running.values()]):
            logger.info("job %s is dropped: it is not ours any more", job_id)
            self._queue.drop(self._running[job_id].lease)
            self._drop(job_id)
        now = time.monotonic()
        for job in [job for job in self._running.values() if job.deadline <= now]:
            self._end(job, EXPIRED)

    def _claim(self) -> Sequence[Lease]:
        free_rows = 0 if self.is_stopping else self._versions.free_rows
        timeout = 0.0 if self._running else IDLE_SECONDS
        return self._queue.claim(self._versions.newest.manifest.name, free_rows, timeout)

    def _hand_back_waiting(self) -> None:
        """Give back the jobs that have not begun, for another worker."""
        for job in [job for job in self._running.values() if not job.is_started]:
            self._drop(job.job.id)
            self._queue.report(job.lease, HAND_BACK)

    def _start_job(self, lease: Lease) -> None:
        """Give a job to the version that it was made for, if that is still here, or the newest."""
        if lease.job_id in self._running:  # we had lost it, and got it again
            self._drop(lease.job_id)
        loaded = self._versions.get(lease.job.request.version)
        job = self._running[lease.job_id] = RunningJob(lease, loaded)
        try:
            check_request(job.request, loaded.manifest)
            loaded.add(job.tasks())
        except (RequestError, CapacityError) as error:
            self._fail(lease.job_id, error)

    def _handle(self, event: ModelEvent) -> None:
        job = self._running.get(event.task.job_id)
        if job is None:  # it has ended meanwhile
            return
        match event:
            case StartedImage():
                if job.job.previews and not job.is_started:
                    self._queue.report(job.lease, Started(job.loaded.manifest.version))
                job.entered(event.at)
            case ImageProgress():
                self._queue.report(job.lease, event.event)
            case MadeImage():
                self._engine_failures = 0
                self._metrics.image(job.request, job.made(event))
                if job.is_complete:
                    result = job.result()
                    self._metrics.job(result, job.code_seconds)
                    self._end(job, result)
            case FailedImage():
                if not isinstance(event.error, MascError):
                    logger.error("an image of job %s", job.job.id, exc_info=event.error)
                self._fail(job.job.id, event.error)

    def _fail(self, job_id: str, error: BaseException) -> None:
        """End a job without images."""
        job = self._running.get(job_id)
        if job is not None:
            failure = JobFailure.of(error)
            logger.warning("job %s failed: %s: %s", job_id, failure.error, failure.message)
            self._end(job, failure)

    def _end(self, job: RunningJob, outcome: Outcome) -> None:
        self._drop(job.job.id)
        self._queue.report(job.lease, outcome)

    def _drop(self, job_id: str) -> None:
        """Forget a job, and what is left of its work."""
        # if this fails the job is still here, to give back
        self._running[job_id].loaded.drop(job_id)
        del self._running[job_id]
        self._events = deque(one for one in self._events if one.task.job_id != job_id)

    def _close_reloader(self, reloader: ModelReloader) -> None:
        seconds_left = self._drain_end - time.monotonic()
        reloader.close(max(0.0, min(seconds_left, self._drain_seconds)))

    def _announce(self, *, ready: bool, detail: str = "", refusal: Refusal | None = None) -> None:
        manifest, refused = self._versions.newest.manifest, refusal or NO_REFUSAL
        self._heartbeat.announce(
            WorkerStatus(
                worker_id=self.worker_id,
                ready=ready,
                model=manifest.name,
                version=manifest.version,
                detail=detail or refused.reason,
                refused=refused.version,
            )
        )
