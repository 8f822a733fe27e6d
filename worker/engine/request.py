"""What an engine is asked for, and what it answers.

Legend: L positions of an image, n of them that are drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from masc_core.errors import EngineError
from masc_core.sampling.params import SamplingParams

TaskKey = tuple[str, int]


@dataclass(frozen=True, slots=True)
class ImageTask:
    """One image of a job.

    Attributes
    ----------
    job_id, index : the job, and which of its images
    params : what to draw
    preview_rows : rows of the grid after each of which what is drawn is handed out, all of them
        less than the grid's height
    """

    job_id: str
    index: int
    params: SamplingParams
    preview_rows: tuple[int, ...] = ()

    @property
    def key(self) -> TaskKey:
        """What identifies the task in an engine."""
        return self.job_id, self.index

    @property
    def num_rows(self) -> int:
        """Rows of the batch that it occupies."""
        return self.params.num_rows


@dataclass(frozen=True, slots=True)
class PartialImage:
    """A task on its way.

    Attributes
    ----------
    task : which
    rows : rows of the grid that are drawn
    codes : int64 (n,), theirs, on the CPU
    """

    task: ImageTask
    rows: int
    codes: Tensor


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
    code_seconds : part of both in which the batch turned clusters into codes
    """

    task: ImageTask
    codes: Tensor
    entropies: Tensor
    prefill_seconds: float
    decode_seconds: float
    code_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class FailedImage:
    """A task that has no image; others go on."""

    task: ImageTask
    error: EngineError


EngineOutput = PartialImage | FinishedImage | FailedImage
