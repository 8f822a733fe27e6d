"""What only admins may do."""

from __future__ import annotations

import logging
from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.responses import JSONResponse

from server.auth.keys import AdminDependency
from server.intake.json_body import json_body
from server.openapi import Responses, json_request, problems
from server.schemas.activation import ActivateAnswer, ActivateBody
from server.state import State

logger = logging.getLogger(__name__)
router = APIRouter(prefix="/admin", tags=["admin"])


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
    done = await state.activator.activate(name, body.version, body.wait_seconds)
    answer = ActivateAnswer(
        model=name,
        version=body.version,
        previous=done.previous,
        state=done.state,
        num_workers=done.num_workers,
    )
    return JSONResponse(answer.model_dump(), 200 if done.state == "serving" else 202)
