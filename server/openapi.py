"""The OpenAPI document: FastAPI's, with the bodies and errors that it cannot see.

Bodies are read by `server.intake.json_body` and errors built by `server.errors`. The examples of
errors are made by the code that makes the errors.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from masc_core import errors
from server.errors import MEDIA_TYPE, PROBLEM_TYPES, FieldProblem, ProblemType, problem

REF = "#/components/schemas/{model}"
Responses = dict[int | str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Sample:
    """One error as an example: its class or bare status, its text, whether to try again."""

    error: type[errors.MascError] | int
    detail: str
    fields: Sequence[FieldProblem] = ()
    retry: bool = False

    @property
    def kind(self) -> ProblemType | int:
        """What `problem` takes."""
        return self.error if isinstance(self.error, int) else PROBLEM_TYPES[self.error]

    @property
    def status(self) -> int:
        """Its HTTP status."""
        return self.kind if isinstance(self.kind, int) else self.kind.status

    @property
    def headers(self) -> dict[str, Any]:
        """Descriptions of the headers that come with it."""
        if self.retry:
            return RETRY_AFTER
        return CHALLENGE if self.status == 401 else {}

    def document(self) -> Any:  # noqa: ANN401 - JSON
        """The document as it is sent."""
        return json.loads(bytes(problem(self.kind, self.detail, self.fields).body))


def _request_sample(error: type[errors.RequestError], field: str, message: str) -> Sample:
    return Sample(error, message, [FieldProblem(field, message)])


SAMPLES: Mapping[str, Sample] = {
    "invalid": Sample(
        errors.InvalidFieldError,
        "cfg_scale: must be less than or equal to 20",
        [FieldProblem("cfg_scale", "must be less than or equal to 20")],
    ),
    "unknown-class": _request_sample(
        errors.UnknownClassError, "class_id", "tiny has classes 0 to 49"
    ),
    "unknown-model": _request_sample(errors.UnknownModelError, "model", "there is no model 'huge'"),
    "no-codebook": Sample(404, "cifar10 1 was published without pictures of its codebook"),
    "other-version": Sample(409, "cifar10 is served in version 2 now"),
    "no-key": Sample(errors.UnauthorizedError, "this service wants an API key"),
    "forbidden": Sample(errors.ForbiddenError, "this key is not an admin's"),
    "batch-only": Sample(errors.ForbiddenError, "this key may ask for the priority batch alone"),
    "no-keys": Sample(
        errors.ForbiddenError, "without keys nobody's jobs can be told from another's"
    ),
    "unknown-job": _request_sample(errors.UnknownJobError, "id", "there is no job '0c3c8a4c'"),
    "result-gone": _request_sample(
        errors.ResultGoneError, "id", "the images of job '0c3c8a4c' are kept no longer"
    ),
    "conflict": _request_sample(
        errors.IdempotencyConflictError,
        "Idempotency-Key",
        "the idempotency key was used for another request",
    ),
    "cancelled": Sample(errors.JobCancelledError, "the job was cancelled"),
    "too-slow": Sample(408, "the body has to be there within 20 seconds"),
    "too-large": Sample(413, "the body may have at most 65536 bytes"),
    "not-json": Sample(415, "send the body with Content-Type: application/json"),
    "non-finite": Sample(errors.NonFiniteError, "position 12 has a NaN among its logits"),
    "rate-limit": Sample(
        errors.RateLimitError, "this key may start 60 requests a minute", retry=True
    ),
    "version-refused": _request_sample(
        errors.VersionRefusedError, "version", "weights.safetensors is not as published"
    ),
    "queue-down": Sample(errors.QueueDownError, "the queue cannot be reached", retry=True),
    "storage-down": Sample(
        errors.StorageDownError, "the operator finds the cause in the log of the service"
    ),
    "queue-full": Sample(
        errors.QueueFullError, "256 jobs wait already, no more are taken", retry=True
    ),
    "share-exceeded": Sample(
        errors.ShareExceededError, "128 jobs of this client wait already", retry=True
    ),
    "no-worker": Sample(errors.NoWorkerError, "no worker has announced itself", retry=True),
    "draining": Sample(errors.DrainingError, "this server is about to stop", retry=True),
    "timed-out": Sample(errors.DeadlineError, "no image within 300 seconds"),
}

# Errors of every route that starts work, and those of one that also waits for the result.
SUBMIT_ERRORS = (
    "no-key",
    "batch-only",
    "unknown-class",
    "unknown-model",
    "too-slow",
    "conflict",
    "result-gone",
    "too-large",
    "not-json",
    "invalid",
    "share-exceeded",
    "rate-limit",
    "queue-full",
    "no-worker",
    "draining",
    "queue-down",
)
WAIT_ERRORS = ("cancelled", "non-finite", "timed-out")

RETRY_AFTER = {
    "Retry-After": {
        "description": "Seconds after which a new try is worth while.",
        "schema": {"type": "integer", "minimum": 1},
    }
}
CHALLENGE = {
    "WWW-Authenticate": {
        "description": "How to send a key.",
        "schema": {"type": "string", "const": "Bearer"},
    }
}


def problems(*names: str) -> Responses:
    """Describe the errors of a route by the names of their samples."""
    responses: Responses = {}
    for name in names:
        sample = SAMPLES[name]
        response = responses.setdefault(
            sample.status,
            {"content": {MEDIA_TYPE: {"schema": {"$ref": REF.format(model="Problem")}}}},
        )
        document = sample.document()
        examples = response["content"][MEDIA_TYPE].setdefault("examples", {})
        examples[name] = {"summary": document["title"], "value": document}
        response.setdefault("description", document["title"])
        if sample.headers:
            response["headers"] = sample.headers
    return responses


def json_request(model: type[BaseModel], examples: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a body that `server.intake.json_body` reads."""
    content = {
        "schema": {"$ref": REF.format(model=model.__name__)},
        "examples": {name: {"value": value} for name, value in examples.items()},
    }
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def event_stream(events: Mapping[str, type[BaseModel]], example: str) -> dict[str, Any]:
    """Describe a stream of events; the schemas of its data are an extension, ``x-events``."""
    return {
        "schema": {"type": "string", "description": "Server-sent events; their data are JSON."},
        "x-events": {
            name: {"$ref": REF.format(model=data.__name__)} for name, data in events.items()
        },
        "example": example,
    }


