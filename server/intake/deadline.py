"""How long a client gives a request."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import Header

from masc_core.errors import InvalidFieldError

HEADER: Final = "X-Masc-Timeout"

TimeoutHeader = Annotated[
    float | None,
    Header(
        alias=HEADER,
        gt=0,
        allow_inf_nan=False,
        description="Seconds after which the images are no longer wanted; by default, and at most, "
        "the service's own limit.",
    ),
]


def time_limit(given: float | None, most: float) -> float:
    """Seconds that a request has, at most ``most``, which is the default.

    Raises
    ------
    InvalidFieldError : more was asked for
    """
    if given is None:
        return most
    if given > most:
        raise InvalidFieldError(HEADER, f"must be at most {most:g} seconds here")
    return given
