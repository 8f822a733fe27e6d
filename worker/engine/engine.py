"""Continuous batching: images join at any step, and leave when their last position is drawn.

Every image needs the same number of steps from a prompt of one token, so there are no pages, no
shared prefixes, and nobody is ever put aside: whoever has slots keeps them to the end. What comes
out for a task is the same whatever else is in the batch.

Where the device has a queue of its own (`Batch.reads_late`), what came to its end is read while the
next step runs.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from masc_core.errors import NonFiniteError
from masc_core.generation.batch import Batch, Drawn, HostCopy, StepReport
from masc_core.models.gpt import GPT
from masc_core.sampling.in_cluster import InClusterDecoder
from masc_core.sampling.params import SamplingParams, check_params
from worker.engine.request import (
    EngineOutput,
    FailedImage,
    FinishedImage,
    ImageTask,
    PartialImage,
    TaskKey,
)

# Called after each step of the transformer with its rows and its seconds.
StepObserver = Callable[[int, float], None]
BatchFactory = Callable[[GPT, InClusterDecoder, int], "StepBatch"]


class StepBatch(Protocol):
    """What an engine steps; see `Batch`."""

    @property
    def num_rows(self) -> int:
        """Rows of the transformer's batch that the images take."""

    @property
    def reads_late(self) -> bool:
        """Whether what is read after a step is better waited for after the next one."""

    def prepare(self) -> None:
        """Do ahead what would make the first steps slow."""

    def join(self, params_list: Sequence[SamplingParams]) -> list[int]:
        """Add images at their first position, all of them or none; return their slots."""

    def leave(self, slots: Collection[int]) -> None:
        """Let images go; their slots are free."""

    def step(self) -> StepReport:
        """Draw the next position of every image."""

    def read(self, slots: Sequence[int]) -> HostCopy:
        """Begin to read what some images have drawn by now: the columns of a `Drawn`."""


@dataclass(slots=True)
class _Running:
    """A task in the batch."""

    task: ImageTask
    slot: int
    started: float
    code_seconds: float  # of the engine, when this one joined
    prefilled: float = 0.0


@dataclass(frozen=True, slots=True)
class _Reading:
    """What is being read of tasks, each after so many rows of its grid."""

    due: Sequence[tuple[_Running, int]]
    copy: HostCopy


