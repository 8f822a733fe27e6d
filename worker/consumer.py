"""The worker's loop: jobs from the queue, images through the engine, results to the queue.

One thread owns everything but the encoding of files, which a small pool does, and on a GPU the
rendering of pixels. A turn of the loop claims as many jobs as the engine has rows for, feeds their
images to the engine in order, steps it, sends what is finished through renderer and pool, and
reports the jobs whose images are all there. A job larger than the engine is fed in parts; one that
nobody waits for any more is dropped between two steps.
An error concerns the jobs whose work was under way: they fail, the others go on.
This module does not know how the queue is reached, nor how the engine batches.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

from masc_core.bundle import Bundle
from masc_core.errors import CapacityError, ConfigError, MascError, RequestError
from masc_core.image_spec import ImageSpec
from masc_core.images import ImageFormat, encode_image
from worker.engine.engine import Engine
from worker.engine.request import FailedImage, FinishedImage, ImageTask, PartialImage, TaskKey
from worker.jobs.job import Job, JobFailure, Outcome, WorkerStatus
from worker.jobs.queue import JobConsumer
from worker.metrics import WorkerMetrics
from worker.rendering import Rendered, Renderer
from worker.running_job import RunningJob, check_request

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2
PAUSE_AFTER_ERROR_SECONDS = 0.2
NUM_ENCODERS = 2
MAX_ENCODING = 64  # images whose files are not there yet; beyond, the engine waits
WARM_UP = "warm-up"


class _File(NamedTuple):
    """An image's file, and the seconds that it took."""

    data: bytes
    vq_decode_seconds: float
    encode_seconds: float


@dataclass(frozen=True, slots=True)
class _Encoding:
    """An image on its way through renderer and pool."""

    image: FinishedImage
    file: Future[_File]


