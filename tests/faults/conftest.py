from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.bodies import Oracle
from tests.faults.cluster import SHIPPED, Cluster
from tests.redis_server import RedisServer


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    """A Redis that keeps its data in an append-only file; of one test alone."""
    with RedisServer(appendonly="yes", appendfsync="everysec") as server:
        yield server


@pytest.fixture(scope="session")
def shipped() -> Oracle:
    """The model that ships, as the plain loop runs it."""
    folder = SHIPPED / "cifar10"
    return Oracle.of(folder / (folder / "current").read_text().strip())


@pytest.fixture(scope="package")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The model that ships, with a front end and two workers.

    A test may start more front ends, and leaves this one and a worker behind.
    """
    with (
        RedisServer(appendonly="yes", appendfsync="everysec") as server,
        Cluster(tmp_path_factory.mktemp("shared"), SHIPPED, server) as cluster,
    ):
        yield cluster.start(workers=2)


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    folder = tmp_path / "logs"
    folder.mkdir()
    return folder
