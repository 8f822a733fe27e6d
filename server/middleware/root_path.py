"""The path below which a proxy shows the service to its clients."""

from __future__ import annotations

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send


class RootPath:
    """Pure ASGI middleware that takes a root path off again where a proxy leaves it on.

    What is behind it sees the same paths in either case; the path itself without a slash leads to
    the page. ASGI's ``root_path`` is not set: a path may begin like it by chance, where the proxy
    has taken it off.

    Parameters
    ----------
    app : the application behind it
    root_path : such as ``/masc``
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app, self._root_path = app, root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] == "http" and scope["path"] == self._root_path:
            await RedirectResponse(f"{self._root_path}/")(scope, receive, send)
            return
        if scope["type"] == "http" and scope["path"].startswith(f"{self._root_path}/"):
            # In place: what is outside of this middleware answers errors by their paths, too.
            scope["path"] = scope["path"].removeprefix(self._root_path)
        await self._app(scope, receive, send)
