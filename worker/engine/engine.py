"""The seam between the worker and whatever runs the transformer.

An engine has a capacity in rows of the transformer's batch: a guided image takes two, one at CFG
scale 1 takes one. Tasks are added while there is room, and `Engine.step` moves all of them on; how
far is the engine's own affair. What comes out for a task is the same whatever else is in the batch.
This module does not know about queues, pixels or files.

Legend: L positions of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from masc_core.errors import EngineError
from masc_core.image_spec import ImageSpec

TaskKey = tuple[str, int]

# Called after each step of the transformer with its rows and its seconds.
StepObserver = Callable[[int, float], None]


@dataclass(frozen=True, slots=True)
class ImageTask:
    """One image of a job.

    Attributes
    ----------
    job_id, index : the job, and which of its images
    spec : what to draw
    """

    job_id: str
    index: int
    spec: ImageSpec

    @property
    def key(self) -> TaskKey:
        """What identifies the task in an engine."""
        return self.job_id, self.index

    @property
    def num_rows(self) -> int:
        """Rows of the batch that it occupies."""
        return 1 if self.spec.cfg_scale == 1.0 else 2


@dataclass(frozen=True, slots=True)
class FinishedImage:
    """A task whose every position is drawn.

    Attributes
    ----------
    task : which
    codes : int64 (L,), on the CPU
    entropies : float32 (L,), bits, on the CPU
    prefill_seconds : until the first position was drawn
    decode_seconds : the rest
    code_seconds : part of both that turned clusters into codes
    """

    task: ImageTask
    codes: Tensor
    entropies: Tensor
    prefill_seconds: float
    decode_seconds: float
    code_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class FailedImage:
    """A task that has no image; others are not concerned."""

    task: ImageTask
    error: EngineError


class Engine(Protocol):
    """Runs image tasks. Used by one thread."""

    @property
    def capacity_rows(self) -> int:
        """Rows that fit in the batch, at least two."""

    @property
    def free_rows(self) -> int:
        """Rows that `add` can still take."""

    def add(self, task: ImageTask) -> None:
        """Take a task that fits in `free_rows`.

        Raises
        ------
        ValueError : it does not fit, or its key is here already
        """

    def cancel(self, key: TaskKey) -> None:
        """Forget a task; nothing happens when it is not here."""

    def step(self) -> Sequence[FinishedImage | FailedImage]:
        """Move the tasks on, and hand out those that came to their end; they are gone then.

        After an exception the tasks are still here, for the caller to cancel.
        """
