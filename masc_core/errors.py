"""Every error that a user, a file or the network can cause, in one hierarchy.

::

    MascError
    ├── ConfigError ─── DivergedError
    ├── ArtifactError ─ StorageDownError
    ├── RequestError ── InvalidFieldError, UnknownClassError, UnknownModelError,
    │                   VersionRefusedError, UnknownJobError, ResultGoneError,
    │                   IdempotencyConflictError
    ├── AccessError ─── UnauthorizedError, ForbiddenError
    ├── JobEndedError ─ JobCancelledError, DeadlineError
    ├── CapacityError ─ QueueFullError, ShareExceededError, QueueDownError, DrainingError,
    │                   NoWorkerError, RateLimitError
    └── EngineError ─── NonFiniteError, PoisonJobError
"""

from __future__ import annotations

from os import PathLike

from masc_core.escapes import shorten


class MascError(Exception):
    """Base of every error that this project raises on purpose; long messages are cut."""

    def __init__(self, message: str = "") -> None:
        super().__init__(shorten(message))


class ConfigError(MascError):
    """A setting or a training configuration is wrong."""


class DivergedError(ConfigError):
    """Training left the finite numbers, most often because the learning rate is too high."""


class ArtifactError(MascError):
    """A file is missing, damaged or of the wrong kind; ``reason`` is the rest of a sentence."""

    def __init__(self, path: str | PathLike[str], reason: str) -> None:
        self.path = str(path)
        self.reason = shorten(reason)
        super().__init__(f"{path}: {self.reason}")


class StorageDownError(ArtifactError):
    """The object storage of the models cannot be reached now, which says nothing of its files."""


class RequestError(MascError):
    """What a client asked for cannot be done; ``field`` is the request's that is at fault."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class InvalidFieldError(RequestError):
    """A field has a value outside its range, or one that this model does not offer."""


class UnknownClassError(RequestError):
    """The model has no class of that id or name."""


class UnknownModelError(RequestError):
    """The service has no model of that name."""


class VersionRefusedError(RequestError):
    """The version of a model cannot be served."""


class UnknownJobError(RequestError):
    """The service has no job of that id, or not any more."""


class ResultGoneError(RequestError):
    """The job has ended, and its outcome is kept no longer."""


class IdempotencyConflictError(RequestError):
    """The idempotency key was used before, for another request."""


class JobEndedError(MascError):
    """A job ended before its images were there."""


class JobCancelledError(JobEndedError):
    """Somebody cancelled the job."""


class DeadlineError(JobEndedError):
    """The time that the job was given is up."""


class AccessError(MascError):
    """The caller is not authorised; the message never holds a key."""


class UnauthorizedError(AccessError):
    """No key was given, or an unknown one."""


class ForbiddenError(AccessError):
    """The key does not grant this, or the route is closed to all."""


class CapacityError(MascError):
    """The service cannot take the work now; try again in ``retry_after`` seconds."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class QueueFullError(CapacityError):
    """The queue is at its limit."""


class ShareExceededError(CapacityError):
    """The share of the queue that a client may take is taken."""


class QueueDownError(CapacityError):
    """The queue cannot be reached."""


class DrainingError(CapacityError):
    """The front end is about to stop, and takes no more work."""


class NoWorkerError(CapacityError):
    """No worker is ready."""


class RateLimitError(CapacityError):
    """A client asks more often than it may."""


class EngineError(MascError):
    """Generation itself failed."""


class NonFiniteError(EngineError):
    """The model produced a NaN or an infinity."""


class PoisonJobError(EngineError):
    """Workers were lost while they ran the job, again and again: it is not tried any more."""
