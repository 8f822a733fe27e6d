"""How a job ends: with its images, or with the reason why there are none."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from masc_core.errors import (
    ArtifactError,
    CapacityError,
    DeadlineError,
    EngineError,
    JobCancelledError,
    JobEndedError,
    MascError,
    RequestError,
)

EndState = Literal["ok", "error", "cancelled", "expired"]


@dataclass(frozen=True, slots=True)
class ImageOutput:
    """One finished image."""

    data: bytes  # the encoded file
    seed: int  # that alone reproduces this image
    entropies: tuple[float, ...]  # bits, one per position, of the guided distribution
    entropy_bits: float  # their mean
    entropy_ratio: float  # ``entropy_bits`` over ``log2(K)``
    # The same of the clusters of a partition of the model; empty where it has none.
    cluster_entropies: tuple[float, ...] = ()
    cluster_entropy_bits: float = 0.0
    cluster_entropy_ratio: float = 0.0


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds spent in each stage; ``total`` runs from submission to the encoded images."""

    queue: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    vq_decode: float = 0.0
    encode: float = 0.0
    total: float = 0.0
    complete: float = 0.0  # between ``decode`` and ``vq_decode``; 0 where nothing is completed

    def by_stage(self) -> dict[str, float]:
        """Seconds by the name of their stage; ``complete`` only where images were completed."""
        seconds_of = dataclasses.asdict(self)
        return {name: s for name, s in seconds_of.items() if name != "complete" or s}


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
    """Why a job ended without images: an exception that can cross a process boundary."""

    error: str  # class name of a `MascError`
    message: str  # its text
    field: str = ""  # the request's field at fault, where there is one

    @classmethod
    def of(cls, error: BaseException) -> JobFailure:
        """Describe an error; an unexpected one becomes an `EngineError` without its text."""
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

CANCELLED = JobFailure(JobCancelledError.__name__, "the job was cancelled")
EXPIRED = JobFailure(DeadlineError.__name__, "the job's time was up before its images were there")


def end_state(outcome: Outcome) -> EndState:
    """Return the state in which an outcome leaves its job."""
    if isinstance(outcome, JobResult):
        return "ok"
    states: dict[str, EndState] = {CANCELLED.error: "cancelled", EXPIRED.error: "expired"}
    return states.get(outcome.error, "error")


def releases_idempotency_key(outcome: Outcome) -> bool:
    """Whether a retry under the same idempotency key should run again."""
    if isinstance(outcome, JobResult):
        return False
    return isinstance(outcome.to_error(), JobEndedError | CapacityError)


def _error_classes(base: type[MascError] = MascError) -> Iterator[type[MascError]]:
    yield base
    for child in base.__subclasses__():
        yield from _error_classes(child)