def described_headers(texts: Mapping[str, str]) -> dict[str, Any]:
    """Describe the headers of an answer, all of them text."""
    return {
        name: {"description": text, "schema": {"type": "string"}} for name, text in texts.items()
    }


def document(
    app: FastAPI, bodies: Iterable[type[BaseModel]], streamed: Iterable[type[BaseModel]]
) -> dict[str, Any]:
    """OpenAPI document of an application.

    Parameters
    ----------
    app : with all its routes
    bodies, streamed : models of requests and of events, which no route has in its signature
    """
    description = app.openapi()
    schemas = description.setdefault("components", {}).setdefault("schemas", {})
    models: list[tuple[type[BaseModel], JsonSchemaMode]] = [
        *((body, "validation") for body in bodies),
        *((data, "serialization") for data in streamed),
    ]
    _, schemas_of_models = models_json_schema(models, ref_template=REF)
    schemas.update(schemas_of_models["$defs"])
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    for path, operations in description["paths"].items():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                _drop_null(parameter["schema"])
            invalid = operation["responses"].get("422", {})
            if MEDIA_TYPE not in invalid.get("content", {}):
                operation["responses"].pop("422", None)
            # Below /admin a key is needed; elsewhere a service without keys wants none, and an
            # admin's only shows more.
            if "security" in operation and not path.startswith("/admin/"):
                operation["security"].append({})
    return description


def _drop_null(schema: dict[str, Any]) -> None:
    """A parameter may be absent, but is never null: it is sent as text."""
    kinds = schema.pop("anyOf", [])
    for kind in kinds:
        if kind != {"type": "null"}:
            schema.update(kind)
