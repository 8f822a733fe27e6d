"""The worker's loop: jobs from the queue, images through lanes, outcomes to the queue.

One thread owns it. A turn claims as many jobs as the newest lane has rows for, lets every lane do a
step, and reports the jobs whose images are all there. A job larger than the engine is fed in parts;
one that is abandoned, or whose time is up, is dropped between two steps.
An error of an engine concerns the jobs that were in it: they fail, the others go on; when errors
come again and again, the worker ends.
This module does not know how the queue is reached, nor how images are made.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import ExitStack

from masc_core.device import use_device
from masc_core.errors import CapacityError, EngineError, MascError, RequestError
from worker.jobs.event import Started
from worker.jobs.job import Lease
from worker.jobs.outcome import EXPIRED, JobFailure, Outcome
from worker.jobs.queue import JobConsumer
from worker.jobs.state import WorkerStatus
from worker.lane import (
    AdvancedImage,
    EnteredImage,
    Lane,
    LostImage,
    MadeImage,
    PreviewedImage,
    Report,
)
from worker.lanes import Lanes
from worker.link import Link
from worker.metrics import WorkerMetrics
from worker.pulse import Pulse
from worker.running_job import RunningJob, check_request
from worker.successor import Refusal, Successor

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2
PAUSE_AFTER_ERROR_SECONDS = 0.2
MAX_FAILURES = 3  # one after another, before the worker ends
STALL_SECONDS = 30.0
DRAIN_SECONDS = 25.0
END_SECONDS = 4.0  # for the step under way, and to let everything go


class Consumer:
    """Serves one model from one queue.

    Parameters
    ----------
    queue : where jobs come from and outcomes go
    lane : the version that is served
    metrics : what is counted
    worker_id : this worker's name in the queue
    successor : makes other versions ready; None where the version stays
    stall_seconds : without a turn, after which the worker is not ready
    drain_seconds : that `run` may take for what is claimed, once it was told to stop
    """

    def __init__(
        self,
        queue: JobConsumer,
        lane: Lane,
        metrics: WorkerMetrics,
        worker_id: str,
        *,
        successor: Successor | None = None,
        stall_seconds: float = STALL_SECONDS,
        drain_seconds: float = DRAIN_SECONDS,
    ) -> None:
        self.worker_id = worker_id
        self._link, self._metrics, self._successor = Link(queue), metrics, successor
        self._lanes = Lanes(lane)
        self._running: dict[str, RunningJob] = {}
        self._leases: Sequence[Lease] = ()  # of those; replaced, never changed
        self._pulse = Pulse(queue, worker_id, lambda: self._leases, stall_seconds)
        self._stopping = threading.Event()
        self._drain_seconds, self._drain_end = drain_seconds, float("inf")
        self._reports: deque[Report] = deque()  # of lanes, not heeded yet
        self._heeded: set[str] = set()  # job of the report that is being heeded
        self._num_failures = 0  # of engines, since the last image
        self._num_bad_turns = 0  # one after another
        metrics.serve(lane.bundle)
        metrics.rows_capacity.set(lane.engine.capacity_rows)

    @property
    def status(self) -> WorkerStatus:
        """What this worker says of itself."""
        return self._pulse.status

    @property
    def is_stopping(self) -> bool:
        """Whether it was told to stop."""
        return self._stopping.is_set()

    @property
    def is_overdue(self) -> bool:
        """Whether `run` should have ended: a step hangs."""
        return time.monotonic() > self._drain_end + END_SECONDS

    @property
    def is_idle(self) -> bool:
        """Whether nothing is claimed that has not been reported."""
        return not self._running and self._link.is_clear

    def run(self) -> None:
        """Warm up, then serve until `stop`.

        On the way out the jobs that have begun are finished, if there is time, and all others are
        given back.

        Raises
        ------
        MascError : the warm-up image failed, or the engine does again and again
        """
        use_device(self._lanes.newest.bundle.device)
        with ExitStack() as stack:
            stack.callback(self._lanes.close)
            stack.enter_context(self._pulse)
            self.warm_up()
            if self._successor is not None:
                self._successor.start()
                stack.callback(self._close_successor, self._successor)
            stack.callback(self._give_back_all)
            while not self._is_done:
                self._turn_safely()

    def stop(self, drain_seconds: float | None = None) -> None:
        """Claim nothing more, and end `run` when what has begun is done. From any thread.

        Parameters
        ----------
        drain_seconds : that this may take, if it is not what the worker was made with; when it is
            told so again, the earlier end holds
        """
        seconds = self._drain_seconds if drain_seconds is None else drain_seconds
        self._drain_end = min(self._drain_end, time.monotonic() + seconds)
        self._stopping.set()
        self._pulse.drain()

    def warm_up(self) -> None:
        """Make one real image, and announce this worker as ready.

        Raises
        ------
        MascError : the image failed
        """
        self._announce(ready=False, detail="warming up")
        started = time.perf_counter()
        try:
            self._lanes.newest.warm_up()
        except Exception as error:
            reason = str(error) if isinstance(error, MascError) else "see the log"
            self._announce(ready=False, detail=f"the warm-up image failed: {reason}")
            raise
        self._announce(ready=True)
        logger.info(
            "worker %s serves %s %s after a warm-up image of %.2f s",
            self.worker_id,
            self._lanes.newest.manifest.name,
            self._lanes.newest.manifest.version,
            time.perf_counter() - started,
        )

    def turn(self) -> None:
        """One turn of the loop; waits for a job for a moment when there is nothing to do."""
        self._pulse.beat()
        self._link.flush()
        self._change_lanes()
        self._drop_lost()
        if self._stopping.is_set():
            self._give_back(job for job in self._running.values() if not job.is_started)
        else:
            self._claim()
        for lane in self._lanes:
            formats = {j.job.id: j.request.format for j in self._running.values() if j.lane is lane}
            self._reports += lane.turn(formats)
        self._heed_all()
        self._metrics.rows_active.set(sum(lane.rows_active for lane in self._lanes))

    @property
    def _is_done(self) -> bool:
        return self._stopping.is_set() and (self.is_idle or time.monotonic() > self._drain_end)

    def _turn_safely(self) -> None:
        try:
            self.turn()
        except Exception as error:
            self._blame(error)
            self._num_bad_turns += 1
            if max(self._num_failures, self._num_bad_turns) >= MAX_FAILURES:
                what = "engine" if self._num_failures >= MAX_FAILURES else "worker"
                self._announce(ready=False, detail=f"the {what} fails again and again")
                raise EngineError(f"the {what} fails again and again, see the log") from error
            time.sleep(PAUSE_AFTER_ERROR_SECONDS)
        else:
            self._num_bad_turns = 0

    def _blame(self, error: Exception) -> None:
        """Fail the jobs that an error concerns; not all do, the queue can have one too."""
        jobs = sorted(self._heeded.union(*(lane.concerned for lane in self._lanes)))
        logger.error(
            "worker %s: an error that concerns jobs %s", self.worker_id, jobs, exc_info=error
        )
        self._num_failures += any(lane.concerned for lane in self._lanes)
        self._heeded = set()
        for lane in self._lanes:
            lane.concerned = set()
        for job_id in jobs:
            self._fail(job_id, error)

    def _change_lanes(self) -> None:
        if self._successor is None:
            return
        lane = self._successor.take()
        if lane is not None:
            self._lanes.add(lane)
            self._metrics.serve(lane.bundle)
            logger.info("serving %s %s from now on", lane.manifest.name, lane.manifest.version)
        refusal = self._successor.refusal
        if lane is not None or refusal.version != self._pulse.status.refused:
            self._announce(ready=True, refusal=refusal)
        self._lanes.sweep()

    def _drop_lost(self) -> None:
        if not self._running:
            return
        for job_id in self._link.abandoned(self._leases):
            logger.info("job %s is dropped: it is not ours any more", job_id)
            self._drop(job_id)
        now = time.monotonic()
        for job in [job for job in self._running.values() if job.deadline <= now]:
            self._end(job, EXPIRED)

    def _claim(self) -> None:
        room = self._lanes.free_rows
        if room <= 0:
            return
        is_busy = bool(self._running) or not self._link.is_clear
        timeout = 0.0 if is_busy else POLL_SECONDS
        for lease in self._link.claim(self._lanes.newest.manifest.name, room, timeout):
            self._admit(lease)

    def _admit(self, lease: Lease) -> None:
        """Give a job to the version that it was made for, if that is still here, or the newest."""
        if lease.job_id in self._running:  # we had lost it, and got it again
            self._drop(lease.job_id)
        lane = self._lanes.of(lease.job.request.version)
        job = self._running[lease.job_id] = RunningJob(lease, lane)
        self._leases = [*self._leases, lease]
        try:
            check_request(job.request, lane.manifest)
            lane.add(job.tasks())
        except (RequestError, CapacityError) as error:
            self._fail(lease.job_id, error)

    def _heed_all(self) -> None:
        while self._reports:
            report = self._reports.popleft()
            self._heeded = {report.task.job_id}
            self._heed(report)
        self._heeded = set()

    def _heed(self, report: Report) -> None:
        """Take what a lane reports."""
        job = self._running.get(report.task.job_id)
        if job is None:  # it has ended meanwhile
            return
        match report:
            case EnteredImage():
                if job.job.previews and not job.is_started:
                    self._link.emit(job.lease, Started(job.lane.manifest.version))
                job.entered(report.at)
            case AdvancedImage() | PreviewedImage():
                self._link.emit(job.lease, job.event(report))
            case MadeImage():
                self._take(job, report)
            case LostImage():
                if not isinstance(report.error, MascError):
                    logger.error("an image of job %s", job.job.id, exc_info=report.error)
                self._fail(job.job.id, report.error)

    def _take(self, job: RunningJob, made: MadeImage) -> None:
        self._num_failures = 0
        self._metrics.image(job.request, job.made(made))
        if job.is_complete:
            result = job.result()
            self._metrics.job(result, job.code_seconds)
            self._end(job, result)

    def _fail(self, job_id: str, error: BaseException) -> None:
        """End a job without images."""
        job = self._running.get(job_id)
        if job is not None:
            failure = JobFailure.of(error)
            logger.warning("job %s failed: %s: %s", job_id, failure.error, failure.message)
            self._end(job, failure)

    def _end(self, job: RunningJob, outcome: Outcome) -> None:
        self._drop(job.job.id)
        self._link.finish(job.lease, outcome)

    def _give_back(self, jobs: Iterable[RunningJob]) -> None:
        leases = [job.lease for job in jobs]
        for lease in leases:
            self._drop(lease.job_id)
        self._link.hand_back(leases)

    def _give_back_all(self) -> None:
        """Give back what there is, without asking engines that may be broken."""
        leases, self._leases = self._leases, ()
        self._running.clear()
        self._link.hand_back(leases)

    def _close_successor(self, successor: Successor) -> None:
        seconds_left = self._drain_end - time.monotonic()
        successor.close(max(0.0, min(seconds_left, self._drain_seconds)))

    def _drop(self, job_id: str) -> None:
        """Forget a job, and what is left of its work."""
        self._running[job_id].lane.drop(job_id)  # if that fails the job is still here, to give back
        del self._running[job_id]
        self._leases = [lease for lease in self._leases if lease.job_id != job_id]
        self._reports = deque(one for one in self._reports if one.task.job_id != job_id)

    def _announce(self, *, ready: bool, detail: str = "", refusal: Refusal | None = None) -> None:
        manifest, refused = self._lanes.newest.manifest, refusal or Refusal()
        self._pulse.say(
            WorkerStatus(
                worker_id=self.worker_id,
                ready=ready,
                model=manifest.name,
                version=manifest.version,
                detail=detail or refused.reason,
                refused=refused.version,
            )
        )
