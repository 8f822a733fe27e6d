"""Errors as RFC 9457 problem documents: the one table from `MascError` to HTTP.

Each class of the hierarchy has a status, a slug that makes up its ``type``, and a title; what HTTP
itself has a word for (404 for a path, 405, 413, 415) is an ``about:blank`` problem.
Details of errors on our side go to the log, not to the client.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from masc_core.errors import (
    AccessError,
    ArtifactError,
    CapacityError,
    ConfigError,
    DeadlineError,
    DivergedError,
    DrainingError,
    EngineError,
    ForbiddenError,
    IdempotencyConflictError,
    InvalidFieldError,
    JobCancelledError,
    JobEndedError,
    MascError,
    NonFiniteError,
    NoWorkerError,
    PoisonJobError,
    QueueDownError,
    QueueFullError,
    RateLimitError,
    RequestError,
    ResultGoneError,
    ShareExceededError,
    StorageDownError,
    UnauthorizedError,
    UnknownClassError,
    UnknownJobError,
    UnknownModelError,
    VersionRefusedError,
)
from masc_core.escapes import shorten
from server.middleware.headers import SECURITY_HEADERS

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
CLIENT_CLOSED_REQUEST = 499
SEE_LOG = "the operator finds the cause in the log of the service"
ROUTER_DETAILS = {
    404: "there is nothing at this path",
    405: "this path does not take this method",
}
CHALLENGE = {"WWW-Authenticate": "Bearer"}
MAX_FIELD_ERRORS = 20
MAX_FIELD_LENGTH = 100


@dataclass(frozen=True, slots=True)
class ProblemType:
    """An RFC 9457 problem type."""

    status: int
    slug: str
    title: str

    @property
    def type(self) -> str:
        """The problem's ``type``, a URI."""
        return f"urn:masc:problem:{self.slug}"


MISCONFIGURED = ProblemType(500, "misconfigured", "The service is misconfigured")
DAMAGED = ProblemType(500, "damaged-file", "A file of the service is damaged")
FAILED = ProblemType(500, "generation-failed", "The generation failed")
INVALID = ProblemType(422, "invalid-request", "The request is not valid")
FORBIDDEN = ProblemType(403, "forbidden", "This is not open to you")
BUSY = ProblemType(503, "unavailable", "The service cannot take the request now")
ENDED = ProblemType(410, "job-ended", "The job has ended without images")

PROBLEM_TYPES: Mapping[type[MascError], ProblemType] = {
    MascError: FAILED,
    ConfigError: MISCONFIGURED,
    DivergedError: MISCONFIGURED,
    ArtifactError: DAMAGED,
    StorageDownError: ProblemType(
        503, "storage-down", "The storage of the models cannot be reached"
    ),
    RequestError: INVALID,
    InvalidFieldError: INVALID,
    UnknownClassError: ProblemType(404, "unknown-class", "The model has no such class"),
    UnknownModelError: ProblemType(404, "unknown-model", "There is no such model"),
    VersionRefusedError: ProblemType(409, "version-refused", "The version cannot be served"),
    UnknownJobError: ProblemType(404, "unknown-job", "There is no such job"),
    ResultGoneError: ProblemType(410, "result-gone", "The result is kept no longer"),
    IdempotencyConflictError: ProblemType(
        409, "idempotency-conflict", "The idempotency key was used for another request"
    ),
    JobEndedError: ENDED,
    JobCancelledError: ProblemType(410, "cancelled", "The job was cancelled"),
    DeadlineError: ProblemType(504, "deadline-passed", "The time for the request is up"),
    AccessError: FORBIDDEN,
    UnauthorizedError: ProblemType(401, "no-key", "An API key is needed"),
    ForbiddenError: FORBIDDEN,
    CapacityError: BUSY,
    QueueFullError: ProblemType(503, "queue-full", "The queue is full"),
    ShareExceededError: ProblemType(
        429, "share-exceeded", "The client's share of the queue is taken"
    ),
    QueueDownError: ProblemType(503, "queue-down", "The queue cannot be reached"),
    DrainingError: ProblemType(503, "draining", "The server is about to stop"),
    NoWorkerError: ProblemType(503, "no-worker", "No worker is ready"),
    RateLimitError: ProblemType(429, "rate-limit", "Too many requests"),
    EngineError: FAILED,
    NonFiniteError: ProblemType(
        500, "non-finite", "The model produced a number that is not finite"
    ),
    PoisonJobError: ProblemType(500, "gave-up", "Workers were lost with the job, again and again"),
}


