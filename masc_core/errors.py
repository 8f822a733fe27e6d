"""Every error that a user, a file or the network can cause, in one hierarchy.

::

    MascError
    ├── ConfigError              a setting or a training configuration is wrong
    │   └── DivergedError        training left the finite numbers
    ├── ArtifactError            a file is missing, damaged or of the wrong kind
    ├── RequestError             what a client asked for cannot be done
    │   ├── InvalidFieldError    a field has a value outside its range
    │   ├── UnknownClassError    no class of that id or name
    │   └── UnknownModelError    no model of that name
    ├── CapacityError            not now
    │   ├── QueueFullError       the queue is at its limit
    │   └── NoWorkerError        no worker is ready
    └── EngineError              generation itself failed
        └── NonFiniteError       the model produced a NaN or an infinity

This module does not know how an error is shown: the server maps the leaves to HTTP and the
command line to exit statuses.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike


class MascError(Exception):
    """Base of every error that this project raises on purpose."""


class ConfigError(MascError):
    """A setting or a training configuration is wrong."""


class DivergedError(ConfigError):
    """Training left the finite numbers, most often because the learning rate is too high."""


class ArtifactError(MascError):
    """A file is missing, damaged or of the wrong kind.

    Parameters
    ----------
    path : path of the file
    reason : what is wrong with it, as the rest of a sentence
    """

    def __init__(self, path: str | PathLike[str], reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason


class RequestError(MascError):
    """What a client asked for cannot be done.

    Parameters
    ----------
    field : name of the request's field at fault
    message : what is wrong with it
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class InvalidFieldError(RequestError):
    """A field has a value outside its range, or one that this model does not offer."""


class UnknownClassError(RequestError):
    """The model has no class of that id or name."""


class UnknownModelError(RequestError):
    """The service has no model of that name."""


class CapacityError(MascError):
    """The service cannot take the work now.

    Parameters
    ----------
    message : why
    retry_after : seconds after which a new try is worth while
    """

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class QueueFullError(CapacityError):
    """The queue is at its limit."""


class NoWorkerError(CapacityError):
    """No worker is ready."""


class EngineError(MascError):
    """Generation itself failed."""


class NonFiniteError(EngineError):
    """The model produced a NaN or an infinity.

    Parameters
    ----------
    message : what was not finite
    indices : places in the batch of the images at fault; the others can be made without them
    """

    def __init__(self, message: str, indices: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.indices = tuple(indices)
