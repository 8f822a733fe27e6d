"""The response to any error: OpenAI's form below ``/v1``, elsewhere a problem document."""

from __future__ import annotations

import asyncio
import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from masc_core.errors import MascError
from server.drain import Drain
from server.errors import InvalidBodyError, response_to
from server.openai.errors import PREFIX, openai_response

logger = logging.getLogger(__name__)

# What routes and what they depend on may raise.
HANDLED_ERRORS = (
    MascError,
    InvalidBodyError,
    RequestValidationError,
    HTTPException,
    ClientDisconnect,
)


def error_response(path: str, error: Exception) -> Response:
    """Answer to a request of that path, without the root path."""
    is_openai = path == PREFIX or path.startswith(f"{PREFIX}/")
    return openai_response(error) if is_openai else response_to(error)


def install(app: FastAPI) -> None:
    """Answer every error of the application, unhandled exceptions included."""

    async def answer(request: Request, error: Exception) -> Response:
        return error_response(request.scope["path"], error)

    for error in (*HANDLED_ERRORS, Exception):
        app.add_exception_handler(error, answer)


class AnswerUnexpected:
    """Pure ASGI middleware that answers unhandled exceptions, and what the shutdown cancels.

    Starlette would do so outside of all middleware: a page of another origin could not read it.
    A request that is cancelled at the end, such as one whose body is not all there, gets 503.
    """

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self._app, self._drain = app, drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        has_begun = False

        async def note_start(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            await self._app(scope, receive, note_start)
        except asyncio.CancelledError:
            if not self._drain.is_aborted:
                raise
            if not has_begun:
                await error_response(scope["path"], self._drain.error())(scope, receive, send)
        except Exception as error:
            if has_begun:
                raise
            logger.exception("%s %s", scope["method"], scope["path"])
            await error_response(scope["path"], error)(scope, receive, send)
