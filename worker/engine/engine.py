"""Continuous batching: images join at any step, and leave when their last position is drawn.

Every image needs the same number of steps from a prompt of one token, so there are no pages, no
shared prefixes and no preemption: an image keeps its slot to the end. The output for a task is the
same whatever else is in the batch.

Where the device works asynchronously (`Batch.async_copy`), outputs are read while the next step
runs.
"""

from __future__ import annotations

import gc
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch

from masc_core.errors import MascError, NonFiniteError
from masc_core.generation.batch import Batch, Drawn, HostCopy
from masc_core.models.gpt import GPT
from masc_core.sampling.in_cluster import CodeSampler
from worker.engine.request import (
    EngineOutput,
    FailedImage,
    FinishedImage,
    ImageTask,
    PartialImage,
    TaskKey,
)

logger = logging.getLogger(__name__)

EngineMode = Literal["graphs", "compiled", "eager", "cpu"]
BatchFactory = Callable[[GPT, CodeSampler, int], Batch]


class Backend(NamedTuple):
    """One way to step a batch, made with a model, a sampler of codes and a number of slots."""

    mode: EngineMode
    make: BatchFactory


@dataclass(slots=True)
class _Running:
    """A task in the batch."""

    task: ImageTask
    slot: int
    started: float
    code_seconds: float  # of the engine, when this one joined
    prefilled: float = 0.0


@dataclass(frozen=True, slots=True)
class _PendingCopy:
    """A copy to the host that is under way: of these tasks, each after so many rows of its grid."""

    due: Sequence[tuple[_Running, int]]
    copy: HostCopy


