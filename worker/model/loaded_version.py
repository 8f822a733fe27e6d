"""One loaded version of a model at work: image tasks in, files out.

Tasks wait until the engine has rows for them. Finished images go through the renderer and a small
pool of threads that encode. The loop waits for them where the engine has nothing to do, or more
than `MAX_ENCODING` images are on their way. Previews take what `PreviewBudget` allows.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch

from masc_core.bundle.manifest import Manifest
from masc_core.bundle.read import Bundle
from masc_core.errors import ConfigError
from masc_core.images import ImageFormat, encode_image
from masc_core.sampling.params import Decoding, SamplingParams
from worker.engine.engine import Engine
from worker.engine.request import (
    EngineOutput,
    FailedImage,
    FinishedImage,
    ImageTask,
    PartialImage,
    TaskKey,
)
from worker.jobs.job import Preview, Progress
from worker.model.render import Rendered, Renderer
from worker.model.threads import ThreadTuner, available_cores

logger = logging.getLogger(__name__)

MIN_ENCODERS = 2
MAX_ENCODING = 64  # images whose files are not there yet; beyond, the engine waits
PREVIEW_FORMAT: Final[ImageFormat] = "jpeg"
WARM_UP = "warm-up"
PREVIEW_SHARE = 0.05  # of the worker's time
MAX_CREDIT = 0.05  # seconds of previews


@dataclass(frozen=True, slots=True)
class StartedImage:
    """A task has come into the engine; ``at`` is seconds since the epoch."""

    task: ImageTask
    at: float


@dataclass(frozen=True, slots=True)
class ImageProgress:
    """An event of an image on its way, for whoever watches the job."""

    task: ImageTask
    event: Progress | Preview


class EncodedFile(NamedTuple):
    """An image's file, and what it took after the engine."""

    data: bytes
    complete_seconds: float
    vq_decode_seconds: float
    encode_seconds: float


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """What the engine drew, as a file."""

    image: FinishedImage
    file: EncodedFile

    @property
    def task(self) -> ImageTask:
        """Which image it is."""
        return self.image.task


TaskEvent = StartedImage | ImageProgress | EncodedImage | FailedImage


class _Encoding(NamedTuple):
    """An image, or what is drawn of one, on its way through renderer and pool."""

    image: FinishedImage | PartialImage
    file: Future[EncodedFile]
    paid: float  # from the budget of previews; nothing for a finished image


