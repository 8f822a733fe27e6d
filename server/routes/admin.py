"""What only admins may do."""

from __future__ import annotations

import logging
from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse

from server.activation import ActivateAnswer
from server.auth.dependencies import AdminDependency
from server.intake.json_body import json_body
from server.openapi import Responses, json_request, problems
from server.state import State

logger = logging.getLogger(__name__)
router = APIRouter(prefix="/admin", tags=["admin"])


MAX_WAIT_SECONDS = 600.0


class ActivateBody(BaseModel):
    """Which version to serve."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    version: Annotated[str, Field(max_length=200, description="A version of the registry.")]
    wait_seconds: Annotated[
        float,
        Field(
            ge=0,
            le=MAX_WAIT_SECONDS,
            allow_inf_nan=False,
            description="How long to wait for the workers; they go on afterwards.",
        ),
    ] = 60.0


PENDING: Responses = {
    202: {"model": ActivateAnswer, "description": "Some workers do not serve it yet."}
}
PROBLEMS = problems(
    "no-key",
    "forbidden",
    "unknown-model",
    "version-refused",
    "too-slow",
    "too-large",
    "not-json",
    "invalid",
    "queue-down",
    "storage-down",
)


@router.post(
    "/models/{name}/activate",
    summary="Serve another version of a model",
    response_model=ActivateAnswer,
    responses=PENDING | PROBLEMS,
    openapi_extra=json_request(ActivateBody, {"version 2": {"version": "2"}}),
)
async def activate(
    name: str,
    state: State,
    admin: AdminDependency,
    body: Annotated[ActivateBody, Depends(json_body(ActivateBody))],
) -> JSONResponse:
    """Change over without a pause, and say when the workers have; also back to an earlier version.

    New requests go to the new version, running ones finish on the old one. A version whose files
    are damaged, or that a worker cannot serve, is refused, and the old one goes on.
    """
    logger.info("%s activates %s %s", admin, name, body.version)
    answer = await state.activator.activate(name, body.version, body.wait_seconds)
    return JSONResponse(answer.model_dump(), 200 if answer.state == "serving" else 202)