class Engine:
    """Runs image tasks. Used by one thread.

    Parameters
    ----------
    model : the transformer, in evaluation mode
    code_sampler : cluster to code, on the model's device
    capacity_rows : rows of the transformer's batch; a guided image takes two, others one
    on_step : called after each step of the transformer with its rows and its seconds
    backends : the fastest first; `prepare` goes on to the next where one does not work
    on_prepared : called with the mode of the backend that does

    Raises
    ------
    ValueError : a model in training mode, where dropout makes results random
    """

    def __init__(
        self,
        model: GPT,
        code_sampler: CodeSampler,
        capacity_rows: int,
        on_step: Callable[[int, float], None] | None = None,
        backends: Sequence[Backend] = (Backend("cpu", Batch),),
        on_prepared: Callable[[EngineMode], None] = lambda _: None,
    ) -> None:
        if model.training:
            raise ValueError("the model is in training mode")
        self.capacity_rows = capacity_rows
        self._config, self._on_step = model.config, on_step
        self._parts = model, code_sampler, capacity_rows
        self._backend, *self._slower_backends = backends
        self._on_prepared = on_prepared
        self._joining: dict[TaskKey, ImageTask] = {}
        self._running: dict[TaskKey, _Running] = {}  # without their last output, in order
        self._by_slot: dict[int, _Running] = {}  # those of them that still have positions to draw
        # by step: what is to be read after it, and how many rows of the grid are drawn then
        self._outputs_due: defaultdict[int, list[tuple[_Running, int]]] = defaultdict(list)
        self._pending_copies: list[_PendingCopy] = []
        self._outputs: list[EngineOutput] = []  # not handed out yet
        self._num_steps = 0
        self._code_seconds = 0.0

    @property
    def free_rows(self) -> int:
        """Rows that `add` can still take."""
        joining = sum(task.batch_rows for task in self._joining.values())
        return self.capacity_rows - self._batch.batch_rows - joining

    @property
    def tasks(self) -> list[ImageTask]:
        """All tasks that are here, in order."""
        return [running.task for running in self._running.values()] + list(self._joining.values())

    def prepare(self) -> None:
        """Do ahead what would make the first steps slow; on a GPU that takes up to a minute.

        Capturing and compiling depend on the driver, on Triton and on the age of the GPU. Where
        they fail the engine goes on with the next backend. Call it before tasks join: the batch
        of another backend is empty.

        Raises
        ------
        MascError, torch.OutOfMemoryError : the model is at fault, or too large, in any backend
        Exception : what the last backend failed with
        """
        while not self._prepare_backend():
            self.__dict__.pop("_batch", None)  # its memory goes before the next one takes some
            gc.collect()
            self._backend = self._slower_backends.pop(0)
        self._on_prepared(self._backend.mode)

    def add(self, task: ImageTask) -> None:
        """Take a task that fits in `free_rows`; it joins at the next step.

        Raises
        ------
        ValueError : it does not fit, its key is here already, or a preview is not within the image
        UnknownClassError, InvalidFieldError : the model does not have what is asked for
        """
        if any(task.key == other.key for other in self.tasks):
            raise ValueError(f"image {task.index} of job {task.job_id} is here already")
        if task.batch_rows > self.free_rows:
            raise ValueError(f"{task.batch_rows} rows do not fit, {self.free_rows} are free")
        if any(not 0 < grid_row < self._config.grid_size for grid_row in task.preview_rows):
            raise ValueError(f"a preview must be after row 1 to {self._config.grid_size - 1}")
        self._batch.check([task.params])
        self._joining[task.key] = task

    def cancel(self, key: TaskKey) -> None:
        """Forget a task, whose rows are free at once; nothing happens when it is not here."""
        self._joining.pop(key, None)
        self._outputs = [output for output in self._outputs if output.task.key != key]
        running = self._running.get(key)
        if running is not None:
            self._remove([running])

    @torch.inference_mode()
    def step(self) -> Sequence[EngineOutput]:
        """Draw the next position of every image; hand out previews and finished images.

        After an exception the tasks are still here, where they were, for the caller to step again
        or to cancel: no output is lost.
        """
        self._join()
        has_failed = bool(self._outputs_due.get(self._num_steps))  # the copy after the last step
        if self._by_slot and not has_failed:
            self._draw()
        if self._batch.async_copy:
            self._finish_copies()  # of the step before, while the device does this one
            self._begin_copy()
        else:
            self._begin_copy()
            self._finish_copies()
        outputs, self._outputs = self._outputs, []
        return tuple(outputs)

    @cached_property
    def _batch(self) -> Batch:
        return self._backend.make(*self._parts)

    def _prepare_backend(self) -> bool:
        try:
            self._batch.prepare()
        except (MascError, torch.OutOfMemoryError):
            raise
        except Exception:  # torch, Triton, a C compiler and the driver each have their own errors
            if not self._slower_backends:
                raise
            logger.exception(
                "%s does not work on this machine; the engine goes on as %s, SEVERAL TIMES SLOWER",
                self._backend.mode,
                self._slower_backends[0].mode,
            )
            return False
        return True

    def _join(self) -> None:
        if not self._joining:
            return
        tasks = list(self._joining.values())
        slots = self._batch.join([task.params for task in tasks])
        self._joining.clear()
        now, grid = time.perf_counter(), self._config.grid_size
        for task, slot in zip(tasks, slots, strict=True):
            running = _Running(task, slot, now, self._code_seconds)
            self._running[task.key] = self._by_slot[slot] = running
            for grid_row in {*task.preview_rows, grid}:
                self._outputs_due[self._num_steps + grid_row * grid].append((running, grid_row))

    def _draw(self) -> None:
        started, rows = time.perf_counter(), self._batch.batch_rows
        report = self._batch.step()
        now = time.perf_counter()
        self._num_steps += 1
        self._code_seconds += report.code_seconds
        for running in self._by_slot.values():
            running.prefilled = running.prefilled or now
        self._fail([self._by_slot[slot] for slot in report.failed])
        if self._on_step is not None:
            self._on_step(rows, now - started)

    def _begin_copy(self) -> None:
        """Begin to read what is due after this step; until that has worked it stays due."""
        outputs = self._outputs_due.get(self._num_steps, ())
        due = [output for output in outputs if self._is_running(output[0])]
        if due:
            copy = self._batch.read([running.slot for running, _ in due])
            self._pending_copies.append(_PendingCopy(due, copy))
            self._leave_batch(
                [task for task, grid_row in due if grid_row == self._config.grid_size]
            )
        self._outputs_due.pop(self._num_steps, None)

    def _finish_copies(self) -> None:
        """Make outputs of what was copied; until that has worked it is kept."""
        while self._pending_copies:
            pending = self._pending_copies[0]
            drawn, now = Drawn(*pending.copy.wait()), time.perf_counter()
            for index, (running, grid_row) in enumerate(pending.due):
                if not self._is_running(running):  # cancelled, or failed
                    continue
                if not drawn.finite[index]:
                    self._fail([running])
                    continue
                self._outputs.append(self._output(running, grid_row, drawn, index, now))
                if grid_row == self._config.grid_size:
                    self._remove([running])
            self._pending_copies.pop(0)

    def _output(
        self, running: _Running, grid_row: int, drawn: Drawn, index: int, now: float
    ) -> PartialImage | FinishedImage:
        if grid_row < self._config.grid_size:
            codes = drawn.codes[index, : grid_row * self._config.grid_size]
            return PartialImage(running.task, grid_row, codes)
        return FinishedImage(
            task=running.task,
            codes=drawn.codes[index],
            entropies=drawn.entropies[index],
            cluster_entropies=drawn.cluster_entropies[index],
            prefill_seconds=running.prefilled - running.started,
            decode_seconds=now - running.prefilled,
            code_seconds=self._code_seconds - running.code_seconds,
        )

    def _is_running(self, running: _Running) -> bool:
        return self._running.get(running.task.key) is running

    def _fail(self, failed: Sequence[_Running]) -> None:
        self._remove(failed)
        reason = NonFiniteError("the model produced a NaN or an infinity for this image")
        self._outputs += [FailedImage(running.task, reason) for running in failed]

    def _remove(self, tasks: Sequence[_Running]) -> None:
        self._leave_batch(tasks)
        for running in tasks:
            del self._running[running.task.key]

    def _leave_batch(self, tasks: Sequence[_Running]) -> None:
        slots = {task.slot for task in tasks if self._by_slot.get(task.slot) is task}
        if slots:
            self._batch.leave(slots)
            self._by_slot = {s: task for s, task in self._by_slot.items() if s not in slots}
