"""Errors in OpenAI's form, made from our problem documents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse, Response

from masc_core.errors import RequestError
from server.errors import problem_document, response_to
from server.openai.schemas import OpenAIError, OpenAIErrorAnswer
from server.openapi import SAMPLES, Responses

PREFIX = "/v1"  # errors there have this form
INVALID_STATUS = 400
TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}
PARAMS = {  # our fields -> OpenAI's
    "class_id": "prompt",
    "class_name": "prompt",
    "num_images": "n",
    "format": "output_format",
}
OWN_HEADERS = frozenset({"content-length", "content-type"})


def openai_response(error: Exception) -> Response:
    """Answer with an error."""
    ours = response_to(error)
    headers = {name: text for name, text in ours.headers.items() if name not in OWN_HEADERS}
    return JSONResponse(openai_error(error).model_dump(), status_of(ours.status_code), headers)


def openai_error(error: Exception) -> OpenAIErrorAnswer:
    """The error, with the field under its name in OpenAI's API."""
    answer = _from_problem(problem_document(error))
    if isinstance(error, RequestError):
        answer.error.param = PARAMS.get(error.field, error.field)
    return answer


def status_of(status: int) -> int:
    """Status that clients of OpenAI's expect in place of one of ours."""
    return INVALID_STATUS if status == 422 else status


def openai_problems(*names: str) -> Responses:
    """Describe the errors of a route by the names of their samples."""
    responses: Responses = {}
    for name in names:
        sample = SAMPLES[name]
        document = sample.document()
        response = responses.setdefault(
            status_of(sample.status),
            {
                "model": OpenAIErrorAnswer,
                "description": document["title"],
                "content": {"application/json": {"examples": {}}},
            },
        )
        example = {"summary": document["title"], "value": _from_problem(document).model_dump()}
        response["content"]["application/json"]["examples"][name] = example
        if sample.headers:
            response["headers"] = sample.headers
    return responses


def _from_problem(document: Mapping[str, Any]) -> OpenAIErrorAnswer:
    fields = [error["field"] for error in document.get("errors", ())]
    _, _, slug = document["type"].rpartition("urn:masc:problem:")
    code = None if document["type"] == "about:blank" else slug.replace("-", "_")
    status = document["status"]
    return OpenAIErrorAnswer(
        error=OpenAIError(
            message=document["detail"],
            type=TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error"),
            param=fields[0] if fields else None,
            code=code,
        )
    )