class Consumer:
    """Serves one bundle from one queue.

    Parameters
    ----------
    queue : where jobs come from and results go
    engine : runs the bundle's transformer
    bundle : what is served
    metrics : what is counted
    worker_id : this worker's name in the queue

    Raises
    ------
    ConfigError : the engine is too small for a guided image
    """

    def __init__(
        self,
        queue: JobConsumer,
        engine: Engine,
        bundle: Bundle,
        metrics: WorkerMetrics,
        worker_id: str,
    ) -> None:
        if engine.capacity_rows < 2:
            raise ConfigError("a worker needs room for two rows, which a guided image takes")
        self.worker_id = worker_id
        self._queue, self._engine, self._bundle, self._metrics = queue, engine, bundle, metrics
        self._max_bits = math.log2(bundle.manifest.num_clusters)
        self._stopping = threading.Event()
        self._renderer = Renderer(bundle)
        self._pool = ThreadPoolExecutor(NUM_ENCODERS, thread_name_prefix="encode")
        self._running: dict[str, RunningJob] = {}
        self._backlog: deque[ImageTask] = deque()
        self._in_engine: dict[TaskKey, ImageTask] = {}
        self._outcomes: deque[FinishedImage | FailedImage] = deque()
        self._encoding: deque[_Encoding] = deque()
        self._outbox: deque[tuple[str, Outcome]] = deque()
        self._concerned: set[str] = set()  # jobs that fail if what is being done now fails
        metrics.rows_capacity.set(engine.capacity_rows)
        metrics.serve(bundle)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is claimed that has not been reported."""
        return not self._running and not self._outbox

    def run(self) -> None:
        """Warm up, then serve until `stop`; on the way out the claimed jobs are finished.

        Raises
        ------
        MascError : the warm-up image failed; the queue has been told
        """
        with self._renderer, self._pool:
            self.warm_up()
            while not (self._stopping.is_set() and self.is_idle):
                self._turn_safely()
        self._queue.leave(self.worker_id)

    def stop(self) -> None:
        """Claim nothing more, and end `run` when what is claimed is done. From any thread."""
        self._stopping.set()

    def warm_up(self) -> None:
        """Make one real image, and announce this worker as ready.

        Raises
        ------
        MascError : the image failed
        """
        self._announce(ready=False, detail="warming up")
        started = time.perf_counter()
        try:
            self._make_one_image()
        except Exception as error:
            reason = str(error) if isinstance(error, MascError) else "see the log"
            self._announce(ready=False, detail=f"the warm-up image failed: {reason}")
            raise
        self._announce(ready=True)
        manifest = self._bundle.manifest
        logger.info(
            "worker %s serves %s %s after a warm-up image of %.2f s",
            self.worker_id,
            manifest.name,
            manifest.version,
            time.perf_counter() - started,
        )

    def turn(self) -> None:
        """One turn of the loop; waits for a job for a moment when there is nothing to do."""
        self._report()
        self._forget_abandoned()
        self._claim()
        self._feed()
        self._step()
        self._render()
        self._collect()
        self._report()

    def _turn_safely(self) -> None:
        try:
            self.turn()
        except Exception as error:
            jobs = sorted(self._concerned)
            logger.exception("worker %s: an error that concerns jobs %s", self.worker_id, jobs)
            for job_id in jobs:
                self._fail(job_id, error)
            if not jobs:
                time.sleep(PAUSE_AFTER_ERROR_SECONDS)

    def _forget_abandoned(self) -> None:
        if self._running:
            for job_id in self._queue.abandoned(self._running):
                logger.info("job %s is dropped: nobody waits for it any more", job_id)
                self._drop(job_id)

    def _claim(self) -> None:
        self._concerned = set()
        room = self._engine.free_rows - sum(task.num_rows for task in self._backlog)
        if self._stopping.is_set() or room <= 0:
            return
        for job in self._queue.claim(room, 0.0 if self._running else POLL_SECONDS):
            self._admit(job)

    def _admit(self, job: Job) -> None:
        running = self._running[job.id] = RunningJob(job)
        try:
            check_request(job.request, self._bundle.manifest)
            self._backlog.extend(running.tasks())
        except (RequestError, CapacityError) as error:
            self._fail(job.id, error)

    def _feed(self) -> None:
        while self._backlog and self._backlog[0].num_rows <= self._engine.free_rows:
            task = self._backlog.popleft()
            self._concerned = {task.job_id}
            self._engine.add(task)
            self._in_engine[task.key] = task
            self._running[task.job_id].started()

    def _step(self) -> None:
        self._metrics.rows_active.set(self._rows_active)
        if not self._in_engine:
            return
        self._concerned = {job_id for job_id, _ in self._in_engine}
        for outcome in self._engine.step():
            if not isinstance(outcome, PartialImage):
                del self._in_engine[outcome.task.key]
                self._outcomes.append(outcome)
        self._metrics.rows_active.set(self._rows_active)

    def _render(self) -> None:
        while self._outcomes:
            outcome = self._outcomes.popleft()
            running = self._running.get(outcome.task.job_id)
            if running is None:  # its job has ended meanwhile
                continue
            self._concerned = {outcome.task.job_id}
            if isinstance(outcome, FailedImage):
                self._fail(outcome.task.job_id, outcome.error)
                continue
            rendered = self._renderer.submit(outcome.codes)
            file = self._pool.submit(_encode, rendered, running.request.format)
            self._encoding.append(_Encoding(outcome, file))

    def _collect(self) -> None:
        """Take what the pool has done; wait if the engine has nothing to do, or the pool a lot."""
        for _ in range(len(self._encoding)):
            patient = not self._in_engine or len(self._encoding) > MAX_ENCODING
            encoding = self._encoding.popleft()
            running = self._running.get(encoding.image.task.job_id)
            if running is None:
                continue
            if not patient and not encoding.file.done():
                self._encoding.append(encoding)
                continue
            self._concerned = {running.job.id}
            self._take(running, encoding)

    def _take(self, running: RunningJob, encoding: _Encoding) -> None:
        file = encoding.file.result()
        running.generated(encoding.image, file.vq_decode_seconds)
        image = running.encoded(
            encoding.image.task.index,
            file.data,
            encoding.image.entropies.tolist(),
            self._max_bits,
            file.encode_seconds,
        )
        self._metrics.image(running.request, image)
        if running.is_complete:
            result = running.result(self._bundle.manifest)
            self._metrics.job(result, running.code_seconds)
            del self._running[running.job.id]
            self._outbox.append((running.job.id, result))

    def _fail(self, job_id: str, error: Exception) -> None:
        """End a job without images."""
        if job_id not in self._running:
            return
        failure = JobFailure.of(error)
        logger.warning("job %s failed: %s: %s", job_id, failure.error, failure.message)
        self._drop(job_id)
        self._outbox.append((job_id, failure))

    def _drop(self, job_id: str) -> None:
        """Forget a job, and what is left of its work."""
        self._backlog = deque(task for task in self._backlog if task.job_id != job_id)
        for key in [key for key in self._in_engine if key[0] == job_id]:
            self._engine.cancel(key)
            del self._in_engine[key]
        del self._running[job_id]

    def _report(self) -> None:
        self._concerned = set()  # a queue that is away is no job's fault: they are reported later
        while self._outbox:
            self._queue.finish(*self._outbox[0])
            self._outbox.popleft()

    def _make_one_image(self) -> None:
        self._engine.prepare()
        defaults = self._bundle.manifest.defaults
        spec = ImageSpec(class_id=0, cfg_scale=defaults.cfg_scale, seed=0)
        self._engine.add(ImageTask(WARM_UP, 0, spec))
        while True:
            for outcome in self._engine.step():
                if isinstance(outcome, FailedImage):
                    raise outcome.error
                _encode(self._renderer.submit(outcome.codes), "png")
                return

    def _announce(self, *, ready: bool, detail: str = "") -> None:
        manifest = self._bundle.manifest
        self._queue.announce(
            WorkerStatus(
                worker_id=self.worker_id,
                ready=ready,
                model=manifest.name,
                version=manifest.version,
                detail=detail,
            )
        )

    @property
    def _rows_active(self) -> int:
        return self._engine.capacity_rows - self._engine.free_rows


def _encode(rendered: Future[Rendered], file_format: ImageFormat) -> _File:
    pixels, vq_decode_seconds = rendered.result()
    started = time.perf_counter()
    data = encode_image(pixels, file_format)
    return _File(data, vq_decode_seconds, time.perf_counter() - started)