class Engine:
    """Runs image tasks. Used by one thread.

    Parameters
    ----------
    model : the transformer, in evaluation mode
    decoder : cluster to code, on the model's device
    capacity_rows : rows of the transformer's batch; a guided image takes two, others one
    observe : called after each step
    make_batch : called as ``make_batch(model, decoder, capacity_rows)``

    Raises
    ------
    ValueError : a model in training mode, where dropout makes results random
    """

    def __init__(
        self,
        model: GPT,
        decoder: InClusterDecoder,
        capacity_rows: int,
        observe: StepObserver | None = None,
        make_batch: BatchFactory = Batch,
    ) -> None:
        if model.training:
            raise ValueError("the model is in training mode")
        self.capacity_rows = capacity_rows
        self._config, self._decoder, self._observe = model.config, decoder, observe
        self._batch = make_batch(model, decoder, capacity_rows)
        self._joining: dict[TaskKey, ImageTask] = {}
        self._running: dict[TaskKey, _Running] = {}  # without an outcome, in the order they came
        self._by_slot: dict[int, _Running] = {}  # those of them that still have positions to draw
        self._due: defaultdict[int, list[tuple[_Running, int]]] = defaultdict(list)  # by step
        self._readings: list[_Reading] = []
        self._outcomes: list[EngineOutput] = []  # not handed out yet
        self._num_steps = 0
        self._code_seconds = 0.0

    @property
    def free_rows(self) -> int:
        """Rows that `add` can still take."""
        joining = sum(task.num_rows for task in self._joining.values())
        return self.capacity_rows - self._batch.num_rows - joining

    @property
    def tasks(self) -> list[ImageTask]:
        """What is here, in the order in which it came."""
        return [running.task for running in self._running.values()] + list(self._joining.values())

    def prepare(self) -> None:
        """Do ahead what would make the first steps slow; on a GPU that takes up to a minute."""
        self._batch.prepare()

    def add(self, task: ImageTask) -> None:
        """Take a task that fits in `free_rows`; it joins at the next step.

        Raises
        ------
        ValueError : it does not fit, its key is here already, or a preview is not within the image
        UnknownClassError, InvalidFieldError : the model does not have what is asked for
        """
        if any(task.key == other.key for other in self.tasks):
            raise ValueError(f"image {task.index} of job {task.job_id} is here already")
        if task.num_rows > self.free_rows:
            raise ValueError(f"{task.num_rows} rows do not fit, {self.free_rows} are free")
        if any(not 0 < row < self._config.grid_size for row in task.preview_rows):
            raise ValueError(f"a preview must be after row 1 to {self._config.grid_size - 1}")
        check_params([task.params], self._config)
        self._decoder.check(task.params.decoding)
        self._joining[task.key] = task

    def cancel(self, key: TaskKey) -> None:
        """Forget a task, whose rows are free at once; nothing happens when it is not here."""
        self._joining.pop(key, None)
        self._outcomes = [one for one in self._outcomes if one.task.key != key]
        running = self._running.get(key)
        if running is not None:
            self._let_go([running])

    @torch.inference_mode()
    def step(self) -> Sequence[EngineOutput]:
        """Draw the next position of every image; hand out those that came to their end.

        After an exception the tasks are still here, where they were, for the caller to step again
        or to cancel: no outcome is lost.
        """
        self._join()
        if self._by_slot and not self._due.get(self._num_steps):
            self._draw()
        if self._batch.reads_late:
            self._take_read()
            self._read_due()
        else:
            self._read_due()
            self._take_read()
        outcomes, self._outcomes = self._outcomes, []
        return tuple(outcomes)

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
            for row in {*task.preview_rows, grid}:
                self._due[self._num_steps + row * grid].append((running, row))

    def _draw(self) -> None:
        started, rows = time.perf_counter(), self._batch.num_rows
        report = self._batch.step()
        now = time.perf_counter()
        self._num_steps += 1
        self._code_seconds += report.code_seconds
        for running in self._by_slot.values():
            running.prefilled = running.prefilled or now
        self._fail([self._by_slot[slot] for slot in report.failed])
        if self._observe is not None:
            self._observe(rows, now - started)

    def _read_due(self) -> None:
        """Begin to read what is due after this step; until that has worked it stays due."""
        due = [(who, row) for who, row in self._due.get(self._num_steps, ()) if self._has(who)]
        if due:
            copy = self._batch.read([running.slot for running, _ in due])
            self._readings.append(_Reading(due, copy))
            self._leave_batch([who for who, row in due if row == self._config.grid_size])
        self._due.pop(self._num_steps, None)

    def _take_read(self) -> None:
        """Make outcomes of what was read; until that has worked it is kept."""
        while self._readings:
            reading = self._readings[0]
            drawn, now = Drawn(*reading.copy.wait()), time.perf_counter()
            for place, (running, row) in enumerate(reading.due):
                if not self._has(running):  # cancelled, or failed
                    continue
                if not drawn.finite[place]:
                    self._fail([running])
                    continue
                self._outcomes.append(self._outcome(running, row, drawn, place, now))
                if row == self._config.grid_size:
                    self._let_go([running])
            self._readings.pop(0)

    def _outcome(
        self, running: _Running, row: int, read: Drawn, place: int, now: float
    ) -> PartialImage | FinishedImage:
        if row < self._config.grid_size:
            drawn = read.codes[place, : row * self._config.grid_size]
            return PartialImage(running.task, row, drawn)
        return FinishedImage(
            task=running.task,
            codes=read.codes[place],
            entropies=read.entropies[place],
            prefill_seconds=running.prefilled - running.started,
            decode_seconds=now - running.prefilled,
            code_seconds=self._code_seconds - running.code_seconds,
        )

    def _has(self, running: _Running) -> bool:
        return self._running.get(running.task.key) is running

    def _fail(self, failed: Sequence[_Running]) -> None:
        self._let_go(failed)
        reason = NonFiniteError("the model produced a NaN or an infinity for this image")
        self._outcomes += [FailedImage(running.task, reason) for running in failed]

    def _let_go(self, leaving: Sequence[_Running]) -> None:
        self._leave_batch(leaving)
        for running in leaving:
            del self._running[running.task.key]

    def _leave_batch(self, leaving: Sequence[_Running]) -> None:
        slots = {who.slot for who in leaving if self._by_slot.get(who.slot) is who}
        if slots:
            self._batch.leave(slots)
            self._by_slot = {s: who for s, who in self._by_slot.items() if s not in slots}
