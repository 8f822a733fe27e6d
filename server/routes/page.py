"""The page for people, served from memory with an ETag.

Only the files that are in ``server/static`` at the first request exist; a path is looked up among
their names, so none leads out of the folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from server.answers.images import etag_of

STATIC = Path(__file__).parents[1] / "static"
MEDIA_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, slots=True)
class Asset:
    """One file of the page."""

    content: bytes
    media_type: str
    etag: str

    @classmethod
    def read(cls, path: Path) -> Asset:
        """Read a file and derive its ETag from its content."""
        content = path.read_bytes()
        return cls(content, MEDIA_TYPES[path.suffix], etag_of(content))


@cache
def assets() -> Mapping[str, Asset]:
    """Every file of the page by its name."""
    return {path.name: Asset.read(path) for path in STATIC.iterdir() if path.suffix in MEDIA_TYPES}


@router.head("/")
@router.get("/")
async def page(request: Request) -> Response:
    """Serve the page itself."""
    return _serve("index.html", request)


@router.head("/static/{name}")
@router.get("/static/{name}")
async def static(name: str, request: Request) -> Response:
    """Serve a script, a style sheet or a picture of the page."""
    return _serve(name, request)


def _serve(name: str, request: Request) -> Response:
    asset = assets().get(name)
    if asset is None:
        raise HTTPException(404, f"there is no file {name!r}")
    # Names stay the same from version to version, so a browser asks each time and mostly gets 304.
    headers = {"ETag": asset.etag, "Cache-Control": "no-cache"}
    if asset.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(asset.content, headers=headers, media_type=asset.media_type)
