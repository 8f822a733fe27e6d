"""Continuous batching: images join at any step, and leave when their last position is drawn.

Every image needs the same number of steps from a prompt of one token, so there are no pages, no
shared prefixes, and nobody is ever put aside: whoever has slots keeps them to the end. What comes
out for a task is the same whatever else is in the batch.
This module does not know about queues, pixels or files.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from masc_core.errors import NonFiniteError
from masc_core.image_batch import Drawn
from masc_core.image_spec import check_specs
from masc_core.in_cluster import InClusterDecoder
from masc_core.models.gpt import GPT
from worker.engine.request import (
    FailedImage,
    FinishedImage,
    ImageTask,
    Outcome,
    PartialImage,
    TaskKey,
)
from worker.engine.runner import Runner
from worker.engine.slots import Slots

# Called after each step of the transformer with its rows and its seconds.
StepObserver = Callable[[int, float], None]


@dataclass(slots=True)
class _Running:
    """A task in the batch."""

    task: ImageTask
    slots: tuple[int, int]
    started: float
    code_seconds: float  # of the engine, when this one joined
    prefilled: float = 0.0
    is_gone: bool = False


class Engine:
    """Runs image tasks. Used by one thread.

    Parameters
    ----------
    model : the transformer, in evaluation mode
    decoder : cluster to code, on the model's device
    capacity_rows : rows of the transformer's batch; a guided image takes two, others one
    observe : called after each step

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
    ) -> None:
        if model.training:
            raise ValueError("the model is in training mode")
        self._config, self._decoder, self._observe = model.config, decoder, observe
        self._runner = Runner(model, decoder, capacity_rows)
        self._slots = Slots(capacity_rows)
        self._joining: dict[TaskKey, ImageTask] = {}
        self._running: list[_Running] = []  # in the order of the runner
        self._due: defaultdict[int, list[tuple[_Running, int]]] = defaultdict(list)
        self._num_steps = 0
        self._code_seconds = 0.0

    @property
    def capacity_rows(self) -> int:
        """Rows that fit in the batch."""
        return self._slots.capacity

    @property
    def free_rows(self) -> int:
        """Rows that `add` can still take."""
        return self._slots.free - sum(task.num_rows for task in self._joining.values())

    @property
    def tasks(self) -> list[ImageTask]:
        """What is here, in the order in which it came."""
        running = [running.task for running in self._running if not running.is_gone]
        return running + list(self._joining.values())

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
        check_specs([task.spec], self._config)
        self._decoder.modes([task.spec.decoding])
        self._joining[task.key] = task

    def cancel(self, key: TaskKey) -> None:
        """Forget a task, whose rows are free at once; nothing happens when it is not here."""
        self._joining.pop(key, None)
        for running in self._running:
            if running.task.key == key and not running.is_gone:
                self._let_go(running)

    @torch.inference_mode()
    def step(self) -> Sequence[Outcome]:
        """Draw the next position of every image; hand out those that came to their end.

        After an exception of the transformer or of the decoder the tasks are still here, where they
        were, for the caller to step again or to cancel. After any other the engine is of no use.
        """
        self._leave()
        self._join()
        if not self._running:
            return ()
        started = time.perf_counter()
        drawn = self._runner.step()
        failed = self._fail(drawn)  # waits for the device
        now = time.perf_counter()
        self._num_steps += 1
        self._code_seconds += drawn.code_seconds
        if self._observe is not None:
            self._observe(self._runner.num_rows, now - started)
        return [*failed, *self._hand_out(now)]

    def _leave(self) -> None:
        kept = [i for i, running in enumerate(self._running) if not running.is_gone]
        if len(kept) < len(self._running):
            self._runner.keep(kept)
            self._running = [self._running[i] for i in kept]

    def _join(self) -> None:
        if not self._joining:
            return
        tasks = list(self._joining.values())
        specs = [task.spec for task in tasks]
        slots = self._slots.take(specs)
        try:
            self._runner.join(specs, slots)
        except BaseException:
            for taken in slots:
                self._slots.give_back(taken)
            raise
        self._joining.clear()
        now, grid = time.perf_counter(), self._config.grid_size
        for task, taken in zip(tasks, slots, strict=True):
            running = _Running(task, taken, now, self._code_seconds)
            self._running.append(running)
            for row in {*task.preview_rows, grid}:
                self._due[self._num_steps + row * grid].append((running, row))
            self._due[self._num_steps + 1].append((running, 0))

    def _fail(self, drawn: Drawn) -> list[FailedImage]:
        if drawn.finite.all():
            return []
        failed = [self._running[i] for i in (~drawn.finite).nonzero().flatten().tolist()]
        for running in failed:
            self._let_go(running)
        reason = NonFiniteError("the model produced a NaN or an infinity for this image")
        return [FailedImage(running.task, reason) for running in failed]

    def _hand_out(self, now: float) -> list[Outcome]:
        """What is due after this step: first positions are noted, the rest is handed out."""
        due = [(who, row) for who, row in self._due.pop(self._num_steps, ()) if not who.is_gone]
        for running, row in due:
            if row == 0:
                running.prefilled = now
        due = [(running, row) for running, row in due if row]
        if not due:
            return []
        codes, entropies = self._runner.read([running.slots[0] for running, _ in due])
        outcomes: list[Outcome] = []
        for i, (running, row) in enumerate(due):
            if row < self._config.grid_size:
                drawn = codes[i, : row * self._config.grid_size]
                outcomes.append(PartialImage(running.task, row, drawn))
                continue
            self._let_go(running)
            outcomes.append(
                FinishedImage(
                    task=running.task,
                    codes=codes[i],
                    entropies=entropies[i],
                    prefill_seconds=running.prefilled - running.started,
                    decode_seconds=now - running.prefilled,
                    code_seconds=self._code_seconds - running.code_seconds,
                )
            )
        return outcomes

    def _let_go(self, running: _Running) -> None:
        running.is_gone = True
        self._slots.give_back(running.slots)
