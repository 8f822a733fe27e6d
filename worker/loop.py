"""The worker's loop: claim jobs, step the engines, report what came of it.

One thread owns it, and never waits for the queue while there is work. A job larger than the engine
enters it in parts; a job whose lease is lost or whose time is up is dropped between two steps.
An engine's error fails the jobs that were in it, and the others go on; after several errors in a
row the worker ends.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from masc_core.device import use_device
from masc_core.errors import CapacityError, EngineError, MascError, RequestError
from worker.engine.request import FailedImage
from worker.heartbeat import Heartbeat
from worker.job_run import RunningJob, check_request
from worker.jobs.job import Lease, Started
from worker.jobs.outcome import EXPIRED, JobFailure, Outcome
from worker.jobs.queue import REQUEUE, JobConsumer, WorkerStatus
from worker.jobs.tracing import Tracer
from worker.metrics import WorkerMetrics
from worker.model.loaded_version import (
    EncodedImage,
    ImageProgress,
    LoadedVersion,
    StartedImage,
    TaskEvent,
)
from worker.model.served import ServedModel
from worker.model.versions import ModelReloader
from worker.queue_client import QueueClient
from worker.settings import DRAIN_SECONDS, STALL_SECONDS

logger = logging.getLogger(__name__)

IDLE_SECONDS = 0.2  # that a step without work waits for a job
PAUSE_AFTER_ERROR_SECONDS = 0.2
MAX_FAILURES = 3  # one after another, before the worker ends
END_SECONDS = 4.0  # for the step under way, and to let everything go


class WorkerLoop:
    """Serves models from one queue.

    Each pass steps every engine that has work once, so no model gets two steps while another waits.

    Parameters
    ----------
    queue : where jobs come from and outcomes go
    models : what is served, at least one with a version
    metrics : what is counted
    worker_id : this worker's name in the queue, to which that of a model is added if it has several
    tracer : records jobs; None where traces are off
    stall_seconds : without a step, after which the worker is not ready
    drain_seconds : that `run` may take for claimed jobs, once it was told to stop
    """

    def __init__(
        self,
        queue: JobConsumer,
        models: Sequence[ServedModel],
        metrics: WorkerMetrics,
        worker_id: str,
        *,
        tracer: Tracer | None = None,
        stall_seconds: float = STALL_SECONDS,
        drain_seconds: float = DRAIN_SECONDS,
    ) -> None:
        self.worker_id = worker_id
        self._queue = QueueClient(queue, tracer=tracer)
        self._metrics = metrics
        self._models = {model.name: model for model in models}
        self._ids = {
            name: worker_id if len(models) == 1 else f"{worker_id}/{name}" for name in self._models
        }
        self._refused: dict[str, str] = {}  # by model, what was announced as refused
        self._running: dict[str, RunningJob] = {}
        self._heartbeat = Heartbeat(
            queue, list(self._ids.values()), lambda: self._queue.leases, stall_seconds
        )
        self._stopping = threading.Event()
        self._drain_seconds, self._drain_end = drain_seconds, float("inf")
        self._events: deque[TaskEvent] = deque()  # of versions, not handled yet
        self._claimed: deque[Lease] = deque()  # jobs that no version has yet
        self._handled: set[str] = set()  # job that is being started, or whose event is handled
        self._failed_steps = 0  # one after another
        for loaded in self._loaded():
            metrics.serve(loaded.bundle)
        metrics.rows_capacity.set_function(lambda: sum(model.capacity_rows for model in models))

    @property
    def statuses(self) -> Sequence[WorkerStatus]:
        """What this worker announces, one status per model."""
        return self._heartbeat.statuses

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
        use_device(next(self._loaded()).bundle.device)
        with ExitStack() as stack:
            for model in self._models.values():
                stack.callback(model.close)
            stack.enter_context(self._heartbeat)
            self.warm_up()
            for reloader in filter(None, (model.reloader for model in self._models.values())):
                reloader.start()
                stack.callback(self._close_reloader, reloader)
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
        """Make one real image with each model, and announce this worker as ready.

        A model whose image failed is not served, as long as others are.

        Raises
        ------
        MascError : the image failed, of each model
        """
        for model in self._models.values():
            self._announce(model, ready=False, detail="warming up")
        working = [model for model in self._models.values() if self._warm_up(model)]
        for model in working:
            self._announce(model, ready=True)

    def _warm_up(self, model: ServedModel) -> bool:
        """Make the first image of a model, and return whether that did not fail."""
        started = time.perf_counter()
        try:
            model.warm_up()
        except Exception as error:
            reason = str(error) if isinstance(error, MascError) else "see the log"
            self._announce(model, ready=False, detail=f"the warm-up image failed: {reason}")
            if sum(1 for other in self._models.values() if other.versions) == 1:
                raise
            logger.exception("%s is not served", model.name)
            model.serve_none(error)
            self._metrics.stop_serving(model.name)
            return False
        if model.versions is not None:
            self._metrics.serve(model.newest.bundle)
            logger.info(
                "worker %s serves %s %s after a warm-up image of %.2f s",
                self.worker_id,
                model.name,
                model.newest.manifest.version,
                time.perf_counter() - started,
            )
        return True

    def step(self) -> None:
        """Claim jobs, step the engine of every loaded version once, report what came of it."""
        self._heartbeat.beat()
        self._change_versions()
        self._drop_lost_and_expired()
        # claim; without work this waits a moment for a job
        self._claimed += self._claim()
        # if starting a job raises, the next step continues with the one behind it
        while self._claimed:
            lease = self._claimed.popleft()
            self._handled = {lease.job_id}
            self._start_job(lease)
        self._handled = set()
        if self.is_stopping:
            self._hand_back_waiting()
        # run
        for loaded in self._loaded():
            self._events += loaded.step()
        # report
        while self._events:
            event = self._events.popleft()
            self._handled = {event.task.job_id}  # whose failure it is, if handling it fails
            self._handle(event)
        self._handled = set()
        self._queue.flush()
        self._metrics.rows_active.set(sum(loaded.rows_active for loaded in self._loaded()))

    @property
    def _is_done(self) -> bool:
        return self._stopping.is_set() and (self.is_idle or time.monotonic() > self._drain_end)

    def _step_safely(self) -> None:
        try:
            self.step()
        except Exception as error:
            self._fail_jobs(error)
            self._failed_steps += 1
            failures = max(model.engine_failures for model in self._models.values())
            if max(failures, self._failed_steps) >= MAX_FAILURES:
                what = "engine" if failures >= MAX_FAILURES else "worker"
                reason = f"the {what} fails again and again"
                for model in self._models.values():
                    self._announce(model, ready=False, detail=reason)
                raise EngineError(f"{reason}, see the log") from error
            time.sleep(PAUSE_AFTER_ERROR_SECONDS)
        else:
            self._failed_steps = 0

    def _fail_jobs(self, error: Exception) -> None:
        """Fail the jobs that an error affects; a failed claim affects none.

        They are those in a failed engine, the one being handled, the one whose report failed.
        """
        in_engines = set[str]()
        for model in self._models.values():
            at_risk = set[str]().union(*(loaded.jobs_at_risk for loaded in model))
            model.engine_failures += bool(at_risk)
            in_engines |= at_risk
        jobs = sorted(in_engines | self._handled | self._queue.jobs_at_risk)
        logger.error(
            "worker %s: an error that affects jobs %s", self.worker_id, jobs, exc_info=error
        )
        self._handled, self._queue.jobs_at_risk = set(), set()
        for loaded in self._loaded():
            loaded.jobs_at_risk = set()
        for job_id in jobs:
            self._fail(job_id, error)

    def _change_versions(self) -> None:
        for model in self._models.values():
            loaded = model.take_version()
            if loaded is not None:
                self._metrics.serve(loaded.bundle)
                logger.info("serving %s %s from now on", model.name, loaded.manifest.version)
            if loaded is not None or model.refusal.version != self._refused.get(model.name, ""):
                self._announce(model, ready=True)
            if model.versions is not None:
                model.versions.close_retired()

    def _drop_lost_and_expired(self) -> None:
        if not self._running:
            return
        for job_id in self._queue.lost_leases([job.lease for job in self._running.values()]):
            logger.info("job %s is dropped: it is not ours any more", job_id)
            self._queue.drop(self._running[job_id].lease)
            self._drop(job_id)
        now = time.monotonic()
        for job in [job for job in self._running.values() if job.deadline <= now]:
            self._end(job, EXPIRED)

    def _claim(self) -> Sequence[Lease]:
        free_rows = {
            name: 0 if self.is_stopping else model.free_rows for name, model in self._models.items()
        }
        return self._queue.claim(free_rows, 0.0 if self._running else IDLE_SECONDS)

    def _hand_back_waiting(self) -> None:
        """Give back the jobs that have not begun, for another worker."""
        for job in [job for job in self._running.values() if not job.is_started]:
            self._drop(job.job.id)
            self._queue.report(job.lease, REQUEUE)

    def _start_job(self, lease: Lease) -> None:
        """Give a job to the version that it was made for, if that is still here, or the newest."""
        if lease.job_id in self._running:  # its lease was lost, and it was claimed again
            self._drop(lease.job_id)
        model = self._models.get(lease.job.request.model)
        if model is None or model.versions is None:
            loaded = next(self._loaded())  # for which `check_request` refuses it
        else:
            loaded = model.versions.get(lease.job.request.version)
        job = self._running[lease.job_id] = RunningJob(lease, loaded)
        try:
            check_request(job.request, loaded.manifest)
            loaded.add(job.tasks())
        except (RequestError, CapacityError) as error:
            self._fail(lease.job_id, error)

    def _handle(self, event: TaskEvent) -> None:
        job = self._running.get(event.task.job_id)
        if job is None:  # it has ended meanwhile
            return
        match event:
            case StartedImage():
                if job.job.previews and not job.is_started:
                    self._queue.report(job.lease, Started(job.loaded.manifest.version))
                job.image_started(event.at)
            case ImageProgress():
                self._queue.report(job.lease, event.event)
            case EncodedImage():
                self._models[job.request.model].engine_failures = 0
                self._metrics.image(job.request, job.add_image(event))
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
        self._events = deque(event for event in self._events if event.task.job_id != job_id)

    def _close_reloader(self, reloader: ModelReloader) -> None:
        seconds_left = self._drain_end - time.monotonic()
        reloader.close(max(0.0, min(seconds_left, self._drain_seconds)))

    def _announce(self, model: ServedModel, *, ready: bool, detail: str = "") -> None:
        status = model.status(self._ids[model.name], ready=ready, detail=detail)
        self._refused[model.name] = status.refused
        self._heartbeat.announce(status)

    def _loaded(self) -> Iterator[LoadedVersion]:
        """All loaded versions of all models."""
        for model in self._models.values():
            yield from model
