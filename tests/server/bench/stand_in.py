"""A small real HTTP server on a free port that answers as MASC does, or as a test tells it to.

It runs in the event loop of the test, so a test can await what happens to its requests.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

CLASSES = ["ant", "bee", "cat"]
TIMING = "queue;dur=1.000, prefill;dur=2.000, decode;dur=3.500, total;dur=7.250"
DOCUMENTS: Mapping[str, Any] = {
    "/version": {"name": "masc", "version": "1.2.3"},
    "/models": {
        "models": [
            {"name": "tiny", "version": "7", "default": True, "weights_sha256": "ab" * 32},
            {"name": "other", "version": "1", "default": False, "weights_sha256": "cd" * 32},
        ]
    },
    "/models/tiny/classes": {"classes": [{"id": i, "name": n} for i, n in enumerate(CLASSES)]},
    "/models/other/classes": {"classes": [{"id": 4, "name": "4"}, {"id": 5, "name": "4"}]},
}

Answer = Callable[[int, dict[str, Any]], Awaitable[web.StreamResponse]]


def picture() -> web.Response:
    headers = {"X-Masc-Model": "tiny/7", "Server-Timing": TIMING}
    return web.Response(body=b"\x89PNG", content_type="image/png", headers=headers)


def images(number: int) -> web.Response:
    document = {
        "model": {"name": "tiny", "version": "7"},
        "images": [{"b64": "iVBO"}] * number,
        "timings": {"queue": 0.001, "total": 0.008},
    }
    return web.json_response(document)


def refusal(status: int, title: str = "The queue is full", **headers: str) -> web.Response:
    document = {"title": title, "status": status, "detail": f"{title}, in detail"}
    return web.Response(
        status=status,
        text=json.dumps(document),
        content_type="application/problem+json",
        headers=headers,
    )


async def answer_at_once(number: int, body: dict[str, Any]) -> web.StreamResponse:
    return picture() if body["num_images"] == 1 else images(body["num_images"])


class StandIn:
    """What it was asked, in the order of arrival.

    Parameters
    ----------
    answer : makes the answer to ``POST /generate`` of the number of the request and its body
    documents : what ``GET`` gives
    """

    def __init__(
        self, answer: Answer = answer_at_once, documents: Mapping[str, Any] = DOCUMENTS
    ) -> None:
        self.url = ""
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[Mapping[str, str]] = []
        self.connections: set[object] = set()
        self.arrived = asyncio.Event()
        self._answer = answer
        self._documents = documents

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.headers.append(request.headers)
        self.connections.add(request.transport)
        if request.method == "GET":
            known = self._documents.get(request.path)
            if isinstance(known, web.Response):
                return known
            return web.json_response(known) if known else web.Response(status=404)
        body = await request.json()
        self.bodies.append(body)
        self.arrived.set()
        return await self._answer(len(self.bodies) - 1, body)


@asynccontextmanager
async def serving(stand_in: StandIn) -> AsyncIterator[StandIn]:
    """Listen for as long as the block runs."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", stand_in.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    stand_in.url = "http://{}:{}".format(*runner.addresses[0])
    try:
        yield stand_in
    finally:
        await runner.cleanup()
