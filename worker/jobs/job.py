"""What travels through the queue: a job, its result, and what went wrong.

A job is complete: everything that was optional in the HTTP request has been resolved, so that its
images depend on nothing but the model's weights and the job itself.
This module knows neither HTTP nor torch.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field

from masc_core.errors import ArtifactError, EngineError, MascError, RequestError
from masc_core.images import ImageFormat
from masc_core.manifest import Decoding

MAX_SEED = 2**63 - 1


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A fully resolved request for images of one class.

    Image ``i`` uses the seed ``(seed + i) mod 2**63``. ``version`` is that of the model against
    which names and defaults were resolved; empty if any will do.
    """

    model: str
    class_id: int
    cfg_scale: float
    seed: int
    num_images: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    decoding: Decoding = "uniform"
    format: ImageFormat = "png"
    version: str = ""

    @property
    def num_rows(self) -> int:
        """Rows of the transformer's batch that this request occupies: two an image when guided."""
        return self.num_images * (1 if self.cfg_scale == 1.0 else 2)

    def image_seed(self, index: int) -> int:
        """Seed of image ``index``."""
        return (self.seed + index) & MAX_SEED


@dataclass(frozen=True, slots=True)
class Job:
    """A request in the queue.

    ``submitted_at`` is seconds since the epoch, so that processes on one clock can compare it.
    """

    request: GenerationRequest
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    submitted_at: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True)
class ImageOutput:
    """One finished image.

    Attributes
    ----------
    data : the encoded file
    seed : the seed that alone reproduces this image
    entropies : bits, one per position, of the guided distribution
    entropy_bits : their mean
    entropy_ratio : ``entropy_bits`` over ``log2(K)``
    """

    data: bytes
    seed: int
    entropies: tuple[float, ...]
    entropy_bits: float
    entropy_ratio: float


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds spent in each stage; ``total`` runs from submission to the encoded images."""

    queue: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    vq_decode: float = 0.0
    encode: float = 0.0
    total: float = 0.0


@dataclass(frozen=True, slots=True)
class JobResult:
    """The images of a job, and the model version that made them."""

    images: tuple[ImageOutput, ...]
    model: str
    version: str
    weights_sha256: str
    timings: Timings


@dataclass(frozen=True, slots=True)
class JobFailure:
    """Why a job ended without images.

    ``error`` is the class name of a ``MascError``, ``message`` its text: an exception that can
    cross a process boundary. ``field`` names the request's field at fault, where there is one.
    """

    error: str
    message: str
    field: str = ""

    @classmethod
    def of(cls, error: Exception) -> JobFailure:
        """Describe an error; one that nobody foresaw becomes an `EngineError` without its text."""
        match error:
            case RequestError():
                return cls(type(error).__name__, str(error), error.field)
            case ArtifactError():
                return cls(type(error).__name__, error.reason, error.path)
            case MascError():
                return cls(type(error).__name__, str(error))
            case _:
                return cls(EngineError.__name__, "the generation failed unexpectedly")

    def to_error(self) -> MascError:
        """Build the error that this describes; an unknown name is taken for an `EngineError`."""
        kind = next((known for known in _error_classes() if known.__name__ == self.error), None)
        if kind is None:
            return EngineError(self.message)
        if issubclass(kind, RequestError | ArtifactError):
            return kind(self.field, self.message)
        return kind(self.message)


Outcome = JobResult | JobFailure


def _error_classes(base: type[MascError] = MascError) -> Iterator[type[MascError]]:
    yield base
    for child in base.__subclasses__():
        yield from _error_classes(child)


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """What a worker announces of itself.

    A worker is ready once a warm-up image has come out of the model it serves.
    """

    worker_id: str
    ready: bool
    model: str = ""
    version: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class QueueStats:
    """State of the queue.

    Attributes
    ----------
    depth : jobs that wait for a worker
    oldest_age : seconds since the oldest of them was submitted, 0 when none waits
    drain_rate : jobs finished per second of late, 0 when unknown
    """

    depth: int
    oldest_age: float
    drain_rate: float
