"""Load while versions change: each answer has the images of the version that it names."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path

from tests.faults.bodies import Body, Oracle, files_of, some_requests
from tests.faults.client import Client
from tests.faults.cluster import Cluster
from tests.tiny_bundle import CLASS_NAMES, save_tiny_bundle


class TwoVersions:
    """Versions 1 and 2 of a model ``tiny`` in a folder, and requests that either may answer.

    Attributes
    ----------
    made : how many answers each version gave
    """

    def __init__(self, models: Path) -> None:
        for version in ("2", "1"):
            save_tiny_bundle(models, version=version, seed=int(version))
        self._bodies = some_requests(40, seed=14, num_classes=len(CLASS_NAMES))
        self._expected = {v: Oracle.of(models / "tiny" / v).files(self._bodies) for v in ("1", "2")}
        self.made = {"1": 0, "2": 0}

    async def ask_while(
        self, cluster: Cluster, change: Callable[[Client], Coroutine[None, None, None]]
    ) -> None:
        """Send all requests again and again until the change is over; none may fail."""
        async with Client([one.url for one in cluster.front_ends], at_once=20) as client:
            changing = asyncio.create_task(change(client))
            while not changing.done():
                await asyncio.gather(
                    *(self._ask(client, body, i) for i, body in enumerate(self._bodies))
                )
            await changing
            assert client.tally.failed == []
            assert client.tally.rejected == 0

    async def _ask(self, client: Client, body: Body, index: int) -> None:
        answer = await client.generate(body)
        version = answer["model"]["version"]
        assert files_of(answer) == self._expected[version][index]
        self.made[version] += 1
