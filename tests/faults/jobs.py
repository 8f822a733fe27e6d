"""Jobs as a client sees them."""

from __future__ import annotations

import asyncio

import httpx


async def files_of_job(http: httpx.AsyncClient, url: str, seconds: float = 120.0) -> list[bytes]:
    """The images of a job, once it has ended."""
    async with asyncio.timeout(seconds):
        while True:
            status = (await http.get(url)).json()
            if status["state"] not in {"waiting", "running"}:
                break
            await asyncio.sleep(0.05)
    assert status["state"] == "ok", status
    answers = [await http.get(f"{url}/images/{i}") for i in range(len(status["images"]))]
    assert {answer.status_code for answer in answers} == {200}
    return [answer.content for answer in answers]
