from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import masc as command_line
from tests.command_line import Done, Masc
from tests.redis_server import RedisServer

# Before torch is imported: threads that wait must not spin, or tests that share their cores with
# other work take ten times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@pytest.fixture
def anyio_backend() -> str:
    """Tests that are coroutines run on asyncio, as the service does."""
    return "asyncio"


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """A test may choose how many threads torch has; the next one has as many as before."""
    torch = sys.modules.get("torch")  # many tests never import it
    before = torch.get_num_threads() if torch else int(os.environ.get("OMP_NUM_THREADS", "0"))
    yield
    torch = sys.modules.get("torch")
    if torch and before:
        torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[RedisServer]:
    """A Redis that lives as long as the tests: not to be killed or stopped."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def redis_url(shared_redis: RedisServer) -> str:
    """Address of that Redis, emptied."""
    with shared_redis.client() as client:
        client.flushall()
    return shared_redis.url


@pytest.fixture
def masc(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Masc]:
    """The command line in this process: it starts in milliseconds."""
    root = logging.getLogger()
    handlers, level, on_sigterm = root.handlers[:], root.level, signal.getsignal(signal.SIGTERM)
    for name in [name for name in os.environ if name.startswith("MASC_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str | Path, **variables: str | Path) -> Done:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["masc", *map(str, arguments)])
            for name, value in variables.items():
                patch.setenv(name, str(value))
            with pytest.raises(SystemExit) as ended:
                command_line.main()
        captured = capsys.readouterr()
        return Done(int(ended.value.code or 0), captured.out, captured.err)

    yield run
    root.handlers[:] = handlers
    root.setLevel(level)
    signal.signal(signal.SIGTERM, on_sigterm)
