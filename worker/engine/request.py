"""What an engine is asked for, and its outputs.

Legend: L positions of an image, n of them that are drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from masc_core.images import ImageFormat
from masc_core.sampling.params import SamplingParams

TaskKey = tuple[str, int]


@dataclass(frozen=True, slots=True)
class ImageTask:
    """One image of a job."""

    job_id: str
    index: int  # which of the job's images
    params: SamplingParams
    preview_rows: tuple[int, ...] = ()  # of the grid, after each of which there is a `PartialImage`
    format: ImageFormat = "png"  # of the file that is made of it afterwards

    @property
    def key(self) -> TaskKey:
        """What identifies the task in an engine."""
        return self.job_id, self.index

    @property
    def batch_rows(self) -> int:
        """Rows of the batch that it occupies."""
        return self.params.batch_rows


@dataclass(frozen=True, slots=True)
class PartialImage:
    """A task of which some rows of the grid are drawn; codes : int64 (n,), theirs, on the CPU."""

    task: ImageTask
    grid_rows: int
    codes: Tensor


@dataclass(frozen=True, slots=True)
class FinishedImage:
    """A task whose every position is drawn."""

    task: ImageTask
    codes: Tensor  # int64 (L,), on the CPU
    entropies: Tensor  # float32 (L,), bits, on the CPU
    cluster_entropies: Tensor  # likewise of the partition's clusters; (0,) without one
    prefill_seconds: float  # until the first position was drawn
    decode_seconds: float  # the rest
    code_seconds: float = 0.0  # of both, in which the whole batch turned clusters into codes


@dataclass(frozen=True, slots=True)
class FailedImage:
    """A task that has no image; others go on."""

    task: ImageTask
    error: BaseException


EngineOutput = PartialImage | FinishedImage | FailedImage
