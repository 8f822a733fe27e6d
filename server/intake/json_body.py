"""Validation of request bodies: from bytes to a pydantic model; errors name the field.

JSON is strict: UTF-8, one object, each name once. Python's extensions ``NaN`` and ``Infinity`` are
parsed, so that the model can refuse them by field.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from masc_core.escapes import quoted
from server.errors import FieldProblem, InvalidBodyError, field_message

Model = TypeVar("Model", bound=BaseModel)

# Longer integers are out of every range, and slow or impossible to convert.
MAX_DIGITS = 30
TOO_LARGE = 10**30

MESSAGES = {
    "extra_forbidden": "there is no such field",
    "finite_number": "must be a finite number",
    "missing": "is required",
}


def json_body(model: type[Model]) -> Callable[[Request], Awaitable[Model]]:
    """Make the dependency that reads a request's body as ``model``.

    Raises
    ------
    InvalidBodyError : not such a body
    HTTPException : 415, a body that does not say that it is JSON. Browsers let any page send other
        types here without asking first, so this also keeps foreign pages out. Or a compressed one
    """

    async def read(request: Request) -> Model:
        body = await request.body()
        encoding = request.headers.get("content-encoding", "identity").strip().lower()
        if encoding != "identity":
            detail = f"Content-Encoding {quoted(encoding)} is not supported: send the body as it is"
            raise HTTPException(415, detail, headers={"Accept-Encoding": "identity"})
        if body and not is_json(request.headers.get("content-type", "")):
            raise HTTPException(415, "send the body with Content-Type: application/json")
        return validate(model, parse_object(body))

    return read


def is_json(content_type: str) -> bool:
    """Whether a Content-Type names JSON or something built on it."""
    media_type = content_type.partition(";")[0].strip().lower()
    return media_type == "application/json" or (
        media_type.startswith("application/") and media_type.endswith("+json")
    )


def parse_object(body: bytes) -> dict[str, Any]:
    """Parse one JSON object; `InvalidBodyError` for anything else, or a name that comes twice."""
    if not body.strip():
        raise _whole_body("is empty, a JSON object is needed")
    try:
        document = json.loads(
            body.decode("utf-8-sig"),  # some clients begin with a byte order mark
            parse_int=_parse_int,
            parse_float=_parse_float,
            object_pairs_hook=_unique_names,
        )
    except UnicodeDecodeError as error:
        raise _whole_body(f"is not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise _whole_body(f"is not JSON: {error.msg} at {where}") from error
    except RecursionError as error:
        raise _whole_body("is nested too deeply") from error
    if not isinstance(document, dict):
        raise _whole_body("must be a JSON object")
    return document


def validate(model: type[Model], document: dict[str, Any]) -> Model:
    """Check a parsed object against a model; `InvalidBodyError` has an entry for each fault."""
    try:
        return model.model_validate(document)
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False, include_input=False)
        raise InvalidBodyError(
            [
                FieldProblem(
                    ".".join(str(part) for part in detail["loc"]) or "body",
                    MESSAGES.get(detail["type"], field_message(detail["msg"])),
                )
                for detail in details
            ]
        ) from error


def _parse_int(text: str) -> int:
    if len(text) <= MAX_DIGITS:
        return int(text)
    return -TOO_LARGE if text.startswith("-") else TOO_LARGE


def _parse_float(text: str) -> float | int:
    """A number without a fraction is an integer, as in JSON Schema, however it is written."""
    if len(text) <= MAX_DIGITS:
        exact = Decimal(text)  # a float would round a large seed to another one
        if exact == exact.to_integral_value() and exact.copy_abs() < TOO_LARGE:
            return int(exact)
    return float(text)


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise InvalidBodyError([FieldProblem(twice, "is given more than once")])
    return names


def _whole_body(message: str) -> InvalidBodyError:
    return InvalidBodyError([FieldProblem("body", message)])
