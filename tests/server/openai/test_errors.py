from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.exceptions import HTTPException

from masc_core.errors import (
    ArtifactError,
    IdempotencyConflictError,
    QueueFullError,
    ShareExceededError,
    UnknownClassError,
    UnknownModelError,
)
from server.errors import FieldProblem, InvalidBodyError
from server.openai.errors import openai_response
from tests.server.service import Service


def answer(error: Exception) -> tuple[int, dict[str, Any]]:
    response = openai_response(error)
    assert response.media_type == "application/json"
    document = json.loads(bytes(response.body))
    assert set(document) == {"error"}
    return response.status_code, document["error"]


@pytest.mark.parametrize(
    ("error", "status", "kind", "param", "code"),
    [
        (UnknownClassError("class_name", "m"), 404, "invalid_request_error", "prompt", "class"),
        (UnknownModelError("model", "m"), 404, "invalid_request_error", "model", "model"),
        (QueueFullError("m", 3.0), 503, "server_error", None, "queue_full"),
        (ShareExceededError("m", 3.0), 429, "rate_limit_error", None, "share_exceeded"),
        (
            IdempotencyConflictError("Idempotency-Key", "m"),
            409,
            "invalid_request_error",
            "Idempotency-Key",
            "idempotency_conflict",
        ),
        (HTTPException(413, "m"), 413, "invalid_request_error", None, None),
    ],
)
def test_every_error_has_openai_s_form(
    error: Exception, status: int, kind: str, param: str | None, code: str | None
) -> None:
    if code in {"class", "model"}:
        code = f"unknown_{code}"
    assert answer(error) == (
        status,
        {"message": "m", "type": kind, "param": param, "code": code},
    )


def test_what_is_not_valid_is_400_and_names_openai_s_field() -> None:
    error = InvalidBodyError([FieldProblem("n", "is too much"), FieldProblem("size", "is too")])
    status, told = answer(error)
    assert (status, told["param"], told["type"]) == (400, "n", "invalid_request_error")
    assert told["message"] == "n: is too much; size: is too"


def test_what_concerns_the_operator_stays_in_the_log() -> None:
    status, told = answer(ArtifactError("/srv/models/x", "is truncated"))
    assert (status, told["type"], told["code"]) == (500, "server_error", "damaged_file")
    assert "/srv" not in told["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/images/generations", 405),
        ("POST", "/v1/chat/completions", 404),
        ("GET", "/v1/models/unknown", 404),
        ("GET", "/v1/", 404),
        ("GET", "/v1", 404),
    ],
)
def test_every_path_of_the_api_answers_in_its_form(
    service: Service, method: str, path: str, status: int
) -> None:
    answer = service.call(method, path)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert ("allow" in answer.headers) is (status == 405)


def test_paths_that_only_begin_alike_have_our_form(service: Service) -> None:
    assert service.get("/v10").json()["status"] == 404
