"""One request at the level of ASGI messages, where a client can stop, stall and go away."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message


@dataclass
class Exchange:
    """A request whose body comes in these pieces; afterwards the client waits, or leaves.

    Attributes
    ----------
    pieces : the body
    method : and ``path``, what it asks
    gone : set it to make the client go away
    takes : unset while the client takes nothing more of the answer
    blocked : set once the application waits for the client to take more
    complete : whether the last piece says that it is the last
    read : how many pieces were asked for
    sent : what the application answered
    """

    pieces: Sequence[bytes]
    headers: Sequence[tuple[bytes, bytes]] = ((b"content-type", b"application/json"),)
    path: str = "/generate"
    method: str = "POST"
    complete: bool = True
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    takes: asyncio.Event = field(default_factory=asyncio.Event)
    blocked: asyncio.Event = field(default_factory=asyncio.Event)
    read: int = 0
    sent: list[Message] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.takes.set()

    async def run(self, app: ASGIApp) -> None:
        """Let the application answer."""
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": self.method,
            "path": self.path,
            "raw_path": self.path.encode(),
            "query_string": b"",
            "root_path": "",
            "scheme": "http",
            "server": ("masc", 80),
            "client": ("client", 1234),
            "headers": list(self.headers),
        }
        await app(scope, self._receive, self._send)

    async def _receive(self) -> Message:
        if self.read < len(self.pieces):
            piece = self.pieces[self.read]
            self.read += 1
            await asyncio.sleep(0)  # a network never has it at once
            more = self.read < len(self.pieces) or not self.complete
            return {"type": "http.request", "body": piece, "more_body": more}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if not self.takes.is_set():
            self.blocked.set()
        await self.takes.wait()
        self.sent.append(message)

    @property
    def status(self) -> int:
        """Status of the answer."""
        return int(self.sent[0]["status"])

    @property
    def body(self) -> bytes:
        """The answer, as far as it has come."""
        return b"".join(message.get("body", b"") for message in self.sent[1:])

    @property
    def document(self) -> dict[str, Any]:
        """The answer, parsed."""
        parsed = json.loads(self.body)
        assert isinstance(parsed, dict)
        return parsed

    def header(self, name: bytes) -> bytes | None:
        """One header of the answer."""
        return dict(self.sent[0]["headers"]).get(name)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what a thread makes true."""
    while not condition():  # noqa: ASYNC110 - a thread
        await asyncio.sleep(0.002)


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait, where no event loop runs, for what a thread makes true."""
    while not condition():
        time.sleep(0.002)
