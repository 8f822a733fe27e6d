"""Bodies of a change of versions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

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


class ActivateAnswer(BaseModel):
    """What has come of it."""

    model: str
    version: str
    previous: Annotated[str | None, Field(description="The version that was active before.")]
    state: Annotated[
        Literal["serving", "pending"],
        Field(description="`serving` once all workers that are ready serve the version."),
    ]
    num_workers: Annotated[int, Field(description="How many workers serve it.")]
