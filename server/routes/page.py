"""The page for people, served from memory.

A name is looked up among those of ``server/static``, so no path leads out of the folder. An ETag is
that of the content, the same at every replica; Starlette's ``StaticFiles`` takes the file's time.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from masc_core.escapes import quoted
from server.answers.images import cached_response

STATIC = Path(__file__).parents[1] / "static"
MEDIA_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}

router = APIRouter(include_in_schema=False)


@cache
def _files() -> Mapping[str, bytes]:
    return {path.name: path.read_bytes() for path in STATIC.iterdir() if path.suffix in MEDIA_TYPES}


@router.get("/")
async def page(request: Request) -> Response:
    """Serve the page itself."""
    return _serve("index.html", request)


@router.get("/static/{name}")
async def static(name: str, request: Request) -> Response:
    """Serve a script, a style sheet or a picture of the page."""
    return _serve(name, request)


def _serve(name: str, request: Request) -> Response:
    content = _files().get(name)
    if content is None:
        raise HTTPException(404, f"there is no file {quoted(name)}")
    # Names stay the same from version to version, so a browser asks each time and mostly gets 304.
    return cached_response(request, content, MEDIA_TYPES[Path(name).suffix], "no-cache")
