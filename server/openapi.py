"""The description of the interface: what FastAPI cannot see by itself.

Bodies are read by our own strict parser and errors are built by our own table, so both are added
here. The examples of errors are made by the code that makes the errors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from masc_core.errors import (
    NonFiniteError,
    NoWorkerError,
    QueueFullError,
    UnknownClassError,
    UnknownModelError,
)
from server.problems import INVALID, KINDS, MEDIA_TYPE, FieldError, Kind, problem
from server.schemas import GenerateBody, Problem

REF = "#/components/schemas/{model}"
Responses = dict[int | str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Sample:
    """One error as an example: what `problem` takes, and which headers come with it."""

    kind: Kind | int
    detail: str
    errors: Sequence[FieldError] = ()
    retry: bool = False

    @property
    def status(self) -> int:
        """Its HTTP status."""
        return self.kind if isinstance(self.kind, int) else self.kind.status

    def document(self) -> Any:  # noqa: ANN401 - JSON
        """The document as it is sent."""
        return json.loads(bytes(problem(self.kind, self.detail, self.errors).body))


def _request_sample(kind: Kind, field: str, message: str) -> Sample:
    return Sample(kind, message, [FieldError(field, message)])


SAMPLES: Mapping[str, Sample] = {
    "invalid": Sample(
        INVALID,
        "cfg_scale: must be less than or equal to 20",
        [FieldError("cfg_scale", "must be less than or equal to 20")],
    ),
    "unknown-class": _request_sample(
        KINDS[UnknownClassError], "class_id", "tiny has classes 0 to 49"
    ),
    "unknown-model": _request_sample(KINDS[UnknownModelError], "model", "there is no model 'huge'"),
    "too-slow": Sample(408, "the body has to be there within 20 seconds"),
    "too-large": Sample(413, "the body may have at most 65536 bytes"),
    "not-json": Sample(415, "send the body with Content-Type: application/json"),
    "non-finite": Sample(KINDS[NonFiniteError], "position 12 has a NaN among its logits"),
    "queue-full": Sample(
        KINDS[QueueFullError], "256 jobs wait already, no more are taken", retry=True
    ),
    "no-worker": Sample(KINDS[NoWorkerError], "no worker has announced itself", retry=True),
    "timed-out": Sample(504, "no image within 300 seconds"),
}

RETRY_AFTER = {
    "Retry-After": {
        "description": "Seconds after which a new try is worth while.",
        "schema": {"type": "integer", "minimum": 1},
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
        if sample.retry:
            response["headers"] = RETRY_AFTER
    return responses


def json_request(model: type[BaseModel], examples: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a body that `server.json_body` reads."""
    content = {
        "schema": {"$ref": REF.format(model=model.__name__)},
        "examples": {name: {"value": value} for name, value in examples.items()},
    }
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def document(app: FastAPI) -> dict[str, Any]:
    """OpenAPI document of an application."""
    description = app.openapi()
    schemas = description.setdefault("components", {}).setdefault("schemas", {})
    _, ours = models_json_schema(
        [(GenerateBody, "validation"), (Problem, "serialization")], ref_template=REF
    )
    schemas.update(ours["$defs"])
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    for path in description["paths"].values():
        for operation in path.values():
            invalid = operation["responses"].get("422", {})
            if MEDIA_TYPE not in invalid.get("content", {}):
                operation["responses"].pop("422", None)
    return description
