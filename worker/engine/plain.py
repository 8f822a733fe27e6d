"""The plain engine: what waits is one batch, and a step runs it from the first position to the end.

Tasks added meanwhile wait for the next step.
This module does not know how a batch is computed: `masc_core.generate` does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from torch import Tensor

from masc_core.errors import NonFiniteError
from masc_core.generate import Generated, generate
from masc_core.in_cluster import InClusterDecoder
from masc_core.models.gpt import GPT
from worker.engine.engine import FailedImage, FinishedImage, ImageTask, StepObserver, TaskKey


class PlainEngine:
    """An `Engine` that runs its batches to the end.

    Parameters
    ----------
    model : the transformer, in evaluation mode
    decoder : cluster to code, on the model's device
    capacity_rows : rows in a batch, at least two
    observe : called after each position with the batch's rows and the seconds it took
    """

    def __init__(
        self,
        model: GPT,
        decoder: InClusterDecoder,
        capacity_rows: int,
        observe: StepObserver | None = None,
    ) -> None:
        self._model, self._decoder, self._observe = model, decoder, observe
        self._capacity_rows = capacity_rows
        self._tasks: dict[TaskKey, ImageTask] = {}

    @property
    def capacity_rows(self) -> int:
        """Rows that fit in the batch."""
        return self._capacity_rows

    @property
    def free_rows(self) -> int:
        """Rows that `add` can still take."""
        return self._capacity_rows - sum(task.num_rows for task in self._tasks.values())

    def add(self, task: ImageTask) -> None:
        """Take a task that fits in `free_rows`; a ValueError if it does not, or is here already."""
        if task.key in self._tasks:
            raise ValueError(f"image {task.index} of job {task.job_id} is here already")
        if task.num_rows > self.free_rows:
            raise ValueError(f"{task.num_rows} rows do not fit, {self.free_rows} are free")
        self._tasks[task.key] = task

    def cancel(self, key: TaskKey) -> None:
        """Forget a task."""
        self._tasks.pop(key, None)

    def step(self) -> Sequence[FinishedImage | FailedImage]:
        """Run everything that waits, to the end.

        An image whose logits become non-finite fails alone: the batch is run again without it, and
        the others get what they would have got with it.
        """
        waiting = list(self._tasks.values())
        outcomes: list[FinishedImage | FailedImage] = []
        while waiting:
            try:
                outcomes += self._run(waiting)
                break
            except NonFiniteError as error:
                at_fault = set(error.indices) or set(range(len(waiting)))
                reason = NonFiniteError("the model produced a NaN or an infinity for this image")
                outcomes += [FailedImage(waiting[i], reason) for i in sorted(at_fault)]
                waiting = [task for i, task in enumerate(waiting) if i not in at_fault]
        self._tasks.clear()
        return outcomes

    def _run(self, tasks: Sequence[ImageTask]) -> list[FinishedImage]:
        specs = [task.spec for task in tasks]
        rows = sum(task.num_rows for task in tasks)
        made = generate(self._model, self._decoder, specs, self._stopwatch(rows))
        codes, entropies = made.codes.cpu(), made.entropies.cpu()
        return [_finished(task, made, codes[i], entropies[i]) for i, task in enumerate(tasks)]

    def _stopwatch(self, rows: int) -> Callable[[int, Tensor], None] | None:
        if self._observe is None:
            return None
        observe, last = self._observe, time.perf_counter()

        def on_step(_position: int, _codes: Tensor) -> None:
            nonlocal last
            now = time.perf_counter()
            observe(rows, now - last)
            last = now

        return on_step


def _finished(task: ImageTask, made: Generated, codes: Tensor, entropies: Tensor) -> FinishedImage:
    return FinishedImage(
        task=task,
        codes=codes,
        entropies=entropies,
        prefill_seconds=made.prefill_seconds,
        decode_seconds=made.decode_seconds,
        code_seconds=made.code_seconds,
    )