@dataclass(frozen=True, slots=True)
class FieldProblem:
    """What is wrong with one field."""

    field: str  # "body" for all of it
    message: str


class Problem(BaseModel):
    """An error, as RFC 9457 has it."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[FieldProblem] | None = None


class InvalidBodyError(Exception):
    """The body of a request is not what its route takes."""

    def __init__(self, errors: Sequence[FieldProblem]) -> None:
        super().__init__(describe(errors))
        self.errors = errors


def problem_type_of(error: MascError) -> ProblemType:
    """Problem type of an error: that of its class or the nearest base."""
    return next(PROBLEM_TYPES[base] for base in type(error).__mro__ if base in PROBLEM_TYPES)


def field_message(message: str) -> str:
    """Turn pydantic's message into a phrase about the field."""
    return message.replace("Input should", "must", 1)


def describe(errors: Sequence[FieldProblem]) -> str:
    """Say in one sentence what is wrong."""
    return "; ".join(f"{e.field[:MAX_FIELD_LENGTH]}: {e.message}" for e in errors[:3])


def problem(
    kind: ProblemType | int,
    detail: str,
    errors: Sequence[FieldProblem] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Build the response; a bare status makes an ``about:blank`` problem."""
    if isinstance(kind, int):
        status, uri, title = kind, "about:blank", _phrase(kind)
    else:
        status, uri, title = kind.status, kind.type, kind.title
    document: dict[str, Any] = {"type": uri, "title": title, "status": status}
    document["detail"] = shorten(detail)
    if errors:
        document["errors"] = [
            {"field": e.field[:MAX_FIELD_LENGTH], "message": shorten(e.message)}
            for e in errors[:MAX_FIELD_ERRORS]
        ]
    content = json.dumps(document, ensure_ascii=False, allow_nan=False)
    # "replace": a client may have sent half of a surrogate pair, which no encoding can carry.
    return Response(content.encode("utf-8", "replace"), status, headers, MEDIA_TYPE)


def response_to(error: Exception) -> Response:
    """Answer with an exception's problem document; errors on our side are logged."""
    if isinstance(error, MascError) and problem_type_of(error).status == 500:
        logger.error("%s: %s", type(error).__name__, error)
    return _response(error)


def problem_document(error: Exception) -> dict[str, Any]:
    """The problem document of any exception, for use inside another answer."""
    document: dict[str, Any] = json.loads(bytes(_response(error).body))
    return document


def _response(error: Exception) -> Response:
    match error:
        case MascError():
            return _masc_error(error)
        case InvalidBodyError():
            return problem(INVALID, str(error), error.errors)
        case RequestValidationError():
            errors = [
                FieldProblem(str(e["loc"][-1]), field_message(e["msg"])) for e in error.errors()
            ]
            return problem(INVALID, describe(errors), errors)
        case HTTPException():
            return _http_error(error)
        case ClientDisconnect():
            return problem(CLIENT_CLOSED_REQUEST, "the client went away")
        case _:
            # Sent from outside of all middleware, so nobody else adds these.
            return problem(500, SEE_LOG, headers=SECURITY_HEADERS)


def _masc_error(error: MascError) -> Response:
    kind = problem_type_of(error)
    match error:
        case RequestError():
            return problem(kind, str(error), [FieldProblem(error.field, str(error))])
        case UnauthorizedError():
            return problem(kind, str(error), headers=CHALLENGE)
        case CapacityError():
            seconds = str(math.ceil(error.retry_after))
            return problem(kind, str(error), headers={"Retry-After": seconds})
        case AccessError() | JobEndedError() | EngineError():
            return problem(kind, str(error))
    return problem(kind, SEE_LOG)


def _http_error(error: HTTPException) -> Response:
    detail = error.detail
    if detail == _phrase(error.status_code):  # the router's own
        detail = ROUTER_DETAILS.get(error.status_code, detail)
    return problem(error.status_code, detail, headers=error.headers)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Client Closed Request" if status == CLIENT_CLOSED_REQUEST else "Error"
