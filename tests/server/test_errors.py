from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from masc_core.errors import (
    ArtifactError,
    ConfigError,
    MascError,
    NoWorkerError,
    QueueFullError,
    RateLimitError,
    UnknownClassError,
)
from server.errors import (
    PROBLEM_TYPES,
    FieldProblem,
    InvalidBodyError,
    problem,
    problem_type_of,
    response_to,
)


def classes_below(base: type[MascError]) -> Iterator[type[MascError]]:
    yield base
    for child in base.__subclasses__():
        if child.__module__ == base.__module__:
            yield from classes_below(child)


@pytest.mark.parametrize("error", list(classes_below(MascError)))
def test_every_error_has_its_place_in_the_table(error: type[MascError]) -> None:
    assert error in PROBLEM_TYPES


def test_only_capacity_and_faults_of_ours_are_5xx() -> None:
    statuses = {error.__name__: kind.status for error, kind in PROBLEM_TYPES.items()}
    assert statuses == {
        "MascError": 500,
        "ConfigError": 500,
        "DivergedError": 500,
        "ArtifactError": 500,
        "StorageDownError": 503,
        "RequestError": 422,
        "InvalidFieldError": 422,
        "UnknownClassError": 404,
        "UnknownModelError": 404,
        "VersionRefusedError": 409,
        "UnknownJobError": 404,
        "ResultGoneError": 410,
        "IdempotencyConflictError": 409,
        "JobEndedError": 410,
        "JobCancelledError": 410,
        "DeadlineError": 504,
        "AccessError": 403,
        "UnauthorizedError": 401,
        "ForbiddenError": 403,
        "CapacityError": 503,
        "QueueFullError": 503,
        "ShareExceededError": 429,
        "QueueDownError": 503,
        "DrainingError": 503,
        "NoWorkerError": 503,
        "RateLimitError": 429,
        "EngineError": 500,
        "NonFiniteError": 500,
        "PoisonJobError": 500,
    }


def test_a_class_that_is_new_is_shown_as_its_base() -> None:
    class LaneFullError(QueueFullError):
        pass

    assert problem_type_of(LaneFullError("later")) is PROBLEM_TYPES[QueueFullError]


def document(response_body: bytes | memoryview) -> dict[str, object]:
    parsed = json.loads(bytes(response_body))
    assert isinstance(parsed, dict)
    return parsed


def test_a_request_error_names_its_field() -> None:
    response = response_to(UnknownClassError("class_id", "no class 9"))
    assert response.status_code == 404
    assert response.media_type == "application/problem+json"
    assert document(response.body) == {
        "type": "urn:masc:problem:unknown-class",
        "title": "The model has no such class",
        "status": 404,
        "detail": "no class 9",
        "errors": [{"field": "class_id", "message": "no class 9"}],
    }


@pytest.mark.parametrize(("seconds", "header"), [(1.0, "1"), (2.01, "3"), (120.0, "120")])
def test_retry_after_is_in_whole_seconds_and_never_early(seconds: float, header: str) -> None:
    for kind in (QueueFullError, NoWorkerError, RateLimitError):
        error = kind("later", seconds)
        assert response_to(error).headers["retry-after"] == header


@pytest.mark.parametrize(
    "error",
    [ArtifactError("/srv/models/x", "is truncated"), ConfigError("/srv"), ValueError("/srv")],
)
def test_what_concerns_the_operator_stays_in_the_log(error: Exception) -> None:
    response = response_to(error)
    assert response.status_code == 500
    assert b"/srv" not in response.body


def test_the_errors_of_http_itself() -> None:
    refused = response_to(HTTPException(405, headers={"Allow": "POST"}))
    assert refused.headers["allow"] == "POST"
    assert document(refused.body)["type"] == "about:blank"
    assert document(refused.body)["title"] == "Method Not Allowed"
    assert document(response_to(HTTPException(404)).body)["detail"] != "Not Found"
    assert document(response_to(HTTPException(404, "no such file")).body)["detail"] == (
        "no such file"
    )
    assert response_to(ClientDisconnect()).status_code == 499


def test_a_document_stays_short_and_encodable_whatever_was_sent() -> None:
    errors = [FieldProblem("\ud800" + "x" * 10_000, "is wrong") for _ in range(1000)]
    response = response_to(InvalidBodyError(errors))
    shown = document(response.body)["errors"]
    assert isinstance(shown, list)
    assert len(shown) == 20
    assert shown[0]["field"] == "?" + "x" * 99
    long = response_to(InvalidBodyError([FieldProblem("a", "x" * 10**6)] * 100))
    assert len(long.body) < 25_000
    assert len(problem(404, "x" * 10**6).body) < 1200
    assert len(response.body) < 10_000


def test_a_status_without_a_phrase() -> None:
    assert document(problem(599, "what").body)["title"] == "Error"
