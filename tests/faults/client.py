"""A client that asks for many images at once, and goes to another front end when it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import httpx

from tests.faults.bodies import Body, files_of

REFUSED = (httpx.ConnectError, httpx.RemoteProtocolError, httpx.ReadError)


@dataclass(slots=True)
class Tally:
    """What became of requests, besides those that were answered."""

    rejected: int = 0  # 429 and 503, before anything was accepted
    failed: list[str] = field(default_factory=list)


class Client:
    """Asks the front ends in turn.

    Parameters
    ----------
    urls : of the front ends; may be changed while it runs
    at_once : requests under way
    """

    def __init__(self, urls: Sequence[str], at_once: int = 40, timeout: float = 180.0) -> None:
        self.urls = list(urls)
        self.tally = Tally()
        self.num_answered = 0
        self.is_stopping = False  # nothing is sent any more; what is under way is awaited
        self._turn = 0
        self._places = asyncio.Semaphore(at_once)
        limits = httpx.Limits(max_connections=at_once + 10)
        self.http = httpx.AsyncClient(timeout=timeout, limits=limits)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.aclose()

    async def generate(self, body: Body, **headers: str) -> Any:
        """The answer to a request, which is sent again for as long as it is refused.

        None if the client stops before it was accepted.
        """
        async with self._places:
            while not self.is_stopping:
                self._turn += 1
                url = self.urls[self._turn % len(self.urls)]
                try:
                    answer = await self.http.post(f"{url}/generate", json=body, headers=headers)
                except REFUSED:  # nobody listens there any more, or on a connection that was kept
                    self.tally.rejected += 1
                    await asyncio.sleep(0.05)
                    continue
                if answer.status_code in {429, 503}:
                    assert int(answer.headers["Retry-After"]) >= 1
                    self.tally.rejected += 1
                    await asyncio.sleep(0.1)
                    continue
                if answer.status_code != 200:
                    self.tally.failed.append(answer.text)
                    return None
                self.num_answered += 1
                return answer.json()
            return None

    async def files(self, bodies: Sequence[Body]) -> list[list[bytes]]:
        """The images of many requests."""
        answers = await asyncio.gather(*map(self.generate, bodies))
        assert self.tally.failed == []
        return [files_of(answer) for answer in answers]


async def keep_asking(
    client: Client,
    bodies: list[Body],
    files: list[list[bytes]],
    read: Callable[[bytes], bytes] = bytes,
) -> None:
    """Ask for the images of the bodies, again and again, until the client stops; check each.

    What `read` makes of a file is what has to be equal.
    """

    async def one(body: Body, expected: list[bytes]) -> None:
        answer = await client.generate(body)
        if answer is not None or not client.is_stopping:
            assert list(map(read, files_of(answer))) == list(map(read, expected))

    while not client.is_stopping:
        await asyncio.gather(*(one(*pair) for pair in zip(bodies, files, strict=True)))