class PreviewBudget:
    """Seconds that may be spent on previews: a token bucket that may go into debt.

    It fills with time, by a twentieth of it by default, up to a bound. A preview is made while it
    is not empty, and paid for in advance with what the last one took, because many that are due at
    once would all be granted the same credit. The difference is settled when the preview is there.
    In the long run previews take no more than their share, and one image alone still gets some.

    Parameters
    ----------
    share : of the time
    clock : monotonic seconds
    """

    def __init__(
        self, share: float = PREVIEW_SHARE, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._share, self._clock = share, clock
        self._credit, self._since = MAX_CREDIT, clock()
        self._price = MAX_CREDIT  # seconds of the last one; of the first nothing is known

    def pay(self) -> float | None:
        """Take the price of a preview out of the bucket; None, and nothing, where it is empty."""
        now = self._clock()
        self._credit = min(MAX_CREDIT, self._credit + self._share * (now - self._since))
        self._since = now
        if self._credit <= 0:
            return None
        self._credit -= self._price
        return self._price

    def settle(self, paid: float, seconds: float) -> None:
        """Correct what was paid to what the preview took; of one that failed it stays paid."""
        self._credit += paid - seconds
        self._price = seconds


class LoadedVersion:
    """Serves one bundle. Used by one thread at a time.

    Parameters
    ----------
    bundle : what is served
    engine : runs the bundle's transformer
    budget : of previews
    cores : numbers of threads that `warm_up` tries, to take the fastest; none leaves torch's
    image_metadata : whether the files say what they were made with

    Attributes
    ----------
    is_warm : whether `warm_up` has made an image, for which it takes the rest of its memory
    jobs_at_risk : after `step` raised, ids of the jobs whose work was under way; otherwise none

    Raises
    ------
    ConfigError : the engine is too small for a guided image
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        budget: PreviewBudget | None = None,
        *,
        cores: Sequence[int] = (),
        image_metadata: bool = True,
    ) -> None:
        if engine.capacity_rows < 2:
            raise ConfigError("a worker needs room for two rows, which a guided image takes")
        self.bundle, self.engine = bundle, engine
        self.is_warm = False
        self.jobs_at_risk: set[str] = set()
        self._budget = budget or PreviewBudget()
        self._cores, self._image_metadata = cores, image_metadata
        self._num_threads: int | None = None  # once it was tried
        self._renderer = Renderer(bundle)
        self._pool = ThreadPoolExecutor(
            max(MIN_ENCODERS, available_cores() // 2), thread_name_prefix="encode"
        )
        self._backlog: deque[ImageTask] = deque()
        self._in_engine: dict[TaskKey, ImageTask] = {}
        self._outputs: deque[EngineOutput] = deque()  # of the engine's last step, not taken yet
        self._encoding: deque[_Encoding] = deque()
        self._events: list[TaskEvent] = []  # not handed out yet

    @property
    def manifest(self) -> Manifest:
        """What is served."""
        return self.bundle.manifest

    @property
    def free_rows(self) -> int:
        """Rows of the engine that are free when all images of the backlog have theirs."""
        return self.engine.free_rows - self.rows_waiting

    @property
    def rows_waiting(self) -> int:
        """Rows of the engine that the images of the backlog need."""
        return sum(task.batch_rows for task in self._backlog)

    @property
    def rows_active(self) -> int:
        """Rows of the engine that its images take."""
        return self.engine.capacity_rows - self.engine.free_rows

    @property
    def is_idle(self) -> bool:
        """Whether no image waits, is drawn or is encoded."""
        return not (self._backlog or self._in_engine or self._encoding)

    def warm_up(self) -> None:
        """Make one real image, after all that would make the first steps slow.

        Raises
        ------
        MascError : the image failed
        """
        self.engine.prepare()
        defaults = self.manifest.defaults
        decoding: Decoding = "complete" if "complete" in self.manifest.decodings else "uniform"
        params = SamplingParams(0, defaults.cfg_scale, seed=0, decoding=decoding)
        self.engine.add(ImageTask(WARM_UP, 0, params))
        tuner = ThreadTuner(self._cores or (torch.get_num_threads(),))
        outputs: Sequence[EngineOutput] = ()
        while not outputs:
            outputs = tuner.run(self.engine.step)
        if isinstance(outputs[0], FailedImage):
            raise outputs[0].error
        if self._cores:
            self._num_threads = tuner.best()
            torch.set_num_threads(self._num_threads)
            logger.info("steps take %d of %d cores", self._num_threads, self._cores[-1])
        pixels = self._renderer.submit(outputs[0].codes, params)
        _encode(pixels, "png", self._description(params))
        self.is_warm = True

    def add(self, tasks: Iterable[ImageTask]) -> None:
        """Take images; they come into the engine in order."""
        self._backlog.extend(tasks)

    def drop(self, job_id: str) -> None:
        """Forget a job's images; their rows are free at once."""
        self._backlog = deque(task for task in self._backlog if task.job_id != job_id)
        for key in [key for key in self._in_engine if key[0] == job_id]:
            self.engine.cancel(key)
            del self._in_engine[key]
        self._outputs = deque(output for output in self._outputs if output.task.job_id != job_id)
        self._encoding = deque(e for e in self._encoding if e.image.task.job_id != job_id)
        self._events = [event for event in self._events if event.task.job_id != job_id]

    def step(self) -> Sequence[TaskEvent]:
        """Fill the engine, step it, and collect what renderer and pool have done.

        Where images are rendered in this thread, each call renders one, and the engine waits: a
        batch may end in one step, and rendering all of it at once would look like a hung worker.
        After an exception, which only the engine raises, the events are returned by the next call.
        """
        if not self._outputs:
            self._fill_engine()
            if self._in_engine:
                self._step_engine()
        self.jobs_at_risk = set()
        self._take_outputs()
        self._collect_encoded()
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        """End the threads; the version must not be used afterwards."""
        self._pool.shutdown()
        self._renderer.close()

    def _fill_engine(self) -> None:
        while self._backlog and self._backlog[0].batch_rows <= self.engine.free_rows:
            task = self._backlog.popleft()
            self.jobs_at_risk = {task.job_id}
            self.engine.add(task)
            self._in_engine[task.key] = task
            self._events.append(StartedImage(task, time.time()))

    def _step_engine(self) -> None:
        self.jobs_at_risk = {job_id for job_id, _ in self._in_engine}
        if self._num_threads and self._num_threads != torch.get_num_threads():
            torch.set_num_threads(self._num_threads)  # it was warmed up by another thread
        self._outputs += self.engine.step()

    def _take_outputs(self) -> None:
        while self._outputs:
            output = self._outputs.popleft()
            match output:
                case PartialImage(task=task):
                    progress = Progress(task.index, *self._drawn(output))
                    self._events.append(ImageProgress(task, progress))
                    paid = self._budget.pay()
                    if paid is not None:
                        self._start_encoding(output, PREVIEW_FORMAT, paid)
                case FinishedImage(task=task):
                    del self._in_engine[task.key]
                    self._start_encoding(output, task.format)
                    if not self._renderer.is_threaded:
                        return
                case FailedImage(task=task):
                    del self._in_engine[task.key]
                    self._events.append(output)

    def _start_encoding(
        self, image: FinishedImage | PartialImage, file_format: ImageFormat, paid: float = 0.0
    ) -> None:
        params = image.task.params if isinstance(image, FinishedImage) else None
        description = self._description(params) if params else ""
        pixels = self._renderer.submit(image.codes, params)
        file = self._pool.submit(_encode, pixels, file_format, description)
        self._encoding.append(_Encoding(image, file, paid))

    def _drawn(self, image: PartialImage) -> tuple[int, int]:
        """How many rows of the grid are drawn, and of how many; of a sequence how many tokens."""
        if self.manifest.tokenizer == "vq":
            return image.grid_rows, self.manifest.grid
        return len(image.codes), self.manifest.num_positions

    def _description(self, params: SamplingParams) -> str:
        return self.manifest.describe_image(params) if self._image_metadata else ""

    def _collect_encoded(self) -> None:
        """Take what the pool has done; wait if the engine has nothing to do, or the pool a lot."""
        for _ in range(len(self._encoding)):
            must_wait = not self._in_engine or len(self._encoding) > MAX_ENCODING
            encoding = self._encoding.popleft()
            if must_wait or encoding.file.done():
                self._events += self._encoded_event(encoding)
            else:
                self._encoding.append(encoding)

    def _encoded_event(self, encoding: _Encoding) -> Sequence[TaskEvent]:
        """The file, or what prevented it; nothing for a preview that failed: nobody misses it."""
        image, error = encoding.image, encoding.file.exception()
        if error is not None:
            return [FailedImage(image.task, error)] if isinstance(image, FinishedImage) else ()
        file = encoding.file.result()
        if isinstance(image, FinishedImage):
            return [EncodedImage(image, file)]
        self._budget.settle(encoding.paid, file.vq_decode_seconds + file.encode_seconds)
        preview = Preview(image.task.index, *self._drawn(image), PREVIEW_FORMAT, file.data)
        return [ImageProgress(image.task, preview)]


def _encode(rendered: Future[Rendered], file_format: ImageFormat, description: str) -> EncodedFile:
    pixels, complete_seconds, vq_decode_seconds = rendered.result()
    started = time.perf_counter()
    data = encode_image(pixels, file_format, description)
    encode_seconds = time.perf_counter() - started
    return EncodedFile(data, complete_seconds, vq_decode_seconds, encode_seconds)
